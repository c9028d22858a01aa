"""What is measured beside the contenders: growth, the clock, a run that does not use the plugin, and a whole suite.

Each part gives what it measured as data; `wrong` refuses it where what was to be measured did not happen, `lines` says
it in words. Both read that data alone, so that they work on a file as well.
"""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
SUITE = HERE.parent / "tests" / "suites" / "contrib"

Part = dict[str, Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def measure_growth(pytest_run: Callable[..., list[Part]], sizes: list[int], many: int) -> Part:
    """Tasks in one test, and tests in one process; the latter with and without the plugin, since pytest keeps some."""
    few = f"--benchmark-tasks={','.join(map(str, sizes))}"
    tests = pytest_run("growth", [few, f"--benchmark-many={many}"])
    without = pytest_run("growth_without", [f"--benchmark-many={many}"])
    return {
        "tasks": [
            {"tasks": test["tasks"], "seconds": test["samples"][0], "memory": test["memory"]}
            | {"executed": test["executed"], "outcome": test["outcome"]}
            for test in tests
            if test["test"] == "test_tasks" and test["samples"]
        ],
        "many": _many(tests),
        "many_without": _many(without),
    }


def _many(tests: list[Part]) -> Part:
    ran = [test for test in tests if test["test"] == "test_many"]
    half = len(ran) // 2
    return {
        "count": len(ran),
        "passed": sum(test["outcome"] == "passed" and test["executed"] == {"add": 1} for test in ran),
        "surroundings": [test["surroundings"] for test in ran if "surroundings" in test],
        "first_half": statistics.median([test["whole"] for test in ran[:half]] or [0]),
        "second_half": statistics.median([test["whole"] for test in ran[half:]] or [0]),
    }


def measure_clock(run: Run, modules: int, times: int) -> Part:
    done = run([sys.executable, str(HERE / "clock.py"), str(modules), str(times)])
    return json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-2000:]}


def measure_unused(run: Run, times: int) -> Part:
    """A run that collects one plain test, with the plugin and without, by turns; pytest looks for plugins in both."""
    found: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        Path(folder, "test_plain.py").write_text("def test_plain():\n    pass\n", "utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", folder]
        for number in range(times + 1):
            for kind, options in (("without", ["-p", "no:celery_faults"]), ("with", [])):
                began = time.perf_counter()
                done = run([*command, *options], cwd=folder, extra={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": ""})
                took = time.perf_counter() - began
                if done.returncode != 0 or "1 test collected" not in done.stdout:
                    return {"failed": done.stdout[-2000:] + done.stderr[-2000:]}
                if number:  # the first run compiles
                    found[kind].append(took)
    return dict(found)


def measure_suite(run: Run, redis_url: str) -> Part:
    """The suite that was written for Celery's own test tools: on a real Redis in real time, and armed in memory."""
    if not SUITE.is_dir():
        return {"missing": f"there is no {SUITE}"}
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nowhere = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        return {
            "real": _suite_run(run, f"{redis_url}/9", []),
            "ours": _suite_run(run, nowhere, ["-p", "celery_faults", "--celery-faults"]),
        }


def _suite_run(run: Run, url: str, options: list[str]) -> Part:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        suite = shutil.copytree(SUITE, Path(folder, "suite"), ignore=shutil.ignore_patterns("__pycache__"))
        Path(suite, "pytest.ini").write_text("[pytest]\n", "utf-8")
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *options]
        began = time.perf_counter()
        done = run(command, cwd=suite, extra={"SUITE_REDIS_URL": url})
        took = time.perf_counter() - began
        ends = {}
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  it is pytest's
                kinds = [end.tag for end in case if end.tag in ("failure", "error", "skipped")]
                ends[f"{case.get('classname')}::{case.get('name')}"] = ", ".join(kinds) or "passed"
        return {"seconds": took, "ends": ends, "code": done.returncode}


# -- judging


def wrong(more: Part) -> Iterator[str]:
    """A reason for each thing that was not measured as it should have been."""
    for name, judge in (("growth", _growth), ("clock", _clock), ("unused", _unused), ("suite", _suite)):
        part = more.get(name)
        if part is None:
            yield f"{name}: nothing was measured"
        elif "failed" in part:
            yield f"{name}: {part['failed']}"
        elif not part.keys() & {"left_out", "missing"}:
            yield from (f"{name}: {reason}" for reason in judge(part))


def _growth(part: Part) -> Iterator[str]:
    sizes = {run["tasks"] for run in part["tasks"]}
    if len(sizes) < 2:
        yield f"tests of {len(sizes)} sizes ran, and it takes two to compare"
    for run in part["tasks"]:
        if run["executed"] != {"add": run["tasks"] + 20} or run["outcome"] != "passed":
            yield f"a test of {run['tasks']} tasks {run['outcome']} and executed {run['executed']}"
        if not run["seconds"] > 0:
            yield f"a test of {run['tasks']} tasks took no time at all"
    for name in ("many", "many_without"):
        many = part[name]
        if many["count"] < 200 or many["passed"] != many["count"]:
            yield f"{name}: {many['passed']} of {many['count']} tests did what they should"
        elif len(many["surroundings"]) != 2:
            yield f"{name}: what could grow was looked at {len(many['surroundings'])} times, not twice"
    if part["many"]["surroundings"] and not part["many"]["surroundings"][0]["names"]:
        yield "many: the plugin was not there"


def _clock(part: Part) -> Iterator[str]:
    for name in ("plugin", "freezegun"):
        if len(part[name]) < 3 or not all(took > 0 for took in part[name]):
            yield f"{name} started {len(part[name])} times"


def _unused(part: Part) -> Iterator[str]:
    if not part["with"] or len(part["with"]) != len(part["without"]):
        yield f"{len(part['with'])} runs with the plugin, {len(part['without'])} without"


def _suite(part: Part) -> Iterator[str]:
    real, ours = part["real"], part["ours"]
    if not real["ends"] or real["ends"] != ours["ends"]:
        differ = [name for name in {**real["ends"], **ours["ends"]} if real["ends"].get(name) != ours["ends"].get(name)]
        yield f"{len(real['ends'])} tests on Redis, {len(ours['ends'])} in memory; ended otherwise: {', '.join(differ)}"


# -- showing


def rows(more: Part) -> list[tuple[str, str, str]]:
    """What was measured, how much that is, and what it is compared with."""
    return [row for make in (_growth_rows, _many_rows, _clock_rows, _unused_rows, _suite_rows) for row in make(more)]


def _is_there(more: Part, name: str) -> bool:
    return not more[name].keys() & {"left_out", "missing"}


def _growth_rows(more: Part) -> Iterator[tuple[str, str, str]]:
    runs = more["growth"]["tasks"]
    costs = {
        size: statistics.median([run["seconds"] / size for run in runs if run["tasks"] == size])
        for size in sorted({run["tasks"] for run in runs})
    }
    fewest = min(costs)
    for size, cost in costs.items():
        of = "" if size == fewest else f"{cost / costs[fewest]:.2f} x that of {fewest}"
        yield f"each of {size:,} tasks in one test", f"{cost * 1000:.3g} ms", of
    grown = [run for run in runs if run["tasks"] == max(costs) and None not in run["memory"]]
    for run in grown[:1]:
        by = (run["memory"][1] - run["memory"][0]) / run["tasks"]
        yield "  memory that each takes until the test ends", f"{by / 1000:.3g} kB", "the record of what happened to it"


def _many_rows(more: Part) -> Iterator[tuple[str, str, str]]:
    many, without = more["growth"]["many"], more["growth"]["many_without"]
    (first, last), count = many["surroundings"], many["count"]
    yield (
        f"{count:,} tests in one process, a test",
        f"{many['second_half'] * 1000:.3g} ms",
        f"{many['second_half'] / many['first_half']:.2f} x that of the first half",
    )
    if first["memory"] is not None:
        per_test = [
            (end["memory"] - begin["memory"]) / (count - 100)
            for begin, end in (many["surroundings"], without["surroundings"])
        ]
        yield (
            "  memory that stays of each after the first 100",
            f"{per_test[0] / 1000:.2f} kB",
            f"{per_test[1] / 1000:.2f} kB without the plugin: pytest's own reports",
        )
    for name in ("threads", "descriptors", "greenlets"):
        if first[name] is not None:
            yield f"  {name} after 100, and at the end", f"{first[name]}, {last[name]}", ""
    changed = sum(before != after for before, after in zip(first["names"], last["names"], strict=True))
    yield "  names of other libraries that are not as they were", f"{changed} of {len(first['names'])}", ""


def _clock_rows(more: Part) -> Iterator[tuple[str, str, str]]:
    clock = more["clock"]
    for title, pick in (("first", lambda times: times[0]), ("later", lambda times: statistics.median(times[1:]))):
        yield (
            f"clock start and stop, {clock['modules']:,} modules, {title}",
            f"{pick(clock['plugin']) * 1000:.3g} ms",
            f"{pick(clock['freezegun']) * 1000:.3g} ms freezegun's own",
        )


def _unused_rows(more: Part) -> Iterator[tuple[str, str, str]]:
    with_it, without = (statistics.median(more["unused"][kind]) for kind in ("with", "without"))
    yield (
        "pytest --collect-only, installed and not used",
        f"{(with_it - without) * 1000:+.1f} ms",
        f"{without * 1000:.0f} ms without it, medians of {len(more['unused']['with'])}",
    )


def _suite_rows(more: Part) -> Iterator[tuple[str, str, str]]:
    if _is_there(more, "suite"):
        real, ours = more["suite"]["real"], more["suite"]["ours"]
        yield (
            f"a suite of {len(ours['ends'])} tests for celery.contrib.pytest, armed",
            f"{ours['seconds']:.1f} s",
            f"{real['seconds']:.1f} s on a real Redis: {real['seconds'] / ours['seconds']:.0f} x",
        )
