"""The benchmark runs, measures what it says, and refuses a run in which that did not happen. No time is judged."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "run.py"
ROWS = ["whole_test", "set_up", "body", "teardown", "round_trip", "chord", "schedule"]
#: What is measured of the plugin alone, in a quick run: the beginnings of its rows.
MORE = [
    "each of 100 tasks", "each of 300 tasks", "memory that each takes", "200 tests in one process", "memory that stays",
    "threads after 100", "descriptors after 100", "greenlets after 100", "names of other libraries", "clock start",
    "clock start", "pytest --collect-only",
]  # fmt: skip


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  our own script
        [sys.executable, str(RUN), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    path = tmp_path_factory.mktemp("benchmark") / "out.json"
    return run("--quick", "--no-redis", "--json", str(path)), path


@pytest.fixture
def report(quick: tuple[subprocess.CompletedProcess[str], Path]) -> dict[str, Any]:
    return json.loads(quick[1].read_text("utf-8"))


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_run", RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RUN.parent))  # as for a script, whose neighbours it imports
        patch.setitem(sys.modules, "benchmark_run", module)  # dataclasses look their module up there
        spec.loader.exec_module(module)
    return module


def test_a_quick_run_succeeds_and_prints_its_tables(quick: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    completed, _ = quick
    assert completed.returncode == 0, completed.stderr
    table = [line for line in completed.stdout.splitlines() if line.startswith("|")]
    contenders, alone = table[: len(ROWS) + 2], table[len(ROWS) + 2 :]
    titles = [line.split("|")[1].strip() for line in alone[2:]]
    assert all(title.startswith(begins) for title, begins in zip(titles, MORE, strict=True))
    assert "1023 s (by the schedule) *" in contenders[-1]
    assert "not measured" in table[2]


@pytest.mark.parametrize("contender", ["plugin", "eager"])
@pytest.mark.parametrize("row", ROWS)
def test_each_measured_cell_has_a_number(report: dict[str, Any], row: str, contender: str) -> None:
    cell = report["cells"][row][contender]
    assert cell["measured"] is True
    assert 0 < cell["lowest"] <= cell["median"] <= cell["highest"]
    assert cell["count"] >= {"round_trip": 200, "chord": 5, "schedule": 5}.get(row, 30)


def test_what_was_not_measured_is_not_a_number(report: dict[str, Any]) -> None:
    for row in ROWS[:-1]:
        assert report["cells"][row]["start_worker"] == {"measured": False, "why": "without redis-server"}
    computed = report["cells"]["schedule"]["start_worker"]
    assert computed["measured"] is False
    assert computed["computed"] == 1023
    assert "median" not in computed


def test_the_report_says_where_it_was_measured(report: dict[str, Any]) -> None:
    machine = report["machine"]
    assert machine["cpus"] == os.cpu_count()
    assert platform_python() in machine["python"]
    assert all(machine["versions"][name] for name in ("pytest-celery-faults", "celery", "kombu", "pytest", "fakeredis"))
    assert len(report["load"]["before"]) == len(report["load"]["after"]) == 3


def platform_python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def test_an_earlier_result_is_checked_and_printed_again(
    quick: tuple[subprocess.CompletedProcess[str], Path], report: dict[str, Any], tmp_path: Path
) -> None:
    completed, path = quick
    assert run("--show", str(path)).stdout == completed.stdout
    report["runs"] = []
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(report), "utf-8")
    again = run("--show", str(empty))
    assert again.returncode == 1
    assert again.stdout == ""
    assert "plugin: nothing was measured" in again.stderr


def pick(runs: list[dict[str, Any]], contender: str, name: str) -> list[dict[str, Any]]:
    return [test for run in runs if run["contender"] == contender for test in run["tests"] if test["test"] == name]


def no_runs(runs: list[dict[str, Any]]) -> None:
    runs.clear()


def no_tests(runs: list[dict[str, Any]]) -> None:
    runs[0]["tests"].clear()


def contender_missing(runs: list[dict[str, Any]]) -> None:
    runs[:] = [run for run in runs if run["contender"] != "eager"]


def task_not_executed(runs: list[dict[str, Any]]) -> None:
    pick(runs, "plugin", "test_one_task")[7]["executed"] = {}


def one_trip_too_few(runs: list[dict[str, Any]]) -> None:
    pick(runs, "eager", "test_round_trips")[0]["samples"].pop()


def retries_missing(runs: list[dict[str, Any]]) -> None:
    pick(runs, "eager", "test_schedule")[0]["executed"] = {"flaky": 1}


def clock_not_moved(runs: list[dict[str, Any]]) -> None:
    del pick(runs, "plugin", "test_schedule")[0]["waited"]


def clock_stood_still(runs: list[dict[str, Any]]) -> None:
    pick(runs, "plugin", "test_round_trips")[0]["samples"][3] = 0.0


def clock_ran_ahead(runs: list[dict[str, Any]]) -> None:
    tests = pick(runs, "plugin", "test_schedule")
    for test in tests:  # what they took depends on the machine, and is summed
        test["samples"] = [0.001]
    tests[0]["samples"] = [1023.0]


def phase_missing(runs: list[dict[str, Any]]) -> None:
    del pick(runs, "plugin", "test_one_task")[0]["teardown"]


def failed_test(runs: list[dict[str, Any]]) -> None:
    pick(runs, "plugin", "test_one_task")[0]["outcome"] = "failed"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_runs, "plugin: nothing was measured\n  eager: nothing was measured"),
        (no_tests, "plugin: test_one_task ran 0 times, not 30"),
        (contender_missing, "eager: nothing was measured"),
        (task_not_executed, "plugin: test_one_task executed the tasks {}, not {'add': 1}"),
        (one_trip_too_few, "eager: test_round_trips measured 199 times, not 200"),
        (retries_missing, "eager: test_schedule executed the tasks {'flaky': 1}, not {'flaky': 11}"),
        (clock_not_moved, "plugin: test_schedule let None s pass, not 1023"),
        (clock_stood_still, "plugin: round_trip: took no time at all"),
        (clock_ran_ahead, "plugin: schedule: took 1023."),
        (phase_missing, "plugin: teardown: took no time at all"),
        (failed_test, "plugin: test_one_task failed"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_run_that_measured_something_else_is_refused(
    benchmark_module: ModuleType,
    report: dict[str, Any],
    damage: Callable[[list[dict[str, Any]]], None],
    reason: str,
) -> None:
    plan, runs = benchmark_module.Plan(**report["plan"]), copy.deepcopy(report["runs"])
    benchmark_module.check(runs, report["more"], plan, 1023)
    damage(runs)
    with pytest.raises(SystemExit) as refused:
        benchmark_module.check(runs, report["more"], plan, 1023)
    assert reason in str(refused.value)


def nothing_grew(more: dict[str, Any]) -> None:
    more["growth"]["tasks"].pop()


def task_left_out(more: dict[str, Any]) -> None:
    more["growth"]["tasks"][1]["executed"] = {"add": 319}


def some_tests_failed(more: dict[str, Any]) -> None:
    more["growth"]["many"]["passed"] -= 1


def looked_once(more: dict[str, Any]) -> None:
    more["growth"]["many_without"]["surroundings"].pop()


def without_the_plugin(more: dict[str, Any]) -> None:
    more["growth"]["many"]["surroundings"][0]["names"] = []


def clock_not_started(more: dict[str, Any]) -> None:
    more["clock"]["plugin"] = [0.1]


def clock_failed(more: dict[str, Any]) -> None:
    more["clock"] = {"failed": "AssertionError"}


def collected_nothing(more: dict[str, Any]) -> None:
    more["unused"]["with"].clear()


def suite_missing(more: dict[str, Any]) -> None:
    del more["suite"]


def suite_ended_otherwise(more: dict[str, Any]) -> None:
    one = {"seconds": 1.0, "ends": {"test_a": "passed", "test_b": "passed"}, "code": 0}
    more["suite"] = {"real": one, "ours": one | {"ends": {"test_a": "passed", "test_b": "error"}}}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (nothing_grew, "growth: tests of 1 sizes ran"),
        (task_left_out, "growth: a test of 300 tasks passed and executed {'add': 319}"),
        (some_tests_failed, "growth: many: 199 of 200 tests did what they should"),
        (looked_once, "growth: many_without: what could grow was looked at 1 times, not twice"),
        (without_the_plugin, "growth: many: the plugin was not there"),
        (clock_not_started, "clock: plugin started 1 times"),
        (clock_failed, "clock: AssertionError"),
        (collected_nothing, "unused: 0 runs with the plugin, 2 without"),
        (suite_missing, "suite: nothing was measured"),
        (suite_ended_otherwise, "suite: 2 tests on Redis, 2 in memory; ended otherwise: test_b"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_measured_besides_is_refused_as_well(
    benchmark_module: ModuleType, report: dict[str, Any], damage: Callable[[dict[str, Any]], None], reason: str
) -> None:
    plan, more = benchmark_module.Plan(**report["plan"]), copy.deepcopy(report["more"])
    damage(more)
    with pytest.raises(SystemExit) as refused:
        benchmark_module.check(report["runs"], more, plan, 1023)
    assert reason in str(refused.value)


def test_nothing_of_a_test_stays(report: dict[str, Any]) -> None:
    first, last = report["more"]["growth"]["many"]["surroundings"]
    for name in ("threads", "descriptors", "greenlets", "names"):
        assert first[name] == last[name], name


def test_of_a_test_no_more_memory_stays_than_of_one_without_the_plugin(
    report: dict[str, Any], benchmark_module: ModuleType
) -> None:
    """Blocks of memory, which are counted; pytest keeps its items and reports, and this plugin a few numbers."""
    report = copy.deepcopy(report)
    growth = report["more"]["growth"]
    page = benchmark_module.page
    assert page._blocks(report) < page.BLOCKS
    assert "in one process: pytest's" in page.page(report, [], [])
    growth["many"]["surroundings"][1]["blocks"] += 1000 * (growth["many"]["count"] - 100)
    leaking = page.page(report, [], [])
    assert "in one process: linearly, 1" in leaking
    assert f"| {page.BLOCKS} blocks | 1" in leaking


def test_the_page_is_made_of_a_result(
    quick: tuple[subprocess.CompletedProcess[str], Path], report: dict[str, Any], tmp_path: Path
) -> None:
    completed, path = quick
    made = tmp_path / "performance.md"
    assert run("--show", str(path), "--page", str(made)).returncode == 0
    page = made.read_text("utf-8")
    for line in completed.stdout.splitlines():
        if line.startswith("|"):
            assert line in page
    assert report["machine"]["python"] in page
    assert page.count("reached |") == 9
    assert "{" not in page
    without = run("--page", str(made))
    assert without.returncode == 2
    assert "add --show PATH" in without.stderr


def test_the_page_of_the_documentation_is_one_that_was_made(benchmark_module: ModuleType) -> None:
    page = (RUN.parent.parent / "docs" / "performance.md").read_text("utf-8")
    made = benchmark_module.page.PAGE
    fixed = [part for part in re.split(r"\{\w+\}", made) if part.strip()]
    assert len(fixed) == 6
    position = 0
    for part in fixed:
        position = page.index(part, position)
    assert "| 10,000" in page or "10,000 tasks in one test" in page
    assert "start_worker, Redis" in page


def test_a_plan_that_measures_nothing_is_refused(benchmark_module: ModuleType) -> None:
    plan = benchmark_module.Plan(rounds=1, tests=0, trips=0, schedules=0, redis=False)
    tests = [{"test": "test_round_trips", "outcome": "passed", "samples": [], "executed": {"add": 1}}]
    runs = [{"contender": name, "wall": 1.0, "tests": tests} for name in ("plugin", "eager")]
    with pytest.raises(SystemExit) as refused:
        benchmark_module.check(runs, {}, plan, 1023)
    for row in ROWS:
        assert f"plugin: {row}: nothing was measured" in str(refused.value)


def test_without_redis_server_it_says_so(tmp_path: Path) -> None:
    completed = run("--quick", PATH=str(tmp_path))
    assert completed.returncode == 1
    assert completed.stdout == ""
    assert "redis-server is not on the PATH" in completed.stderr
    assert "--no-redis" in completed.stderr


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    completed = run("--quick", "--no-redis", "--json", str(tmp_path / "missing" / "out.json"))
    assert completed.returncode == 2
    assert completed.stdout == ""
    assert "there is no folder" in completed.stderr
