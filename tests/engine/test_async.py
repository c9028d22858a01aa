"""Async tests: the simulation in a thread of its own, and the test's coroutines, which call and await it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import random
import signal
import socket
import sys
import threading
import time
from datetime import datetime, timedelta

import celery
import pytest
import trio
from celery import _state, chain, chord, group
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from pytest_celery_faults import CeleryFaultsError, Crash, StalledTaskError, WaitNeverEndsError
from pytest_celery_faults.errors import FaultTypeError, FaultValueError

real_sleep = time.sleep
NAME = "celery-faults simulation"
pytestmark = pytest.mark.usefixtures("hang_is_failure")


def one():
    return 1


#: Threads that an earlier test left: one test that fails is enough.
BEFORE = set()


def threads():
    return sum(thread.name == NAME and thread not in BEFORE for thread in threading.enumerate())


async def until(predicate):
    """Wait, in real time, for something that another thread does."""
    while not predicate():
        await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def flag_of_the_process():
    """What one of these tests leaves is not to be found by the next."""
    BEFORE.update(threading.enumerate())
    yield
    _state._set_task_join_will_block(False)


class Gate:
    """Holds a task in real time, where it says that it has come, until somebody opens."""

    def __init__(self):
        self._come = threading.Semaphore(0)
        self._open = threading.Semaphore(0)

    def pass_through(self):
        self._come.release()
        assert self._open.acquire(timeout=9), "nobody opened"

    def function(self):
        def held():
            self.pass_through()

        return held

    def open(self):
        self._open.release()

    async def reached(self):
        await until(lambda: self._come.acquire(blocking=False))

    def reached_blocking(self):
        assert self._come.acquire(timeout=9)


@pytest.fixture
def slow(app):
    @app.task(name="shop.slow")
    def slow(seconds):
        time.sleep(seconds)
        return seconds

    return slow


@pytest.fixture
def boom(app):
    @app.task(name="shop.boom")
    def boom():
        raise ValueError("boom")

    return boom


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def held(app, gate):
    """A task that blocks in real time until the gate is open."""

    @app.task(name="shop.held")
    def held(value=None):
        gate.pass_through()
        return value

    return held


@pytest.fixture
def noted(log, elapsed):
    """Awaits, and writes down when the answer came, and what it was."""

    async def noted(name, awaitable):
        value = await awaitable
        log.append((elapsed(), name, value))

    return noted


# -- several waits at once


async def test_each_wait_ends_at_its_own_time(worker, slow, noted, log):
    first, second = slow.delay(3), slow.delay(2)
    await asyncio.gather(
        noted("all", worker.adrain()),
        noted("second", worker.aget(second)),
        noted("ten", worker.aadvance(10)),
        noted("four", worker.aadvance(4)),
        noted("first", worker.aget(first)),
    )
    assert log == [
        (3, "first", 3), (4, "four", None), (5, "second", 2), (5, "all", None), (10, "ten", None),
    ]  # fmt: skip


async def test_waits_that_end_at_one_instant_end_in_the_order_in_which_they_began(worker, noted, log):
    await worker.adrain()
    names = ["c", "a", "d", "b"]
    await asyncio.gather(*(noted(name, worker.aadvance(5)) for name in names))
    assert [name for _, name, _ in log] == names
    assert {at for at, _, _ in log} == {5}


async def test_spans_count_from_the_instant_at_which_all_began(worker, elapsed):
    async def twice():
        await worker.aadvance(1)
        await worker.aadvance(timedelta(seconds=1.5))
        return elapsed()

    assert await asyncio.gather(twice(), twice(), worker.aadvance(2)) == [2.5, 2.5, None]
    assert elapsed() == 2.5


async def test_a_drain_goes_on_with_what_another_coroutine_sends_meanwhile(worker, slow, noted, log):
    async def one_after_another():
        for number in range(3):
            await noted(number, worker.aget(slow.delay(number)))

    await asyncio.gather(noted("all", worker.adrain()), one_after_another())
    # Each answer is followed by all that the loop can do, before time goes on: so the drain has something left to do.
    assert log == [(0, 0, 0), (1, 1, 1), (3, 2, 2), (3, "all", None)] or log == [
        (0, 0, 0), (1, 1, 1), (3, "all", None), (3, 2, 2),
    ]  # fmt: skip


async def test_several_drains_end_together(worker, slow, noted, log):
    slow.delay(7)
    await asyncio.gather(*(noted(number, worker.adrain()) for number in range(4)))
    assert log == [(7, number, None) for number in range(4)]


async def test_several_coroutines_wait_for_one_result(worker, slow, boom, elapsed):
    result, failed = slow.delay(4), boom.delay()
    # Before 5.7 only one object hears of a result while several wait for it.
    again = slow.app.AsyncResult(result.id) if celery.VERSION >= (5, 7) else result
    assert await asyncio.gather(*(worker.aget(each) for each in [result, again, result, again])) == [4] * 4
    assert elapsed() == 4
    errors = await asyncio.gather(*(worker.aget(failed) for _ in range(3)), return_exceptions=True)
    assert [repr(error) for error in errors] == ["ValueError('boom')"] * 3


async def test_results_of_every_kind(worker, add, total, slow, fail, elapsed):
    assert await worker.aget(group(add.s(1, 1), add.s(2, 2))()) == [2, 4]
    assert await worker.aget(chain(add.s(1, 1), add.s(2), add.s(3))()) == 7
    assert await worker.aget(chord([add.s(1, 1), add.s(2, 2)])(total.s())) == 6
    start = elapsed()
    assert await worker.aget(group(slow.s(3), chain(slow.s(4), add.s(1)))()) == [3, 5]
    assert elapsed() == start + 7
    with pytest.raises(LookupError, match="failed"):
        await worker.aget(group(add.s(1, 1), fail.s())())
    with pytest.raises(LookupError, match="failed"):
        await worker.aget(chain(fail.s(), add.s(2))())
    with pytest.raises((LookupError, ChordError), match="failed"):
        await worker.aget(chord([add.s(1, 1), fail.s()])(total.s()))


async def test_results_of_every_kind_at_once(worker, add, total, slow):
    async def sent(signature):
        return await worker.aget(signature())

    found = await asyncio.gather(
        sent(group(slow.s(2), add.s(2, 2))),
        sent(chain(add.s(1, 1), slow.s() | add.s(1))),
        sent(chord([slow.s(1), slow.s(2), slow.s(3)], total.s())),
    )
    assert found == [[2, 4], 3, 6]


async def test_a_timeout_ends_at_the_virtual_instant_and_the_task_goes_on(worker, slow, elapsed):
    result = slow.delay(10)
    with pytest.raises(CeleryTimeoutError):
        await worker.aget(result, timeout=2.5)
    assert elapsed() == 2.5
    with pytest.raises(CeleryTimeoutError):
        await worker.aget(result, 0.25)
    assert elapsed() == 2.75
    assert await worker.aget(result, timeout=7.25) == 10
    assert elapsed() == 10


async def test_several_timeouts(worker, slow, elapsed, log):
    result = slow.delay(10)

    async def impatient(seconds):
        with pytest.raises(CeleryTimeoutError):
            await worker.aget(result, timeout=seconds)
        log.append((elapsed(), seconds))

    assert await asyncio.gather(impatient(3), worker.aget(result), impatient(1), impatient(2)) == [None, 10, None, None]
    assert log == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no TaskGroup")
async def test_an_error_in_a_task_group_takes_the_other_waits_back(celery_faults, worker, slow, boom, elapsed):
    with pytest.raises(BaseException) as info:  # noqa: PT012
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.aget(slow.delay(5)))
            tasks.create_task(worker.aget(boom.delay()))
            tasks.create_task(worker.aadvance(100))
    assert [repr(error) for error in info.value.exceptions] == ["ValueError('boom')"]
    assert elapsed() == 5  # the only slot was taken
    await worker.adrain()
    assert elapsed() == 5
    celery_faults.assert_nothing_lost()


# -- cancellation

CALLS = {
    "adrain": lambda worker, result: worker.adrain(),
    "aadvance": lambda worker, result: worker.aadvance(100),
    "aget": lambda worker, result: worker.aget(result),
    "aget with a timeout": lambda worker, result: worker.aget(result, timeout=100),
}
EACH_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


async def _still_works(celery_faults, slow, expected=None, result=None):
    worker = celery_faults.worker
    if result is not None:
        assert await worker.aget(result) == expected
    start = celery_faults.clock.elapsed
    assert await worker.aget(slow.delay(2)) == 2
    assert celery_faults.clock.elapsed == start + 2
    await worker.adrain()
    assert not celery_faults.simulation.callers
    celery_faults.assert_nothing_lost()


@EACH_CALL
async def test_a_call_that_is_cancelled_while_a_task_blocks(celery_faults, worker, slow, held, gate, call):
    result = held.delay("value")
    waiting = asyncio.create_task(call(worker, result))
    await gate.reached()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting  # at once: the task is still held
    assert celery_faults.clock.elapsed == 0
    gate.open()
    await _still_works(celery_faults, slow, "value", result)


@EACH_CALL
@pytest.mark.parametrize("turns", range(4))
async def test_a_call_that_is_cancelled_before_it_began(celery_faults, worker, slow, call, turns):
    result = slow.delay(5)
    waiting = asyncio.create_task(call(worker, result))
    for _ in range(turns):
        await asyncio.sleep(0)
    assert waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await _still_works(celery_faults, slow, 5, result)


@EACH_CALL
async def test_a_call_that_runs_out_of_time(celery_faults, worker, slow, held, gate, call):
    result = held.delay("value")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(call(worker, result), 0.02)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(call(worker, result), 0)
    gate.open()
    await _still_works(celery_faults, slow, "value", result)


async def test_a_call_that_is_cancelled_in_the_middle_of_virtual_time(celery_faults, worker, slow, held, gate):
    """Of several, one: the others do not notice."""
    first, second = slow.delay(3), held.apply_async(("value",), countdown=4)
    cancelled = [
        asyncio.create_task(awaitable)
        for awaitable in (worker.aget(second, timeout=50), worker.adrain(), worker.aadvance(60))
    ]
    staying = asyncio.create_task(worker.aget(second))
    assert await worker.aget(first) == 3
    await gate.reached()
    for task in cancelled:
        task.cancel()
    assert [type(found) for found in await asyncio.gather(*cancelled, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 3
    gate.open()
    assert await staying == "value"
    await _still_works(celery_faults, slow)
    assert celery_faults.clock.elapsed == 6


async def test_many_calls_that_are_cancelled(celery_faults, worker, slow):
    results = [slow.delay(1) for _ in range(5)]
    for turns in range(30):
        calls = [asyncio.create_task(call(worker, results[turns % 5])) for call in CALLS.values()]
        for _ in range(turns % 6):
            await asyncio.sleep(0)
        for waiting in calls:
            waiting.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert await asyncio.gather(*map(worker.aget, results)) == [1] * 5
    await _still_works(celery_faults, slow)


async def test_a_wait_that_is_shielded_goes_on(worker, held, gate):
    waiting = asyncio.ensure_future(worker.aget(held.delay("value")))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.02)
    gate.open()
    assert await waiting == "value"


# -- the loop goes on meanwhile


async def test_the_loop_runs_other_coroutines_while_a_task_blocks(worker, held, gate):
    turns = []

    async def opener():
        await gate.reached()
        for turn in range(10):
            await asyncio.sleep(0)
            turns.append(turn)
        gate.open()

    assert await asyncio.gather(worker.aget(held.delay("value")), opener()) == ["value", None]
    assert turns == list(range(10))


async def test_a_coroutine_serves_a_task_that_blocks_on_its_socket(app, worker):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    @app.task(name="shop.ask")
    def ask(number):
        theirs.sendall(b"%d\n" % number)
        return int(theirs.recv(100))

    async def serve():
        reader, writer = await asyncio.open_connection(sock=ours)
        while line := await reader.readline():
            writer.write(b"%d\n" % (int(line) * 2))
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = asyncio.create_task(serve())
    try:
        assert await asyncio.gather(*(worker.aget(ask.delay(number)) for number in range(5))) == [0, 2, 4, 6, 8]
    finally:
        theirs.close()
        await server


async def test_the_answer_of_a_blocked_task_comes_while_others_wait(worker, held, gate, slow, elapsed):
    result = held.delay("value")
    waiting = asyncio.gather(worker.aget(result), worker.aadvance(3), worker.adrain())
    await gate.reached()
    later = slow.delay(2)  # sent, by this thread, while the worker's is blocked
    gate.open()
    assert await waiting == ["value", None, None]
    assert elapsed() == 3
    assert later.state == "SUCCESS"


async def test_sending_while_the_worker_works(celery_faults, worker, held, gate, add):
    """From a second coroutine, while a task runs in the other thread."""
    results = []

    async def send():
        for number in range(5):
            await gate.reached()
            results.extend(add.delay(number, n) for n in range(10))
            held.delay()
            gate.open()

    held.delay()
    sender = asyncio.create_task(send())
    await asyncio.gather(worker.adrain(), sender, _open_the_last(gate, sender))
    await worker.adrain()
    assert [result.get() for result in results] == [number + n for number in range(5) for n in range(10)]
    celery_faults.assert_nothing_lost()


async def _open_the_last(gate, sender):
    await sender
    await gate.reached()
    gate.open()


async def test_blocking_calls_in_a_coroutine(worker, slow, add, elapsed):
    assert add.delay(1, 2).get() == 3
    assert slow.delay(5).get(timeout=6) == 5
    assert elapsed() == 5
    with pytest.raises(CeleryTimeoutError):
        slow.delay(9).get(timeout=1.5)
    assert elapsed() == 6.5
    worker.drain()
    assert elapsed() == 14
    worker.advance(6)
    time.sleep(10)
    assert elapsed() == 30
    assert group(add.s(1, 1), add.s(2, 2))().get() == [2, 4]


async def test_a_blocking_call_while_another_coroutine_awaits(worker, slow, add, elapsed):
    first, second = slow.delay(3), slow.delay(2)
    waiting = asyncio.gather(worker.adrain(), worker.aget(first), worker.aadvance(10))
    await asyncio.sleep(0)
    assert second.get() == 2
    assert elapsed() == 5
    assert add.delay(1, 2).get() == 3
    assert await waiting == [None, 3, None]
    assert elapsed() == 10


async def test_a_polling_coroutine(celery_faults, worker, slow, elapsed):
    results = [slow.delay(seconds) for seconds in (4, 3)]
    for result, at in zip(results, [4, 7], strict=True):
        while not result.ready():
            await asyncio.sleep(0)
        assert elapsed() == at
        assert result.successful()


async def test_two_polling_coroutines_and_one_that_awaits(worker, slow, elapsed):
    async def poll(result):
        while result.state != "SUCCESS":
            await asyncio.sleep(0.001)
        return result.result

    results = [slow.delay(seconds) for seconds in (4, 3, 2)]
    assert await asyncio.gather(poll(results[0]), poll(results[1]), worker.aget(results[2])) == [4, 3, 2]
    assert elapsed() == 9


# -- threads of the test


async def test_get_in_a_thread(slow, elapsed):
    assert await asyncio.to_thread(slow.delay(100).get) == 100
    assert elapsed() == 100


async def test_the_first_contact_is_in_another_thread(slow, worker, elapsed):
    assert await asyncio.to_thread(lambda: slow.delay(4).get(timeout=50)) == 4
    assert await worker.aget(slow.delay(3)) == 3
    assert elapsed() == 7


async def test_the_first_contact_is_in_several_threads_at_once(slow, worker, elapsed):
    barrier = threading.Barrier(6)

    def get(seconds):
        barrier.wait(5)
        return slow.delay(seconds).get(timeout=50)

    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(6) as executor:
        found = await asyncio.gather(*(loop.run_in_executor(executor, get, seconds) for seconds in range(6)))
    assert found == list(range(6))
    assert elapsed() == 15
    assert threads() == 1


async def test_get_in_several_threads_and_coroutines_at_once(worker, slow, elapsed):
    results = [slow.delay(seconds) for seconds in (1, 2, 3, 4)]
    found = await asyncio.gather(
        *(asyncio.to_thread(result.get) for result in results), *(worker.aget(result) for result in results)
    )
    assert found == [1, 2, 3, 4] * 2
    assert elapsed() == 10


async def test_get_in_an_executor(worker, slow, elapsed):
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        futures = [loop.run_in_executor(executor, lambda n=n: slow.delay(n).get(timeout=50)) for n in (1, 2, 3)]
        assert await asyncio.gather(*futures) == [1, 2, 3]
    assert elapsed() == 6
    assert await worker.aget(slow.delay(1)) == 1


async def test_a_thread_that_drives_while_the_loop_is_blocked(worker, slow, elapsed):
    """The loop stands still for the thread, which needs the simulation: it does not wait for the loop to rest."""
    slow.delay(3)
    thread = threading.Thread(target=worker.drain)
    thread.start()
    thread.join()
    assert elapsed() == 3
    assert slow.delay(4).get() == 4
    assert elapsed() == 7


async def test_a_loop_in_another_thread(worker, slow, elapsed):
    async def inner():
        return await asyncio.gather(worker.aget(slow.delay(2)), worker.aadvance(3))

    assert await asyncio.gather(asyncio.to_thread(asyncio.run, inner()), worker.aget(slow.delay(1))) == [[2, None], 1]
    assert elapsed() >= 3  # the thread may begin when the first one is through


# -- the same each time


def _turbulent(build, run, load=False):
    """Coroutines that send and await, through retries with jitter; what happened, as text."""
    harness = build(is_async=True, seed=7, name="turbulent", concurrency=3)
    app, worker = harness.app, harness.worker
    log = []

    @app.task(name="shop.jittery", autoretry_for=(OSError,), retry_backoff=2, retry_jitter=True, max_retries=5)
    def jittery(number):
        if random.random() < 0.5:
            raise OSError(number)
        time.sleep(random.random())
        return number

    @app.task(name="shop.echo")
    def echo(value):
        time.sleep(0.25)
        return value

    def note(*what):
        log.append((harness.clock.elapsed, *what))

    async def sender(name, count):
        for number in range(count):
            try:
                note(name, await worker.aget(jittery.delay(number)))
            except OSError:
                note(name, "failed")
            await asyncio.sleep(0)

    async def waiter():
        for span in (0.5, 1.5, 0.25, 3):
            await worker.aadvance(span)
            note("advanced", span)
            echo.delay(span)

    async def impatient():
        for number in range(4):
            result = echo.apply_async((number,), countdown=number)
            try:
                await worker.aget(result, timeout=1.1)
            except CeleryTimeoutError:
                note("impatient", number)
                cancelled = asyncio.create_task(worker.aget(result))
                await asyncio.sleep(0)
                cancelled.cancel()
            else:
                note("patient", number)

    async def main():
        queue = asyncio.Queue()

        async def consumer():
            while (value := await queue.get()) is not None:
                note("consumed", await worker.aget(echo.delay(value)))

        async def producer():
            for value in range(4):
                await worker.aadvance(0.7)
                await queue.put(value)
            await queue.put(None)

        await asyncio.gather(
            sender("a", 2), sender("b", 3), sender("c", 1), waiter(), impatient(), consumer(), producer()
        )
        await worker.adrain()
        note("drained", random.random())

    run(main)
    text = f"{harness.timeline}\n{log}"
    harness.close()
    return text


def test_the_timeline_is_the_same_each_time(build):
    texts = {_turbulent(build, lambda main: asyncio.run(main())) for _ in range(8)}
    assert len(texts) == 1
    text = texts.pop()
    assert text.count("failed") or text.count("retry")
    assert {line.split()[2] for line in text.splitlines()} >= {"sent", "started", "succeeded", "time"}


@pytest.mark.parametrize("interval", [0.005, 1e-6])
def test_the_timeline_is_the_same_under_load(build, interval):
    expected = _turbulent(build, lambda main: asyncio.run(main()))
    over = False

    def burn():
        while not over:
            sum(range(50))

    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    burner = threading.Thread(target=burn)
    burner.start()
    try:
        for _ in range(3):
            assert _turbulent(build, lambda main: asyncio.run(main())) == expected
    finally:
        over = True
        burner.join()
        sys.setswitchinterval(before)


# -- context variables

VAR = contextvars.ContextVar("var", default="unset")


@pytest.fixture
def context(app):
    @app.task(name="shop.context")
    def context():
        seen = VAR.get()
        VAR.set("of the task")
        return seen

    return context


async def test_a_task_sees_the_context_variables_of_the_call_that_runs_it(worker, context):
    VAR.set("first")
    assert await worker.aget(context.delay()) == "first"
    VAR.set("second")
    assert await worker.aget(context.delay()) == "second"
    VAR.set("third")
    assert context.delay().get() == "third"
    assert VAR.get() == "third"


async def test_a_task_sees_context_variables_that_are_set_before_the_worker_starts(worker, context):
    VAR.set("before")
    result = context.delay()
    await worker.adrain()
    assert result.get() == "before"


async def test_two_coroutines_with_contexts_of_their_own(worker, context):
    async def one(value):
        VAR.set(value)
        assert await worker.aget(context.delay()) in ("x", "y")
        assert VAR.get() == value
        await worker.aadvance(1)
        assert VAR.get() == value

    await asyncio.gather(one("x"), one("y"))
    assert VAR.get() == "unset"


# -- the thread


def test_a_sync_test_has_no_thread(worker, add):
    assert add.delay(1, 2).get() == 3
    worker.drain()
    assert threads() == 0


@pytest.mark.parametrize("first", ["a coroutine function", "a running loop", "a running trio loop"])
def test_the_thread_is_there_from_the_first_use_to_the_end(build, first):
    harness = build(is_async=first == "a coroutine function")
    task = harness.app.task(name="shop.task")(one)
    assert threads() == 0

    async def use():
        task.delay()
        assert threads() == 1
        await harness.worker.adrain()

    if first == "a coroutine function":
        task.delay()
        assert threads() == 1
        harness.worker.drain()
    elif first == "a running loop":
        asyncio.run(use())
    else:
        trio.run(use)
    assert threads() == 1
    harness.close()
    assert threads() == 0


def test_an_async_test_that_does_nothing_has_no_thread(build):
    harness = build(is_async=True)
    assert len(harness.sent) == 0
    harness.clock.now()
    harness.broker.client.get("key")
    assert threads() == 0
    harness.close()


LEFT = {
    "nothing": lambda worker, slow, held: None,
    "an awaited error": lambda worker, slow, held: slow.delay("x").get(propagate=False),
    "a pending call": lambda worker, slow, held: asyncio.ensure_future(worker.aadvance(9)),
    "a task that waits": lambda worker, slow, held: (slow.delay(9), worker.advance(1)),
    "a message in its queue": lambda worker, slow, held: slow.delay(9),
    "a stopped worker": lambda worker, slow, held: (slow.delay(1), worker.stop()),
    "a crashed worker": lambda worker, slow, held: (slow.delay(1), worker.advance(0.5), worker.crash()),
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("ending", [None, LookupError, KeyboardInterrupt, asyncio.CancelledError])
def test_nothing_is_left_of_the_thread(build, left, ending):
    harness = build(is_async=True)
    slow = harness.app.task(name="shop.slow")(time.sleep)

    async def main():
        left(harness.worker, slow, None)
        if ending is not None:
            raise ending

    with pytest.raises(ending) if ending is not None else contextlib.nullcontext():
        asyncio.run(main())
    harness.close()
    assert threads() == 0
    assert not _state.task_join_will_block()
    again = build()
    assert again.app.task(name="shop.one")(one).delay().get() == 1


def test_a_call_that_still_waits_when_the_harness_is_closed_in_the_loop(build, gate):
    """A fixture's tear-down may run in the loop, with calls of other coroutines still there."""
    harness = build(is_async=True)

    async def main():
        waiting = asyncio.create_task(harness.worker.aadvance(9))
        await asyncio.sleep(0)
        harness.app.task(name="shop.slow")(time.sleep).delay(4)
        harness.close()
        assert threads() == 0
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_a_call_that_outlives_the_test(build):
    """The loop of a class or a session goes on after the test."""
    harness = build(is_async=True)

    async def main():
        waiting = asyncio.create_task(harness.worker.aadvance(9))
        await asyncio.sleep(0)
        harness.close()
        with pytest.raises(WaitNeverEndsError, match="the test is over"):
            await waiting

    asyncio.run(main())


def test_a_task_that_blocks_at_the_end_is_waited_for(build, gate):
    harness = build(is_async=True)

    @harness.app.task(name="shop.held")
    def held():
        gate.pass_through()
        ended.append(True)

    ended = []

    async def main():
        waiting = asyncio.create_task(harness.worker.aget(held.delay()))
        await gate.reached()
        waiting.cancel()

    asyncio.run(main())
    threading.Timer(0.02, gate.open).start()
    harness.close()
    assert ended == [True]
    assert threads() == 0


def test_a_task_that_blocks_for_ever_at_the_end(build):
    harness = build(is_async=True, stall_timeout=0.3)
    gate = Gate()
    harness.app.task(name="shop.held")(gate.function()).delay()

    async def main():
        waiting = asyncio.create_task(harness.worker.adrain())
        await gate.reached()
        waiting.cancel()

    asyncio.run(main())
    try:
        with pytest.raises(StalledTaskError):
            harness.close()
        again = build(is_async=True)
        assert again.app.task(name="shop.one")(one).delay().get() == 1
        again.close()
    finally:
        gate.open()
    _wait_for_no_thread()


def _wait_for_no_thread():
    for thread in threading.enumerate():
        if thread.name == NAME:
            thread.join(5)
    assert threads() == 0


# -- interrupts


def _interrupt(gate, blocking, tasks):
    """Ctrl-C, as soon as the task is held; twice, where the loop only cancels its main task at the first."""

    def press(has_worked):
        # One that comes just before a thread begins to wait for a lock is noticed when it has the lock.
        while not has_worked():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            real_sleep(0.05)

    def interrupt():
        gate.reached_blocking()
        if sys.version_info >= (3, 11):
            press(lambda: tasks[0].cancelling() or tasks[0].done())
        if blocking or sys.version_info < (3, 11):
            press(tasks[0].done)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


BLOCKED = {
    "awaiting": lambda worker, result: worker.aget(result),
    "get": lambda worker, result: asyncio.sleep(0, result.get()),
    "drain": lambda worker, result: asyncio.sleep(0, worker.drain()),
    "sleep": lambda worker, result: asyncio.sleep(0, time.sleep(5)),
}


@pytest.mark.parametrize("how", BLOCKED.values(), ids=BLOCKED)
def test_an_interrupt_ends_the_wait_at_once(build, gate, how):
    harness = build(is_async=True)
    held = harness.app.task(name="shop.held")(gate.function())
    tasks = []
    thread = _interrupt(gate, how is not BLOCKED["awaiting"], tasks)

    async def main():
        tasks.append(asyncio.current_task())
        await how(harness.worker, held.delay())

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    thread.join()
    gate.open()
    harness.close()
    assert threads() == 0
    again = build(is_async=True)
    assert again.app.task(name="shop.one")(one).delay().get() == 1


# -- tasks that stall, and waits that never end


def loops_in_python():
    while True:
        pass


LOCK = threading.Lock()


def blocks_in_c():
    LOCK.acquire()


@pytest.fixture
def locked():
    """What blocks is let go in the end, so that its thread ends."""
    with LOCK:
        yield
    for thread in threading.enumerate():
        if thread.name == NAME:
            thread.join(5)
    if LOCK.locked():
        LOCK.release()
    assert threads() == 0


async def several(worker, result):
    found = await asyncio.gather(worker.aget(result), worker.adrain(), return_exceptions=True)
    raise next(error for error in found if isinstance(error, Exception))


WAITS = {
    "await": lambda worker, result: worker.aget(result),
    "get": lambda worker, result: asyncio.sleep(0, result.get()),
    "several": several,
}


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("stalls", [loops_in_python, blocks_in_c])
def test_a_task_that_stalls(build, locked, stalls, waits):
    harness = build(is_async=True, stall_timeout=0.2)
    worker, stalled = harness.worker, harness.app.task(name="shop.stalled")(stalls)

    async def main():
        result = stalled.delay()
        with pytest.raises(StalledTaskError) as info:
            await waits(worker, result)
        assert "shop.stalled" in str(info.value)
        assert f"in {stalls.__name__}" in str(info.value)
        assert ("LOCK.acquire()" if stalls is blocks_in_c else "while True") in str(info.value)

    asyncio.run(main())
    with contextlib.suppress(StalledTaskError):
        harness.close()
    again = build(is_async=True)

    async def after():
        assert await again.worker.aget(again.app.task(name="shop.one")(one).delay()) == 1

    asyncio.run(after())
    again.close()


@pytest.mark.parametrize("stalls", [loops_in_python, blocks_in_c])
def test_a_sync_test_after_one_with_a_task_that_stalled(build, locked, stalls):
    """The flag that Celery keeps for the process, "this is a task", was set for what never ended."""
    harness = build(is_async=True, stall_timeout=0.2)
    with pytest.raises(StalledTaskError):
        harness.app.task(name="shop.stalled")(stalls).delay().get()
    with contextlib.suppress(StalledTaskError):
        harness.close()
    again = build()
    assert again.app.task(name="shop.one")(one).delay().get() == 1
    assert not _state.task_join_will_block()


async def test_a_wait_that_never_ends_is_an_error_at_once(app, worker, add):
    nobody = app.AsyncResult("nobody")
    with pytest.raises(WaitNeverEndsError, match="nobody"):
        await worker.aget(nobody)
    with pytest.raises(WaitNeverEndsError, match="nobody"):
        nobody.get()
    with pytest.raises(WaitNeverEndsError):
        await asyncio.wait_for(worker.aget(nobody), 5)
    if sys.version_info >= (3, 11):
        with pytest.raises(WaitNeverEndsError):
            async with asyncio.timeout(5):
                await worker.aget(nobody)
    with pytest.raises(WaitNeverEndsError):
        await asyncio.to_thread(nobody.get)
    assert await worker.aget(add.delay(1, 2)) == 3


async def test_of_several_waits_each_that_never_ends_is_an_error(app, worker, slow):
    found = await asyncio.gather(
        worker.aget(app.AsyncResult("a")), worker.aget(slow.delay(3)), worker.aget(app.AsyncResult("b")),
        return_exceptions=True,
    )  # fmt: skip
    assert [type(each) for each in found] == [WaitNeverEndsError, int, WaitNeverEndsError]
    assert "task a" in str(found[0])
    assert "task b" in str(found[2])


async def test_a_wait_that_another_coroutine_will_end(celery_faults, app, worker):
    client = celery_faults.broker.client

    @app.task(name="shop.pop")
    def pop():
        return client.blpop("key")[1]

    async def push():
        await asyncio.sleep(0.05)
        client.lpush("key", "value")

    assert await asyncio.gather(worker.aget(pop.delay()), push()) == [b"value", None]
    # Nobody pushes any more.
    with pytest.raises(WaitNeverEndsError):
        await worker.aget(pop.delay())


async def test_a_wait_that_another_coroutine_ends_after_i_o(celery_faults, app, worker, add):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = celery_faults.broker.client

    @app.task(name="shop.pop")
    def pop():
        return client.blpop("key")[1]

    async def push():
        await asyncio.get_running_loop().sock_recv(ours, 1)
        client.lpush("key", "value")

    timer = threading.Timer(0.05, theirs.sendall, [b"!"])
    timer.start()
    assert await asyncio.gather(worker.aget(pop.delay()), push()) == [b"value", None]
    timer.join()
    ours.close()
    theirs.close()


async def test_the_test_itself_waits_at_the_broker(celery_faults, app, worker):
    client = celery_faults.broker.client

    @app.task(name="shop.push")
    def push():
        time.sleep(3)
        celery_faults.broker.client.lpush("key", "value")

    push.delay()
    assert client.blpop("key") == (b"key", b"value")
    assert celery_faults.clock.elapsed == 3
    push.delay()
    assert await asyncio.to_thread(client.blpop, "key") == (b"key", b"value")


# -- life and death of the worker


async def test_stop_and_start(worker, add, slow):
    assert await worker.aget(add.delay(1, 2)) == 3
    worker.stop()
    assert not worker.running
    waiting = add.delay(3, 4)
    with pytest.raises(WaitNeverEndsError, match="the worker is stopped"):
        await worker.aget(waiting)
    worker.start()
    assert worker.running
    assert await worker.aget(waiting) == 7


async def test_a_crash_and_another_worker(celery_faults, worker, app):
    @app.task(name="shop.late", acks_late=True)
    def late():
        time.sleep(10)
        return "done"

    result = late.delay()
    await worker.aadvance(1)
    worker.crash()
    worker.start()
    assert await worker.aget(result) == "done"
    assert celery_faults.clock.elapsed > 3600  # the visibility timeout


async def test_a_stop_while_others_wait(worker, slow, elapsed):
    result = slow.delay(5)
    await worker.aadvance(1)
    waiting = asyncio.gather(worker.aget(result), worker.aadvance(8))
    await asyncio.sleep(0)
    worker.stop()  # warm: what runs ends
    assert elapsed() == 5
    assert await waiting == [5, None]
    assert elapsed() == 9


async def test_faults_in_an_async_test(celery_faults, worker, add, app):
    @app.task(name="shop.download", autoretry_for=(OSError,), retry_backoff=True, retry_jitter=False)
    def download():
        return "done"

    with celery_faults.inject(OSError, task=download, times=3):
        assert await worker.aget(download.delay()) == "done"
    assert celery_faults.retries.delays == [1, 2, 4]
    celery_faults.inject(Crash(), task=add)
    with pytest.raises(Exception, match="Worker exited prematurely"):
        await worker.aget(add.delay(1, 2))
    assert celery_faults.dlq.reasons == {"worker_lost": 1}


async def test_fail_fast(worker, boom, slow, elapsed):
    boom.delay()
    slow.delay(4)
    with pytest.raises(ValueError, match="boom"):
        await worker.adrain(fail_fast=True)
    assert elapsed() == 0
    await worker.adrain()
    assert elapsed() == 4


async def test_letters_in_a_coroutine(celery_faults, worker, add, boom):
    boom.delay()
    await worker.adrain()
    assert celery_faults.dlq.reasons == {"failed": 1}
    celery_faults.dlq.redrive()
    await worker.adrain()
    assert len(celery_faults.timeline.where("failed", task=boom)) == 2
    result = add.apply_async((1, 2), queue="dlq")
    celery_faults.dlq.consume()
    assert await worker.aget(result) == 3


async def test_single_steps(celery_faults, worker, add):
    add.delay(1, 2)
    kinds = []
    while (event := worker.step()) is not None:
        kinds.append(event.kind)
        await asyncio.sleep(0)
    assert kinds[-2:] == ["started", "succeeded"] or "succeeded" in kinds
    assert len(kinds) == len(set(kinds))
    assert celery_faults.clock.elapsed == 0


async def test_wrong_arguments(worker, add):
    for wrong, error, text in [
        (lambda: worker.aadvance(-1), ValueError, "backwards"),
        (lambda: worker.aadvance("x"), TypeError, "seconds or a timedelta"),
        (lambda: worker.aadvance(True), TypeError, "seconds or a timedelta"),
        (lambda: worker.aadvance(float("nan")), ValueError, "no length of time"),
        (lambda: worker.aget(3), TypeError, "a result"),
        (lambda: worker.aget(None), TypeError, "a result"),
        (lambda: worker.aget(add.s(1, 2)), TypeError, "a result"),
    ]:
        with pytest.raises(error, match=text) as info:
            await wrong()
        assert isinstance(info.value, CeleryFaultsError)
    assert await worker.aget(add.delay(1, 2)) == 3


async def test_a_timeout_that_is_no_number(worker, add):
    """It is said at once, and not taken for a time."""
    result = add.delay(1, 2)
    for wrong in ("x", True):
        with pytest.raises(FaultTypeError, match="virtual seconds, or None"):
            await worker.aget(result, timeout=wrong)
    for wrong in (-1, float("nan")):
        with pytest.raises(FaultValueError, match="virtual seconds from 0 up, or None"):
            await worker.aget(result, timeout=wrong)
    assert await worker.aget(result) == 3


# -- the clock


async def test_the_clock_of_a_coroutine_is_virtual_and_its_sleep_real(worker, app, elapsed):
    @app.task(name="shop.now")
    def now():
        return [datetime.now().timestamp(), time.time(), time.monotonic()]

    before = datetime.now()
    monotonic = time.monotonic()
    await worker.aadvance(86400)
    assert datetime.now() - before == timedelta(days=1)
    assert time.monotonic() - monotonic == pytest.approx(86400)
    assert await worker.aget(now.delay()) == [datetime.now().timestamp(), time.time(), time.monotonic()]
    await asyncio.sleep(0.01)
    assert elapsed() == 86400


async def test_real_time_for_a_while(celery_faults, worker, slow, elapsed):
    await worker.aget(slow.delay(2))
    with celery_faults.clock.real():
        start = time.monotonic()
        time.sleep(0.02)
        assert time.monotonic() - start >= 0.02
        await asyncio.sleep(0.001)
    assert elapsed() == 2
    assert await worker.aget(slow.delay(3)) == 3
    assert elapsed() == 5


@pytest.mark.celery_faults(clock="real", concurrency=2)
async def test_on_the_real_clock(celery_faults, worker, slow, add):
    waiting = asyncio.create_task(worker.aget(slow.delay(0.15)))
    await asyncio.sleep(0.02)
    assert await worker.aget(add.delay(1, 1)) == 2
    assert await waiting == 0.15
    assert celery_faults.clock.elapsed >= 0.15
    before = celery_faults.clock.elapsed
    await worker.aadvance(0.05)
    assert celery_faults.clock.elapsed >= before + 0.05


# -- sync tests that run a loop, and foreign threads


def test_a_worker_that_sync_code_started_is_awaited_without_a_thread(worker, slow, elapsed):
    first = slow.delay(2)
    worker.advance(1)

    async def main():
        assert threads() == 0
        assert await worker.aget(first) == 2
        assert await asyncio.gather(worker.aget(slow.delay(3)), worker.adrain(), worker.aadvance(1)) == [3, None, None]

    asyncio.run(main())
    assert elapsed() >= 5
    assert threads() == 0
    assert slow.delay(1).get() == 1


def test_a_sync_test_goes_on_after_its_loop(worker, slow, elapsed):
    async def main():
        return await worker.aget(slow.delay(2))

    assert asyncio.run(main()) == 2
    assert slow.delay(3).get() == 3
    assert asyncio.run(main()) == 2
    worker.advance(1)
    assert elapsed() == 8
    assert trio.run(main) == 2


def test_another_thread_of_a_sync_test(worker, add):
    add.delay(1, 2).get()
    errors = []

    def drive():
        for what in (worker.drain, lambda: worker.advance(1), worker.step, worker.stop, worker.crash):
            try:
                what()
            except CeleryFaultsError as error:
                errors.append(str(error))

    thread = threading.Thread(target=drive, name="another one")
    thread.start()
    thread.join()
    assert len(errors) == 5
    for error in errors:
        assert "in which it was first needed" in error
        assert "'another one'" in error
    assert add.delay(1, 2).get() == 3


# -- two threads, one process


async def test_the_flag_of_a_running_task_is_not_the_tests(worker, held, gate, add):
    """Celery refuses `get()` in a task, by a flag of the process."""
    done = add.delay(1, 2)
    assert await worker.aget(done) == 3
    waiting = asyncio.create_task(worker.aget(held.delay("value")))
    await gate.reached()
    assert _state.task_join_will_block()  # the task's
    assert done.get() == 3
    gate.open()
    assert await waiting == "value"


async def test_a_task_that_waits_for_a_task_is_refused_as_ever(app, worker, add):
    @app.task(name="shop.waits")
    def waits():
        return add.delay(1, 2).get()

    with pytest.raises(RuntimeError, match=r"Never call result\.get"):
        await worker.aget(waits.delay())


async def test_views_are_read_while_tasks_run(celery_faults, app, worker):
    """The record grows in one thread and is read in the other."""

    @app.task(name="shop.failing", autoretry_for=(OSError,), retry_backoff=1, retry_jitter=False, max_retries=3)
    def failing(number):
        started.set()
        if number % 3 == 0:
            raise OSError
        return number

    started = threading.Event()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        results = group(failing.s(number) for number in range(15))()
        waiting = asyncio.create_task(worker.adrain())
        reads = 0
        await until(started.is_set)
        while not waiting.done():
            views = [
                list(celery_faults.timeline), str(celery_faults.timeline), celery_faults.timeline.where("started"),
                list(celery_faults.sent), list(celery_faults.dlq), celery_faults.dlq.reasons,
                list(celery_faults.signals), list(celery_faults.callbacks), celery_faults.callbacks.missing,
                repr(celery_faults.retries), celery_faults.broker.queues, celery_faults.broker.unacked,
                celery_faults.outcome(results).states, repr(celery_faults), repr(celery_faults.timeline),
                celery_faults.retries.of(results.results[0]).delays,
            ]  # fmt: skip
            assert len(views) == 16
            reads += 1
            await asyncio.sleep(0)
        await waiting
    finally:
        sys.setswitchinterval(before)
    assert reads
    assert len(celery_faults.dlq) == 5


async def test_collecting_garbage_while_the_worker_works(celery_faults, app, worker):
    """Killed tasks must never be collected; nor may one thread collect the other's greenlets."""

    @app.task(name="shop.limited", time_limit=1)
    def limited():
        try:
            time.sleep(5)
        finally:
            ended.append(True)

    ended = []
    over = False

    def collect():
        while not over:
            gc.collect()
            real_sleep(0.001)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for _ in range(5):
            limited.delay()
        await worker.adrain()
    finally:
        over = True
        thread.join()
    assert celery_faults.dlq.reasons == {"time_limit": 5}
    assert ended == []


# -- trio


def test_a_trio_run_ends_well(build):
    """What the simulation posts into the loop may find it ended."""
    harness = build(is_async=True)
    for _ in range(30):
        trio.run(harness.worker.aadvance, 1)
    assert harness.clock.elapsed == 30

    async def cancelled(turns):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.worker.aadvance, 1)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    for number in range(60):
        trio.run(cancelled, number % 6)
    trio.run(harness.worker.adrain)


def test_the_same_in_trio(worker, slow, noted, log, celery_faults):
    async def main():
        first, second = slow.delay(3), slow.delay(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(noted, "second", worker.aget(second))
            nursery.start_soon(noted, "four", worker.aadvance(4))
            nursery.start_soon(noted, "all", worker.adrain())
            nursery.start_soon(noted, "first", worker.aget(first))
        assert threads() == 1
        assert slow.delay(1).get() == 1
        assert await trio.to_thread.run_sync(slow.delay(1).get) == 1
        with pytest.raises(WaitNeverEndsError):
            await worker.aget(slow.app.AsyncResult("nobody"))

    trio.run(main)
    # Trio resumes its tasks in an order of its own.
    assert sorted(log, key=str) == [(3, "first", 3), (4, "four", None), (5, "all", None), (5, "second", 2)]


@EACH_CALL
def test_a_call_that_is_cancelled_in_trio(celery_faults, worker, slow, held, gate, call):
    async def reached():
        while not gate._come.acquire(blocking=False):
            await trio.sleep(0.001)

    async def main():
        result = held.delay("value")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, worker, result)
            await reached()
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0) as scope:
            await call(worker, result)
        assert scope.cancelled_caught
        gate.open()
        assert await worker.aget(result) == "value"
        assert await worker.aget(slow.delay(2)) == 2
        assert not celery_faults.simulation.callers

    trio.run(main)
    assert celery_faults.clock.elapsed == 2
    celery_faults.assert_nothing_lost()


def test_a_wait_that_another_task_of_trio_will_end(celery_faults, app, worker):
    client = celery_faults.broker.client

    @app.task(name="shop.pop")
    def pop():
        return client.blpop("key")[1]

    async def push():
        await trio.sleep(0.05)
        client.lpush("key", "value")

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            assert await worker.aget(pop.delay()) == b"value"
        with pytest.raises(WaitNeverEndsError):
            await worker.aget(pop.delay())

    trio.run(main)
