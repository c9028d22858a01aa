"""A pytest plugin that measures each test, and what a test asks it to, and writes it down.

It is loaded for every contender alike with ``-p recording``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import workload

WARM_UP = 3
#: Of many tests in one process, the number of those after which nothing may grow.
HUNDRED = 100


class Stopwatch:
    """Real time. A name bound to ``time.perf_counter`` would show virtual time while a harness is up; this does not."""

    def __init__(self) -> None:
        self.now = time.perf_counter


_stopwatch = Stopwatch()
_TESTS = pytest.StashKey[list[dict[str, Any]]]()
_CURRENT = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmark")
    group.addoption("--benchmark-out", type=Path, required=True)
    group.addoption("--benchmark-tests", type=int, default=0)
    group.addoption("--benchmark-trips", type=int, default=0)
    group.addoption("--benchmark-chords", type=int, default=0)
    group.addoption("--benchmark-schedules", type=int, default=0)
    group.addoption("--benchmark-many", type=int, default=0)
    group.addoption("--benchmark-tasks", type=lambda text: [int(size) for size in text.split(",")], default=[])


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TESTS] = []


def surroundings() -> dict[str, Any]:
    """What of the process could grow from test to test. Memory is in bytes, and not known everywhere."""
    for _ in range(3):  # a collection that ends a generator leaves to the next one what it held
        gc.collect()
    statm, descriptors = Path("/proc/self/statm"), Path("/proc/self/fd")
    greenlet = sys.modules.get("greenlet")
    replaced = sys.modules.get("pytest_celery_faults.replaced")
    return {
        "memory": int(statm.read_text("ascii").split()[1]) * os.sysconf("SC_PAGESIZE") if statm.exists() else None,
        "blocks": sys.getallocatedblocks(),
        "threads": threading.active_count(),
        "descriptors": len(list(descriptors.iterdir())) if descriptors.is_dir() else None,
        "greenlets": sum(issubclass(type(it), greenlet.greenlet) for it in gc.get_objects()) if greenlet else 0,
        "names": [id(vars(it.owner)[it.name]) for it in replaced.ALL] if replaced else [],
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "tasks" in metafunc.fixturenames:
        metafunc.parametrize("tasks", metafunc.config.getoption("--benchmark-tasks"))
    if "repetition" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    repetitions = {
        "test_warm_up": WARM_UP,
        "test_one_task": option("--benchmark-tests"),
        "test_schedule": option("--benchmark-schedules"),
        "test_many": option("--benchmark-many"),
    }
    metafunc.parametrize("repetition", range(repetitions[metafunc.function.__name__]))


@pytest.fixture
def trips(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--benchmark-trips")


@pytest.fixture
def chords(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--benchmark-chords")


@pytest.fixture
def timed(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], Any]:
    """Calls a function, keeps the real seconds that it took, and returns what it returned."""
    samples = request.node.stash[_CURRENT]["samples"]
    now = _stopwatch.now

    def timed(function: Callable[[], Any]) -> Any:
        started = now()
        returned = function()
        samples.append(now() - started)
        return returned

    return timed


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Writes a fact down beside the times of this test."""
    return request.node.stash[_CURRENT].update


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    test: dict[str, Any] = {"test": getattr(item, "originalname", item.name), "outcome": "passed", "samples": []}
    item.stash[_CURRENT] = test
    item.config.stash[_TESTS].append(test)
    before = workload.executed.copy()
    started = _stopwatch.now()
    result = yield
    test["whole"] = _stopwatch.now() - started
    test["executed"] = dict(workload.executed - before)
    if test["test"] == "test_many":
        number = item.callspec.params["repetition"] + 1  # type: ignore[attr-defined]
        if number in (HUNDRED, item.config.getoption("--benchmark-many")):
            test["surroundings"] = surroundings()
    return result


def _phase(name: str) -> Any:
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def measure(item: pytest.Item) -> Iterator[None]:
        started = _stopwatch.now()
        try:
            return (yield)
        finally:
            item.stash[_CURRENT][name] = _stopwatch.now() - started

    return measure


pytest_runtest_setup = _phase("setup")
pytest_runtest_call = _phase("call")
pytest_runtest_teardown = _phase("teardown")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    if not report.passed:
        item.stash[_CURRENT]["outcome"] = report.outcome
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.getoption("--benchmark-out").write_text(json.dumps(session.config.stash[_TESTS]), "utf-8")
