"""`raise self.retry(exc=exc)` and the delay it asks for."""

import pytest

from worker.celery_tasks import import_rates
from worker.client import ServiceDownError, TooManyRequestsError

RATES = {"EUR": 1.0, "CHF": 0.98}


def test_without_an_override_the_retry_comes_after_the_default_delay_of_1800_s(celery_faults, retry_recorder, rates):
    rates.answers = [ServiceDownError("maintenance"), RATES]

    result = import_rates.delay("2024-05-31")

    assert result.get() == RATES
    assert retry_recorder.delays == [1800]
    assert retry_recorder.waits == [1800]
    assert celery_faults.clock.elapsed == 1800
    assert rates.asked == ["2024-05-31"] * 2


def test_countdown_overrides_the_default_delay_with_60_s(celery_faults, retry_recorder, rates):
    rates.answers = [TooManyRequestsError("wait"), RATES]

    result = import_rates.delay("2024-05-31")

    assert result.get() == RATES
    assert retry_recorder.delays == [60]
    assert retry_recorder.waits == [60]
    assert celery_faults.clock.elapsed == 60


def test_nothing_runs_at_59_s(celery_faults, rates):
    rates.answers = [TooManyRequestsError("wait"), RATES]
    result = import_rates.delay("2024-05-31")

    celery_faults.worker.advance(59)
    assert len(rates.asked) == 1
    assert result.state == "RETRY"

    celery_faults.worker.advance(1)
    assert len(rates.asked) == 2
    assert result.state == "SUCCESS"


def test_each_failure_asks_for_its_own_delay(retry_recorder, rates):
    rates.answers = [TooManyRequestsError("wait"), ServiceDownError("maintenance"), TooManyRequestsError("wait"), RATES]

    assert import_rates.delay("2024-05-31").get() == RATES
    assert retry_recorder.delays == [60, 1800, 60]


def test_an_error_that_time_does_not_mend_is_not_retried(celery_faults, retry_recorder, rates):
    rates.answers = [LookupError("no rates for 2024-05-32")]

    with pytest.raises(LookupError, match="no rates for 2024-05-32"):
        import_rates.delay("2024-05-32").get()
    assert len(retry_recorder.attempts) == 1
    assert celery_faults.clock.elapsed == 0
