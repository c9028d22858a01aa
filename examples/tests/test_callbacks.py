"""`link` and `link_error`: what is called when a task has succeeded, and what when it has failed."""

import pytest

from pytest_celery_faults import Drop
from worker.celery_tasks import add, archive, error_handler, multiply


def add_with_callbacks(x, y):
    return add.apply_async((x, y), link=multiply.s(10), link_error=error_handler.s())


def logged(caplog):
    """The ids and exceptions that the error callback logged."""
    return [record.args[:2] for record in caplog.records if record.msg.startswith("Task %s failed")]


def test_the_callback_gets_the_result_of_its_parent_and_is_its_child(celery_faults):
    result = add_with_callbacks(2, 2)

    assert result.get() == 4
    [child] = result.children
    assert child.get() == 4 * 10
    [link] = celery_faults.callbacks
    assert (link.kind, link.task) == ("link", multiply.name)
    assert (link.parent, link.task_id) == (result.id, child.id)
    assert link.args == [4, 10]
    assert celery_faults.sent.of(multiply)[0].parent == result.id


def test_the_error_callback_is_not_called_for_a_task_that_succeeds(celery_faults, caplog):
    add_with_callbacks(2, 2)
    celery_faults.worker.drain()

    assert celery_faults.callbacks.errbacks == []
    assert celery_faults.callbacks.missing == []
    assert logged(caplog) == []


@pytest.mark.inject(OverflowError("out of range"), task=add)
def test_on_failure_the_error_callback_runs_once_with_request_exception_and_traceback_and_there_is_no_child(
    celery_faults, caplog
):
    result = add_with_callbacks(2, 2)
    celery_faults.worker.drain()

    [errback] = celery_faults.callbacks
    assert (errback.kind, errback.task, errback.parent) == ("link_error", error_handler.name, result.id)
    request, exc, traceback = errback.args
    assert (request.id, request.task, request.args) == (result.id, add.name, [2, 2])
    assert repr(exc) == "OverflowError('out of range')"
    assert traceback.startswith("Traceback (most recent call last):")
    assert traceback.endswith("OverflowError: out of range\n")
    assert logged(caplog) == [(result.id, exc)]

    assert result.state == "FAILURE"
    assert not result.children
    assert celery_faults.sent.of(multiply) == []


# Celery calls an error callback with this signature in place. One that takes the id alone it would send.
@pytest.mark.inject(OverflowError("out of range"), task=add)
def test_the_error_callback_runs_in_the_process_of_the_task_and_is_not_sent(celery_faults):
    add_with_callbacks(2, 2)
    celery_faults.worker.drain()

    [errback] = celery_faults.callbacks.errbacks
    assert errback.task_id is None
    assert celery_faults.sent.of(error_handler) == []


@pytest.mark.inject(OSError("the drive is gone"), task=archive, times=None)
def test_a_task_that_is_retried_calls_it_once_after_its_last_retry(celery_faults, retry_recorder, caplog):
    result = archive.apply_async(("report.pdf", "archive/report.pdf"), link_error=error_handler.s())
    celery_faults.worker.drain()

    assert retry_recorder.delays == [10, 10, 10]
    [errback] = celery_faults.callbacks.of(result)
    assert errback.at == 30
    assert [task_id for task_id, _ in logged(caplog)] == [result.id]


@pytest.mark.inject(Drop(), task=multiply)
def test_a_callback_that_never_comes_is_missed(celery_faults):
    result = add_with_callbacks(2, 2)
    celery_faults.worker.drain()

    assert result.get() == 4
    assert celery_faults.callbacks == []
    [missing] = celery_faults.callbacks.missing
    assert (missing.task, missing.parent) == (multiply.name, result.id)
    assert missing.why == "the broker lost it when it was published"
