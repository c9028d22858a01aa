"""Celery's worker in the test: driving it, time limits, acknowledgements, control, life and death."""

from __future__ import annotations

import gc
import threading
import time
from datetime import datetime, timedelta, timezone

import celery
import kombu
import pytest
from celery import signals
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.exceptions import TimeoutError as CeleryTimeoutError

from pytest_celery_faults import (
    CeleryFaultsError,
    EndlessTaskError,
    Sleep,
    StalledTaskError,
    WaitNeverEndsError,
    WorkerDiedError,
    watchdog,
)
from pytest_celery_faults.harness import Harness, make_options

NAME = "celery@in-memory"
CELERY_57 = celery.VERSION[:2] >= (5, 7)


@pytest.fixture
def add(app):
    return app.task(name="shop.add")(_add)


def _add(x, y):
    return x + y


@pytest.fixture
def slow(app, log, elapsed):
    """Sleeps; says when it began and when it ended."""

    def slow(seconds, name="slow"):
        log.append((name, "began", elapsed()))
        time.sleep(seconds)
        log.append((name, "ended", elapsed()))
        return seconds

    return app.task(name="shop.slow")(slow)


def kinds(harness, result):
    return [event.kind for event in harness.timeline.where(task_id=result.id)]


# -- drain, advance, step


def test_drain_runs_all_there_is(worker, add, slow, elapsed):
    results = [add.delay(1, 2), slow.delay(5), add.apply_async((3, 4), countdown=100)]
    worker.drain()
    assert [result.state for result in results] == ["SUCCESS"] * 3
    assert elapsed() == 100


def test_drain_with_nothing_to_do_takes_no_time(worker, elapsed):
    worker.drain()
    worker.drain()
    assert elapsed() == 0


def test_drain_runs_what_tasks_send(worker, app, log, elapsed):
    @app.task
    def countdown(number):
        log.append((number, elapsed()))
        if number:
            countdown.apply_async((number - 1,), countdown=10)

    countdown.delay(3)
    worker.drain()
    assert log == [(3, 0), (2, 10), (1, 20), (0, 30)]


def test_fail_fast_raises_the_first_exception_of_a_task(worker, app, elapsed):
    @app.task
    def fail(text):
        raise LookupError(text)

    fail.apply_async(("first",), countdown=1)
    fail.apply_async(("second",), countdown=2)
    with pytest.raises(LookupError, match="first"):
        worker.drain(fail_fast=True)
    assert elapsed() == 1
    worker.drain()
    assert elapsed() == 2


def test_fail_fast_is_not_about_injected_faults(celery_faults, worker, add):
    with celery_faults.inject(LookupError):
        result = add.delay(1, 2)
        worker.drain(fail_fast=True)
    assert result.state == "FAILURE"


@pytest.mark.parametrize(
    ("span", "seconds"), [(5, 5), (0.1, 0.1), (timedelta(minutes=1), 60), (0, 0), (timedelta(microseconds=1), 1e-6)]
)
def test_advance_stands_exactly_there(worker, elapsed, span, seconds):
    worker.advance(span)
    assert elapsed() == seconds


def test_advance_runs_all_that_falls_due_its_end_included(worker, add):
    results = [add.apply_async((1, 1), countdown=countdown) for countdown in (1, 3, 3.000001)]
    worker.advance(3)
    assert [result.state for result in results] == ["SUCCESS", "SUCCESS", "PENDING"]
    worker.advance(1e-6)
    assert results[2].state == "SUCCESS"


def test_advance_stops_in_the_middle_of_a_task(worker, slow, log, elapsed):
    result = slow.delay(10)
    worker.advance(4)
    assert (elapsed(), result.state, log) == (4, "PENDING", [("slow", "began", 0)])
    worker.advance(6)
    assert (elapsed(), result.state) == (10, "SUCCESS")


@pytest.mark.parametrize(
    ("span", "error", "text"),
    [
        (-1, ValueError, "advance(-1): time can't go backwards"),
        (timedelta(seconds=-1), ValueError, "time can't go backwards"),
        (float("nan"), ValueError, "advance(nan): that is no length of time"),
        (float("inf"), ValueError, "advance(inf): that is no length of time"),
        (float("-inf"), ValueError, "advance(-inf)"),
        ("x", TypeError, "advance() takes seconds or a timedelta, not 'x'"),
        (None, TypeError, "not None"),
        (True, TypeError, "not True"),
    ],
)
def test_what_advance_does_not_take(worker, elapsed, span, error, text):
    with pytest.raises(error) as caught:
        worker.advance(span)
    assert isinstance(caught.value, CeleryFaultsError)
    assert text in str(caught.value)
    assert elapsed() == 0


def test_step_returns_each_event_and_moves_no_time(celery_faults, worker, add, elapsed):
    worker.drain()
    result = add.delay(1, 2)
    add.apply_async((3, 4), countdown=5)
    events = []
    while (event := worker.step()) is not None:
        events.append(event)
    assert [event.kind for event in events if event.task_id == result.id] == [
        "received",
        "acked",
        "started",
        "succeeded",
    ]
    assert elapsed() == 0
    assert result.state == "SUCCESS"
    worker.advance(5)
    assert len(celery_faults.timeline.where("succeeded")) == 2


def test_step_can_stop_between_the_start_and_the_end_of_a_task(worker, app, log):
    @app.task
    def quick():
        log.append("ran")

    result = quick.delay()
    while worker.step().kind != "started":
        pass
    assert (log, result.state) == ([], "PENDING")
    worker.drain()
    assert (log, result.state) == (["ran"], "SUCCESS")


# -- waiting drives the worker


def test_get_drives_the_worker(add, elapsed):
    assert add.apply_async((1, 2), countdown=7).get() == 3
    assert elapsed() == 7


def test_get_raises_what_the_task_raised(app):
    @app.task
    def fail():
        raise LookupError("nothing there")

    result = fail.delay()
    with pytest.raises(LookupError, match="nothing there"):
        result.get()
    assert isinstance(result.get(propagate=False), LookupError)
    assert 'raise LookupError("nothing there")' in result.traceback


def test_a_caller_gives_up_and_the_task_goes_on(slow, elapsed):
    result = slow.delay(10)
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=3)
    assert elapsed() == 3
    assert result.state == "PENDING"
    assert result.get() == 10
    assert elapsed() == 10
    assert result.state == "SUCCESS"


@pytest.mark.parametrize("timeout", [0.1, 0.3, 3, 3.5])
def test_a_timeout_is_exact(slow, elapsed, timeout):
    result = slow.delay(10)
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=timeout)
    assert elapsed() == timeout


def test_a_result_that_comes_at_the_end_of_the_timeout_is_in_time(slow, elapsed):
    assert slow.delay(3).get(timeout=3) == 3
    assert elapsed() == 3


def test_wait(slow, elapsed):
    assert slow.delay(10).wait() == 10
    assert elapsed() == 10


def test_a_loop_with_sleep(slow, elapsed):
    result = slow.delay(10)
    while not result.ready():
        time.sleep(3)
    assert elapsed() == 12
    assert result.result == 10


def test_a_loop_without_sleep(slow, elapsed, hang_is_failure):
    result = slow.delay(10)
    while not result.ready():
        pass
    assert elapsed() == 10


def test_looking_at_many_results_is_no_loop_that_waits(worker, app, elapsed):
    @app.task
    def number(x):
        return x

    results = [number.delay(x) for x in range(120)]
    worker.drain()
    assert [result.get() for result in results] == list(range(120))
    assert all(result.ready() for result in results)
    assert elapsed() == 0


def test_a_loop_over_many_results_of_which_one_is_late(slow, elapsed, hang_is_failure):
    results = [slow.delay(0), slow.delay(10)]
    while not all(result.ready() for result in results):
        pass
    assert elapsed() == 10


UNSERVED = pytest.mark.celery_faults(queues=["celery"], conf={"task_routes": {"shop.report": {"queue": "reports"}}})


@UNSERVED
def test_loops_that_never_end(app, hang_is_failure):
    @app.task(name="shop.report")
    def report():
        pass

    result = report.delay()

    def loop(pause):
        while not result.ready():
            pause()

    for pause in (lambda: time.sleep(1), lambda: None):
        with pytest.raises(WaitNeverEndsError, match="nothing consumes queue 'reports': 1 message is in it"):
            loop(pause)


@UNSERVED
def test_a_result_that_never_comes(worker, app, elapsed):
    @app.task(name="shop.report")
    def report():
        pass

    result = report.delay()
    with pytest.raises(WaitNeverEndsError) as caught:
        result.get()
    assert str(caught.value) == (
        "waiting for the result of shop.report#1 can never end: nothing consumes queue 'reports': 1 message is in it"
    )
    report.delay()
    with pytest.raises(WaitNeverEndsError, match="nothing consumes queue 'reports': 2 messages are in it"):
        result.get()
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=5)
    assert elapsed() == 5
    worker.drain()


def test_a_result_that_nobody_sent(app):
    with pytest.raises(WaitNeverEndsError, match="the result of task nonsense, which nobody sent"):
        app.AsyncResult("nonsense").get()


def test_a_result_that_nobody_will_bring_as_the_worker_is_stopped(worker, add, elapsed):
    worker.stop()
    result = add.delay(1, 2)
    with pytest.raises(WaitNeverEndsError, match="the worker is stopped"):
        result.get()
    worker.advance(5)
    worker.drain()
    assert (elapsed(), result.state) == (5, "PENDING")


# -- concurrency


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(40, marks=pytest.mark.celery_faults(concurrency=1)),
        pytest.param(20, marks=pytest.mark.celery_faults(concurrency=2)),
        pytest.param(20, marks=pytest.mark.celery_faults(concurrency=3)),
        pytest.param(10, marks=pytest.mark.celery_faults(concurrency=4)),
    ],
)
def test_concurrency(worker, slow, elapsed, seconds):
    results = [slow.delay(10) for _ in range(4)]
    worker.drain()
    assert elapsed() == seconds
    assert [result.get() for result in results] == [10] * 4


@pytest.mark.celery_faults(concurrency=2)
def test_a_slot_is_taken_again_when_it_is_free(worker, slow, log):
    for name, seconds in (("a", 10), ("b", 3), ("c", 4)):
        slow.delay(seconds, name)
    worker.drain()
    assert log == [
        ("a", "began", 0),
        ("b", "began", 0),
        ("b", "ended", 3),
        ("c", "began", 3),
        ("c", "ended", 7),
        ("a", "ended", 10),
    ]


@pytest.fixture
def outer(app, add):
    def outer(**options):
        return add.delay(1, 2).get(**options)

    return app.task(name="shop.outer")(outer)


@pytest.mark.celery_faults(concurrency=2)
def test_a_task_that_waits_for_a_task(outer):
    assert outer.delay(disable_sync_subtasks=False).get() == 3


@pytest.mark.celery_faults(concurrency=2)
def test_a_task_that_waits_with_allow_join_result(app, add):
    from celery.result import allow_join_result

    @app.task
    def outer():
        with allow_join_result():
            return add.apply_async((1, 2), countdown=5).get()

    assert outer.delay().get() == 3


def test_a_task_that_waits_for_one_that_has_no_slot(outer):
    with pytest.raises(WaitNeverEndsError) as caught:
        outer.delay(disable_sync_subtasks=False).get()
    assert str(caught.value) == (
        "waiting for the result of shop.outer#1 can never end: shop.outer#1 waits for the result of shop.add#1"
    )


def test_a_task_must_not_wait_for_a_task(outer):
    with pytest.raises(RuntimeError, match=r"Never call result.get\(\) within a task!"):
        outer.delay().get()


@pytest.mark.celery_faults(concurrency=2)
def test_the_ban_on_waiting_is_the_tasks_and_not_the_tests(add, slow, outer):
    running = slow.delay(10)
    assert add.delay(1, 2).get() == 3
    with pytest.raises(RuntimeError):
        outer.delay().get()
    assert running.get() == 10


# -- time limits


@pytest.fixture
def limited(app, log, elapsed):
    """A task of ten seconds with a clean-up."""

    def limited(clean_up=1):
        try:
            time.sleep(10)
        except SoftTimeLimitExceeded:
            log.append(("soft", elapsed()))
            time.sleep(clean_up)
            log.append(("cleaned", elapsed()))
            return "cleaned"
        except BaseException as exc:
            log.append(("except", repr(exc)))
            raise
        finally:
            log.append(("finally", elapsed()))
        return "done"

    return lambda **limits: app.task(name="shop.limited", **limits)(limited)


def test_a_soft_limit_is_raised_at_that_instant(limited, log, elapsed):
    assert limited(soft_time_limit=3).delay().get() == "cleaned"
    assert log == [("soft", 3), ("cleaned", 4), ("finally", 4)]


def test_a_soft_limit_that_nobody_catches(app, celery_dlq, elapsed):
    @app.task(soft_time_limit=3)
    def task():
        time.sleep(10)

    with pytest.raises(SoftTimeLimitExceeded):
        task.delay().get()
    assert elapsed() == 3
    assert celery_dlq.reasons == {"time_limit": 1}


def test_a_soft_limit_after_which_the_task_goes_on_does_not_strike_twice(app, log, elapsed):
    @app.task(soft_time_limit=3)
    def stubborn():
        for _ in range(2):
            try:
                time.sleep(10)
            except SoftTimeLimitExceeded:
                log.append(elapsed())
        return "done"

    assert stubborn.delay().get() == "done"
    assert log == [3]
    assert elapsed() == 13


def test_a_hard_limit_ends_the_task_without_a_word(limited, log, elapsed, celery_dlq):
    result = limited(time_limit=5).delay()
    with pytest.raises(TimeLimitExceeded, match=r"TimeLimitExceeded\(5"):
        result.get()
    assert elapsed() == 5
    assert result.state == "FAILURE"
    assert log == []
    assert celery_dlq.reasons == {"time_limit": 1}


def test_a_clean_up_that_outlasts_the_hard_limit(worker, limited, log, elapsed):
    result = limited(soft_time_limit=3, time_limit=5).delay(clean_up=10)
    with pytest.raises(TimeLimitExceeded):
        result.get()
    assert elapsed() == 5
    worker.advance(60)
    gc.collect()
    assert log == [("soft", 3)]


@pytest.mark.parametrize("limits", [{"time_limit": 5}, {"soft_time_limit": 5}])
def test_a_task_that_ends_before_its_limit(worker, app, limits):
    @app.task(**limits)
    def task():
        time.sleep(4.999999)
        return "done"

    assert task.delay().get() == "done"
    worker.advance(10)


def test_limits_of_one_call(slow, elapsed):
    with pytest.raises(TimeLimitExceeded):
        slow.apply_async((10,), time_limit=2).get()
    assert elapsed() == 2


@pytest.mark.celery_faults(conf={"task_time_limit": 4, "task_soft_time_limit": 2})
def test_limits_of_the_app(limited, log):
    assert limited().delay().get() == "cleaned"
    with pytest.raises(TimeLimitExceeded):
        limited().delay(clean_up=10).get()
    assert log == [("soft", 2), ("cleaned", 3), ("finally", 3), ("soft", 5)]


def test_the_limit_counts_the_tasks_own_time(app, slow, elapsed):
    @app.task(time_limit=5)
    def task():
        time.sleep(4)
        return "done"

    slow.delay(100)
    assert task.delay().get() == "done"
    assert elapsed() == 104


def test_a_hard_limit_frees_the_slot(limited, add, elapsed):
    limited(time_limit=5).delay()
    assert add.delay(1, 2).get() == 3
    assert elapsed() == 5


def test_nothing_that_a_killed_task_would_have_sent_is_sent(celery_faults, worker, app, add):
    @app.task(time_limit=5)
    def task():
        try:
            time.sleep(10)
        finally:
            add.delay(1, 2)

    task.apply_async(link=add.s(1))
    worker.advance(60)
    assert celery_faults.sent.of(add) == []


def test_nothing_of_a_killed_task_runs_in_a_later_test_either(build, bare_app, log):
    class Witness:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            log.append(f"__exit__ {exc[0]}")

    def numbers():
        try:
            yield 1
        finally:
            log.append("generator")

    @bare_app.task(time_limit=5)
    def task():
        try:
            with Witness():
                for _ in numbers():
                    time.sleep(10)
        except BaseException as exc:
            log.append(f"except {exc!r}")
            raise
        finally:
            log.append("finally")

    harness = build()
    result = task.delay()
    harness.worker.drain()
    assert result.state == "FAILURE"
    # A second one is cut off by the end of the test itself.
    task.delay()
    harness.worker.advance(1)
    harness.close()
    del result, harness
    gc.collect()
    later = build()
    later.worker.advance(60)
    gc.collect()
    assert log == []
    later.close()
    gc.collect()
    assert log == []


def test_a_hard_limit_is_reported_as_often_as_celery_does(worker, app, log):
    """On a real prefork worker `link_error` is called twice, and since 5.7 `task_failure` is sent twice."""

    @app.task
    def errback(request, exc, traceback):
        log.append((request.id, type(exc).__name__))

    failures = []

    def on_failure(task_id, exception, **_):
        failures.append((task_id, type(exception).__name__))

    @app.task(time_limit=5)
    def task():
        time.sleep(10)

    signals.task_failure.connect(on_failure)
    result = task.apply_async(link_error=errback.s())
    worker.drain()
    assert log == [(result.id, "TimeLimitExceeded")] * 2
    assert failures == [(result.id, "TimeLimitExceeded")] * (2 if CELERY_57 else 1)


def test_a_hard_limit_is_one_letter_and_one_attempt(worker, limited, celery_dlq, retry_recorder):
    result = limited(time_limit=5).delay()
    worker.drain()
    assert [letter.reason for letter in celery_dlq] == ["time_limit"]
    [attempt] = retry_recorder.of(result).attempts
    assert (attempt.started, attempt.ended, attempt.state) == (0, 5, "FAILURE")
    assert isinstance(attempt.exception, TimeLimitExceeded)


@pytest.mark.parametrize(("acks_on", "runs"), [(True, 1), (False, 2)])
def test_a_late_acked_task_at_its_limit(celery_faults, worker, app, log, elapsed, acks_on, runs):
    @app.task(acks_late=True, acks_on_failure_or_timeout=acks_on, time_limit=5)
    def task():
        log.append(elapsed())
        if len(log) == 1:
            time.sleep(10)

    result = task.delay()
    worker.drain()
    assert log == [0, 5][:runs]
    assert result.state == ("FAILURE" if runs == 1 else "SUCCESS")
    assert celery_faults.broker.unacked == []


# -- ETA, countdown, expiry


def test_countdown_and_eta(celery_faults, worker, slow, log):
    zone = timezone(timedelta(hours=-7))
    slow.apply_async((0, "countdown"), countdown=90)
    slow.apply_async((0, "eta"), eta=celery_faults.clock.now().astimezone(zone) + timedelta(seconds=60.5))
    slow.apply_async((0, "naive"), eta=(celery_faults.clock.now() + timedelta(seconds=30)).replace(tzinfo=None))
    slow.apply_async((0, "past"), eta=celery_faults.clock.now() - timedelta(hours=1))
    worker.drain()
    assert [(name, at) for name, what, at in log if what == "began"] == [
        ("past", 0),
        ("naive", 30),
        ("eta", 60.5),
        ("countdown", 90),
    ]


def test_many_tasks_of_one_eta_run_in_the_order_of_their_sending(worker, slow, log):
    for number in range(20):
        slow.apply_async((0, number), countdown=60)
    worker.drain()
    assert [(name, at) for name, what, at in log if what == "began"] == [(number, 60) for number in range(20)]


@pytest.mark.celery_faults(broker="redis")
def test_an_eta_beyond_the_visibility_timeout_runs_again_and_again_on_redis(celery_faults, worker, slow, log):
    """A message that waits for its ETA is unacked, and Redis gives it out once more after `visibility_timeout`.

    https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html#visibility-timeout. A worker
    looks when it starts, and every 100 s from then on: kombu's `restore_visible` is called every 10 s and does its
    work each tenth time. Each copy runs, since nobody remembers that they are one message.
    """
    worker.advance(5)
    slow.apply_async((0,), countdown=6 * 3600)
    worker.drain()
    assert [event.at for event in celery_faults.timeline.where("redelivered")] == [3700, 7300, 10900, 14500, 18100]
    assert [at for _, what, at in log if what == "began"] == [6 * 3600 + 5] * 6


@pytest.mark.celery_faults(broker="redis", conf={"broker_transport_options": {"visibility_timeout": 7 * 3600}})
def test_a_longer_visibility_timeout_prevents_that(worker, slow, log):
    slow.apply_async((0,), countdown=6 * 3600)
    worker.drain()
    assert [at for _, what, at in log if what == "began"] == [6 * 3600]


@pytest.mark.celery_faults(broker="rabbitmq")
def test_an_eta_of_six_hours_runs_once_on_rabbitmq(celery_faults, worker, slow, log):
    slow.apply_async((0,), countdown=6 * 3600)
    worker.drain()
    assert celery_faults.timeline.where("redelivered") == []
    assert [at for _, what, at in log if what == "began"] == [6 * 3600]


@pytest.mark.parametrize(
    ("deliveries"),
    [
        pytest.param([5, 3700], marks=pytest.mark.celery_faults(broker="redis", concurrency=2)),
        pytest.param([5], marks=pytest.mark.celery_faults(broker="rabbitmq", concurrency=2)),
    ],
)
def test_a_late_acked_task_that_takes_longer_than_the_visibility_timeout(worker, app, log, elapsed, deliveries):
    @app.task(acks_late=True)
    def long():
        log.append(elapsed())
        time.sleep(4000)

    worker.advance(5)
    long.delay()
    worker.advance(3999)
    assert log == deliveries


@pytest.mark.celery_faults(broker="redis")
def test_expired_on_redis_is_found_out_by_the_worker(worker, slow, add, celery_dlq):
    slow.delay(100)
    result = add.apply_async((1, 2), expires=10)
    worker.drain()
    assert result.state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        result.get()
    assert celery_dlq.reasons == {"expired": 1}


@pytest.mark.celery_faults(broker="rabbitmq", conf={"worker_prefetch_multiplier": 1})
def test_expired_on_rabbitmq_never_reaches_the_worker(celery_faults, worker, slow, add, celery_dlq):
    # One runs, one is prefetched.
    for _ in range(2):
        slow.delay(100)
    result = add.apply_async((1, 2), expires=10)
    worker.drain()
    assert result.state == "PENDING"
    assert kinds(celery_faults, result) == ["sent", "dead-lettered"]
    [letter] = celery_dlq
    assert (letter.reason, letter.route, letter.task) == ("expired", "broker", "shop.add")


@pytest.mark.parametrize(
    "manners", [pytest.param(m, marks=pytest.mark.celery_faults(broker=m)) for m in ("redis", "rabbitmq")]
)
def test_a_task_that_starts_before_it_expires(manners, add):
    assert add.apply_async((1, 2), countdown=10, expires=11).get() == 3


def test_a_result_expires_on_virtual_time(celery_faults, worker, add):
    result = add.apply_async((1, 2), countdown=0)
    assert result.get() == 3
    worker.advance(86_399)
    assert celery_faults.app.AsyncResult(result.id).state == "SUCCESS"
    worker.advance(2)
    assert celery_faults.app.AsyncResult(result.id).state == "PENDING"


# -- rate limits, priorities, prefetch


@pytest.mark.parametrize(("rate", "times"), [("10/m", [0, 6, 12, 18]), ("2/s", [0, 0.5, 1, 1.5]), ("2/h", [0, 1800])])
def test_rate_limits(worker, app, log, elapsed, rate, times):
    @app.task(rate_limit=rate)
    def limited():
        log.append(elapsed())

    for _ in times:
        limited.delay()
    worker.drain()
    assert log == times


def test_a_rate_limit_counts_from_the_start_of_the_worker(worker, app, log, elapsed):
    @app.task(rate_limit="2/s")
    def limited():
        log.append(elapsed())

    worker.start()
    worker.advance(10)
    for _ in range(3):
        limited.delay()
    worker.drain()
    # kombu 5.6 counts the time in which the bucket was full, as on a real worker.
    assert log == ([10, 10.5, 11] if kombu.VERSION >= (5, 7) else [10, 10, 10.5])


def test_a_rate_limit_does_not_hold_up_other_tasks(worker, app, add, elapsed):
    @app.task(rate_limit="1/m")
    def limited():
        pass

    for _ in range(2):
        limited.delay()
    assert add.delay(1, 2).get() == 3
    assert elapsed() == 0


PRIORITIES = [5, 9, 0, 3, 6]


@pytest.mark.parametrize(
    "order",
    [
        # kombu knows the steps 0, 3, 6 and 9 on Redis, so 5 is as good as 3; the lowest is served first.
        pytest.param([0, 5, 3, 6, 9], marks=pytest.mark.celery_faults(broker="redis")),
        pytest.param(
            [9, 6, 5, 3, 0], marks=pytest.mark.celery_faults(broker="rabbitmq", conf={"task_queue_max_priority": 10})
        ),
        # A queue without x-max-priority has none.
        pytest.param(PRIORITIES, marks=pytest.mark.celery_faults(broker="rabbitmq")),
    ],
)
def test_priorities(worker, slow, log, order):
    worker.stop()
    for priority in PRIORITIES:
        slow.apply_async((0, priority), priority=priority)
    worker.start()
    worker.drain()
    assert [name for name, what, _ in log if what == "began"] == order


@pytest.mark.parametrize(
    ("late", "left"),
    [
        # Of 20: two run, and eight more are unacked where the two that run are acked.
        pytest.param(False, 10, marks=pytest.mark.celery_faults(concurrency=2)),
        pytest.param(True, 12, marks=pytest.mark.celery_faults(concurrency=2)),
        pytest.param(False, 16, marks=pytest.mark.celery_faults(concurrency=2, conf={"worker_prefetch_multiplier": 1})),
        pytest.param(True, 18, marks=pytest.mark.celery_faults(concurrency=2, conf={"worker_prefetch_multiplier": 1})),
    ],
)
def test_prefetch(celery_faults, worker, app, late, left):
    @app.task(acks_late=late)
    def task():
        time.sleep(10)

    for _ in range(20):
        task.delay()
    worker.advance(1)
    assert celery_faults.broker.queues["celery"] == left
    assert len(celery_faults.broker.unacked) == 20 - left - (0 if late else 2)
    worker.drain()
    assert celery_faults.broker.queues["celery"] == 0
    assert celery_faults.broker.unacked == []
    assert celery_faults.clock.elapsed == 100


def test_tasks_with_an_eta_do_not_use_up_the_prefetch_count(worker, add, elapsed):
    for _ in range(30):
        add.apply_async((1, 2), countdown=1000)
    assert add.delay(1, 2).get() == 3
    assert elapsed() == 0


@pytest.mark.parametrize(
    ("late", "expected"), [(False, ["acked", "started", "succeeded"]), (True, ["started", "succeeded", "acked"])]
)
def test_when_a_message_is_acked(celery_faults, worker, app, late, expected):
    @app.task(acks_late=late)
    def task():
        time.sleep(1)

    result = task.delay()
    worker.drain()
    assert kinds(celery_faults, result) == ["sent", "received", *expected]


# -- revoking


def test_more_tasks_fall_due_at_once_than_the_worker_prefetches(worker, app, log, elapsed):
    """Before 5.7 kombu's loop asks again and again for the message that it may not take yet."""

    @app.task(
        name="shop.flaky", bind=True, autoretry_for=(OSError,), retry_backoff=1, retry_jitter=False, max_retries=2
    )
    def flaky(self, number):
        log.append((number, self.request.retries, elapsed()))
        if number % 3 == 0 and self.request.retries < 2:
            raise OSError

    for number in range(40):
        flaky.delay(number)
    worker.drain()
    assert sorted(log) == [
        entry
        for number in range(40)
        for entry in [(number, 0, 0), (number, 1, 1), (number, 2, 3)][: 3 if number % 3 == 0 else 1]
    ]


def test_a_task_revoked_while_it_waits_for_its_eta(worker, add, elapsed):
    result = add.apply_async((1, 2), countdown=60)
    result.revoke()
    worker.drain()
    assert result.state == "REVOKED"
    assert elapsed() <= 60


def test_a_task_revoked_while_it_waits_for_a_slot(celery_faults, worker, slow, add, elapsed):
    slow.delay(10)
    result = add.delay(1, 2)
    worker.advance(1)
    result.revoke()
    worker.drain()
    assert result.state == "REVOKED"
    assert "started" not in kinds(celery_faults, result)
    with pytest.raises(TaskRevokedError):
        result.get()


def test_a_task_revoked_before_the_worker_has_it(celery_faults, worker, slow, add):
    for _ in range(10):
        slow.delay(10)
    result = add.delay(1, 2)
    worker.advance(1)
    assert kinds(celery_faults, result) == ["sent"]
    result.revoke()
    worker.drain()
    assert result.state == "REVOKED"
    assert "started" not in kinds(celery_faults, result)


def test_revoking_a_task_that_runs_changes_nothing(worker, slow):
    result = slow.delay(10)
    worker.advance(1)
    result.revoke()
    worker.drain()
    assert result.state == "SUCCESS"


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        # billiard's handler of SIGTERM raises SystemExit in the pool process: see `billiard.common`.
        ({}, [("except", "SystemExit(-241)"), ("finally", 4)]),
        ({"signal": "SIGKILL"}, []),
    ],
)
def test_terminating_a_task_that_runs(celery_faults, worker, limited, log, add, elapsed, options, ran):
    result = limited().delay()
    following = add.delay(1, 2)
    worker.advance(4)
    result.revoke(terminate=True, **options)
    assert following.get() == 3
    assert elapsed() == 4
    assert result.state == "REVOKED"
    worker.advance(60)
    assert log == ran
    assert [event.detail for event in celery_faults.timeline.where("revoked")] == ["terminated"]
    assert celery_faults.broker.unacked == []


def test_terminating_a_task_that_waits_for_its_eta(celery_faults, worker, add):
    result = add.apply_async((1, 2), countdown=60)
    worker.advance(1)
    result.revoke(terminate=True)
    worker.drain()
    assert result.state == "REVOKED"
    assert "started" not in kinds(celery_faults, result)


def test_a_revoke_is_forgotten_by_the_next_test(build, bare_app):
    add = bare_app.task(name="shop.add")(_add)
    first = build()
    bare_app.control.revoke("the id")
    first.worker.drain()
    assert celery.worker.state.revoked
    first.close()
    build()
    assert add.apply_async((1, 2), task_id="the id").get() == 3


# -- control commands


@pytest.mark.celery_faults(concurrency=2)
def test_inspect(app, worker, slow, add, elapsed):
    running = [slow.delay(100) for _ in range(2)]
    reserved = add.delay(1, 2)
    scheduled = add.apply_async((3, 4), countdown=1000)
    worker.advance(1)
    inspect = app.control.inspect()
    assert inspect.ping() == {NAME: {"ok": "pong"}}
    assert {task["id"] for task in inspect.active()[NAME]} == {result.id for result in running}
    assert [task["id"] for task in inspect.reserved()[NAME]] == [reserved.id]
    assert [entry["request"]["id"] for entry in inspect.scheduled()[NAME]] == [scheduled.id]
    assert {"shop.slow", "shop.add"} <= {entry.split()[0] for entry in inspect.registered()[NAME]}
    stats = inspect.stats()[NAME]
    assert stats["total"] == {"shop.slow": 2}
    assert stats["pool"]["max-concurrency"] == 2
    assert [queue["name"] for queue in inspect.active_queues()[NAME]] == ["celery"]
    assert inspect.query_task(running[0].id)[NAME][running[0].id][0] == "active"
    assert inspect.revoked() == {NAME: []}
    # Each asks for a second, as in production.
    assert elapsed() == 10


def test_ping_of_a_stopped_worker_has_no_answer(app, worker, elapsed):
    worker.stop()
    assert app.control.ping(timeout=0.5) == []
    assert elapsed() == 0.5


def test_the_time_of_an_eta_as_celery_reports_it(celery_faults, app, worker, add):
    add.apply_async((3, 4), countdown=1000)
    worker.advance(1)
    [entry] = app.control.inspect().scheduled()[NAME]
    eta = datetime.fromisoformat(entry["eta"])
    assert (eta - celery_faults.clock.now()).total_seconds() == pytest.approx(998)


@pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="the token bucket of kombu 5.6 counts the time in which it was full as refill"
)
def test_rate_limit_by_control(app, worker, log, elapsed):
    @app.task(name="shop.limited")
    def limited():
        log.append(elapsed())

    limited.delay()
    worker.drain()
    assert (
        app.control.rate_limit("shop.limited", "10/m", reply=True)[0][NAME]["ok"] == "new rate limit set successfully"
    )
    worker.drain()
    start = elapsed()
    for _ in range(3):
        limited.delay()
    worker.drain()
    assert [at - start for at in log[1:]] == [0, 6, 12]


def test_time_limit_by_control(app, worker, slow):
    """It changes the task, which the worker and the test share: what is sent from then on carries the limit."""
    assert slow.delay(5).get() == 5
    [reply] = app.control.time_limit("shop.slow", hard=3, reply=True)
    assert reply == {NAME: {"ok": "time limits set successfully"}}
    assert slow.time_limit == 3
    worker.stop()
    worker.start()
    with pytest.raises(TimeLimitExceeded):
        slow.delay(5).get()


@pytest.mark.celery_faults(queues=["celery"])
def test_consumers_by_control(app, worker, add):
    result = add.apply_async((1, 2), queue="extra")
    worker.drain()
    assert result.state == "PENDING"
    assert app.control.add_consumer("extra", reply=True)[0][NAME]["ok"] == "add consumer extra"
    assert result.get() == 3
    app.control.cancel_consumer("extra", reply=True)
    result = add.apply_async((1, 2), queue="extra")
    with pytest.raises(WaitNeverEndsError, match="nothing consumes queue 'extra': 1 message is in it"):
        result.get()


def test_pool_size_by_control(app, worker, slow, elapsed):
    assert app.control.pool_grow(1, reply=True) == [{NAME: {"ok": "pool will grow"}}]
    start = elapsed()
    for _ in range(2):
        slow.delay(10)
    worker.drain()
    assert elapsed() - start == 10
    assert app.control.pool_shrink(1, reply=True) == [{NAME: {"ok": "pool will shrink"}}]
    start = elapsed()
    for _ in range(2):
        slow.delay(10)
    worker.drain()
    assert elapsed() - start == 20


def test_shutdown_by_control(celery_faults, app, worker, slow, add):
    running = slow.delay(10)
    worker.advance(1)
    app.control.shutdown()
    worker.advance(60)
    assert running.state == "SUCCESS"
    assert not worker.running
    result = add.delay(1, 2)
    worker.drain()
    assert result.state == "PENDING"
    with pytest.raises(WaitNeverEndsError, match="the worker is stopped"):
        result.get()
    worker.start()
    assert worker.running
    assert result.get() == 3


# -- what a task can do with its message


@pytest.mark.parametrize("late", [False, True])
def test_reject(celery_faults, worker, app, celery_dlq, late):
    @app.task(acks_late=late)
    def task():
        raise Reject("no good", requeue=False)

    result = task.delay()
    worker.drain()
    # 5.6 leaves the result as it was; see https://github.com/celery/celery/issues/4222.
    assert result.state == ("FAILURE" if CELERY_57 else "PENDING")
    [letter] = celery_dlq
    assert (letter.reason, letter.route) == ("rejected", "broker" if late else "harness")
    assert kinds(celery_faults, result).count("rejected") == (1 if late else 0)
    assert celery_faults.broker.unacked == []
    assert celery_faults.broker.queues == {"celery": 0}


def test_requeue_late(celery_faults, worker, app, celery_dlq, retry_recorder, log):
    @app.task(bind=True, acks_late=True)
    def task(self):
        log.append(bool(self.request.delivery_info["redelivered"]))
        if len(log) < 3:
            raise Reject("not yet", requeue=True)
        return "done"

    result = task.delay()
    assert result.get() == "done"
    assert log == [False, True, True]
    assert list(celery_dlq) == []
    history = retry_recorder.of(result)
    assert history.count == 0
    assert [attempt.redelivered for attempt in history.attempts] == [False, True, True]
    assert kinds(celery_faults, result).count("requeued") == 2


def test_requeue_early_changes_nothing(celery_faults, worker, app, celery_dlq, log):
    @app.task
    def task():
        log.append("ran")
        raise Reject("not yet", requeue=True)

    result = task.delay()
    worker.drain()
    assert log == ["ran"]
    assert result.state == "PENDING"
    [letter] = celery_dlq
    assert (letter.reason, letter.route) == ("rejected", "harness")


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(["first", "second", "first"], marks=pytest.mark.celery_faults(broker="redis")),
        pytest.param(["first", "first", "second"], marks=pytest.mark.celery_faults(broker="rabbitmq")),
    ],
)
@pytest.mark.celery_faults(conf={"worker_prefetch_multiplier": 1})
def test_where_a_requeued_message_goes(worker, app, log, order):
    @app.task(acks_late=True)
    def task(name):
        log.append(name)
        if log == ["first"]:
            raise Reject("not yet", requeue=True)

    worker.stop()
    for name in ("first", "second"):
        task.delay(name)
    worker.start()
    worker.drain()
    assert log == order


@pytest.mark.parametrize("late", [False, True])
def test_ignore(celery_faults, worker, app, celery_dlq, late):
    @app.task(acks_late=late)
    def task():
        raise Ignore

    result = task.delay()
    worker.drain()
    assert result.state == "PENDING"
    assert kinds(celery_faults, result).count("acked") == 1
    assert list(celery_dlq) == []


def test_a_bare_retry_publishes_nothing(celery_faults, worker, app):
    @app.task
    def task():
        raise Retry

    result = task.delay()
    worker.drain()
    assert result.state == "RETRY"
    assert len(celery_faults.sent) == 1
    with pytest.raises(WaitNeverEndsError):
        result.get()


# -- endless tasks


def test_a_task_that_retries_for_ever(worker, app, log):
    @app.task(name="shop.endless", bind=True, max_retries=None)
    def endless(self):
        log.append(1)
        raise self.retry(countdown=1, exc=LookupError("not there"))

    endless.delay()
    with pytest.raises(EndlessTaskError) as caught:
        worker.drain()
    text = str(caught.value)
    assert text.startswith("shop.endless#1 was executed more than 1000 times (max_executions): it retries for ever.")
    assert "LookupError('not there')" in text
    assert len(log) <= 1001


@pytest.mark.celery_faults(max_executions=5)
def test_a_task_that_is_requeued_for_ever(worker, app, log):
    @app.task(name="shop.endless", acks_late=True)
    def endless():
        log.append(1)
        raise Reject("again", requeue=True)

    result = endless.delay()
    with pytest.raises(EndlessTaskError, match=r"more than 5 times \(max_executions\): its message is delivered again"):
        result.get()


@pytest.mark.celery_faults(max_executions=5)
def test_as_many_executions_as_are_allowed(app):
    @app.task(bind=True, max_retries=4)
    def task(self):
        if self.request.retries < 4:
            raise self.retry(countdown=1)
        return "done"

    assert task.delay().get() == "done"


# -- a task that ends the test, or its process


@pytest.mark.parametrize("late", [False, True])
def test_pytest_fail_in_a_task(app, add, late):
    @app.task(acks_late=late)
    def task():
        pytest.fail("inside")

    with pytest.raises(pytest.fail.Exception, match="inside"):
        task.delay().get()
    assert add.delay(1, 2).get() == 3


def test_pytest_skip_in_a_task(worker, app):
    @app.task
    def task():
        pytest.skip("inside")

    task.delay()
    with pytest.raises(pytest.skip.Exception, match="inside"):
        worker.drain()


def test_an_assert_in_a_task_is_its_failure(app):
    @app.task
    def task():
        assert 1 + 1 == 3

    with pytest.raises(AssertionError):
        task.delay().get()


def test_ctrl_c_in_a_task(worker, app, add):
    @app.task
    def task():
        raise KeyboardInterrupt

    task.delay()
    with pytest.raises(KeyboardInterrupt):
        worker.drain()
    assert add.delay(1, 2).get() == 3


@pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="Celery 5.6 cannot encode SystemExit and leaves the result unstored"
)
def test_sys_exit_in_a_task_is_a_lost_process(worker, app, add):
    @app.task
    def task():
        raise SystemExit(3)

    result = task.delay()
    worker.drain()
    assert add.delay(1, 2).get() == 3
    assert result.state == "FAILURE"
    with pytest.raises(WorkerLostError):
        result.get()


def test_a_memory_error_ends_celerys_main_process(worker, app):
    """`celery.worker.request.Request.on_failure` raises it on in the worker itself."""

    @app.task
    def task():
        raise MemoryError("too much")

    task.delay()
    with pytest.raises(WorkerDiedError, match=r"MemoryError\('Process got: too much'\)"):
        worker.drain()


class PickyError(Exception):
    """It can be pickled, and not be made again of that."""

    def __init__(self, first, second):
        super().__init__(first)


def test_what_a_child_reports_and_the_worker_cannot_read_ends_the_worker(app, worker, add):
    """A real worker reads it in its event loop, too: its process stays, and does nothing any more."""

    @app.task(name="shop.rejects")
    def rejects():
        raise Reject(PickyError(1, 2), requeue=False)

    result, next_one = rejects.delay(), add.delay(1, 2)
    with pytest.raises(WorkerDiedError, match="PickyError"):
        worker.drain()
    assert (result.state, next_one.state) == ("PENDING", "PENDING")


def test_a_crashed_broker_and_a_backend_that_is_down_are_two(celery_faults, app, worker):
    """In which order the worker hears of its broken connections tells a broker that ended from a network that broke."""

    @app.task(name="shop.late", acks_late=True)
    def late():
        time.sleep(60)

    late.delay()
    worker.advance(1)
    with celery_faults.broker.down(crashed=True):
        celery_faults.server.take_down("backend", 0.5)
        if celery.VERSION[:2] >= (5, 7):
            with pytest.raises(WorkerDiedError, match="hostname"):
                worker.drain()
        else:
            worker.advance(1)
            assert worker.running


@pytest.mark.celery_faults(stall_timeout=0.3)
def test_a_task_that_blocks_for_real(app, add, hang_is_failure):
    @app.task(name="shop.blocked")
    def blocked():
        lock = threading.Lock()
        with lock:
            stand_here(lock)

    def stand_here(lock):
        lock.acquire()

    result = blocked.delay()
    with pytest.raises(StalledTaskError) as caught:
        result.get()
    text = str(caught.value)
    assert text.startswith("shop.blocked#1 blocked for more than 0.3 real seconds (stall_timeout). It stands here:\n")
    assert "stand_here" in text
    assert "lock.acquire()" in text
    assert add.delay(1, 2).get() == 3


@pytest.mark.celery_faults(stall_timeout=0.3)
def test_a_task_that_spins_and_swallows_everything(app, hang_is_failure):
    @app.task
    def spin():
        while True:
            try:
                sum(range(1000))
            except Exception:
                raise AssertionError("a task must not be able to swallow it") from None

    with pytest.raises(StalledTaskError, match="in spin"):
        spin.delay().get()


@pytest.mark.timeout(60)
def test_the_watchdog_ends_with_the_run_and_not_when_it_looks_the_next_time(bare_app, monkeypatch):
    monkeypatch.setattr(watchdog, "_LOOKS_EVERY", 3600)
    ours = watchdog.Watchdog()
    harness = Harness(bare_app, make_options({"stall_timeout": 4 * 3600}), 0, "a test", ours)
    task = bare_app.task(_add)
    assert task.delay(1, 2).get() == 3
    thread = ours._thread
    harness.close()
    ours.stop()
    assert not thread.is_alive()


@pytest.mark.celery_faults(stall_timeout=0.3)
def test_virtual_time_does_not_stall(slow):
    assert slow.delay(3600).get() == 3600


# -- stop, start, crash


@pytest.fixture
def two_kinds(app, log, elapsed):
    def body(name):
        log.append((name, elapsed()))
        time.sleep(10)
        return name

    early = app.task(name="shop.early")(body)
    late = app.task(name="shop.late", acks_late=True)(body)
    return early, late


MANNERS = pytest.mark.parametrize(
    "manners", [pytest.param(m, marks=pytest.mark.celery_faults(broker=m)) for m in ("redis", "rabbitmq")]
)


@MANNERS
def test_a_warm_shutdown_finishes_what_runs_and_gives_back_the_rest(
    celery_faults, worker, two_kinds, log, elapsed, manners
):
    early, late = two_kinds
    running, waiting = late.delay("running"), early.delay("waiting")
    worker.advance(1)
    worker.stop()
    assert elapsed() == 10
    assert (running.state, waiting.state) == ("SUCCESS", "PENDING")
    assert celery_faults.broker.queues["celery"] == 1
    assert not worker.running
    worker.advance(5)
    worker.start()
    assert waiting.get() == "waiting"
    assert log == [("running", 0), ("waiting", 15)]


@MANNERS
def test_a_cold_shutdown_kills_what_runs_and_gives_back_the_unacked(
    celery_faults, worker, two_kinds, log, elapsed, manners
):
    early, late = two_kinds
    lost = early.delay("early")
    waiting = late.delay("late")
    worker.advance(1)
    worker.stop(warm=False)
    assert elapsed() == 1
    assert celery_faults.broker.queues["celery"] == 1
    worker.start()
    assert waiting.get() == "late"
    assert log == [("early", 0), ("late", 1)]
    assert lost.state == "RETRY"


@MANNERS
def test_a_late_acked_task_comes_back_after_a_cold_shutdown(worker, two_kinds, log, manners):
    _, late = two_kinds
    result = late.delay("late")
    worker.advance(1)
    worker.stop(warm=False)
    worker.start()
    assert result.get() == "late"
    assert log == [("late", 0), ("late", 1)]


@pytest.mark.parametrize(
    "back_at",
    [
        # One hour after its delivery; the new worker looks at its start and every 100 s from then on.
        pytest.param(3605, marks=pytest.mark.celery_faults(broker="redis")),
        pytest.param(5, marks=pytest.mark.celery_faults(broker="rabbitmq")),
    ],
)
def test_after_a_power_cut_what_was_not_acked_comes_back(celery_faults, worker, two_kinds, log, elapsed, back_at):
    _, late = two_kinds
    result = late.delay("late")
    worker.advance(5)
    worker.crash()
    assert elapsed() == 5
    assert not worker.running
    worker.start()
    assert result.get() == "late"
    assert [name for name, _ in log] == ["late", "late"]
    assert log == [("late", 0), ("late", back_at)]
    assert celery_faults.broker.unacked == []


@MANNERS
def test_after_a_power_cut_what_was_acked_is_lost(celery_faults, worker, two_kinds, log, manners):
    early, _ = two_kinds
    result = early.delay("early")
    worker.advance(5)
    worker.crash()
    worker.start()
    worker.drain()
    gc.collect()
    assert log == [("early", 0)]
    assert result.state == "PENDING"
    with pytest.raises(WaitNeverEndsError):
        result.get()


@MANNERS
def test_after_a_power_cut_what_was_prefetched_comes_back(worker, two_kinds, log, manners):
    early, _ = two_kinds
    early.delay("running")
    waiting = [early.delay(name) for name in ("a", "b")]
    worker.advance(5)
    worker.crash()
    worker.start()
    assert sorted(result.get() for result in waiting) == ["a", "b"]
    assert sorted(name for name, _ in log) == ["a", "b", "running"]


@MANNERS
def test_an_eta_survives_a_power_cut(worker, add, elapsed, manners):
    result = add.apply_async((1, 2), countdown=10_000)
    worker.advance(1)
    worker.crash()
    worker.start()
    assert result.get() == 3
    assert elapsed() == 10_000


def test_messages_wait_for_a_worker_that_starts(worker, add, elapsed):
    worker.stop()
    result = add.delay(1, 2)
    worker.advance(30)
    assert result.state == "PENDING"
    worker.start()
    assert result.get() == 3
    assert elapsed() == 30


def test_stop_start_and_crash_twice(worker, add):
    worker.stop()
    worker.stop()
    worker.crash()
    worker.start()
    worker.start()
    assert worker.running
    assert add.delay(1, 2).get() == 3
    worker.crash()
    worker.crash()
    worker.stop(warm=False)
    assert not worker.running
    worker.start()
    assert add.delay(1, 2).get() == 3


def test_shutdown_signals(worker, add):
    names = []

    def on(name):
        def receiver(**_):
            names.append(name)

        return receiver

    receivers = [on("shutting down"), on("shutdown"), on("ready")]
    signals.worker_shutting_down.connect(receivers[0])
    signals.worker_shutdown.connect(receivers[1])
    signals.worker_ready.connect(receivers[2])
    add.delay(1, 2).get()
    worker.stop()
    worker.start()
    worker.crash()
    assert names == ["ready", "shutting down", "shutdown", "ready"]


def test_nothing_leaks_into_the_next_test(build, bare_app, log):
    @bare_app.task(acks_late=True)
    def task(name):
        log.append(name)
        time.sleep(10)

    first = build()
    task.delay("running")
    task.delay("prefetched")
    task.apply_async(("with an eta",), countdown=60)
    first.worker.advance(1)
    first.close()
    second = build()
    assert second.broker.queues in ({}, {"celery": 0})
    second.worker.advance(7200)
    assert log == ["running"]
    assert second.timeline.where("received") == []


# -- an application's own code around the worker


def test_tasks_see_the_tests_context_and_thread(app):
    import contextvars

    variable = contextvars.ContextVar("variable", default="default")
    variable.set("the test's")

    @app.task
    def task():
        seen = variable.get(), threading.get_ident()
        variable.set("the task's")
        return seen

    assert task.delay().get() == ["the test's", threading.get_ident()]
    assert variable.get() == "the test's"


@pytest.mark.celery_faults(concurrency=2)
def test_each_running_task_has_its_own_request(app):
    from celery import current_task

    @app.task(bind=True)
    def task(self, seconds):
        before = self.request.id, current_task.request.id
        time.sleep(seconds)
        return [*before, self.request.id, current_task.request.id]

    results = [task.delay(seconds) for seconds in (5, 3)]
    for result in results:
        assert result.get() == [result.id] * 4


def test_after_a_kill_the_stack_of_tasks_is_empty(worker, app, add):
    from celery import current_task

    @app.task(time_limit=5)
    def task():
        time.sleep(10)

    task.delay()
    worker.drain()
    assert not current_task
    assert add.delay(1, 2).get() == 3


def test_injected_sleep_is_ended_by_the_limit(celery_faults, app, elapsed):
    @app.task(time_limit=5)
    def task():
        return "done"

    with celery_faults.inject(Sleep(beyond="time_limit")), pytest.raises(TimeLimitExceeded):
        task.delay().get()
    assert elapsed() == 5
    assert task.delay().get() == "done"


def test_the_same_seed_gives_the_same_timeline(build, bare_app):
    @bare_app.task(autoretry_for=(LookupError,), retry_backoff=True, max_retries=5)
    def task(number):
        time.sleep(number)
        raise LookupError

    def run(name):
        harness = Harness(bare_app, make_options({"concurrency": 3}), 7, name, watchdog.Watchdog())
        try:
            for number in range(6):
                task.delay(number)
            harness.worker.drain()
            return str(harness.timeline)
        finally:
            harness.close()

    first = run("a")
    assert "retried" in first
    assert run("a") == first
    assert run("b") != first


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_the_tests_own_connections_survive_a_power_cut(build, bare_app, broker):
    harness = build(broker=broker)

    @bare_app.task(name="shop.plus")
    def add(x, y):
        return x + y

    assert add.delay(1, 2).get() == 3
    ours = [transport for transport in harness.broker._transports if not transport.of_worker]
    harness.worker.crash()
    assert ours
    assert harness.broker._transports == ours
    assert not any(channel.closed for transport in ours for channel in transport.channels)
    waiting = add.delay(3, 4)
    harness.worker.start()
    assert waiting.get() == 7
