"""Measures what a user would use, side by side in one run; README.md says how."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import more
import page

HERE = Path(__file__).resolve().parent
CONTENDERS = {
    "plugin": "this plugin",
    "start_worker": "start_worker, Redis",
    "eager": "eager apply()",
}
#: Row, title, name of the test, and what of it: a phase of the test, or the samples that it made inside.
ROWS = (
    ("whole_test", "whole test, one task", "test_one_task", "whole"),
    ("set_up", "  of it set-up", "test_one_task", "setup"),
    ("body", "  of it the test's body", "test_one_task", "call"),
    ("teardown", "  of it teardown", "test_one_task", "teardown"),
    ("round_trip", "one delay().get()", "test_round_trips", "samples"),
    ("chord", "chord of three and its body", "test_chord", "samples"),
    ("schedule", "ten retries over {wait:g} s", "test_schedule", "samples"),
)
PACKAGES = ("pytest-celery-faults", "celery", "kombu", "redis", "fakeredis", "freezegun", "greenlet", "pytest")
#: Variables that change what pytest, Celery and Celery's test worker do, or how fast Python runs.
NOT_OURS = (
    "PYTEST", "CELERY", "COVERAGE", "COV_CORE", "DJANGO_SETTINGS_MODULE", "TEST_BROKER", "NO_WORKER",
    "WORKER_LOGLEVEL", "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONDONTWRITEBYTECODE", "PYTHONASYNCIODEBUG",
)  # fmt: skip
RETRIES = 10
#: No further round is begun after so many seconds, and whatever runs is given up at the deadline.
ENOUGH, DEADLINE = 90, 295


@dataclass(frozen=True)
class Plan:
    """How much one round measures; each contender runs once in every round."""

    rounds: int = 2
    tests: int = 40
    tests_with_worker: int = 2  # each stop of that worker takes about a second
    trips: int = 200
    chords: int = 20
    schedules: int = 10
    redis: bool = True
    #: Beside the contenders: tasks in one test, tests in one process, modules with the clock, runs that only collect.
    sizes: tuple[int, ...] = (100, 100, 100, 100, 100, 10_000)
    many: int = 10_000
    modules: int = 1_500
    clocks: int = 100
    collections: int = 15
    suite: bool = True

    def contenders(self) -> list[str]:
        return [name for name in CONTENDERS if name != "start_worker" or self.redis]

    def tests_of(self, contender: str) -> int:
        return self.tests_with_worker if contender == "start_worker" else self.tests

    def expected(self, contender: str) -> dict[str, tuple[int, int, dict[str, int]]]:
        """For each test: how often it runs, how many samples it makes, how often which task body runs in it."""
        tests = {
            "test_one_task": (self.tests_of(contender), 0, {"add": 1}),
            "test_round_trips": (1, self.trips, {"add": self.trips + 1}),
            "test_chord": (1, self.chords, {"add": 3 * (self.chords + 1), "total": self.chords + 1}),
        }
        if contender != "start_worker":
            tests["test_schedule"] = (self.schedules, 1, {"flaky": RETRIES + 1})
        return tests


QUICK = {
    "rounds": 1, "tests": 30, "tests_with_worker": 2, "trips": 200, "chords": 5, "schedules": 5,
    "sizes": (100, 300), "many": 200, "clocks": 5, "collections": 2, "suite": False,
}  # fmt: skip


def scheduled_wait() -> float:
    """The seconds that the retries of the task ``flaky`` ask for, as Celery computes them."""
    from celery.utils.time import get_exponential_backoff_interval

    return sum(get_exponential_backoff_interval(1, number, 100_000) for number in range(RETRIES))


# -- measuring


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of our own on a free port, with its data in a temporary folder."""
    import redis

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="benchmark-redis-") as folder:
        command = [
            "redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", folder,
            "--save", "", "--appendonly", "no", "--daemonize", "no", "--logfile", str(Path(folder, "log")),
        ]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(host="127.0.0.1", port=port, socket_timeout=5)
            until = time.monotonic() + 30
            while True:
                try:
                    # Somebody else may have taken the port meanwhile, another Redis even.
                    if client.info("server")["process_id"] == server.pid:
                        break
                    raise SystemExit(f"benchmark: port {port} belongs to another redis-server; run again")
                except (redis.ConnectionError, redis.TimeoutError):
                    if server.poll() is not None or time.monotonic() > until:
                        log = Path(folder, "log").read_text("utf-8", "replace")
                        raise SystemExit(f"benchmark: redis-server did not start; its log:\n{log}") from None
                    time.sleep(0.02)
            client.close()
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def run_command(
    command: list[str], until: float, cwd: Any = None, extra: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A process that knows nothing of the settings of the machine's user nor of their pytest plugins."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(path), **(extra or {})}
    try:
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=max(until - time.monotonic(), 1)
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"benchmark: not done after {DEADLINE} s in all: {' '.join(command[-4:])}") from None


def run_cases(name: str, options: list[str], until: float, extra: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """What the tests of ``cases_<name>.py`` measured in one run of pytest."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        out = Path(folder, "out.json")
        command = [
            sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "-p", "recording",
            f"--benchmark-out={out}", *options,
        ]  # fmt: skip
        if name in ("plugin", "growth"):
            command += ["-p", "celery_faults", "--celery-faults", "--celery-faults-app=workload:app"]
        done = run_command([*command, str(HERE / f"cases_{name}.py")], until, folder, extra)
        if done.returncode != 0:
            raise SystemExit(f"benchmark: {name}: pytest failed\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
        return json.loads(out.read_text("utf-8"))


def measure(contender: str, plan: Plan, redis_url: str | None, until: float) -> dict[str, Any]:
    """One pytest run of one contender in a process of its own."""
    options = [
        f"--benchmark-tests={plan.tests_of(contender)}", f"--benchmark-trips={plan.trips}",
        f"--benchmark-chords={plan.chords}", f"--benchmark-schedules={plan.schedules}",
    ]  # fmt: skip
    started = time.perf_counter()
    tests = run_cases(contender, options, until, {} if redis_url is None else {"BENCHMARK_REDIS": redis_url})
    return {"contender": contender, "wall": time.perf_counter() - started, "tests": tests}


def measure_more(plan: Plan, redis_url: str | None, until: float) -> dict[str, Any]:
    """What is measured of the plugin alone; see ``more.py``."""

    def run(command: list[str], cwd: Any = None, extra: dict[str, str] | None = None) -> Any:
        return run_command(command, until, cwd, extra)

    def cases(name: str, options: list[str]) -> list[dict[str, Any]]:
        return run_cases(name, options, until)

    return {
        "growth": more.measure_growth(cases, list(plan.sizes), plan.many),
        "clock": more.measure_clock(run, plan.modules, plan.clocks),
        "unused": more.measure_unused(run, plan.collections),
        "suite": (
            more.measure_suite(run, redis_url)
            if plan.suite and redis_url is not None
            else {"left_out": "without redis-server, or in a quick run"}
        ),
    }


def measure_all(plan: Plan, began: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    runs = []
    with contextlib.ExitStack() as stack:
        redis_url = stack.enter_context(redis_server()) if plan.redis else None
        # Round by round, so that a change of the machine's load meets all contenders.
        for number in range(plan.rounds):
            if time.monotonic() - began > ENOUGH:
                print(f"the machine is slow: {number} of {plan.rounds} rounds measured", file=sys.stderr)
                break
            runs += [measure(name, plan, redis_url, began + DEADLINE) for name in plan.contenders()]
        return runs, measure_more(plan, redis_url, began + DEADLINE)


# -- judging


def check(runs: list[dict[str, Any]], besides: dict[str, Any], plan: Plan, wait: float) -> None:
    """Refuse measurements in which what was to be measured did not happen.

    Raises:
        SystemExit: with the reasons.
    """
    ran = {run["contender"] for run in runs}
    wrong = [f"{name}: nothing was measured" for name in plan.contenders() if name not in ran]
    for run in runs:
        wrong += [f"{run['contender']}: {reason}" for reason in _what_is_wrong(run, plan, wait)]
    wrong += more.wrong(besides)
    if wrong:
        raise SystemExit("benchmark: this run is worth nothing:\n  " + "\n  ".join(dict.fromkeys(wrong)))


def _what_is_wrong(run: dict[str, Any], plan: Plan, wait: float) -> Iterator[str]:
    for name, (count, samples, executed) in plan.expected(run["contender"]).items():
        tests = [test for test in run["tests"] if test["test"] == name]
        if len(tests) != count:
            yield f"{name} ran {len(tests)} times, not {count}"
        for test in tests:
            if test["outcome"] != "passed":
                yield f"{name} {test['outcome']}"
            if test["executed"] != executed:
                yield f"{name} executed the tasks {test['executed']}, not {executed}"
            if len(test["samples"]) != samples:
                yield f"{name} measured {len(test['samples'])} times, not {samples}"
            if name == "test_schedule" and run["contender"] == "plugin" and test.get("waited") != wait:
                yield f"{name} let {test.get('waited')} s pass, not {wait:g}"
    # A clock that is not the real one stands still in a test, or runs ahead of the process's own time.
    for row, _, name, key in ROWS:
        values = _values([run], name, key)
        if not values and name in plan.expected(run["contender"]):
            yield f"{row}: nothing was measured"
        if not all(value > 0 for value in values):
            yield f"{row}: took no time at all"
        if sum(values) > run["wall"]:
            yield f"{row}: took {sum(values):.1f} s within {run['wall']:.1f} s"


def _values(runs: list[dict[str, Any]], name: str, key: str) -> list[float]:
    tests = [test for run in runs for test in run["tests"] if test["test"] == name]
    return [value for test in tests for value in (test["samples"] if key == "samples" else [test.get(key, 0.0)])]


def cells(runs: list[dict[str, Any]], plan: Plan, wait: float) -> dict[str, dict[str, dict[str, Any]]]:
    """Row, contender, and what is in that cell, in seconds."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row, _, name, key in ROWS:
        for contender in CONTENDERS:
            values = sorted(_values([run for run in runs if run["contender"] == contender], name, key))
            if values:
                cell: dict[str, Any] = {
                    "measured": True,
                    "median": statistics.median(values),
                    "lowest": values[0],
                    "highest": values[-1],
                    "count": len(values),
                }
            elif contender == "start_worker" and row == "schedule":
                cell = {"measured": False, "computed": wait, "why": "by the schedule: it would wait for real"}
            else:
                cell = {"measured": False, "why": "without redis-server"}
            table.setdefault(row, {})[contender] = cell
    return table


# -- showing


def describe_machine() -> dict[str, Any]:
    found = shutil.which("redis-server")
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else ""
    versions = dict(part.split("=", 1) for part in version.split() if "=" in part)
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in PACKAGES} | {"redis-server": versions.get("v")},
    }


def load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _seconds(value: float) -> str:
    return f"{value:.4g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _text(cell: dict[str, Any]) -> str:
    if cell["measured"]:
        return f"{_seconds(cell['median'])} (n={cell['count']})"
    return f"{cell['computed']:g} s (by the schedule) *" if "computed" in cell else "not measured"


def _ratio(cell: dict[str, Any], base: dict[str, Any]) -> str:
    value = cell.get("median", cell.get("computed"))
    if value is None:
        return ""
    ratio = value / base["median"]
    return f"{ratio:,.0f} x" if ratio >= 100 else f"{ratio:.2g} x"


def table(report: dict[str, Any]) -> list[str]:
    """The contenders, and what is measured of the plugin alone: two tables in Markdown."""
    lines = [["median"]]
    for contender, title in CONTENDERS.items():
        lines[0] += [title] if contender == "plugin" else [title, "to plugin"]
    for row, title, *_ in ROWS:
        line = [title.format(wait=report["wait"])]
        for contender in CONTENDERS:
            cell = report["cells"][row][contender]
            line.append(_text(cell))
            if contender != "plugin":
                line.append(_ratio(cell, report["cells"][row]["plugin"]))
        lines.append(line)
    alone = [["beside them", "this plugin", "compared with"], *map(list, more.rows(report["more"]))]
    return [*_markdown(lines), "", *_markdown(alone)]


def _markdown(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    return [f"| {' | '.join(line)} |" for line in padded]


def machine_lines(report: dict[str, Any]) -> list[str]:
    machine, (before, after) = report["machine"], (report["load"]["before"], report["load"]["after"])
    lines = [
        f"{machine['python']}, {machine['platform']}, {machine['cpus']} CPUs",
        ", ".join(f"{name} {version or '(none)'}" for name, version in machine["versions"].items()),
        f"load average of 1, 5, 15 minutes: {before} before, {after} after; {report['took']:.0f} s in all",
    ]
    if before and max(before[0], after[0]) > machine["cpus"]:
        lines.append("the machine was busy with other things: trust the ratios more than the times")
    return lines


NOTE = "* computed, not measured. Eager execution waits for nothing: its retries follow each other at once."


def show(report: dict[str, Any]) -> None:
    print("\n".join([*table(report), "", NOTE, *machine_lines(report)]))


# -- the command


def make_report(plan: Plan) -> dict[str, Any]:
    began, before, wait = time.monotonic(), load(), scheduled_wait()
    runs, besides = measure_all(plan, began)
    check(runs, besides, plan, wait)
    return {
        "machine": describe_machine(),
        "load": {"before": before, "after": load()},
        "took": time.monotonic() - began,
        "wait": wait,
        "plan": asdict(plan),
        "cells": cells(runs, plan, wait),
        "more": besides,
        "runs": runs,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything that was measured there")
    parser.add_argument("--quick", action="store_true", help="one round with fewer repetitions")
    parser.add_argument("--no-redis", action="store_true", help="leave out what needs redis-server")
    parser.add_argument("--show", type=Path, metavar="PATH", help="check and print what --json wrote; measure nothing")
    parser.add_argument("--page", type=Path, metavar="PATH", help="with --show: write the page of the documentation")
    options = parser.parse_args(arguments)
    if options.page is not None and options.show is None:
        parser.error("--page: is made of what --json wrote; add --show PATH")
    if options.show is not None:
        report = json.loads(options.show.read_text("utf-8"))
        plan, wait = Plan(**report["plan"]), scheduled_wait()
        check(report["runs"], report["more"], plan, wait)
        report |= {"cells": cells(report["runs"], plan, wait), "wait": wait}
        show(report)
        if options.page is not None:
            options.page.write_text(page.page(report, table(report), machine_lines(report)), "utf-8")
        return
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.absolute().parent}")
    if not options.no_redis and shutil.which("redis-server") is None:
        raise SystemExit(
            "benchmark: redis-server is not on the PATH, and without it Celery's own test worker cannot be measured. "
            "Install it, or leave that column out with --no-redis"
        )
    # So that a terminated run stops its redis-server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmark: terminated"))
    report = make_report(Plan(**(QUICK if options.quick else {}), redis=not options.no_redis))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    show(report)


if __name__ == "__main__":
    main()
