"""`task_failure.connect(sender=add)`: a receiver that starts a clean-up task."""

from worker import celery_tasks
from worker.celery_tasks import add, clean_up, pay_out, scratch_of


def test_the_signal_is_sent_once_with_the_id_the_exception_and_the_arguments(celery_faults):
    result = add.delay(2, y="two")
    celery_faults.worker.drain()

    [signal] = celery_faults.signals.where("task_failure")
    assert signal.sender == add
    assert signal.arguments["task_id"] == result.id
    assert type(signal.arguments["exception"]) is TypeError
    assert (signal.arguments["args"], signal.arguments["kwargs"]) == ([2], {"y": "two"})
    assert celery_faults.signals.count("task_failure", sender=add) == 1


def test_the_receiver_starts_the_clean_up_with_the_id_and_it_runs(celery_faults, scratch):
    failing = add.delay(2, "two")
    other = add.delay(2, 2)
    for result in (failing, other):
        scratch_of(result.id).mkdir()
    celery_faults.worker.drain()

    [message] = celery_faults.sent.of(clean_up)
    assert message.args == [failing.id]
    assert message.parent == failing.id
    assert celery_faults.signals.names(message.task_id)[-2:] == ["task_success", "task_postrun"]
    assert list(scratch.iterdir()) == [scratch_of(other.id)]


def test_the_failure_of_another_task_starts_nothing(celery_faults):
    pay_out.delay(-20)
    celery_faults.worker.drain()

    assert celery_faults.signals.count("task_failure") == 1
    assert celery_faults.signals.count("task_failure", sender=add) == 0
    assert celery_faults.sent.of(clean_up) == []


def test_a_task_that_succeeds_sends_no_such_signal(celery_faults):
    result = add.delay(2, 2)
    celery_faults.worker.drain()

    assert "task_success" in celery_faults.signals.names(result)
    assert "task_failure" not in celery_faults.signals.names(result)
    assert celery_faults.sent.of(clean_up) == []


def test_the_signal_is_sent_by_the_process_that_ran_the_task(celery_faults):
    add.delay(2, "two")
    celery_faults.worker.drain()

    [signal] = celery_faults.signals.where("task_failure", sender=add)
    assert signal.process == "child"


# Celery only logs what a receiver raises: nothing but a test or the log shows that the clean-up did not start.
def test_a_receiver_that_fails_is_only_logged(celery_faults, caplog, monkeypatch):
    def refuse(task_id):
        raise RuntimeError("no clean-up today")

    monkeypatch.setattr(celery_tasks.clean_up, "delay", refuse)
    result = add.delay(2, "two")
    celery_faults.worker.drain()

    assert result.state == "FAILURE"
    assert type(result.result) is TypeError
    assert celery_faults.signals.count("task_failure", sender=add) == 1
    assert celery_faults.sent.of(clean_up) == []
    [record] = [record for record in caplog.records if record.name == "celery.utils.dispatch.signal"]
    assert "clean_up_after_failure" in record.getMessage()
    assert "no clean-up today" in record.getMessage()
