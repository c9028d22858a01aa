"""What `retry_recorder` says of retries: attempts, what each retry asked for, and what it got."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from celery import Task
from celery.exceptions import MaxRetriesExceededError, Reject

from pytest_celery_faults import AmbiguousHistoryError
from pytest_celery_faults.harness import Harness, make_options
from pytest_celery_faults.watchdog import Watchdog


def starts(history):
    return [attempt.started for attempt in history.attempts]


# -- schedules


class BaseTask(Task):
    autoretry_for = (TypeError,)
    max_retries = 5
    retry_backoff = True
    retry_backoff_max = 700
    retry_jitter = False


def test_backoff_of_a_base_class(worker, failing, retry_recorder, celery_dlq):
    result = failing(base=BaseTask).delay()
    worker.drain()
    assert retry_recorder.delays == [1, 2, 4, 8, 16]
    assert retry_recorder.waits == [1, 2, 4, 8, 16]
    assert retry_recorder.count == 5
    assert starts(retry_recorder) == [0, 1, 3, 7, 15, 31]
    assert retry_recorder.exhausted
    assert [letter.reason for letter in celery_dlq] == ["max_retries"]
    with pytest.raises(TypeError, match="bad"):
        result.get()


def test_backoff_stops_growing_at_its_maximum(worker, failing, retry_recorder):
    failing(
        autoretry_for=(TypeError,), max_retries=13, retry_backoff=True, retry_backoff_max=700, retry_jitter=False
    ).delay()
    worker.drain()
    assert retry_recorder.delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 700, 700, 700]


def test_backoff_stops_growing_at_ten_minutes_by_default(worker, failing, retry_recorder):
    failing(autoretry_for=(TypeError,), max_retries=11, retry_backoff=True, retry_jitter=False).delay()
    worker.drain()
    assert retry_recorder.delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]


def test_the_factor_of_a_backoff(worker, failing, retry_recorder):
    failing(autoretry_for=(TypeError,), max_retries=4, retry_backoff=3, retry_jitter=False).delay()
    worker.drain()
    assert retry_recorder.delays == [3, 6, 12, 24]


JITTERY = {"autoretry_for": (TypeError,), "max_retries": 9, "retry_backoff": True, "retry_backoff_max": 100}


@pytest.fixture
def jitter(bare_app):
    """The delays of a task with jitter, for a seed and the name of a test."""

    @bare_app.task(name="shop.jittery", **JITTERY)
    def jittery():
        raise TypeError("bad")

    watchdog = Watchdog()

    def delays(seed, name="test"):
        harness = Harness(bare_app, make_options({}), seed, name, watchdog)
        try:
            jittery.delay()
            harness.worker.drain()
            return harness.retries.delays
        finally:
            harness.close()

    yield delays
    watchdog.stop()


def test_jitter_is_within_bounds(jitter):
    bounds = [1, 2, 4, 8, 16, 32, 64, 100, 100]
    runs = [jitter(seed) for seed in range(10)]
    assert all(0 <= delay <= bound for run in runs for delay, bound in zip(run, bounds, strict=True))
    # Full jitter: somewhere between nothing and the whole delay.
    assert min(run[-1] for run in runs) < 50 < max(run[-1] for run in runs)


def test_jitter_is_the_same_for_the_same_seed(jitter):
    first = jitter(1)
    assert jitter(1) == first
    assert jitter(2) != first
    assert jitter(1, "another test") != first


def test_chance_is_given_back(jitter):
    import random

    random.seed(5)
    expected = random.random()
    random.seed(5)
    jitter(1)
    assert random.random() == expected


def test_autoretry_with_a_default_delay(worker, failing, retry_recorder):
    result = failing(autoretry_for=(TypeError,), max_retries=3, default_retry_delay=10).delay()
    worker.drain()
    assert retry_recorder.delays == [10, 10, 10]
    assert starts(retry_recorder) == [0, 10, 20, 30]
    assert isinstance(result.result, TypeError)


def test_celerys_own_default_delay_is_three_minutes_and_three_retries(worker, failing, retry_recorder):
    failing(autoretry_for=(TypeError,)).delay()
    worker.drain()
    assert retry_recorder.delays == [180, 180, 180]


def test_other_exceptions_are_not_retried(worker, failing, retry_recorder, celery_dlq):
    result = failing(autoretry_for=(LookupError,)).delay()
    worker.drain()
    assert retry_recorder.count == 0
    assert retry_recorder.delays == []
    assert not retry_recorder.exhausted
    assert result.state == "FAILURE"
    assert [letter.reason for letter in celery_dlq] == ["failed"]


# -- retries by hand


def retrying(app, *countdowns, **options):
    """A task that retries by hand, once with each set of arguments, and then succeeds."""

    @app.task(bind=True, name="shop.retrying", **options)
    def retrying(self):
        if self.request.retries < len(countdowns):
            raise self.retry(exc=LookupError(str(self.request.retries)), **countdowns[self.request.retries])
        return "done"

    return retrying


def test_a_countdown_overrides_the_default_delay(app, retry_recorder):
    task = retrying(app, {}, {"countdown": 60}, {}, default_retry_delay=30 * 60)
    assert task.delay().get() == "done"
    assert retry_recorder.delays == [1800, 60, 1800]
    assert retry_recorder.waits == [1800, 60, 1800]


def test_nothing_runs_before_the_delay_is_over(worker, app, retry_recorder):
    result = retrying(app, {"countdown": 60}).delay()
    worker.advance(59.999999)
    assert len(retry_recorder.attempts) == 1
    assert result.state == "RETRY"
    worker.advance(0.000001)
    assert result.state == "SUCCESS"


def test_an_eta(celery_faults, app, retry_recorder):
    eta = celery_faults.clock.now() + timedelta(seconds=90)
    assert retrying(app, {"eta": eta}).delay().get() == "done"
    assert retry_recorder.delays == [90]
    assert retry_recorder.waits == [90]


def test_a_naive_eta_is_utc(celery_faults, app, retry_recorder):
    eta = (celery_faults.clock.now() + timedelta(seconds=90)).replace(tzinfo=None)
    assert retrying(app, {"eta": eta}).delay().get() == "done"
    assert retry_recorder.delays == [90]
    assert retry_recorder.waits == [90]


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.000001, 1.5])
def test_fractions_compare_exactly(app, retry_recorder, delay):
    assert retrying(app, *[{"countdown": delay}] * 3).delay().get() == "done"
    assert retry_recorder.delays == [delay] * 3
    assert retry_recorder.waits == [delay] * 3


def test_a_delay_of_zero_is_a_retry(app, retry_recorder):
    assert retrying(app, {"countdown": 0}, {"countdown": 0}).delay().get() == "done"
    assert retry_recorder.count == 2
    assert retry_recorder.delays == [0, 0]
    assert retry_recorder.waits == [0, 0]


def test_a_retry_by_hand_knows_nothing_of_backoff(app, retry_recorder):
    task = retrying(app, {}, {}, retry_backoff=True, retry_jitter=False, default_retry_delay=7)
    assert task.delay().get() == "done"
    assert retry_recorder.delays == [7, 7]


def test_one_call_can_allow_more_retries(app, retry_recorder):
    task = retrying(app, *[{"countdown": 1, "max_retries": 5}] * 5, max_retries=1)
    assert task.delay().get() == "done"
    assert retry_recorder.count == 5


def test_a_retry_without_throw(app, retry_recorder):
    @app.task(bind=True)
    def task(self):
        if not self.request.retries:
            self.retry(countdown=5, throw=False)
        return self.request.retries

    result = task.delay()
    # As in Celery: the first execution succeeds with 0, the second comes five seconds later.
    assert result.get() == 0
    assert len(retry_recorder.of(result).attempts) == 1


def test_some_exceptions_are_retried_and_others_are_not(celery_faults, app, retry_recorder):
    errors = [ConnectionError("first"), TimeoutError("second"), PermissionError("third")]

    @app.task(bind=True)
    def fetch(self):
        try:
            raise errors[self.request.retries]
        except (ConnectionError, TimeoutError) as exc:
            raise self.retry(exc=exc, countdown=60) from exc

    result = fetch.delay()
    with pytest.raises(PermissionError, match="third"):
        result.get()
    assert retry_recorder.delays == [60, 60]
    assert [str(error) for error in retry_recorder.exceptions] == ["first", "second", "third"]
    assert not retry_recorder.exhausted


# -- waits


def test_a_wait_is_longer_than_the_delay_when_the_worker_is_busy(worker, app, retry_recorder):
    @app.task
    def slow():
        time.sleep(100)

    result = retrying(app, {"countdown": 10}).delay()
    slow.delay()
    assert result.get() == "done"
    history = retry_recorder.of(result)
    assert history.delays == [10]
    assert history.waits == [100]


def test_a_wait_begins_when_the_retry_is_published_and_not_when_the_task_began(app, retry_recorder):
    @app.task(bind=True)
    def task(self):
        time.sleep(7)
        if not self.request.retries:
            raise self.retry(countdown=10)

    task.delay().get()
    assert starts(retry_recorder) == [0, 17]
    assert retry_recorder.waits == [10]


def test_a_retry_that_has_not_started_has_no_wait_yet(worker, app, retry_recorder):
    retrying(app, {"countdown": 60}).delay()
    worker.advance(30)
    assert retry_recorder.delays == [60]
    assert retry_recorder.waits == []
    assert retry_recorder.count == 1


# -- attempts


def test_attempts(app, retry_recorder):
    @app.task(bind=True)
    def task(self):
        time.sleep(2)
        if not self.request.retries:
            raise self.retry(countdown=5, exc=LookupError("first"))
        return "done"

    task.delay().get()
    first, second = retry_recorder.attempts
    assert (first.number, first.retries, first.started, first.ended) == (1, 0, 0, 2)
    assert (first.state, first.planned_delay, first.redelivered) == ("RETRY", 5, False)
    assert isinstance(first.exception, LookupError)
    assert (second.number, second.retries, second.started, second.ended) == (2, 1, 7, 9)
    assert (second.state, second.planned_delay, second.exception) == ("SUCCESS", None, None)


def test_an_attempt_that_still_runs(worker, app, retry_recorder):
    @app.task
    def task():
        time.sleep(10)

    task.delay()
    worker.advance(4)
    [attempt] = retry_recorder.attempts
    assert (attempt.started, attempt.ended, attempt.state) == (0, None, "STARTED")


def test_exhausted_retries_by_hand_without_an_exception(app, retry_recorder, celery_dlq):
    @app.task(bind=True, max_retries=2)
    def task(self):
        raise self.retry(countdown=1)

    with pytest.raises(MaxRetriesExceededError):
        task.delay().get()
    assert retry_recorder.exhausted
    assert retry_recorder.count == 2
    assert [letter.reason for letter in celery_dlq] == ["max_retries"]


def test_retries_that_are_all_used_and_suffice_are_not_exhausted(app, retry_recorder):
    assert retrying(app, {"countdown": 1}, {"countdown": 1}, max_retries=2).delay().get() == "done"
    assert retry_recorder.count == 2
    assert not retry_recorder.exhausted


def test_a_refused_retry_that_the_task_swallows(app, retry_recorder, celery_dlq):
    @app.task(bind=True, max_retries=0)
    def task(self):
        try:
            raise self.retry(exc=LookupError())
        except LookupError:
            return "made do without"

    assert task.delay().get() == "made do without"
    assert retry_recorder.exhausted
    assert list(celery_dlq) == []


def test_a_redelivery_is_an_attempt_and_not_a_retry(app, retry_recorder):
    @app.task(bind=True, acks_late=True)
    def task(self):
        if len(retry_recorder.of(self.request.id).attempts) == 1:
            raise Reject("again", requeue=True)
        if not self.request.retries:
            raise self.retry(countdown=5)
        return "done"

    result = task.delay()
    assert result.get() == "done"
    history = retry_recorder.of(result)
    assert [(a.number, a.retries, a.redelivered) for a in history.attempts] == [
        (1, 0, False),
        (2, 0, True),
        (3, 1, False),
    ]
    assert history.count == 1
    assert history.delays == history.waits == [5]


@pytest.mark.celery_faults(broker="rabbitmq")
def test_a_redelivery_after_a_power_cut(worker, app, retry_recorder):
    @app.task(acks_late=True)
    def task():
        time.sleep(10)

    result = task.delay()
    worker.advance(3)
    worker.crash()
    worker.start()
    result.get()
    history = retry_recorder.of(result)
    assert starts(history) == [0, 3]
    assert history.count == 0


def test_a_retry_in_a_chain_keeps_its_place(app, retry_recorder):
    @app.task
    def double(x):
        return x * 2

    assert (retrying(app, {"countdown": 5}).s() | double.s()).delay().get() == "donedone"
    assert retry_recorder.delays == [5]


# -- whose history


def test_whose_history_it_is(app, retry_recorder):
    task = retrying(app, {"countdown": 5})
    result = task.delay()
    result.get()
    for which in (task, "shop.retrying", result, result.id):
        history = retry_recorder.of(which)
        assert (history.count, history.delays, history.task_id) == (1, [5], result.id)
    assert repr(history) == "<RetryHistory of shop.retrying#1: 1 retries, delays [5], SUCCESS>"
    assert repr(retry_recorder) == f"<RetryRecorder: {history!r}>"


def test_more_than_one_task_was_retried(worker, app, retry_recorder):
    task = retrying(app, {"countdown": 5})
    results = [task.delay(), task.delay()]
    worker.drain()
    choices = f"shop.retrying#1 ({results[0].id}), shop.retrying#2 ({results[1].id})"
    for name in ("count", "delays", "waits", "attempts", "exceptions", "exhausted"):
        with pytest.raises(AmbiguousHistoryError) as caught:
            getattr(retry_recorder, name)
        assert str(caught.value) == (
            "2 tasks were retried: ask retry_recorder.of() with the result or id of one of " + choices
        )
    with pytest.raises(AmbiguousHistoryError) as caught:
        retry_recorder.of(task)
    assert str(caught.value) == (
        "the task 'shop.retrying' was sent 2 times: ask retry_recorder.of() with the result or id of one of " + choices
    )
    assert [retry_recorder.of(result).count for result in results] == [1, 1]
    assert [history.count for history in retry_recorder.histories] == [1, 1]


def test_others_that_were_not_retried_do_not_matter(worker, app, failing, retry_recorder):
    @app.task
    def other():
        pass

    other.delay()
    retrying(app, {"countdown": 5}).delay()
    failing().delay()
    worker.drain()
    assert retry_recorder.delays == [5]


def test_nothing_was_retried(worker, app, failing, retry_recorder):
    assert retry_recorder.count == 0
    task = failing()
    for _ in range(2):
        task.delay()
    worker.drain()
    assert retry_recorder.count == 0
    assert retry_recorder.delays == retry_recorder.waits == []
    assert retry_recorder.exhausted is False
    assert repr(retry_recorder) == "<RetryRecorder: no retries>"
