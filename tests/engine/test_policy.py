"""`policy` and `assert_follows_policy`: what a task's settings promise, and whether its retries keep it."""

from __future__ import annotations

import time

import pytest
from celery import Task
from celery.exceptions import Reject

from pytest_celery_faults import AmbiguousHistoryError, FaultTypeError, FaultValueError, PolicyNotFollowedError
from pytest_celery_faults.views.policy import Bounds, RetryPolicy


class Backoff(Task):
    autoretry_for = (TypeError,)
    max_retries = 5
    retry_backoff = True
    retry_backoff_max = 700
    retry_jitter = False


@pytest.fixture
def by_hand(app):
    """A task that retries itself with these arguments, in turn, and then succeeds."""

    def by_hand(*calls, **options):
        @app.task(name="shop.by_hand", bind=True, **options)
        def by_hand(self):
            if self.request.retries < len(calls):
                raise self.retry(**calls[self.request.retries])
            return "done"

        return by_hand

    return by_hand


def auto(**options):
    return {"autoretry_for": (TypeError,), **options}


# -- what is promised


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        (auto(), [180] * 3),
        (auto(max_retries=0), []),
        (auto(default_retry_delay=10, max_retries=4), [10] * 4),
        (auto(default_retry_delay=0), [0] * 3),
        (auto(default_retry_delay=0.5), [0.5] * 3),
        (auto(retry_kwargs={"countdown": 7, "max_retries": 2}), [7, 7]),
        (auto(retry_kwargs={"max_retries": None}, max_retries=1), [180]),
        (auto(retry_backoff=True, retry_jitter=False, max_retries=5), [1, 2, 4, 8, 16]),
        (auto(retry_backoff=True, max_retries=3), [(0, 1), (0, 2), (0, 4)]),
        (auto(retry_backoff=5, retry_jitter=False, max_retries=4), [5, 10, 20, 40]),
        (auto(retry_backoff=5, retry_jitter=False, max_retries=4, retry_backoff_max=15), [5, 10, 15, 15]),
        (auto(retry_backoff=5, retry_backoff_max=15), [(0, 5), (0, 10), (0, 15)]),
        (auto(retry_backoff=0.3, retry_jitter=False), [1, 2, 4]),
        (auto(retry_backoff=2.9, retry_jitter=False), [2, 4, 8]),
        (auto(retry_backoff=False, retry_jitter=True), [180] * 3),
        (auto(retry_backoff=1, retry_jitter=False, retry_kwargs={"countdown": 7}), [1, 2, 4]),
        ({"base": Backoff}, [1, 2, 4, 8, 16]),
        ({"base": Backoff, "retry_backoff_max": 3, "max_retries": 4}, [1, 2, 3, 3]),
        ({"base": Backoff, "max_retries": 12}, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 700, 700]),
    ],
    ids=repr,
)
def test_the_schedule_is_what_celery_makes_of_the_settings(worker, failing, retry_recorder, options, schedule):
    """The promise is compared with what the worker then does."""
    task = failing(**options)
    result = task.delay()
    worker.drain()
    policy = retry_recorder.of(result).policy
    assert policy == schedule
    assert list(policy) == schedule
    assert len(policy) == policy.max_retries == len(schedule)
    assert len(retry_recorder.delays) == len(schedule)
    assert all(delay in bounds for delay, bounds in zip(retry_recorder.delays, policy, strict=True))
    retry_recorder.assert_follows_policy()


def test_a_cap_that_nobody_set_is_not_promised(failing):
    task = failing(**auto(retry_backoff=True, retry_jitter=False, max_retries=11))
    assert RetryPolicy(task)[9:] == [512, 1024]


def test_bounds():
    assert Bounds(1, 1) == 1
    assert Bounds(0, 4) == (0, 4) == Bounds(0, 4)
    assert Bounds(0, 4) != 4
    assert Bounds(0, 4) != 0
    assert len({Bounds(0, 4), Bounds(0, 4), Bounds(4, 4)}) == 2
    assert 0 in Bounds(0, 4)
    assert 4 in Bounds(0, 4)
    assert 4.1 not in Bounds(0, 4)
    assert -1 not in Bounds(0, 4)
    assert [repr(Bounds(4, 4)), repr(Bounds(0, 4))] == ["4", "0 to 4"]


def test_a_policy_is_a_sequence(failing):
    task = failing(base=Backoff)
    policy = RetryPolicy(task)
    assert (policy[0], policy[-1], policy[1:3]) == (1, 16, [2, 4])
    with pytest.raises(IndexError):
        policy[5]
    assert policy == RetryPolicy(task)
    assert policy != [1, 2]
    assert policy != "1, 2"
    assert policy.of_retry(7) == 64, "also beyond max_retries"
    assert repr(policy) == ("<RetryPolicy retry_backoff=1, retry_backoff_max=700, retry_jitter=False, max_retries=5>")


def test_a_policy_without_an_end(failing):
    policy = RetryPolicy(failing(max_retries=None, default_retry_delay=5))
    assert policy[1000] == 5
    assert policy.of_retry(1) == 5
    with pytest.raises(FaultValueError, match="max_retries is None, so the schedule has no end"):
        len(policy)
    with pytest.raises(FaultValueError, match="no end"):
        list(policy)
    assert repr(policy) == "<RetryPolicy 5 s each time, max_retries=None>"


def test_what_a_policy_is_not_asked_for(failing):
    policy = RetryPolicy(failing(**auto(retry_backoff=5, retry_backoff_max="9", retry_jitter=False)))
    assert policy == [5, 9, 9]
    for number, kind in ((0, FaultValueError), (-3, FaultValueError), ("1", FaultTypeError), (True, FaultTypeError)):
        with pytest.raises(kind, match="a whole number from 1 up"):
            policy.of_retry(number)
    with pytest.raises(IndexError, match="there is no number 7: the policy promises 3 retries"):
        policy[7]
    assert "5" not in policy[0]


def test_the_beginning_of_a_policy_without_an_end(failing):
    policy = RetryPolicy(failing(max_retries=None, default_retry_delay=5))
    assert policy[:3] == [5, 5, 5]
    assert policy[1:2] == [5]
    for endless in (slice(None), slice(2, None), slice(-2, 3)):
        with pytest.raises(FaultValueError, match="no end"):
            policy[endless]


# -- what is kept


def test_fewer_retries_than_allowed_follow_the_policy(by_hand, retry_recorder):
    by_hand({"countdown": 10}, {"countdown": 10}, default_retry_delay=10, max_retries=5).delay().get()
    retry_recorder.assert_follows_policy()


def test_a_delay_of_zero_is_compared(by_hand, retry_recorder):
    by_hand({"countdown": 0}, default_retry_delay=10).delay().get()
    assert retry_recorder.delays == [0]
    with pytest.raises(PolicyNotFollowedError, match=r"1 +0 s +- +0 s +10 s +0 s +<- another countdown"):
        retry_recorder.assert_follows_policy()


def test_a_wait_that_is_longer_since_the_worker_is_busy_is_no_breach(app, worker, by_hand, retry_recorder):
    @app.task
    def slow():
        time.sleep(100)

    by_hand({}, default_retry_delay=10).delay()
    slow.delay()
    worker.drain()
    assert retry_recorder.delays == [10]
    assert retry_recorder.waits == [100]
    retry_recorder.assert_follows_policy()


def test_jitter_follows_the_policy_whatever_is_drawn(worker, failing, retry_recorder):
    failing(**auto(retry_backoff=60, retry_backoff_max=1000, max_retries=8)).delay()
    worker.drain()
    assert len(set(retry_recorder.delays)) > 1
    retry_recorder.assert_follows_policy()


# -- what is not


def breach(retry_recorder):
    with pytest.raises(PolicyNotFollowedError) as caught:
        retry_recorder.assert_follows_policy()
    head, titles, *rows = str(caught.value).splitlines()
    assert titles.split("  ")[0] == "attempt"
    return head, {row.split()[0]: row.partition("<- ")[2] for row in rows if "<-" in row}


def test_a_countdown_that_breaks_the_policy(by_hand, retry_recorder):
    by_hand({}, {"countdown": 60}, {}, default_retry_delay=1800).delay().get()
    head, remarks = breach(retry_recorder)
    assert head == "shop.by_hand#1 does not follow its policy: 1800 s each time, max_retries=3"
    assert remarks == {"2": "another countdown than the task's settings say"}


def test_a_retry_by_hand_that_does_not_look_at_the_backoff(by_hand, retry_recorder):
    by_hand({}, {}, retry_backoff=True, retry_jitter=False).delay().get()
    assert retry_recorder.delays == [180, 180]
    remark = "not what retry_backoff says; self.retry() by hand does not look at it"
    assert breach(retry_recorder)[1] == {"1": remark, "2": remark}


def test_the_silent_cap(worker, failing, retry_recorder):
    failing(**auto(retry_backoff=True, retry_jitter=False, max_retries=12)).delay()
    worker.drain()
    assert retry_recorder.delays[-3:] == [512, 600, 600]
    remark = "Celery's silent cap of 600 s: set retry_backoff_max"
    assert breach(retry_recorder)[1] == {"11": remark, "12": remark}


def test_the_silent_cap_under_jitter(worker, failing, retry_recorder):
    failing(**auto(retry_backoff=400, max_retries=3)).delay()
    worker.drain()
    remark = "Celery's silent cap of 600 s: set retry_backoff_max"
    assert breach(retry_recorder)[1] == {"2": remark, "3": remark}


def test_a_cap_that_is_set_to_celerys_own_is_not_silent(worker, failing, retry_recorder):
    failing(**auto(retry_backoff=400, retry_jitter=False, retry_backoff_max=600)).delay()
    worker.drain()
    assert retry_recorder.delays == [400, 600, 600]
    retry_recorder.assert_follows_policy()


def test_jitter_out_of_bounds(by_hand, retry_recorder):
    by_hand(
        {"countdown": 1}, {"countdown": 2.5}, {"countdown": 4}, retry_backoff=True, retry_backoff_max=700
    ).delay().get()
    assert set(breach(retry_recorder)[1]) == {"2"}


def test_more_retries_than_promised(by_hand, retry_recorder):
    more = {"countdown": 10, "max_retries": 9}
    by_hand(*[more] * 4, default_retry_delay=10, max_retries=2).delay().get()
    assert breach(retry_recorder)[1] == {"3": "retry 3 of 2", "4": "retry 4 of 2"}


def test_giving_up_before_the_end(worker, by_hand, retry_recorder):
    by_hand({"countdown": 10}, {"countdown": 10, "max_retries": 1}, default_retry_delay=10, max_retries=5).delay()
    worker.drain()
    assert retry_recorder.exhausted
    assert breach(retry_recorder)[1] == {"2": "gave up after 1 retries"}


def test_what_was_not_retried_has_nothing_to_compare(by_hand, retry_recorder):
    by_hand().delay().get()
    with pytest.raises(PolicyNotFollowedError, match=r"shop\.by_hand#1 was not retried: there is nothing to compare"):
        retry_recorder.assert_follows_policy()


def test_no_retries_promised_and_none_given(worker, failing, retry_recorder):
    failing(**auto(max_retries=0)).delay()
    worker.drain()
    assert retry_recorder.count == 0
    assert retry_recorder.exhausted
    retry_recorder.assert_follows_policy()


def test_the_table_says_it_all(by_hand, app, worker, retry_recorder):
    @app.task(name="shop.tries", bind=True, max_retries=2, default_retry_delay=30)
    def tries(self):
        raise self.retry(exc=ConnectionError(f"no answer for {self.request.id}, after a very long explanation"))

    tries.delay()
    worker.drain()
    assert retry_recorder.of(tries).table().splitlines() == [
        "attempt  started at  exception                          planned delay  real delay",
        "1        0 s         ConnectionError('no answer for...  30 s           30 s",
        "2        30 s        ConnectionError('no answer for...  30 s           30 s",
        "3        60 s        ConnectionError('no answer for...  -              -",
    ]
    assert str(retry_recorder.of(tries)).splitlines()[0] == "shop.tries#1"


# -- whose


def test_of_several_the_one_that_was_retried(worker, failing, by_hand, retry_recorder):
    by_hand().delay()
    failing(base=Backoff).delay()
    worker.drain()
    assert retry_recorder.policy == [1, 2, 4, 8, 16]
    assert [attempt.number for attempt in retry_recorder.attempts] == [1, 2, 3, 4, 5, 6]
    retry_recorder.assert_follows_policy()


def test_of_two_sent_the_one_that_was_retried_stands_for_its_task(celery_faults, worker, app, retry_recorder):
    @app.task(autoretry_for=(OSError,), default_retry_delay=5)
    def task():
        pass

    results = [task.delay() for _ in range(3)]
    celery_faults.inject(OSError, skip=1)
    worker.drain()
    assert retry_recorder.of(task).task_id == results[1].id
    assert retry_recorder.of(task).count == 1


def test_nobody_knows_which(worker, by_hand, retry_recorder):
    with pytest.raises(AmbiguousHistoryError, match="no task was executed in this test"):
        retry_recorder.assert_follows_policy()
    task = by_hand()
    for _ in range(2):
        task.delay()
    worker.drain()
    for name in ("policy", "attempts", "exceptions"):
        with pytest.raises(AmbiguousHistoryError, match=r"2 tasks were executed: ask .*shop\.by_hand#1 \(.*#2 \("):
            getattr(retry_recorder, name)
    assert (retry_recorder.count, retry_recorder.delays, retry_recorder.exhausted) == (0, [], False)


def test_a_retry_that_was_refused_at_once_counts_as_retried(worker, failing, by_hand, retry_recorder):
    by_hand().delay()
    failing(**auto(max_retries=0)).delay()
    worker.drain()
    assert retry_recorder.exhausted
    assert retry_recorder.count == 0


def test_a_task_that_no_application_has_has_no_policy(app, worker, retry_recorder):
    sent = app.send_task("shop.gone")
    worker.drain()
    with pytest.raises(FaultValueError, match=r"no application of this test has the task 'shop\.gone'"):
        retry_recorder.of(sent).policy  # noqa: B018


def test_a_retry_that_is_not_thrown_is_one(app, worker, retry_recorder):
    @app.task(bind=True, default_retry_delay=30)
    def task(self):
        if self.request.retries < 2:
            self.retry(throw=False)
        return "went on"

    result = task.delay()
    worker.drain()
    assert result.get() == "went on"
    assert retry_recorder.count == 2
    assert retry_recorder.delays == retry_recorder.waits == [30, 30]
    retry_recorder.assert_follows_policy()


def test_seconds_are_plain_lists(by_hand, retry_recorder):
    by_hand({"countdown": 1}).delay().get()
    assert type(retry_recorder.delays) is type(retry_recorder.waits) is list


@pytest.mark.parametrize("which", [42, None, 1.5], ids=repr)
def test_whose_history_is_no_question(by_hand, retry_recorder, which):
    by_hand().delay().get()
    with pytest.raises(FaultTypeError, match="is neither a task, the name of one, a result nor the id of one"):
        retry_recorder.of(which)


# -- redelivered


def test_the_message_of_a_retry_is_not_redelivered_since_the_one_before_was(celery_faults, app, retry_recorder):
    """Celery gives it the headers of the message before, that which says so among them."""

    @app.task(bind=True, acks_late=True)
    def task(self):
        if not self.request.delivery_info["redelivered"] and not self.request.retries:
            raise Reject("again", requeue=True)
        if self.request.retries < 2:
            raise self.retry(countdown=0)

    task.delay().get()
    assert [(a.retries, a.redelivered) for a in retry_recorder.attempts] == [
        (0, False), (0, True), (1, False), (2, False)
    ]  # fmt: skip
    assert len(celery_faults.timeline.where("redelivered")) == 1
    assert retry_recorder.delays == retry_recorder.waits == [0, 0]


@pytest.mark.celery_faults(broker="rabbitmq", concurrency=2)
def test_a_retry_that_was_published_twice_has_two_waits(app, worker, retry_recorder):
    """The worker dies after the retry was published and before its message was acknowledged."""

    @app.task(bind=True, acks_late=True)
    def task(self):
        if self.request.retries:
            return
        try:
            raise self.retry(countdown=10)
        finally:
            time.sleep(3)

    task.delay()
    worker.advance(1)
    worker.crash()
    worker.start()
    worker.drain()
    history = retry_recorder.histories[0]
    assert [(a.retries, a.redelivered, a.started) for a in history.attempts] == [
        (0, False, 0), (0, True, 1), (1, True, 10), (1, False, 11)
    ]  # fmt: skip
    assert history.delays == [10]
    assert history.waits == [10]
