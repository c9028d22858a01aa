"""The machinery is itself tested: broken on purpose, it makes tests fail that pass when it works."""

from __future__ import annotations

from contextlib import nullcontext
from contextvars import Context

import pytest

from pytest_celery_faults import replaced, thread
from pytest_celery_faults.broker import Broker
from pytest_celery_faults.callbacks import CallbackLog
from pytest_celery_faults.effects import Effects
from pytest_celery_faults.injection import Injection, Injector
from pytest_celery_faults.letterdesk import LetterDesk, Quarantine
from pytest_celery_faults.memory import Server
from pytest_celery_faults.recorder import Recorder
from pytest_celery_faults.signal_log import SignalLog
from pytest_celery_faults.simulation import Simulation
from pytest_celery_faults.thread import SimulationThread
from pytest_celery_faults.timeline import Timeline
from pytest_celery_faults.views import lost, signals
from pytest_celery_faults.views.letters import DeadLetterQueue, Letter
from pytest_celery_faults.views.lost import Snapshot
from pytest_celery_faults.views.policy import Bounds, RetryPolicy
from pytest_celery_faults.views.prospects import Prospects
from pytest_celery_faults.views.retries import RetryHistory

TESTS = """
import pytest
from celery import chord
from celery.exceptions import Reject
from pytest_celery_faults import BrokerDown, Crash, Drop, FaultNeverFiredError, PolicyNotFollowedError, Sleep
from shop import add, app, boom, download, jittery, slow

@pytest.mark.inject(OSError, times=3)
def test_three_faults(retry_recorder):
    assert download.delay("x").get() == "done"
    assert retry_recorder.count == 3
    assert retry_recorder.delays == [1, 2, 4]

def test_a_busy_slot(celery_faults, retry_recorder):
    celery_faults.inject(OSError, task=download)
    download.delay("x")
    celery_faults.worker.advance(0.5)
    slow.delay(10)
    celery_faults.worker.drain()
    assert retry_recorder.of(download).delays == [1]
    assert retry_recorder.of(download).waits == [10.5]

def test_a_fault_that_cannot_fire(celery_faults):
    with pytest.raises(FaultNeverFiredError), celery_faults.inject(OSError, task=boom):
        add.delay(1, 2).get()

def test_a_countdown_that_breaks_the_policy(retry_recorder):
    @app.task(bind=True, default_retry_delay=30)
    def task(self):
        if not self.request.retries:
            raise self.retry(countdown=5)
    task.delay().get()
    with pytest.raises(PolicyNotFollowedError):
        retry_recorder.assert_follows_policy()

def test_jitter_in_its_bounds(celery_faults, retry_recorder):
    celery_faults.inject(OSError, times=3)
    jittery.delay().get()
    retry_recorder.assert_follows_policy()

def test_a_failure_is_a_letter(celery_faults, celery_dlq):
    boom.delay()
    celery_faults.worker.drain()
    assert [(letter.reason, letter.route) for letter in celery_dlq] == [("failed", "harness")]

@pytest.mark.parametrize("late", [False, True])
def test_a_rejection(celery_faults, celery_dlq, late):
    @app.task(acks_late=late)
    def task():
        raise Reject("no", requeue=False)
    task.delay()
    celery_faults.worker.drain()
    assert [letter.route for letter in celery_dlq] == ["broker" if late else "harness"]

def test_an_ack_comes_after_a_late_task(celery_faults):
    @app.task(acks_late=True)
    def task():
        return len(celery_faults.broker.unacked)
    assert task.delay().get() == 1
    kinds = [event.kind for event in celery_faults.timeline]
    celery_faults.worker.drain()
    kinds = [event.kind for event in celery_faults.timeline]
    assert kinds.index("acked") > kinds.index("succeeded")

def test_a_letter_is_sent_back(celery_faults, celery_dlq):
    with celery_faults.inject(KeyError("k")):
        result = add.delay(1, 2)
        celery_faults.worker.drain()
    celery_dlq.redrive()
    celery_faults.worker.drain()
    assert app.AsyncResult(result.id).state == "SUCCESS"

def test_the_dead_letter_queue_is_worked(celery_dlq):
    result = add.apply_async((1, 2), queue="dlq")
    celery_dlq.consume()
    assert not celery_dlq
    assert result.state == "SUCCESS"

@pytest.mark.celery_faults(quarantine=True)
def test_poison_is_run_once(celery_faults, celery_dlq):
    for _ in range(2):
        boom.delay()
    celery_faults.worker.drain()
    assert celery_faults.recorder.executions == 1
    assert celery_dlq.reasons == {"failed": 1, "quarantined": 1}

@pytest.mark.inject(Sleep(5), task=slow)
def test_time_passes(celery_faults):
    slow.delay(10).get()
    assert celery_faults.clock.elapsed == 15

@pytest.mark.inject(KeyError("k"), times=None, skip=1, every=2)
def test_every_other(celery_faults):
    results = [add.delay(n, n) for n in range(6)]
    celery_faults.worker.drain()
    assert [result.state for result in results] == ["SUCCESS", "FAILURE"] * 3

@pytest.mark.inject(KeyError("k"), probability=0.5, times=None)
def test_half_of_them(celery_faults):
    results = [add.delay(n, n) for n in range(40)]
    celery_faults.worker.drain()
    assert 5 < sum(result.state == "FAILURE" for result in results) < 35

@pytest.mark.inject(Crash(), at="return")
def test_a_crash(celery_faults, celery_dlq):
    add.delay(1, 2)
    celery_faults.worker.drain()
    assert celery_dlq.reasons == {"worker_lost": 1}

@pytest.mark.inject(Drop())
def test_a_lost_message(celery_faults):
    add.delay(1, 2)
    celery_faults.worker.drain()
    with pytest.raises(AssertionError, match="the broker lost it"):
        celery_faults.assert_nothing_lost()

@pytest.mark.inject(BrokerDown(60), at="ack")
@pytest.mark.celery_faults(broker="rabbitmq", conf={"task_acks_late": True})
def test_an_outage(celery_faults, retry_recorder):
    result = add.delay(1, 2)
    celery_faults.worker.drain()
    assert [attempt.started for attempt in retry_recorder.of(result).attempts][1] >= 60

def test_a_redelivery_is_no_retry(celery_faults, retry_recorder):
    @app.task(acks_late=True)
    def task():
        if len(retry_recorder.attempts) == 1:
            raise Reject("again", requeue=True)
    task.delay()
    celery_faults.worker.drain()
    assert retry_recorder.count == 0
    assert [attempt.redelivered for attempt in retry_recorder.attempts] == [False, True]
    assert len(celery_faults.timeline.where("redelivered")) == 1

def test_links_and_errbacks(celery_faults):
    @app.task
    def errback(request, exc, traceback):
        pass
    result = add.apply_async((1, 2), link=add.s(3))
    failed = boom.apply_async(link_error=errback.s())
    celery_faults.worker.drain()
    assert [(link.parent, link.args) for link in celery_faults.callbacks.links] == [(result.id, [3, 3])]
    assert [called.parent for called in celery_faults.callbacks.errbacks] == [failed.id]
    assert celery_faults.callbacks.missing == []

@pytest.mark.inject(Drop(), task=add)
def test_a_chord_that_loses_a_header(celery_faults):
    result = chord([add.s(1, 1), add.s(2, 2)])(add.s(1))
    celery_faults.worker.drain()
    assert [missing.kind for missing in celery_faults.callbacks.missing] == ["chord body"]
    assert celery_faults.outcome(result).states == {"header": ["LOST", "SUCCESS"], "body": "LOST"}

def test_what_waits_is_pending(celery_faults):
    result = add.apply_async((1, 2), countdown=60)
    celery_faults.worker.advance(1)
    assert celery_faults.outcome(result).state == "PENDING"

def test_signals(celery_faults):
    boom.delay()
    celery_faults.worker.drain()
    assert celery_faults.signals.count("task_failure", sender=boom) == 1
    assert celery_faults.signals.count("task_failure", sender=add) == 0
"""


def nothing(*_args, **_options):
    return None


def acked_at_once(original):
    def delivered(self, payload):
        original(self, payload)
        self.acked(payload)

    return delivered


def without_jitter(original):
    def of_retry(self, number):
        return Bounds(original(self, number).high, original(self, number).high)

    return of_retry


def every_wait_is_the_delay(self, attempt):
    return attempt.planned_delay


#: What is broken, how, and some of the tests that have to notice.
SABOTAGE = {
    "an injector that fires nothing": (Injector, "strike", nothing, {"test_three_faults", "test_time_passes"}),
    "a fault that is never missed": (Injection, "__exit__", nothing, {"test_a_fault_that_cannot_fire"}),
    "a fault that fires at each match": (Injection, "is_its_turn", lambda self: True, {"test_every_other"}),
    "a chance that is a certainty": (Injection, "is_its_turn", lambda self: True, {"test_half_of_them"}),
    "waits that are copies of delays": (RetryHistory, "_wait_after", every_wait_is_the_delay, {"test_a_busy_slot"}),
    "a policy check that accepts everything": (
        RetryHistory, "assert_follows_policy", nothing, {"test_a_countdown_that_breaks_the_policy"},
    ),
    "a policy without jitter": (
        RetryPolicy, "of_retry", without_jitter(RetryPolicy.of_retry), {"test_jitter_in_its_bounds"},
    ),
    "letters that nobody writes": (
        Recorder, "_dead_letter", nothing, {"test_a_failure_is_a_letter", "test_poison_is_run_once"},
    ),
    "letters that are all kept": (Letter, "route", "broker", {"test_a_failure_is_a_letter", "test_a_rejection[False]"}),
    "a rejection that is not heard": (Recorder, "rejected", nothing, {"test_a_rejection[True]"}),
    "an ack that is inferred": (
        Recorder, "delivered", acked_at_once(Recorder.delivered), {"test_an_ack_comes_after_a_late_task"},
    ),
    "letters that are not sent back": (LetterDesk, "send_back", nothing, {"test_a_letter_is_sent_back"}),
    "a dead-letter queue that nobody works": (
        LetterDesk, "work", nothing, {"test_the_dead_letter_queue_is_worked"},
    ),
    "a quarantine that lets everything in": (
        Quarantine, "refuses", lambda self, request: False, {"test_poison_is_run_once"},
    ),
    "a queue that forgets": (DeadLetterQueue, "_present", lambda self: [], {"test_a_failure_is_a_letter"}),
    "time that stands still": (Simulation, "sleep", nothing, {"test_time_passes", "test_a_busy_slot"}),
    "a crash that kills nobody": (Effects, "crash", nothing, {"test_a_crash"}),
    "a broker that keeps what it loses": (Broker, "_struck", nothing, {"test_a_lost_message", "test_an_outage"}),
    "an outage that breaks no connection": (Server, "take_down", nothing, {"test_an_outage"}),
    "losses that nobody counts": (lost, "_lost", lambda recorder, broker: [], {"test_a_lost_message"}),
    "links that are taken for anything": (CallbackLog, "_cause_of", nothing, {"test_links_and_errbacks"}),
    "errbacks that nobody hears called": (
        CallbackLog, "called", lambda *_: nullcontext(), {"test_links_and_errbacks"},
    ),
    "chords that are never stuck": (
        Prospects, "stuck_chords", lambda self: [], {"test_a_chord_that_loses_a_header"},
    ),
    "what is lost, pending": (Snapshot, "lost", lambda *_: "", {"test_a_chord_that_loses_a_header"}),
    "what is pending, lost": (Snapshot, "lost", lambda *_: "gone", {"test_what_waits_is_pending"}),
    "signals that nobody hears": (SignalLog, "_write", nothing, {"test_signals"}),
    "signals of any sender": (signals, "_same", lambda *_: True, {"test_signals"}),
    "a timeline that writes nothing down": (
        Timeline, "where", lambda self, kind=None, **_: [], {"test_a_redelivery_is_no_retry"},
    ),
}  # fmt: skip


def outcomes(result):
    """The names of the tests by their outcome."""
    found = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
    for line in result.outlines:
        word, _, rest = line.partition(" test_shop.py::")
        if word in found:
            found[word].add(rest.split(" - ")[0])
    return found


def test_unbroken_all_of_them_pass(shop):
    shop.test(TESTS)
    assert outcomes(shop.armed("-rA"))["FAILED"] == set()
    shop.armed().assert_outcomes(passed=23)


@pytest.mark.parametrize("how", SABOTAGE)
def test_broken_on_purpose_it_makes_tests_fail(shop, monkeypatch, how):
    owner, name, broken, noticed = SABOTAGE[how]
    shop.test(TESTS)
    monkeypatch.setattr(owner, name, broken)
    failed = outcomes(shop.armed("-rA", "--tb=no", "-k", " or ".join(test.partition("[")[0] for test in noticed)))
    assert noticed <= failed["FAILED"]


ASYNC_TESTS = """
import asyncio, contextvars, threading
import pytest
from pytest_celery_faults import WaitNeverEndsError
from shop import add, app, slow

VAR = contextvars.ContextVar("VAR", default="unset")

@pytest.mark.asyncio
async def test_what_a_coroutine_does_with_an_answer_comes_before_time_goes_on(celery_faults):
    worker, times = celery_faults.worker, []
    async def one_after_another():
        for _ in range(5):
            await worker.aget(slow.delay(1))
            await asyncio.sleep(0)
            threading.Event().wait(0.05)
            times.append(celery_faults.clock.elapsed)
    await asyncio.gather(one_after_another(), worker.aadvance(100))
    assert times == [1, 2, 3, 4, 5]

@pytest.mark.asyncio
async def test_a_task_sees_the_context(celery_faults):
    @app.task
    def seen():
        return VAR.get()
    VAR.set("the test's")
    assert await celery_faults.worker.aget(seen.delay()) == "the test's"

@pytest.mark.asyncio
async def test_a_cancelled_call_is_gone(celery_faults):
    waiting = asyncio.create_task(celery_faults.worker.aadvance(1000))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(WaitNeverEndsError):
        await celery_faults.worker.aget(app.AsyncResult("nobody"))
    assert celery_faults.clock.elapsed == 0

@pytest.mark.asyncio
async def test_a_coroutine_may_still_act(celery_faults):
    @app.task
    def pop():
        return celery_faults.broker.client.blpop("key")[1].decode()
    async def push():
        await asyncio.sleep(0.5)
        celery_faults.broker.client.lpush("key", "value")
    assert await asyncio.gather(celery_faults.worker.aget(pop.delay()), push()) == ["value", None]

@pytest.mark.asyncio
async def test_the_flag_of_tasks_is_not_the_tests(celery_faults):
    done = add.delay(1, 2)
    assert await celery_faults.worker.aget(done) == 3
    began, go_on = threading.Event(), threading.Event()
    @app.task
    def held():
        began.set()
        assert go_on.wait(9)
    waiting = asyncio.create_task(celery_faults.worker.aget(held.delay()))
    try:
        while not began.is_set():
            await asyncio.sleep(0.001)
        assert done.get() == 3
    finally:
        go_on.set()
        await waiting

def test_the_thread_is_gone():
    assert "celery-faults simulation" not in [thread.name for thread in threading.enumerate()]
"""


def the_flag_of_the_process(stack, what, make):
    if what is not replaced.JOIN_BLOCKS:
        replace(stack, what, make)


replace = replaced.replace

#: The same for what only async tests need.
ASYNC_SABOTAGE = {
    "time that goes on before a loop is at rest": (
        SimulationThread, "_let_loops_come_to_rest", nothing,
        "test_what_a_coroutine_does_with_an_answer_comes_before_time_goes_on",
    ),
    "a context that is not passed on": (thread, "copy_context", Context, "test_a_task_sees_the_context"),
    "calls that nobody takes back": (SimulationThread, "_take_back", nothing, "test_a_cancelled_call_is_gone"),
    "loops that are given up too soon": (
        SimulationThread, "may_act", lambda self: False, "test_a_coroutine_may_still_act",
    ),
    "one flag for both threads": (
        replaced, "replace", the_flag_of_the_process, "test_the_flag_of_tasks_is_not_the_tests",
    ),
}  # fmt: skip


def test_unbroken_all_async_tests_pass(shop):
    shop.test(ASYNC_TESTS)
    shop.armed(asyncio="strict").assert_outcomes(passed=6)


@pytest.mark.parametrize("how", ASYNC_SABOTAGE)
def test_broken_on_purpose_it_makes_async_tests_fail(shop, monkeypatch, how):
    owner, name, broken, noticed = ASYNC_SABOTAGE[how]
    shop.test(ASYNC_TESTS)
    monkeypatch.setattr(owner, name, broken)
    failed = outcomes(shop.armed("-rA", "--tb=no", "-k", noticed, asyncio="strict"))
    assert failed["FAILED"] == {noticed}


def test_a_thread_that_nobody_ends_is_noticed(shop, monkeypatch):
    left = []
    stop = SimulationThread.stop
    monkeypatch.setattr(SimulationThread, "stop", lambda *arguments: left.append(arguments))
    shop.test(ASYNC_TESTS)
    failed = outcomes(shop.armed("-rA", "--tb=no", "-k", "context or thread", asyncio="strict"))
    assert failed == {"PASSED": {"test_a_task_sees_the_context"}, "FAILED": {"test_the_thread_is_gone"}, "ERROR": set()}
    assert len(left) == 1
    for arguments in left:
        stop(*arguments)
