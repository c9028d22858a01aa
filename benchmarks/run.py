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
    ("schedule", "ten retries over {wait:g} s", "test_schedule", "samples"),
)
PACKAGES = ("pytest-celery-faults", "celery", "kombu", "redis", "fakeredis", "freezegun", "greenlet", "pytest")
#: Variables that change what pytest, Celery and Celery's test worker do, or how fast Python runs.
NOT_OURS = (
    "PYTEST", "CELERY", "COVERAGE", "COV_CORE", "DJANGO_SETTINGS_MODULE", "TEST_BROKER", "NO_WORKER",
    "WORKER_LOGLEVEL", "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONASYNCIODEBUG",
)  # fmt: skip
RETRIES = 10
#: No further round is begun after so many seconds, and whatever runs is given up at the deadline.
ENOUGH, DEADLINE = 90, 280


@dataclass(frozen=True)
class Plan:
    """How much one round measures; each contender runs once in every round."""

    rounds: int = 3
    tests: int = 40
    tests_with_worker: int = 2  # each stop of that worker takes about a second
    trips: int = 200
    schedules: int = 10
    redis: bool = True

    def contenders(self) -> list[str]:
        return [name for name in CONTENDERS if name != "start_worker" or self.redis]

    def tests_of(self, contender: str) -> int:
        return self.tests_with_worker if contender == "start_worker" else self.tests

    def expected(self, contender: str) -> dict[str, tuple[int, int, dict[str, int]]]:
        """For each test: how often it runs, how many samples it makes, how often which task body runs in it."""
        tests = {
            "test_one_task": (self.tests_of(contender), 0, {"add": 1}),
            "test_round_trips": (1, self.trips, {"add": self.trips + 1}),
        }
        if contender != "start_worker":
            tests["test_schedule"] = (self.schedules, 1, {"flaky": RETRIES + 1})
        return tests


QUICK = {"rounds": 1, "tests": 30, "tests_with_worker": 2, "trips": 200, "schedules": 5}


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


def measure(contender: str, plan: Plan, redis_url: str | None, until: float) -> dict[str, Any]:
    """One pytest run of one contender in a process of its own."""
    # Neither the settings of the machine's user nor their pytest plugins belong to what is compared.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(path)}
    if redis_url is not None:
        environment["BENCHMARK_REDIS"] = redis_url
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        out = Path(folder, "out.json")
        command = [
            sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "-p", "recording",
            f"--benchmark-out={out}", f"--benchmark-tests={plan.tests_of(contender)}",
            f"--benchmark-trips={plan.trips}", f"--benchmark-schedules={plan.schedules}",
        ]  # fmt: skip
        if contender == "plugin":
            command += ["-p", "celery_faults", "--celery-faults", "--celery-faults-app=workload:app"]
        command.append(str(HERE / f"cases_{contender}.py"))
        started = time.perf_counter()
        try:
            run = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True,
                timeout=max(until - time.monotonic(), 1),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise SystemExit(f"benchmark: {contender}: not done after {DEADLINE} s in all") from None
        wall = time.perf_counter() - started
        if run.returncode != 0:
            raise SystemExit(f"benchmark: {contender}: pytest failed\n{run.stdout[-6000:]}{run.stderr[-2000:]}")
        return {"contender": contender, "wall": wall, "tests": json.loads(out.read_text("utf-8"))}


def measure_all(plan: Plan, began: float) -> list[dict[str, Any]]:
    runs = []
    with contextlib.ExitStack() as stack:
        redis_url = stack.enter_context(redis_server()) if plan.redis else None
        # Round by round, so that a change of the machine's load meets all contenders.
        for number in range(plan.rounds):
            if time.monotonic() - began > ENOUGH:
                print(f"the machine is slow: {number} of {plan.rounds} rounds measured", file=sys.stderr)
                break
            runs += [measure(name, plan, redis_url, began + DEADLINE) for name in plan.contenders()]
    return runs


# -- judging


def check(runs: list[dict[str, Any]], plan: Plan, wait: float) -> None:
    """Refuse measurements in which what was to be measured did not happen.

    Raises:
        SystemExit: with the reasons.
    """
    ran = {run["contender"] for run in runs}
    wrong = [f"{name}: nothing was measured" for name in plan.contenders() if name not in ran]
    for run in runs:
        wrong += [f"{run['contender']}: {reason}" for reason in _what_is_wrong(run, plan, wait)]
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


def show(report: dict[str, Any]) -> None:
    """The table, in Markdown."""
    machine, table, wait = report["machine"], report["cells"], report["wait"]
    lines = [["median"]]
    for contender, title in CONTENDERS.items():
        lines[0] += [title] if contender == "plugin" else [title, "to plugin"]
    for row, title, *_ in ROWS:
        line = [title.format(wait=wait)]
        for contender in CONTENDERS:
            line.append(_text(table[row][contender]))
            if contender != "plugin":
                line.append(_ratio(table[row][contender], table[row]["plugin"]))
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")
    print()
    print("* computed, not measured. Eager execution waits for nothing: its retries follow each other at once.")
    print(f"{machine['python']}, {machine['platform']}, {machine['cpus']} CPUs")
    print(", ".join(f"{name} {version or '(none)'}" for name, version in machine["versions"].items()))
    before, after = report["load"]["before"], report["load"]["after"]
    print(f"load average of 1, 5, 15 minutes: {before} before, {after} after; {report['took']:.0f} s in all")
    if before and max(before[0], after[0]) > machine["cpus"]:
        print("the machine was busy with other things: trust the ratios more than the times")


# -- the command


def make_report(plan: Plan) -> dict[str, Any]:
    began, before, wait = time.monotonic(), load(), scheduled_wait()
    runs = measure_all(plan, began)
    check(runs, plan, wait)
    return {
        "machine": describe_machine(),
        "load": {"before": before, "after": load()},
        "took": time.monotonic() - began,
        "wait": wait,
        "plan": asdict(plan),
        "cells": cells(runs, plan, wait),
        "runs": runs,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything that was measured there")
    parser.add_argument("--quick", action="store_true", help="one round with fewer repetitions")
    parser.add_argument("--no-redis", action="store_true", help="leave out what needs redis-server")
    parser.add_argument("--show", type=Path, metavar="PATH", help="check and print what --json wrote; measure nothing")
    options = parser.parse_args(arguments)
    if options.show is not None:
        report = json.loads(options.show.read_text("utf-8"))
        plan, wait = Plan(**report["plan"]), scheduled_wait()
        check(report["runs"], plan, wait)
        show(report | {"cells": cells(report["runs"], plan, wait), "wait": wait})
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
