"""A base class whose `on_failure` logs: for one task, and for all tasks of an application."""

import celery
import pytest
from celery.exceptions import TimeLimitExceeded

from pytest_celery_faults import Crash, Sleep
from worker import night
from worker.celery_tasks import pay_out, share, share_file


def logged(caplog):
    """What the hook logged: the task's name, its id, the exception, and what the task was given."""
    return [record.args[:5] for record in caplog.records if record.name == "worker.tasks_base"]


def test_the_hook_runs_once_with_the_id_and_the_exception(celery_faults, caplog):
    result = share.delay(100, 0)
    celery_faults.worker.drain()

    [(name, task_id, exc, args, kwargs)] = logged(caplog)
    assert (name, task_id) == (share.name, result.id)
    assert type(exc) is ZeroDivisionError
    assert exc.args == result.result.args
    assert (args, kwargs) == ([100, 0], {})


def test_it_does_not_run_for_a_task_that_succeeds(celery_faults, caplog):
    assert share.delay(100, heads=4).get() == 25
    assert logged(caplog) == []


def test_it_does_not_run_for_a_task_with_another_base_class(celery_faults, caplog):
    result = pay_out.delay(-20)
    celery_faults.worker.drain()

    assert result.state == "FAILURE"
    assert logged(caplog) == []


@pytest.mark.inject(OSError("the drive is gone"), task=share_file, times=3)
def test_it_does_not_run_for_a_retry(retry_recorder, caplog, tmp_path):
    (tmp_path / "costs").write_text("60\n40\n")

    assert share_file.delay(str(tmp_path / "costs"), 4).get() == 25
    assert retry_recorder.count == 3
    assert logged(caplog) == []


@pytest.mark.inject(OSError("the drive is gone"), task=share_file, times=None)
def test_it_runs_once_when_the_retries_are_used_up(celery_faults, retry_recorder, caplog):
    result = share_file.delay("costs", heads=4)
    celery_faults.worker.drain()

    assert retry_recorder.count == 3
    [(_, task_id, exc, args, kwargs)] = logged(caplog)
    assert (task_id, repr(exc)) == (result.id, "OSError('the drive is gone')")
    assert (args, kwargs) == (["costs"], {"heads": 4})


# Celery calls the hook in the process that runs the task. When that is killed, nobody does.
@pytest.mark.inject(Crash(), task=share_file)
def test_it_does_not_run_for_a_task_whose_process_dies(celery_faults, celery_dlq, caplog):
    result = share_file.delay("costs", 4)
    celery_faults.worker.drain()

    assert result.state == "FAILURE"
    assert celery_dlq.reasons == {"worker_lost": 1}
    assert logged(caplog) == []


# The process is killed as well, but from Celery 5.7 the worker's main process calls the hook in its place.
@pytest.mark.inject(Sleep(beyond="time_limit"), task=share_file)
def test_at_the_time_limit_it_runs_from_celery_5_7(celery_faults, celery_dlq, caplog):
    result = share_file.delay("costs", 4)
    celery_faults.worker.drain()

    assert celery_dlq.reasons == {"time_limit": 1}
    called = [(task_id, type(exc)) for _, task_id, exc, _, _ in logged(caplog)]
    assert called == ([(result.id, TimeLimitExceeded)] if celery.VERSION >= (5, 7) else [])


class TestAWholeApplication:
    @pytest.fixture
    def celery_faults_app(self):
        return night.app

    @pytest.mark.parametrize(
        ("task", "error"), [(night.average, ZeroDivisionError), (night.lowest, ValueError)], ids=["average", "lowest"]
    )
    def test_the_hook_runs_for_each_of_its_tasks(self, celery_faults, caplog, task, error):
        result = task.delay([])
        celery_faults.worker.drain()

        [(name, task_id, exc, args, _)] = logged(caplog)
        assert (name, task_id, args) == (task.name, result.id, [[]])
        assert type(exc) is error

    def test_its_tasks_go_to_its_own_queue(self, celery_faults):
        assert night.average.delay([10, 20]).get() == 15
        assert [message.queue for message in celery_faults.sent] == ["night"]
