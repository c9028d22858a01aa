"""Every fault at every point: what strikes where, and what Celery makes of it."""

from __future__ import annotations

import gc
import itertools
import time

import celery
import pytest
from celery import chain, chord, group
from celery.exceptions import Ignore, Reject, TaskRevokedError
from kombu.exceptions import OperationalError

from pytest_celery_faults import (
    BackendDown,
    BrokerDown,
    Crash,
    Delay,
    Drop,
    Duplicate,
    Fault,
    FaultTypeError,
    FaultValueError,
    MessagesLostError,
    Revoke,
    Sleep,
    WaitNeverEndsError,
)
from pytest_celery_faults.faults import FUNCTION, POINTS

pytestmark = [
    # Celery warns of an error in its own tracer.
    pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning"),
    # Celery 5.6 reconnects in a way that redis-py does not like any more.
    pytest.mark.filterwarnings("ignore:Call to 'get_connection' function:DeprecationWarning"),
]
# From 5.7 on Celery leaves a stored success alone when the process is lost; before, it reported a failure.
CELERY_5_7 = tuple(map(int, celery.__version__.split(".")[:2])) >= (5, 7)


def helper():
    return "helped"


@pytest.fixture
def work(app, log):
    """Logs how it begins and ends; late acknowledged."""

    @app.task(name="shop.work", bind=True, acks_late=True)
    def work(self, seconds=0):
        log.append("begins")
        try:
            helper()
            time.sleep(seconds)
            return "done"
        except BaseException as error:
            log.append(type(error).__name__)
            raise
        finally:
            log.append("ends")

    return work


def kinds(celery_faults, task_id=None):
    return [event.kind for event in celery_faults.timeline if task_id is None or event.task_id == task_id]


# -- fault x point

FAULTS = {
    "exception": LookupError("no"),
    "Sleep": Sleep(5),
    "Crash": Crash(),
    "Duplicate": Duplicate(),
    "Drop": Drop(),
    "Delay": Delay(7),
    "BrokerDown": BrokerDown(20),
    "BackendDown": BackendDown(20),
    "Revoke": Revoke(),
}
PLACES = (*POINTS, FUNCTION)
ALLOWED = {
    "exception": {"start", "return", FUNCTION},
    "Sleep": {"start", "return", FUNCTION},
    "Crash": {"start", "return", "store", "stored", FUNCTION},
    "Duplicate": {"receive", "publish"},
    "Drop": {"publish", "receive"},
    "Delay": {"receive", "publish"},
    "BrokerDown": {"publish", "receive", "ack"},
    "BackendDown": {"store", "stored"},
    "Revoke": {"receive", "start", FUNCTION},
}
DEFAULTS = {
    "exception": "start", "Sleep": "start", "Crash": "start", "Duplicate": "receive", "Drop": "publish",
    "Delay": "receive", "BrokerDown": "publish", "BackendDown": "store", "Revoke": "receive",
}  # fmt: skip


@pytest.mark.parametrize(("fault", "place"), list(itertools.product(FAULTS, PLACES)))
def test_each_fault_works_at_a_point_or_is_refused_there(celery_faults, worker, work, fault, place):
    at = "test_faults.helper" if place == FUNCTION else place
    if place not in ALLOWED[fault]:
        with pytest.raises(FaultValueError, match=r"cannot strike .*: choose one of \w+") as caught:
            celery_faults.inject(FAULTS[fault], at=at)
        for possible in ALLOWED[fault]:
            assert ("a function" if possible == FUNCTION else possible) in str(caught.value)
        return
    injection = celery_faults.inject(FAULTS[fault], at=at)
    try:
        work.delay()
    except OperationalError:
        assert (fault, place) == ("BrokerDown", "publish")
    worker.drain()
    assert injection.fired == 1
    [event] = celery_faults.timeline.where("fault fired")
    assert event.task == "shop.work"
    worker.advance(60)
    # Without the fault it is as ever.
    assert work.delay().get() == "done"


@pytest.mark.parametrize("fault", FAULTS)
def test_the_default_point(celery_faults, worker, work, fault):
    injection = celery_faults.inject(FAULTS[fault], required=False)
    assert injection.plan.at == DEFAULTS[fault]
    assert injection.plan.at in ALLOWED[fault]


def test_the_sites_of_a_task_are_in_celerys_own_order(celery_faults, worker, app, add):
    chain(add.s(1, 2), add.s(3)).apply_async(link_error=add.s())
    worker.drain()
    assert [str(site) for site in celery_faults.timeline.sites] == [
        "shop.add#1 retry 0 delivery 0 publish",
        "shop.add#1 retry 0 delivery 1 receive",
        "shop.add#1 retry 0 delivery 1 ack",
        "shop.add#1 retry 0 delivery 1 start",
        "shop.add#1 retry 0 delivery 1 return",
        # The chain goes on before the success is stored.
        "shop.add#2 retry 0 delivery 0 publish",
        "shop.add#1 retry 0 delivery 1 store",
        "shop.add#1 retry 0 delivery 1 stored",
        "shop.add#2 retry 0 delivery 1 receive",
        "shop.add#2 retry 0 delivery 1 ack",
        "shop.add#2 retry 0 delivery 1 start",
        "shop.add#2 retry 0 delivery 1 return",
        "shop.add#2 retry 0 delivery 1 store",
        "shop.add#2 retry 0 delivery 1 stored",
    ]


def test_a_late_ack_comes_after_the_stored_state_and_a_retry_stores_nothing(celery_faults, app):
    @app.task(name="shop.task", bind=True, acks_late=True)
    def task(self):
        if not self.request.retries:
            raise self.retry(countdown=1)

    task.delay().get()
    celery_faults.worker.drain()
    assert [(site.point, site.retry, site.delivery) for site in celery_faults.timeline.sites] == [
        ("publish", 0, 0), ("receive", 0, 1), ("start", 0, 1), ("publish", 1, 1), ("receive", 1, 2), ("ack", 0, 2),
        ("start", 1, 2), ("return", 1, 2), ("store", 1, 2), ("stored", 1, 2), ("ack", 1, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "points"),
    [
        ("failure", ["start", "store", "stored"]),
        ("ignore", ["start"]),
        ("ignored result", ["start", "return"]),
        ("direct call", ["start", "return", "store", "stored"]),
        ("eager", ["start", "return", "store", "stored"]),
    ],
)
def test_the_sites_of_other_endings(celery_faults, worker, app, add, ending, points):
    @app.task(ignore_result=ending == "ignored result")
    def task():
        if ending == "failure":
            raise LookupError
        if ending == "ignore":
            raise Ignore
        if ending == "direct call":
            add(1, 2)
        if ending == "eager":
            add.apply((1, 2))

    task.delay()
    worker.drain()
    inner = [site.point for site in celery_faults.timeline.sites if site.point not in ("publish", "receive", "ack")]
    assert inner == points


# -- a crash

CRASH_POINTS = ("start", "return", "store", "stored")


@pytest.mark.parametrize("at", CRASH_POINTS)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("reject", [False, True])
def test_what_becomes_of_a_task_whose_process_dies(celery_faults, worker, app, log, celery_dlq, at, late, reject):
    """`task_reject_on_worker_lost` matters for what is acknowledged late only; what is stored already is left alone."""

    @app.task(name="shop.task", acks_late=late, reject_on_worker_lost=reject)
    def task():
        log.append("ran")
        return "done"

    celery_faults.inject(Crash(), at=at)
    result = task.delay()
    worker.drain()
    left_alone = at == "stored" and CELERY_5_7
    again = late and reject and not left_alone
    assert len(log) == (at != "start") + again
    if again:
        assert "redelivered" in kinds(celery_faults)
    if again or left_alone:
        assert result.get() == "done"
        assert list(celery_dlq) == []
    else:
        if at == "stored":
            assert result.get() == "done", "a success that is stored is not overwritten"
        else:
            with pytest.raises(Exception, match="Worker exited prematurely: signal 9"):
                result.get()
        assert celery_dlq.reasons == {"worker_lost": 1}
        assert celery_dlq[0].route == "harness", "Celery acknowledges it"
    assert celery_faults.broker.unacked == []


@pytest.mark.parametrize("at", ["start", "return", "test_faults.helper"])
def test_nothing_of_a_task_runs_after_its_crash(celery_faults, worker, work, add, log, at):
    celery_faults.inject(Crash(), at=at)
    work.apply_async(link=add.s(1))
    worker.drain()
    assert log == {"start": [], "return": ["begins", "ends"], "test_faults.helper": ["begins"]}[at]
    assert not celery_faults.sent.of(add)


def test_a_crash_after_the_links_were_published(celery_faults, worker, work, add):
    """Links and chain go out before the success is stored: they run although their parent has failed."""

    def callback(*_):
        return "linked"

    linked = celery_faults.app.task(callback, name="shop.linked")
    celery_faults.inject(Crash(), at="store", task="shop.work")
    result = work.apply_async(link=linked.s())
    worker.drain()
    assert result.state == "FAILURE"
    assert len(celery_faults.sent.of(linked)) == 1


@pytest.mark.skipif(not CELERY_5_7, reason="this Celery makes a failure of it, and the chord hears of that")
def test_a_crash_before_the_count_of_a_chord(celery_faults, worker, app, add):
    """The state of the member is stored, and the chord does not hear of it: its body never runs."""

    @app.task
    def total(parts):
        return sum(parts)

    celery_faults.inject(Crash(), at="stored", task="shop.add")
    body = chord([add.s(1, 1), add.s(2, 2)], total.s()).delay()
    worker.drain()
    assert [member.state for member in body.parent.results] == ["SUCCESS", "SUCCESS"]
    assert body.state == "PENDING"
    assert not celery_faults.sent.of(total)


def test_the_pool_goes_on_with_a_new_process(celery_faults, worker, app, add):
    @app.task
    def pid():
        import billiard

        return billiard.current_process().pid

    celery_faults.inject(Crash(), times=3)
    for _ in range(3):
        add.delay(1, 1)
    assert add.delay(2, 2).get() == 4


def test_jobs_are_numbered_anew_in_each_test(build, bare_app):
    @bare_app.task
    def task():
        pass

    for _ in range(2):
        harness = build()
        harness.inject(Crash())
        result = task.delay()
        harness.worker.drain()
        assert "Job: 0." in str(result.result)
        harness.close()


# -- messages


def test_a_dropped_message_is_sent_and_never_comes(celery_faults, worker, add):
    celery_faults.inject(Drop())
    result = add.delay(1, 2)
    worker.drain()
    assert len(celery_faults.sent.of(add)) == 1
    assert result.state == "PENDING"
    assert celery_faults.broker.queues == {"celery": 0}
    with pytest.raises(WaitNeverEndsError, match=r"shop\.add#1: the broker lost it when it was published"):
        result.get()


def test_a_message_is_dropped_when_it_is_delivered(celery_faults, worker, add):
    celery_faults.inject(Drop(), at="receive", skip=1)
    first, second, third = [add.delay(n, n) for n in range(3)]
    worker.drain()
    assert [first.state, second.state, third.state] == ["SUCCESS", "PENDING", "SUCCESS"]
    assert kinds(celery_faults, second.id) == ["sent", "fault fired"]


def test_the_retry_of_a_task_can_be_lost(celery_faults, worker, app):
    @app.task(name="shop.task", bind=True)
    def task(self):
        raise self.retry(countdown=5)

    celery_faults.inject(Drop(), when=lambda execution: execution.retries == 2)
    result = task.delay()
    worker.drain()
    assert result.state == "RETRY"
    with pytest.raises(MessagesLostError, match=r"shop\.task#1 \(retry 2\), sent to 'celery' at 5 s: the broker lost"):
        celery_faults.assert_nothing_lost()


@pytest.mark.parametrize("at", ["receive", "publish"])
def test_a_duplicate_is_a_delivery_of_its_own(celery_faults, worker, add, retry_recorder, at):
    celery_faults.inject(Duplicate(copies=2, delay=5), at=at)
    result = add.delay(1, 2)
    worker.drain()
    history = retry_recorder.of(result)
    assert [(a.started, a.redelivered) for a in history.attempts] == [
        (0, False), (5, at == "receive"), (10, at == "receive")
    ]  # fmt: skip
    assert history.count == 0
    tags = {event.index for event in celery_faults.timeline.where("acked")}
    assert len(tags) == 3


def test_a_duplicate_for_ever_is_not_duplicated_again(celery_faults, worker, add, log):
    celery_faults.inject(Duplicate(), times=None)
    for _ in range(3):
        add.delay(1, 2)
    worker.drain()
    assert celery_faults.recorder.executions == 6


def test_a_duplicate_that_celery_deduplicates(build, bare_app):
    ran = []

    @bare_app.task(acks_late=True)
    def task():
        ran.append("ran")
        return "done"

    harness = build(conf={"worker_deduplicate_successful_tasks": True, "result_persistent": True})
    harness.inject(Duplicate(delay=1))
    result = task.delay()
    harness.worker.drain()
    assert result.get() == "done"
    assert ran == ["ran"]


@pytest.mark.parametrize("at", ["receive", "publish"])
def test_a_delayed_message_comes_later_and_the_others_do_not_wait(celery_faults, worker, add, retry_recorder, at):
    celery_faults.inject(Delay(30), at=at)
    late, prompt = add.delay(1, 1), add.delay(2, 2)
    worker.advance(29)
    assert (late.state, prompt.state) == ("PENDING", "SUCCESS")
    celery_faults.assert_nothing_lost()
    worker.drain()
    assert retry_recorder.of(late).attempts[0].started == 30
    assert late.get() == 2


def test_a_delayed_message_survives_its_worker(celery_faults, worker, add):
    celery_faults.inject(Delay(30))
    result = add.delay(1, 1)
    worker.advance(10)
    worker.crash()
    worker.start()
    worker.drain()
    assert result.get() == 2
    assert celery_faults.clock.elapsed == 30


def test_what_one_fault_made_of_a_message_another_can_strike(celery_faults, worker, add, retry_recorder):
    celery_faults.inject(Duplicate(delay=10), times=None)
    celery_faults.inject(Delay(5), times=None, when=lambda execution: execution.redelivered)
    celery_faults.inject(Drop(), at="receive", skip=1)
    result = add.delay(1, 2)
    worker.drain()
    # The copy is delayed, and comes again at 15 s, when the third fault lets it through.
    assert [attempt.started for attempt in retry_recorder.of(result).attempts] == [0, 15]
    add.delay(3, 4)
    worker.drain()
    assert [event.detail for event in celery_faults.timeline.where("fault fired")] == [
        "Duplicate(copies=1, delay=10)", "Delay(5)", "Duplicate(copies=1, delay=10)", "Delay(5)", "Drop()"
    ]  # fmt: skip


# -- outages


def test_publishing_fails_after_celerys_retries(celery_faults, worker, add):
    celery_faults.inject(BrokerDown(30))
    with pytest.raises(OperationalError, match="Connection refused"):
        add.delay(1, 2)
    # Celery's default publish retry policy: three retries, after 0 s, 0.2 s and 0.4 s.
    assert celery_faults.clock.elapsed == pytest.approx(0.6)
    assert list(celery_faults.sent) == []
    worker.advance(40)
    assert add.delay(1, 2).get() == 3


def test_publishing_survives_an_outage_that_is_shorter_than_the_retries(celery_faults, add):
    celery_faults.inject(BrokerDown(0.1))
    assert add.delay(1, 2).get() == 3
    assert celery_faults.clock.elapsed >= 0.1


def test_a_retry_that_cannot_be_published_is_rejected(celery_faults, worker, app, celery_dlq):
    """`Task.retry` makes a `Reject` of it: the task is lost, as in production."""

    @app.task(name="shop.task", bind=True)
    def task(self):
        raise self.retry(countdown=1)

    celery_faults.inject(BrokerDown(60), when=lambda execution: execution.retries == 1)
    task.delay()
    worker.drain()
    [letter] = celery_dlq
    assert letter.reason == "rejected"
    assert isinstance(letter.exception.reason, OperationalError)


@pytest.mark.parametrize(
    ("broker", "comes_back"), [("redis", None), ("rabbitmq", 30)], ids=["redis loses it", "rabbitmq keeps it"]
)
def test_the_broker_goes_down_while_it_delivers(build, bare_app, broker, comes_back):
    @bare_app.task(name="shop.task")
    def task():
        return "done"

    harness = build(broker=broker)
    harness.inject(BrokerDown(30), at="receive")
    result = task.delay()
    harness.worker.drain()
    assert result.state == ("PENDING" if comes_back is None else "SUCCESS")
    if comes_back is None:
        with pytest.raises(MessagesLostError, match="it left its queue and never came to a worker"):
            harness.assert_nothing_lost()
    else:
        harness.assert_nothing_lost()
        assert harness.clock.elapsed == comes_back


@pytest.mark.parametrize(("broker", "again"), [("redis", 3630), ("rabbitmq", 30)])
def test_an_ack_that_does_not_reach_the_broker(build, bare_app, broker, again):
    """The task has run, and its message comes back: with the visibility timeout, or with the connection."""

    @bare_app.task(name="shop.task", acks_late=True)
    def task():
        return "done"

    harness = build(broker=broker)
    harness.inject(BrokerDown(30), at="ack")
    result = task.delay()
    harness.worker.drain()
    history = harness.retries.of(result)
    assert [(a.started, a.redelivered) for a in history.attempts] == [(0, False), (again, True)]
    assert history.count == 0
    harness.assert_nothing_lost()


def test_the_worker_connects_again_and_goes_on(celery_faults, worker, add):
    worker.drain()
    with celery_faults.broker.down():
        worker.advance(10)
        with pytest.raises(OperationalError):
            add.delay(1, 2)
    assert add.delay(1, 2).get() == 3


def test_a_task_that_runs_through_an_outage_ends(celery_faults, worker, app, add):
    @app.task
    def slow():
        time.sleep(20)
        return "done"

    result = slow.delay()
    worker.advance(5)
    with celery_faults.broker.down():
        worker.advance(10)
    assert result.get() == "done"
    assert celery_faults.clock.elapsed >= 20


@pytest.mark.parametrize(("always", "kept"), [(False, False), (True, True)])
def test_a_result_due_in_the_outage(build, bare_app, always, kept):
    """Celery reads the state before it writes it, without a retry: a result is lost at once by default."""

    @bare_app.task(name="shop.task")
    def task():
        return "done"

    harness = build(conf={"result_backend_always_retry": always})
    harness.inject(BackendDown(10))
    result = task.delay()
    harness.worker.drain()
    harness.worker.advance(20)
    assert result.state == ("SUCCESS" if kept else "PENDING")
    if kept:
        harness.assert_nothing_lost()
    else:
        with pytest.raises(MessagesLostError, match="it ended with SUCCESS at 0 s, and its result could not be stored"):
            harness.assert_nothing_lost()


def test_the_backend_goes_down_when_the_state_is_stored(celery_faults, worker, add):
    celery_faults.inject(BackendDown(10), at="stored")
    result = add.delay(1, 2)
    worker.drain()
    worker.advance(11)
    assert result.get() == 3
    celery_faults.assert_nothing_lost()


def test_results_of_the_test_that_a_task_collects_cost_it_no_time(celery_faults, worker, app, add):
    """Giving up a result's subscription takes as long as the outage: in the process that has it, not in a child."""
    passed = []

    @app.task(name="shop.collects")
    def collects():
        before = celery_faults.clock.elapsed
        gc.collect()
        passed.append(celery_faults.clock.elapsed - before)

    result = add.delay(1, 2)
    assert result.get() == 3
    lost = [result]
    lost.append(lost)
    del lost, result
    celery_faults.inject(BackendDown(10), task=add, at="stored")
    add.delay(3, 4)
    collects.delay()
    worker.drain()
    assert passed == [0]


def test_the_broker_and_the_backend_are_two(celery_faults, worker, add):
    result = add.delay(1, 2)
    worker.drain()
    with celery_faults.broker.down():
        assert result.get() == 3
        assert celery_faults.broker.client.ping(), "the test's own client is no part of the application"


# -- revoked


def test_revoked_before_it_starts(celery_faults, worker, work, log):
    celery_faults.inject(Revoke())
    result = work.delay()
    worker.drain()
    assert result.state == "REVOKED"
    assert log == []
    with pytest.raises(TaskRevokedError):
        result.get()
    celery_faults.assert_nothing_lost()


@pytest.mark.parametrize("at", ["start", "test_faults.helper"])
def test_terminated_while_it_runs(celery_faults, worker, work, log, at):
    celery_faults.inject(Revoke(terminate=True), at=at)
    result = work.delay(10)
    worker.drain()
    assert result.state == "REVOKED"
    assert log == ([] if at == "start" else ["begins", "SystemExit", "ends"])
    assert celery_faults.clock.elapsed == 0
    assert work.delay().get() == "done"


def test_revoked_without_terminate_while_it_runs_it_goes_on(celery_faults, worker, work, log):
    celery_faults.inject(Revoke(), at="start")
    result = work.delay(10)
    worker.drain()
    assert log == ["begins", "ends"]
    # Not by `get()`: Celery 5.6.2 and 5.6.3 store REVOKED at once, which is what a caller who waits then hears of.
    assert (result.state, result.result) == ("SUCCESS", "done")


# -- together


def test_two_faults_in_one_test(celery_faults, worker, app, log):
    @app.task(name="shop.task", acks_late=True, reject_on_worker_lost=True)
    def task():
        log.append("ran")
        return "done"

    celery_faults.inject(Duplicate(delay=5))
    celery_faults.inject(Crash())
    result = task.delay()
    worker.drain()
    assert result.get() == "done"
    assert log == ["ran", "ran"]


def test_a_fault_while_recovering_from_another(celery_faults, worker, app, log):
    @app.task(name="shop.task", acks_late=True, reject_on_worker_lost=True)
    def task():
        log.append("ran")
        return "done"

    celery_faults.inject(Crash(), times=2)
    celery_faults.inject(Delay(60), when=lambda execution: execution.redelivered)
    result = task.delay()
    worker.drain()
    assert result.get() == "done"
    assert log == ["ran"]
    assert celery_faults.clock.elapsed == 60


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("end", ["crash", "warm", "cold"])
@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_a_restart_with_messages_everywhere(build, bare_app, broker, end, late):
    """Running, prefetched, held for an ETA, still in the queue: what ran is lost, if it had been acknowledged."""

    @bare_app.task(name="shop.slow", acks_late=late)
    def slow(seconds):
        time.sleep(seconds)
        return seconds

    harness = build(broker=broker, conf={"worker_prefetch_multiplier": 2})
    worker = harness.worker
    running = slow.delay(10)
    prefetched = slow.delay(1)
    held = slow.apply_async((2,), countdown=60)
    worker.advance(5)
    queued = slow.delay(3)
    harness.assert_nothing_lost()
    worker.crash() if end == "crash" else worker.stop(warm=end == "warm")
    worker.start()
    worker.drain()
    assert [result.get(timeout=0) for result in (prefetched, held, queued)] == [1, 2, 3]
    if end != "warm" and not late:
        # A cold shutdown says in the result backend that it will be retried, which nobody does.
        assert running.state == ("PENDING" if end == "crash" else "RETRY")
        with pytest.raises(
            MessagesLostError, match=r"shop\.slow#1, sent to 'celery' at 0 s: its worker was gone at 5 s"
        ):
            harness.assert_nothing_lost()
    else:
        harness.assert_nothing_lost()
        assert running.get(timeout=0) == 10


# -- nothing lost


def test_all_that_has_an_end_is_not_lost(celery_faults, worker, app, add, work):
    @app.task(bind=True, max_retries=1)
    def retried(self):
        raise self.retry(countdown=1)

    @app.task(ignore_result=True)
    def ignored():
        pass

    @app.task
    def rejected():
        raise Reject("no", requeue=False)

    group(add.s(1, 2), retried.s(), ignored.s(), rejected.s()).delay()
    add.apply_async((1, 2), queue="elsewhere")
    add.apply_async((1, 2), countdown=3600)
    app.send_task("shop.gone")
    work.delay(100)
    worker.advance(50)
    celery_faults.assert_nothing_lost()
    worker.stop()
    add.delay(3, 4)
    celery_faults.assert_nothing_lost()


def test_a_power_cut_loses_what_was_acknowledged(celery_faults, worker, app, work):
    @app.task(name="shop.early")
    def early():
        time.sleep(10)

    early.delay()
    worker.advance(1)
    work.delay()
    worker.advance(1)
    worker.crash()
    with pytest.raises(MessagesLostError) as caught:
        celery_faults.assert_nothing_lost()
    assert str(caught.value).splitlines() == [
        "1 of 2 messages were lost:",
        "  shop.early#1, sent to 'celery' at 0 s: its worker was gone at 2 s, while it ran",
    ]
    worker.start()
    worker.drain()
    assert celery_faults.retries.of(work).attempts[-1].state == "SUCCESS"


def test_an_id_that_is_sent_again_can_be_lost_again(celery_faults, worker, add, celery_dlq):
    worker.drain()
    add.apply_async((1, 1), task_id="the-id").get()
    celery_faults.assert_nothing_lost()
    with celery_faults.inject(Drop()):
        add.apply_async((1, 1), task_id="the-id")
    worker.drain()
    with pytest.raises(MessagesLostError, match="1 of 2 messages were lost"):
        celery_faults.assert_nothing_lost()


def test_a_letter_that_is_sent_back_can_be_lost(celery_faults, worker, add, celery_dlq):
    with celery_faults.inject(KeyError("k")):
        add.delay(1, 1)
        worker.drain()
    celery_faults.assert_nothing_lost()
    with celery_faults.inject(Drop()):
        celery_dlq.redrive()
    worker.drain()
    with pytest.raises(MessagesLostError, match="the broker lost it when it was published"):
        celery_faults.assert_nothing_lost()


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_message_that_no_queue_is_bound_for_is_lost(build, bare_app, broker):
    """Broker and kombu drop it without a word."""

    @bare_app.task(name="shop.add")
    def add(x, y):
        return x + y

    harness = build(broker=broker)
    add.apply_async((1, 1), exchange="nowhere", routing_key="nobody")
    harness.worker.drain()
    assert [(message.task, message.queue) for message in harness.sent] == [("shop.add", "")]
    with pytest.raises(MessagesLostError, match=r"shop\.add#1.*no queue is bound to exchange 'nowhere' for 'nobody'"):
        harness.assert_nothing_lost()


def test_where_nothing_was_sent_nothing_is_proved(celery_faults):
    with pytest.raises(MessagesLostError, match="nothing was sent in this test"):
        celery_faults.assert_nothing_lost()


# -- delivery limit, and what RabbitMQ says of a death


@pytest.mark.parametrize(("limit", "deliveries"), [(0, 1), (1, 2), (5, 6)])
def test_a_delivery_limit_counts_as_quorum_queues_do(build, bare_app, limit, deliveries):
    ran = []

    @bare_app.task(name="shop.task", acks_late=True)
    def task():
        ran.append("ran")
        raise Reject("again", requeue=True)

    harness = build(broker="rabbitmq", delivery_limit=limit)
    task.delay()
    harness.worker.drain()
    assert len(ran) == deliveries
    [letter] = harness.dlq
    assert (letter.reason, letter.route) == ("delivery_limit", "broker")
    assert letter.headers["x-death"] == [
        {"queue": "celery", "reason": "delivery_limit", "count": 1, "exchange": "", "routing-keys": ["celery"]}
    ]
    assert harness.broker.queues["celery"] == 0
    assert harness.broker.unacked == []


def test_a_message_within_its_delivery_limit_is_worked(build, bare_app):
    ran = []

    @bare_app.task(acks_late=True)
    def task():
        ran.append("ran")
        if len(ran) < 4:
            raise Reject("again", requeue=True)
        return "done"

    harness = build(delivery_limit=3)
    assert task.delay().get() == "done"
    assert list(harness.dlq) == []


@pytest.mark.parametrize("limit", [-1, "5", True, 1.5])
def test_a_wrong_delivery_limit(build, limit):
    with pytest.raises((FaultValueError, FaultTypeError), match="a whole number from 0 up, or None"):
        build(delivery_limit=limit)


def test_only_what_a_broker_dead_letters_has_a_death(celery_faults, worker, app, celery_dlq):
    @app.task(acks_late=True)
    def task(how):
        if how == "rejects":
            raise Reject("no", requeue=False)
        raise LookupError

    task.delay("rejects")
    task.delay("fails")
    worker.drain()
    rejected, failed = celery_dlq
    assert rejected.headers["x-first-death-reason"] == rejected.headers["x-death"][0]["reason"] == "rejected"
    assert rejected.headers["x-first-death-queue"] == "celery"
    assert "x-death" not in failed.headers
    celery_dlq.redrive(rejected)
    [message] = celery_faults.broker.messages("celery")
    assert "x-death" not in message.headers


# -- a fault of somebody else's


def test_a_fault_of_another_plugin(celery_faults, worker, work, log):
    class Note(Fault):
        points = ("start", FUNCTION)

        def strike(self, execution):
            log.append(("note", execution.name, execution.retries))

    celery_faults.inject(Note(), at="test_faults.helper")
    assert work.delay().get() == "done"
    assert log == ["begins", ("note", "shop.work", 0), "ends"]
    assert celery_faults.recorder.faults_fired == {"Note": 1}
    with pytest.raises(FaultValueError, match="cannot strike there, at='store': choose one of start, a function"):
        celery_faults.inject(Note(), at="store")


def test_a_fault_that_does_not_say_what_it_does(celery_faults, worker, add):
    celery_faults.inject(Fault())
    result = add.delay(1, 2)
    worker.drain()
    with pytest.raises(NotImplementedError, match="Fault does not say what it does"):
        result.get()


# -- outages, again and in each other


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_time_limits_are_kept_through_an_outage_and_after_it(build, bare_app, broker):
    @bare_app.task(name="shop.slow", soft_time_limit=10, time_limit=20)
    def slow(seconds):
        time.sleep(seconds)

    harness = build(broker=broker)
    running = slow.delay(15)
    harness.worker.advance(5)
    with harness.broker.down():
        harness.worker.advance(2)
    harness.worker.drain()
    if CELERY_5_7:
        # Not at 10 s: until 11 s the worker sleeps between two attempts to connect, and looks at no timer.
        assert type(running.result).__name__ == "SoftTimeLimitExceeded"
        assert harness.retries.of(running).attempts[0].ended == 11
    else:
        # It clears all timers with the connection, those of time limits included.
        assert running.state == "SUCCESS"
    later = slow.delay(15)
    harness.worker.drain()
    assert type(later.result).__name__ == "SoftTimeLimitExceeded"


def test_an_outage_before_anything_else(celery_faults, worker, add):
    with celery_faults.broker.down(), pytest.raises(OperationalError):
        add.delay(1, 1)
    assert add.delay(1, 2).get() == 3
    assert celery_faults.clock.elapsed < 10


def test_a_worker_that_starts_in_an_outage_waits_for_its_end(celery_faults, worker, add):
    worker.drain()
    with celery_faults.broker.down():
        worker.crash()
        worker.start()
        worker.advance(60)
    assert add.delay(1, 2).get() == 3
    assert [event.detail for event in celery_faults.timeline.where("worker")] == ["ready", "crash", "ready"]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_outages_in_each_other_last_as_long_as_the_longest(build, bare_app, broker):
    @bare_app.task(name="shop.add", acks_late=True)
    def add(x, y):
        return x + y

    harness = build(broker=broker)
    held = add.apply_async((1, 1), countdown=10)
    harness.worker.advance(1)
    with harness.broker.down():
        with harness.broker.down():
            pass
        with pytest.raises(OperationalError):
            add.delay(1, 2)
        harness.broker.go_down(100)
        harness.broker.go_down(1)
    with pytest.raises(OperationalError):
        add.delay(1, 2)
    harness.worker.advance(200)
    assert add.delay(1, 2).get() == 3
    harness.worker.drain()
    assert held.get() == 2


def test_an_ack_from_a_broken_connection_says_nothing_of_the_redelivery(build, bare_app):
    @bare_app.task(name="shop.slow", acks_late=True)
    def slow():
        time.sleep(10)
        return "done"

    harness = build(broker="rabbitmq")
    result = slow.delay()
    harness.worker.advance(1)
    with harness.broker.down():
        harness.worker.advance(1)
    harness.worker.advance(10)  # the first attempt is over, its ack went nowhere, and the second one runs
    assert len(harness.broker.unacked) == 1
    harness.worker.crash()
    harness.worker.start()
    harness.worker.drain()
    assert result.get() == "done"
    assert [attempt.redelivered for attempt in harness.retries.of(result).attempts] == [False, True, True]
    harness.assert_nothing_lost()


def test_what_rabbitmq_had_handed_out_is_the_next_again(build, bare_app, log):
    @bare_app.task(name="shop.task", acks_late=True)
    def task(n):
        log.append(n)

    harness = build(broker="rabbitmq")
    harness.worker.stop()
    for n in range(4):
        task.delay(n)
    harness.inject(BrokerDown(5), at="receive")
    harness.worker.start()
    harness.worker.drain()
    assert log == [0, 1, 2, 3]


def test_connections_that_are_gone_are_forgotten(build, bare_app):
    @bare_app.task(name="shop.task", acks_late=True)
    def task():
        pass

    harness = build(broker="rabbitmq")
    harness.inject(BrokerDown(1), at="ack", times=30)
    task.delay()
    harness.worker.drain()
    assert harness.recorder.executions == 31
    assert len(harness.broker._transports) < 10


def test_a_result_that_outlives_a_test_that_ended_in_an_outage_says_nothing(build, bare_app):
    @bare_app.task(name="shop.add")
    def add(x, y):
        return x + y

    harness = build()
    waited_for, never = add.delay(1, 2), add.apply_async((1, 2), countdown=60)
    assert waited_for.get() == 3
    with pytest.raises(celery.exceptions.TimeoutError):
        never.get(timeout=1)
    harness.server.take_down("backend", 100)
    harness.close()
    # Each unsubscribes when it is collected; an error in there would be a warning, which is an error here.
    del waited_for, never
    gc.collect()


# -- two executions of one id


def test_each_delivery_of_a_failing_task_is_a_letter(celery_faults, worker, app, celery_dlq):
    @app.task(acks_late=True, acks_on_failure_or_timeout=False)
    def fails():
        raise ValueError("no")

    celery_faults.inject(Duplicate())
    fails.delay()
    worker.drain()
    assert [(letter.reason, letter.route) for letter in celery_dlq] == [("failed", "broker")] * 2


@pytest.mark.celery_faults(concurrency=2)
def test_two_executions_at_once_are_told_apart(celery_faults, worker, work, retry_recorder):
    celery_faults.inject(Duplicate())
    celery_faults.inject(Crash(), at="return", skip=1)
    result = work.delay(5)
    worker.drain()
    attempts = retry_recorder.of(result).attempts
    assert [(attempt.started, attempt.ended) for attempt in attempts] == [(0, 5), (0, 5)]
    assert "SUCCESS" in {attempt.state for attempt in attempts}
    celery_faults.assert_nothing_lost()


def test_a_result_that_the_call_asks_to_ignore_is_not_lost(celery_faults, worker, add):
    add.apply_async((1, 1), ignore_result=True)
    worker.drain()
    celery_faults.assert_nothing_lost()


# -- what is wrong with the test itself


@pytest.mark.parametrize("at", ["publish", "receive"])
@pytest.mark.parametrize("argument", ["when", "then"])
def test_an_error_of_when_and_then_is_the_tests(celery_faults, worker, add, at, argument):
    celery_faults.inject(Drop(), at=at, required=False, **{argument: lambda execution: 1 / 0})

    def send_and_drain():
        add.delay(1, 1)
        worker.drain()

    with pytest.raises(ZeroDivisionError):
        send_and_drain()


def test_an_error_in_the_middle_of_kombu_is_the_tests(celery_faults, worker, add):
    class Wrong(Fault):
        points = ("receive",)

        def strike(self, execution):
            raise KeyError("mine")

    celery_faults.inject(Wrong())
    result = add.delay(1, 1)
    with pytest.raises(KeyError, match="mine"):
        worker.drain()
    worker.drain()
    assert result.get() == 2


@pytest.mark.parametrize("points", [(), ("execute",), "start", ["start"]], ids=repr)
def test_points_that_are_none(celery_faults, points):
    wrong = type("Wrong", (Fault,), {"points": points})
    with pytest.raises(FaultTypeError, match=r"Wrong\.points is .*: a tuple with some of publish, receive"):
        celery_faults.inject(wrong())


def test_a_fault_for_functions_alone_needs_one(celery_faults):
    only = type("Only", (Fault,), {"points": (FUNCTION,)})
    with pytest.raises(FaultValueError, match="strikes at a function: name it"):
        celery_faults.inject(only())


def test_revoked_by_nobody_when_no_worker_runs(celery_faults, worker, add, app):
    celery_faults.inject(Revoke())
    add.delay(1, 2)
    worker.stop()
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("celery").get(timeout=1)
    assert message.headers["task"] == "shop.add"


def test_terminated_while_the_worker_has_lost_its_broker(celery_faults, worker, work):
    celery_faults.inject(BrokerDown(60), at="ack")
    celery_faults.inject(Revoke(terminate=True), skip=1, at="start", required=False)
    results = [work.delay(), work.delay()]
    worker.drain()
    assert [result.state for result in results] != ["STARTED", "STARTED"]
    assert celery_faults.clock.elapsed < 4000
