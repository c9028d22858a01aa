"""Many tests in one process: nothing is left of any of them.

Measured in a process of its own, where nothing but the harness keeps anything: pytest keeps log records.
"""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import asyncio, gc, json, logging, os, sys, threading, time, tracemalloc

import greenlet
from celery import Celery

from pytest_celery_faults import replaced
from pytest_celery_faults.harness import Harness, make_options
from pytest_celery_faults.watchdog import Watchdog

logging.disable(logging.CRITICAL)
URL = "redis://127.0.0.1:1/0"
app = Celery("shop", broker=URL, backend=URL)
watchdog = Watchdog()
ENDED = []


@app.task(name="shop.add")
def add(x, y):
    return x + y


@app.task(name="shop.slow", time_limit=5)
def slow():
    try:
        time.sleep(10)
    finally:
        ENDED.append(1)


async def await_it(harness, task, *args):
    result = app.tasks[task].delay(*args)
    await asyncio.gather(harness.worker.adrain(), harness.worker.aadvance(10))
    return result.state


def run_async(number, task, *args):
    harness = Harness(app, make_options({}), 0, f"test {number}", watchdog, is_async=True)
    try:
        return asyncio.run(await_it(harness, task, *args))
    finally:
        harness.close()


def run(number, task, *args):
    harness = Harness(app, make_options({}), 0, f"test {number}", watchdog)
    try:
        result = app.tasks[task].delay(*args)
        harness.worker.drain()
        return result.state
    finally:
        harness.close()


def greenlets():
    return sum(1 for thing in gc.get_objects() if issubclass(type(thing), greenlet.greenlet) and not thing.dead)


def bound(module):
    return {name: id(value) for name, value in vars(module).items()}


def surroundings():
    import datetime

    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None,
        "replaced": [id(vars(what.owner)[what.name]) for what in replaced.ALL],
        "time": bound(time),
        "datetime": bound(datetime),
        "greenlets": greenlets(),
        "tasks": sorted(app.tasks),
    }


def blocks():
    # A collection that ends a generator or calls a `__del__` leaves to the next one what they held.
    for _ in range(5):
        gc.collect()
    return sys.getallocatedblocks()
"""

#: Caches and tables grow in steps; what each test leaves behind shows in every span.
PASSING = """
tests, warm, span = 1000, 300, 100
run(0, "shop.add", 1, 2)
first = surroundings()
states = {}
allocated = []
for number in range(tests):
    if number >= warm and number % span == 0:
        allocated.append(blocks())
    state = run(number, "shop.add", number, 2)
    states[state] = states.get(state, 0) + 1
allocated.append(blocks())
grown = [(after - before) / span for before, after in zip(allocated, allocated[1:])]
print(json.dumps({
    "states": states, "first": first, "last": surroundings(), "blocks": grown,
}))
"""

ASYNC = PASSING.replace("run(", "run_async(").replace(
    "tests, warm, span = 1000, 300, 100", "tests, warm, span = 300, 100, 50"
)

KILLED = """
tests, warm = 100, 25
run(0, "shop.add", 1, 2)
# The main greenlet is made when somebody first asks for it.
main = greenlet.getcurrent()
gc.collect()
start = greenlets()
tracemalloc.start()
states = {}
for number in range(tests):
    if number == warm:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
    state = run(number, "shop.slow")
    states[state] = states.get(state, 0) + 1
gc.collect()
grown = tracemalloc.get_traced_memory()[0] - before
print(json.dumps({
    "states": states, "greenlets": greenlets() - start, "bytes": grown / (tests - warm), "last": surroundings(),
    "ended": len(ENDED),
}))
"""

KILLED_ASYNC = KILLED.replace("run(", "run_async(").replace("tests, warm = 100, 25", "tests, warm = 40, 10")


def measure(what):
    done = subprocess.run([sys.executable, "-c", SCRIPT + what], capture_output=True, text=True, timeout=240)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_thousand_tests_leave_nothing(unmeasured):
    found = measure(PASSING)
    assert found["states"] == {"SUCCESS": 1000}
    assert found["last"] == found["first"]
    assert found["last"]["threads"] == ["MainThread", "celery-faults watchdog"]
    # Half of the tests keeping one single object would be as much.
    assert len(found["blocks"]) == 7
    assert min(found["blocks"]) < 0.5, found["blocks"]


def test_hundreds_of_async_tests_leave_nothing(unmeasured):
    found = measure(ASYNC)
    assert found["states"] == {"SUCCESS": 300}
    assert found["last"] == found["first"]
    assert found["last"]["threads"] == ["MainThread", "celery-faults watchdog"]
    assert len(found["blocks"]) == 4
    # On Python 3.10 about two small blocks a test stay, of sync tests as well.
    assert min(found["blocks"]) < (0.5 if sys.version_info >= (3, 11) else 5), found["blocks"]


def test_a_task_that_is_killed_in_an_async_test_costs_little(unmeasured):
    """Its greenlet outlives the thread that it ran in."""
    found = measure(KILLED_ASYNC)
    assert found["states"] == {"FAILURE": 40}
    assert found["ended"] == 0
    assert found["last"]["threads"] == ["MainThread", "celery-faults watchdog"]
    assert found["bytes"] < 60_000


def test_a_killed_task_costs_little(record_property, unmeasured):
    """A killed greenlet must never be collected, or its `finally` would run: it stays, with its stack."""
    found = measure(KILLED)
    record_property("bytes_per_killed_task", found["bytes"])
    assert found["states"] == {"FAILURE": 100}
    assert found["ended"] == 0
    assert found["greenlets"] == 100, f"and {found['bytes']:.0f} bytes for each"
    assert found["bytes"] < 40_000
