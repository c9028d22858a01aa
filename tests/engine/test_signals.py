"""`celery_faults.signals`: which were sent, in which order, and that the application's receivers run as ever."""

from __future__ import annotations

import celery
import pytest
from celery import group, signals
from celery.exceptions import Ignore, Reject

from pytest_celery_faults import FaultTypeError, FaultValueError, SentSignal
from pytest_celery_faults.errors import NotThereError
from pytest_celery_faults.signal_log import NAMES

SENT = ["before_task_publish", "after_task_publish"]
BEGUN = [*SENT, "task_received", "task_prerun"]


def test_success(celery_faults, worker, add):
    result = add.delay(1, 2)
    worker.drain()
    assert celery_faults.signals.names(result) == [*BEGUN, "task_success", "task_postrun"]


def test_failure(celery_faults, worker, failing):
    result = failing().delay()
    worker.drain()
    assert celery_faults.signals.names(result) == [*BEGUN, "task_failure", "task_postrun"]


def test_a_retry_and_then_a_failure(celery_faults, worker, failing):
    result = failing(autoretry_for=(TypeError,), max_retries=1, default_retry_delay=7).delay()
    worker.drain()
    assert celery_faults.signals.names(result) == [
        *[*BEGUN, *SENT, "task_retry", "task_postrun"],
        *["task_received", "task_prerun", "task_failure", "task_postrun"],
    ]
    assert [signal.at for signal in celery_faults.signals.where("task_prerun")] == [0, 7]


def test_revoked_before_it_runs(celery_faults, worker, add):
    result = add.apply_async((1, 2), countdown=10)
    worker.advance(1)
    result.revoke()
    worker.drain()
    assert celery_faults.signals.names(result) == [*SENT, "task_received", "task_revoked"]
    [revoked] = celery_faults.signals.where("task_revoked")
    assert (revoked.arguments["terminated"], revoked.arguments["expired"]) == (False, False)


@pytest.mark.parametrize("exception", [Ignore, Reject], ids=lambda exception: exception.__name__)
def test_ignored_and_rejected(celery_faults, worker, app, exception):
    @app.task(acks_late=True)
    def leave():
        raise exception()

    result = leave.delay()
    worker.drain()
    failure = ["task_failure"] if exception is Reject and celery.VERSION >= (5, 7) else []
    assert celery_faults.signals.names(result) == [*BEGUN, "task_postrun", *failure]


def test_an_unknown_task(celery_faults, worker, app):
    result = app.send_task("nowhere.task", (1,))
    worker.drain()
    names = celery_faults.signals.names(result)
    assert names[:2] == SENT
    assert sorted(names[2:]) == ["task_unknown"]
    [unknown] = celery_faults.signals.where("task_unknown")
    assert (unknown.task, unknown.task_id) == ("nowhere.task", result.id)


def test_the_life_of_a_worker(celery_faults, worker, add):
    worker.start()
    worker.stop()
    assert celery_faults.signals.names() == [
        "import_modules", "celeryd_init", "worker_init", "celeryd_after_setup", "worker_before_create_process",
        "worker_process_init", "worker_ready", "worker_shutting_down", "worker_process_shutdown", "worker_shutdown",
    ]  # fmt: skip
    assert all(signal.task is None and signal.task_id is None for signal in celery_faults.signals)


def test_by_task_by_name_and_by_sender(celery_faults, worker, add, failing):
    fails = failing()
    one, two = add.delay(1, 1), add.delay(2, 2)
    three = fails.delay()
    worker.drain()
    log = celery_faults.signals
    assert (
        log.count("task_success") == log.count("task_success", sender=add) == log.count("task_success", task=add) == 2
    )
    assert log.count("task_success", task=one) == log.count("task_success", task=two.id) == 1
    assert log.count("task_failure", sender=add) == 0
    assert log.count("task_failure", sender="shop.failing") == log.count("task_failure", task=three) == 1
    assert log.count("after_task_publish", sender=add) == log.count("after_task_publish", sender="shop.add") == 2
    assert log.count(task=one) == len(log.of(one)) == len(log.names(one)) == 6
    assert log.count("worker_ready", sender=log.where("worker_ready")[0].sender) == 1
    assert [signal.task for signal in log.where("task_received")] == ["shop.add", "shop.add", "shop.failing"]


def test_a_group_stands_for_its_members(celery_faults, worker, add):
    result = group(add.s(n, n) for n in range(3)).delay()
    add.delay(9, 9)
    worker.drain()
    assert celery_faults.signals.count("task_success", task=result) == 3
    assert celery_faults.signals.count("task_success") == 4


def test_sender_and_arguments(celery_faults, worker, add, failing):
    fails = failing()
    result = fails.delay()
    add.delay(1, y=2)
    worker.drain()
    [failure] = celery_faults.signals.where("task_failure")
    assert isinstance(failure, SentSignal)
    assert failure.sender is fails
    assert failure.arguments["task_id"] == failure.task_id == result.id
    assert repr(failure.arguments["exception"]) == "TypeError('bad')"
    assert set(failure.arguments) == {"task_id", "exception", "args", "kwargs", "traceback", "einfo"}
    assert repr(failure) == "<task_failure of shop.failing#1 at 0 s: exception=TypeError('bad')>"
    [prerun] = celery_faults.signals.where("task_prerun", sender=add)
    assert (prerun.arguments["args"], prerun.arguments["kwargs"]) == ([1], {"y": 2})


def test_the_process_in_which_each_is_sent(celery_faults, worker, app, add):
    @app.task
    def outer():
        add.delay(1, 1)

    outer.delay()
    worker.drain()
    processes = {(signal.name, signal.task, signal.process) for signal in celery_faults.signals}
    name = outer.name
    assert {("before_task_publish", name, "test"), ("task_received", name, "main"), ("task_prerun", name, "child"),
            ("before_task_publish", "shop.add", "child"), ("worker_init", None, "main"),
            ("worker_process_init", None, "child")} <= processes  # fmt: skip


def test_the_receivers_of_the_application_run(celery_faults, worker, add, caplog):
    heard = []

    def before(sender, headers, **_):
        heard.append(("publish", sender, headers["id"]))

    def broken(**_):
        raise LookupError("receiver")

    def after(sender, result, **_):
        heard.append(("success", sender, result))

    signals.before_task_publish.connect(before)
    signals.task_success.connect(broken)
    signals.task_success.connect(after, sender=add)
    signals.task_success.connect(after, sender=object())
    result = add.delay(1, 2)
    assert result.get() == 3
    assert heard == [("publish", "shop.add", result.id), ("success", add, 3)]
    assert "receiver" in caplog.text
    assert celery_faults.signals.count("task_success") == 1


def test_what_a_receiver_sends_comes_after_the_signal_that_it_received(bare_app, build):
    @bare_app.task(name="shop.fails")
    def fails():
        raise TypeError("bad")

    @bare_app.task(name="shop.clean_up")
    def clean_up(task_id):
        return task_id

    # Connected before the harness is there, as by an application that is imported.
    def on_failure(sender, task_id, **_):
        clean_up.delay(task_id)

    signals.task_failure.connect(on_failure, sender=fails)
    try:
        harness = build()
        result = fails.delay()
        harness.worker.drain()
    finally:
        signals.task_failure.disconnect(on_failure, sender=fails)
    [sent] = harness.sent.of(clean_up)
    assert sent.args == [result.id]
    names = [(signal.name, signal.task) for signal in harness.signals]
    assert names.index(("task_failure", "shop.fails")) < names.index(("before_task_publish", "shop.clean_up"))
    events = [(event.kind, event.task) for event in harness.timeline]
    assert events.index(("failed", "shop.fails")) < events.index(("sent", "shop.clean_up"))


def test_what_is_not_a_task_message(celery_faults, worker, app):
    with app.connection_for_write() as connection, connection.SimpleQueue("celery") as queue:
        queue.put({"hello": "world"})
        worker.drain()
    [rejected] = celery_faults.signals.where("task_rejected")
    assert (rejected.task, rejected.task_id) == (None, None)


def test_the_first_protocol(bare_app, build):
    @bare_app.task(name="shop.add")
    def add(x, y):
        return x + y

    harness = build(conf={"task_protocol": 1})
    result = add.delay(1, 2)
    harness.worker.drain()
    assert harness.signals.names(result) == [*BEGUN, "task_success", "task_postrun"]


def test_an_eager_call_sends_its_signals_too(celery_faults, add):
    result = add.apply((1, 2))
    assert celery_faults.signals.names(result) == ["task_prerun", "task_success", "task_postrun"]


def test_it_is_a_sequence(celery_faults, worker, add):
    assert celery_faults.signals == []
    add.delay(1, 1)
    worker.drain()
    assert celery_faults.signals[-1].name == "task_postrun"
    assert celery_faults.signals == list(celery_faults.signals)
    assert celery_faults.signals != []
    assert celery_faults.signals[:1] == [celery_faults.signals[0]]
    with pytest.raises(NotThereError, match=r"celery_faults.signals has \d+ signals"):
        celery_faults.signals[99]


def test_wrong_questions(celery_faults, worker, add):
    add.delay(1, 1)
    worker.drain()
    with pytest.raises(FaultValueError, match="'task_falure' is no signal, did you mean 'task_failure'"):
        celery_faults.signals.count("task_falure")
    with pytest.raises(FaultTypeError, match="a signal is given by its name"):
        celery_faults.signals.where(signals.task_failure)
    with pytest.raises(FaultValueError, match=r"there is no task 'shop\.ad', did you mean 'shop\.add'"):
        celery_faults.signals.names("shop.ad")
    with pytest.raises(FaultValueError, match=r"there is no task 'shop\.ad', did you mean 'shop\.add'"):
        celery_faults.signals.count("task_success", sender="shop.ad")


def test_the_list_of_names_is_that_of_celery():
    theirs = {
        name for name in signals.__all__ if name.startswith(("task_", "worker_", "celeryd_", "before_", "after_task_p"))
    }
    assert theirs | {"import_modules", "heartbeat_sent"} == set(NAMES)


def test_a_receiver_of_ours_that_fails_ends_the_test(celery_faults, add, monkeypatch):
    from pytest_celery_faults import signal_log

    def broken(*_):
        raise LookupError("ours")

    monkeypatch.setattr(signal_log, "_subject", broken)
    with pytest.raises(LookupError, match="ours"):
        add.delay(1, 2).get()
