"""Async tests as users write them: pytest-asyncio, anyio with both of its backends, unittest, and what they print."""

from __future__ import annotations

import pytest

HEAD = """
import asyncio, contextvars, datetime, os, threading, time, unittest
import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError
from pytest_celery_faults import StalledTaskError, WaitNeverEndsError
from shop import add, app, boom, download, slow

def threads():
    return [thread.name for thread in threading.enumerate()].count("celery-faults simulation")
"""

ASYNCIO = """
import pytest_asyncio

VAR = contextvars.ContextVar("VAR", default="unset")

@app.task
def context():
    return VAR.get()

@pytest.fixture
def sent(celery_faults):
    return slow.delay(2)

@pytest.fixture
def driven(celery_faults):
    result = slow.delay(3)
    celery_faults.worker.drain()
    yield result
    assert slow.delay(4).get() == 4
    celery_faults.worker.advance(5)
    assert celery_faults.clock.elapsed >= 12

@pytest_asyncio.fixture
async def awaited(celery_faults):
    VAR.set("of the fixture")
    yield await celery_faults.worker.aget(slow.delay(1))
    assert await celery_faults.worker.aget(slow.delay(2)) == 2
    await asyncio.gather(celery_faults.worker.adrain(), celery_faults.worker.aadvance(3))

@pytest_asyncio.fixture
async def made_before_our_own():
    await asyncio.sleep(0)
    return await asyncio.to_thread(lambda: add.delay(5, 5).get(timeout=9))

def test_first():
    assert threads() == 0

@LOOP
async def test_awaiting(celery_faults):
    worker = celery_faults.worker
    results = [slow.delay(seconds) for seconds in (3, 2)]
    assert await asyncio.gather(*map(worker.aget, results), worker.adrain(), worker.aadvance(9)) == [3, 2, None, None]
    assert celery_faults.clock.elapsed == 9
    assert threads() == 1

def test_a_sync_one_in_between(celery_faults):
    assert threads() == 0
    assert slow.delay(5).get() == 5
    assert celery_faults.clock.elapsed == 5
    assert threads() == 0

@LOOP
@pytest.mark.parametrize("count", [1, 4])
async def test_parametrized(celery_faults, retry_recorder, count):
    with celery_faults.inject(OSError, times=count):
        assert await celery_faults.worker.aget(download.delay("x")) == "done"
    assert retry_recorder.delays == [1, 2, 4, 8][:count]

@LOOP
async def test_fixtures(celery_faults, sent, driven):
    assert await celery_faults.worker.aget(sent) == 2
    assert driven.result == 3
    assert celery_faults.clock.elapsed == 5

@LOOP
async def test_async_fixtures(awaited, made_before_our_own, celery_faults):
    assert (awaited, made_before_our_own) == (1, 10)
    assert celery_faults.clock.elapsed == 1

@LOOP
async def test_it_is_needed_by_a_mark_alone():
    VAR.set("of the test")
    result = context.delay()
    assert await asyncio.to_thread(result.get) == "of the test"
test_it_is_needed_by_a_mark_alone = pytest.mark.celery_faults(concurrency=2)(test_it_is_needed_by_a_mark_alone)

@LOOP
async def test_left(celery_faults):
    # A call that waits, a task that works, one that is not begun: all are there at the end of the loop.
    global LEFT
    LEFT = asyncio.create_task(celery_faults.worker.aadvance(50))
    slow.delay(100)
    await celery_faults.worker.aadvance(1)
    slow.delay(100)

def test_nothing_is_left():
    assert LEFT.cancelled()
    assert threads() == 0

@LOOP
@pytest.mark.celery_faults(stall_timeout=0.2)
async def test_stalled(celery_faults):
    @app.task
    def stalled():
        while True:
            pass
    with pytest.raises(StalledTaskError, match="in stalled"):
        await celery_faults.worker.aget(stalled.delay())

@LOOP
async def test_killed_tasks(celery_faults, celery_dlq):
    @app.task(time_limit=3)
    def limited():
        try:
            time.sleep(9)
        finally:
            raise NotImplementedError("a killed task runs no more")
    for _ in range(3):
        limited.delay()
    await celery_faults.worker.adrain()
    assert celery_dlq.reasons == {"time_limit": 3}

@LOOP
async def test_cancelled(celery_faults):
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(celery_faults.worker.aadvance(50), 0)
    result = slow.delay(4)
    with pytest.raises(CeleryTimeoutError):
        await celery_faults.worker.aget(result, timeout=3)
    assert await celery_faults.worker.aget(result) == 4
    with pytest.raises(WaitNeverEndsError):
        await celery_faults.worker.aget(app.AsyncResult("nobody"))

for scope in ("function", "class", "module", "package", "session"):
    exec(f'''
IN_SCOPE = pytest.mark.asyncio(loop_scope="{scope}")
class Test{scope.title()}:
    @IN_SCOPE
    async def test_one(self, celery_faults):
        assert await celery_faults.worker.aget(slow.delay(2)) == 2
        assert celery_faults.clock.elapsed == 2
        self.keep_a_coroutine(celery_faults)
        assert await asyncio.to_thread(slow.delay(2).get) == 2

    @IN_SCOPE
    async def test_two(self, celery_faults):
        assert slow.delay(3).get() == 3
        assert await celery_faults.worker.aget(slow.delay(2)) == 2
        assert celery_faults.clock.elapsed == 5

    def test_sync(self, celery_faults):
        assert threads() == 0
        assert slow.delay(3).get() == 3

    def keep_a_coroutine(self, celery_faults):
        # In a loop that outlives the test: it is told that the test is over.
        async def wait():
            try:
                await celery_faults.worker.aadvance(100)
            except BaseException as error:
                ENDS.append(type(error).__name__)
        type(self).kept = asyncio.ensure_future(wait())
''')
ENDS = []

class TestUnit(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def harness(self, celery_faults):
        self.celery_faults = celery_faults

    async def asyncSetUp(self):
        self.result = slow.delay(2)

    async def test_it(self):
        worker = self.celery_faults.worker
        assert await asyncio.gather(worker.aget(self.result), worker.aget(slow.delay(1))) == [2, 1]
        assert self.celery_faults.clock.elapsed == 3
        assert self.result.get() == 2
        assert threads() == 1

    async def asyncTearDown(self):
        await self.celery_faults.worker.adrain()

    def test_a_sync_one(self):
        assert add.delay(1, 2).get() == 3

class TestSyncUnit(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def harness(self, celery_faults):
        self.celery_faults = celery_faults

    def test_it(self):
        assert slow.delay(3).get() == 3
        assert threads() == 0

def test_last():
    assert threads() == 0
    assert datetime.datetime.now().__class__.__module__ == "datetime"
    start = time.monotonic()
    time.sleep(0.01)
    assert time.monotonic() - start >= 0.01
"""

PASSED = 14 + 15 + 3


@pytest.fixture
def strict(monkeypatch, unmeasured):
    """Python says whatever it finds wrong: what is not closed, not awaited, or not handled in a thread."""
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


def check(result, **outcomes):
    result.assert_outcomes(**outcomes)
    assert result.errlines == []
    assert result.ret == 0


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_with_pytest_asyncio(shop, strict, mode):
    mark = "pytest.mark.asyncio" if mode == "strict" else "lambda test: test"
    shop.test(f"{HEAD}\nLOOP = {mark}\n{ASYNCIO}")
    check(shop.run(subprocess=True, asyncio=mode), passed=PASSED)


def test_with_pytest_asyncio_on_two_workers(shop, strict):
    shop.test(f"{HEAD}\nLOOP = pytest.mark.asyncio\n{ASYNCIO}")
    check(shop.run("-n2", subprocess=True, asyncio="strict"), passed=PASSED)


ANYIO = """
import anyio

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@pytest.fixture
async def awaited(celery_faults, anyio_backend):
    yield await celery_faults.worker.aget(slow.delay(1))
    assert await celery_faults.worker.aget(slow.delay(2)) == 2

@pytest.fixture
def driven(celery_faults):
    result = slow.delay(3)
    celery_faults.worker.drain()
    yield result
    assert slow.delay(4).get() == 4

@pytest.mark.anyio
async def test_awaiting(celery_faults):
    worker = celery_faults.worker
    results = [slow.delay(seconds) for seconds in (3, 2)]
    found = {}
    async def get(number):
        found[number] = await worker.aget(results[number]), celery_faults.clock.elapsed
    async with anyio.create_task_group() as group:
        group.start_soon(get, 0)
        group.start_soon(get, 1)
        group.start_soon(worker.adrain)
        group.start_soon(worker.aadvance, 9)
    assert found == {0: (3, 3), 1: (2, 5)}
    assert celery_faults.clock.elapsed == 9
    assert threads() == 1

def test_a_sync_one_in_between(celery_faults):
    assert threads() == 0
    assert slow.delay(5).get() == 5

@pytest.mark.anyio
async def test_fixtures(celery_faults, awaited, driven):
    assert awaited == 1
    assert driven.result == 3
    assert slow.delay(1).get() == 1
    assert await anyio.to_thread.run_sync(slow.delay(1).get) == 1
    assert celery_faults.clock.elapsed >= 6

@pytest.mark.anyio
async def test_cancelled(celery_faults):
    worker = celery_faults.worker
    result = slow.delay(4)
    with anyio.move_on_after(0) as scope:
        await worker.aget(result)
    assert scope.cancelled_caught
    async with anyio.create_task_group() as group:
        group.start_soon(worker.aadvance, 100)
        group.start_soon(worker.adrain)
        await anyio.sleep(0)
        group.cancel_scope.cancel()
    with anyio.fail_after(30):
        assert await worker.aget(result) == 4
    with pytest.raises(WaitNeverEndsError):
        await worker.aget(app.AsyncResult("nobody"))

@pytest.mark.anyio
async def test_a_wait_that_another_coroutine_ends(celery_faults):
    client = celery_faults.broker.client
    @app.task
    def pop():
        return client.blpop("key")[1].decode()
    async def push():
        await anyio.sleep(0.02)
        client.lpush("key", "value")
    async with anyio.create_task_group() as group:
        group.start_soon(push)
        assert await celery_faults.worker.aget(pop.delay()) == "value"

@pytest.mark.anyio
async def test_polling(celery_faults):
    result = slow.delay(6)
    while not result.ready():
        await anyio.sleep(0.001)
    assert celery_faults.clock.elapsed == 6

@pytest.mark.anyio
async def test_failing(celery_faults):
    with pytest.raises(ValueError, match="boom"):
        await celery_faults.worker.aget(boom.delay())

def test_last():
    assert threads() == 0
"""


def test_with_anyio(shop, strict):
    shop.test(HEAD + ANYIO)
    check(shop.run(subprocess=True, anyio=True), passed=2 * 6 + 2)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_wait_that_never_ends_inside_a_timeout(shop, backend):
    shop.test(
        f"""{HEAD}
import anyio

@pytest.fixture
def anyio_backend():
    return "{backend}"

@pytest.mark.anyio
async def test_it(celery_faults):
    with anyio.fail_after(2), pytest.raises(WaitNeverEndsError):
        await celery_faults.worker.aget(app.AsyncResult("nobody"))
"""
    )
    shop.run(anyio=True).assert_outcomes(passed=1)


def test_with_unittest_alone(shop):
    """`IsolatedAsyncioTestCase` needs no plugin."""
    shop.test(HEAD + ASYNCIO[ASYNCIO.index("class TestUnit") : ASYNCIO.index("class TestSyncUnit")])
    shop.run().assert_outcomes(passed=2)


# -- marks, and what is printed

MARKED = """
pytestmark = pytest.mark.asyncio

@pytest.mark.inject(OSError, times=3)
async def test_injected(celery_faults, retry_recorder):
    assert await celery_faults.worker.aget(download.delay("x")) == "done"
    assert retry_recorder.delays == [1, 2, 4]

@pytest.mark.inject(OSError, task="shop.boom")
async def test_never_fires(celery_faults):
    assert await celery_faults.worker.aget(add.delay(1, 2)) == 3

async def test_fails(celery_faults):
    result = download.delay("x")
    await celery_faults.worker.adrain()
    assert result.get() == "not done"

async def test_the_task_fails(celery_faults):
    await celery_faults.worker.aget(boom.delay())  # the line of the user

async def test_blocking_the_task_fails(celery_faults):
    boom.delay().get()  # the line of the user

async def test_waits_for_ever(celery_faults):
    await celery_faults.worker.aget(app.AsyncResult("nobody"))  # the line of the user

async def test_a_task_ends_the_test(celery_faults):
    @app.task
    def failing():
        pytest.fail("from inside")
    failing.delay()
    await celery_faults.worker.adrain()
    raise NotImplementedError("not reached")

async def test_a_task_skips_the_test(celery_faults):
    @app.task
    def skipping():
        pytest.skip("enough of it")
    await celery_faults.worker.aget(skipping.delay())
    raise NotImplementedError("not reached")

@pytest.mark.parametrize(
    "wrong", ["aadvance(-1)", "aadvance('x')", "aget(3)", "aget(add)", "aget(result, timeout='x')"]
)
async def test_wrong(celery_faults, wrong):
    result = add.delay(1, 2)
    await eval(f"celery_faults.worker.{wrong}")

async def test_a_fault_in_a_block(celery_faults, celery_dlq):
    with celery_faults.inject(KeyError("k")) as fault:
        with pytest.raises(KeyError):
            await celery_faults.worker.aget(add.delay(1, 2))
    assert fault.fired
    assert celery_dlq.reasons == {"failed": 1}

async def test_a_fault_in_a_block_that_never_fires(celery_faults):
    with celery_faults.inject(KeyError("k"), task=boom):
        await celery_faults.worker.aget(add.delay(1, 2))

async def test_passes(celery_faults):
    assert await celery_faults.worker.aget(add.delay(1, 2)) == 3
"""


def failures(result):
    """The text of each failing test's report, by the test's name."""
    found, name = {}, None
    for line in result.outlines:
        words = line.strip("_ ").split(" ")
        if line.startswith("___") and words[0].startswith("test_"):
            name = words[0]
            found[name] = ""
        elif line.startswith("==="):
            name = None
        elif name is not None:
            found[name] += line + "\n"
    return found


def test_marks_and_reports(shop):
    shop.test(HEAD + MARKED)
    result = shop.armed(asyncio="strict")
    result.assert_outcomes(passed=3, skipped=1, failed=12)
    found = failures(result)
    assert found.keys() == {
        "test_never_fires", "test_fails", "test_the_task_fails", "test_blocking_the_task_fails", "test_waits_for_ever",
        "test_a_task_ends_the_test", "test_a_fault_in_a_block_that_never_fires",
        "test_wrong[aadvance(-1)]", "test_wrong[aadvance('x')]", "test_wrong[aget(3)]", "test_wrong[aget(add)]",
        "test_wrong[aget(result,",
    }  # fmt: skip
    assert "never fired" in found["test_never_fires"]
    assert "never fired" in found["test_a_fault_in_a_block_that_never_fires"]
    for name in ("test_fails", "test_the_task_fails", "test_never_fires"):
        assert "celery faults timeline ---" in found[name], name
    assert "celery faults: no fault fired; last event:" in found["test_fails"]
    assert "succeeded       shop.download#1" in found["test_fails"]
    assert "ValueError: boom" in found["test_the_task_fails"]
    assert "the last events of what was waited for" in found["test_the_task_fails"]
    assert "task nobody, which nobody sent can never end" in found["test_waits_for_ever"]
    assert "Failed: from inside" in found["test_a_task_ends_the_test"]
    assert "not reached" not in found["test_a_task_ends_the_test"].replace('NotImplementedError("not reached")', "")
    for name in ("test_the_task_fails", "test_blocking_the_task_fails", "test_waits_for_ever"):
        assert "# the line of the user" in found[name]
    for name, text in found.items():
        text = text.partition("--- Captured")[0]
        if name == "test_wrong[aget(result,":  # an error of Python's own
            continue
        assert "pytest_celery_faults/" not in text.replace("pytest_celery_faults.errors.", ""), name
        assert "greenlet" not in text, name
    for name, text in [("aadvance(-1)", "can't go backwards"), ("aget(3)", "a result, as delay()")]:
        assert text in found[f"test_wrong[{name}]"]


def test_not_armed_async_tests_with_faults_are_skipped(shop):
    shop.test(HEAD + MARKED[: MARKED.index("async def test_fails")])
    shop.run(asyncio="strict").assert_outcomes(skipped=2)


def test_a_fault_that_never_fired_fails_the_call_of_the_test(shop):
    """Its call, not its tear-down, in which pytest-asyncio closes the loop."""
    shop.pytester.makeconftest(
        "def pytest_runtest_logreport(report): print('REPORT', report.when, report.outcome, flush=True)\n"
    )
    shop.test(HEAD + MARKED[: MARKED.index("async def test_fails")])
    result = shop.armed("-s", "-k", "never_fires", asyncio="strict")
    assert [line.split("REPORT ")[1] for line in result.outlines if "REPORT " in line] == [
        "setup passed", "call failed", "teardown passed",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [("-p", "no:asyncio", "-p", "no:anyio")])
def test_without_a_plugin_an_async_test_fails_as_pytest_says(shop, arguments):
    shop.test("async def test_it(celery_faults): pass\n")
    result = shop.run(*arguments)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*async def functions are not natively supported*"])


STALLED = (
    "@pytest.mark.asyncio\n@pytest.mark.celery_faults(stall_timeout=0.2)\nasync def test_it(celery_faults):\n"
    "    @app.task\n    def stalled():\n        lock = threading.Lock()\n        lock.acquire()\n"
    "        lock.acquire()\n"
    "    with pytest.raises(StalledTaskError):\n        await celery_faults.worker.aget(stalled.delay())\n"
)
ENDINGS = {
    "after an interrupt": (
        "@pytest.mark.asyncio\nasync def test_it(celery_faults):\n    raise KeyboardInterrupt\n",
        pytest.ExitCode.INTERRUPTED,
    ),
    "after an interrupt in a task": (
        "@pytest.mark.asyncio\nasync def test_it(celery_faults):\n    @app.task\n    def stops():\n"
        "        raise KeyboardInterrupt\n    await celery_faults.worker.aget(stops.delay())\n",
        pytest.ExitCode.INTERRUPTED,
    ),
    "after a stalled task": (STALLED, pytest.ExitCode.OK),
    # CPython 3.11 got no further, in any thread.
    "after a stalled task, traced": (
        f"import sys\ntrace = lambda *a: None\nthreading.settrace(trace)\nsys.settrace(trace)\n{STALLED}",
        pytest.ExitCode.OK,
    ),
    "with killed tasks": (
        "@pytest.mark.asyncio\nasync def test_it(celery_faults):\n    @app.task(time_limit=2)\n    def limited():\n"
        "        try:\n            time.sleep(5)\n        finally:\n            print('never')\n"
        "    for _ in range(5):\n        limited.delay()\n    celery_faults.worker.advance(3)\n"
        "    celery_faults.worker.crash()\n",
        pytest.ExitCode.OK,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends_well(shop, strict, ending):
    source, code = ENDINGS[ending]
    shop.test(HEAD + source)
    result = shop.run("-s", subprocess=True, asyncio="strict")
    assert result.ret == code
    assert result.errlines == []
    assert "never" not in result.outlines
