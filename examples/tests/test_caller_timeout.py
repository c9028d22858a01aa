"""`result.get(timeout=...)`: the caller gives up, the task does not."""

import pytest
from celery import exceptions

from worker.celery_tasks import archive, close_books


def test_the_caller_gives_up_at_3_s_and_the_task_still_succeeds_at_10_s(celery_faults):
    result = close_books.delay("Friday")

    with pytest.raises(exceptions.TimeoutError):
        result.get(timeout=3)
    assert celery_faults.clock.elapsed == 3
    assert not result.ready()

    celery_faults.worker.drain()
    assert celery_faults.clock.elapsed == 10
    assert result.state == "SUCCESS"
    assert result.get(timeout=3) == "Friday is closed"


def test_the_time_in_the_queue_counts(celery_faults, retry_recorder):
    close_books.delay("Thursday")
    result = close_books.delay("Friday")

    with pytest.raises(exceptions.TimeoutError):
        result.get(timeout=15)
    assert celery_faults.clock.elapsed == 15
    [attempt] = retry_recorder.of(result).attempts
    assert attempt.started == 10

    assert result.get(timeout=5) == "Friday is closed"
    assert celery_faults.clock.elapsed == 20


@pytest.mark.inject(IOError, task=archive, times=3)
def test_the_retries_count(celery_faults, retry_recorder, tmp_path):
    report, archived = tmp_path / "report.pdf", tmp_path / "archived.pdf"
    report.write_text("a report")
    result = archive.delay(str(report), str(archived))

    with pytest.raises(exceptions.TimeoutError):
        result.get(timeout=25)
    assert celery_faults.clock.elapsed == 25
    assert retry_recorder.count == 3

    assert result.get(timeout=5) == str(archived)
    assert celery_faults.clock.elapsed == 30
