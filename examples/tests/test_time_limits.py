"""`time_limit` and `soft_time_limit`: the task's own time."""

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from worker.celery_tasks import close_books, write_report, write_report_or_nothing


def test_a_task_that_sleeps_10_s_is_ended_at_its_time_limit_of_5_s_and_marked_as_failed(
    celery_faults, retry_recorder, tmp_path
):
    result = write_report.delay(str(tmp_path / "report"))

    with pytest.raises(TimeLimitExceeded):
        result.get()
    assert result.state == "FAILURE"
    assert celery_faults.clock.elapsed == 5
    [attempt] = retry_recorder.of(result).attempts
    assert (attempt.started, attempt.ended) == (0, 5)


def test_a_task_that_is_ended_cannot_clean_up(celery_faults, tmp_path):
    write_report.delay(str(tmp_path / "report"))
    celery_faults.worker.advance(60)

    assert (tmp_path / "report").read_text() == "half a report"


def test_with_a_soft_limit_the_task_can_clean_up_first(celery_faults, tmp_path):
    result = write_report_or_nothing.delay(str(tmp_path / "report"))
    celery_faults.worker.advance(3)
    assert (tmp_path / "report").exists()

    with pytest.raises(SoftTimeLimitExceeded):
        result.get()
    assert result.state == "FAILURE"
    assert celery_faults.clock.elapsed == 4
    assert not (tmp_path / "report").exists()


def test_what_counts_is_the_tasks_own_time_not_its_time_in_the_queue(celery_faults, retry_recorder, tmp_path):
    ahead = close_books.delay("Friday")
    result = write_report.delay(str(tmp_path / "report"))

    with pytest.raises(TimeLimitExceeded):
        result.get()
    assert ahead.get() == "Friday is closed"
    [attempt] = retry_recorder.of(result).attempts
    assert (attempt.started, attempt.ended) == (10, 15)
