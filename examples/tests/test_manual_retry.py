"""`raise self.retry(exc=exc)` in the task's own `except`, and the delay it asks for.

The faults strike at the client's function, where the task's `try` sees them: the service itself always answers, unless
a test says otherwise.
"""

import pytest

from worker.celery_tasks import import_rates
from worker.client import ServiceDownError, TooManyRequestsError


@pytest.mark.inject(ServiceDownError("maintenance"), at="worker.client.Client.fetch_rates")
def test_without_an_override_the_retry_comes_after_the_default_delay_of_1800_s(
    celery_faults, retry_recorder, rates_service
):
    result = import_rates.delay("2024-05-31")

    assert result.get() == rates_service.rates
    assert retry_recorder.delays == [1800]
    assert retry_recorder.waits == [1800]
    assert celery_faults.clock.elapsed == 1800
    assert rates_service.asked == ["/rates/2024-05-31"]


@pytest.mark.inject(TooManyRequestsError("wait"), at="worker.client.Client.fetch_rates")
def test_countdown_overrides_the_default_delay_with_60_s(celery_faults, retry_recorder, rates_service):
    result = import_rates.delay("2024-05-31")

    assert result.get() == rates_service.rates
    assert retry_recorder.delays == [60]
    assert retry_recorder.waits == [60]
    assert celery_faults.clock.elapsed == 60


@pytest.mark.inject(TooManyRequestsError("wait"), at="worker.client.Client.fetch_rates")
def test_nothing_runs_at_59_s(celery_faults, retry_recorder, rates_service):
    result = import_rates.delay("2024-05-31")

    celery_faults.worker.advance(59)
    assert len(retry_recorder.attempts) == 1
    assert result.state == "RETRY"

    celery_faults.worker.advance(1)
    assert len(retry_recorder.attempts) == 2
    assert result.state == "SUCCESS"


@pytest.mark.inject(ServiceDownError("maintenance"), at="worker.client.Client.fetch_rates", times=None)
def test_when_the_service_stays_down_its_error_is_the_result_after_three_retries(
    celery_faults, retry_recorder, rates_service
):
    with pytest.raises(ServiceDownError, match="maintenance"):
        import_rates.delay("2024-05-31").get()

    assert retry_recorder.delays == [1800, 1800, 1800]
    assert retry_recorder.exhausted
    assert rates_service.asked == []


def test_each_failure_asks_for_its_own_delay(retry_recorder, rates_service):
    rates_service.statuses = [429, 503, 429, 200]

    assert import_rates.delay("2024-05-31").get() == rates_service.rates
    assert retry_recorder.delays == [60, 1800, 60]
    assert [type(error) for error in retry_recorder.exceptions] == [
        TooManyRequestsError,
        ServiceDownError,
        TooManyRequestsError,
    ]


@pytest.mark.parametrize("fault", [LookupError("no such day"), ValueError("not JSON")], ids=repr)
def test_an_error_of_the_client_that_time_does_not_mend_is_not_retried(
    celery_faults, celery_dlq, retry_recorder, rates_service, fault
):
    celery_faults.inject(fault, at="worker.client.Client.fetch_rates")

    with pytest.raises(type(fault), match=str(fault)):
        import_rates.delay("2024-05-32").get()
    assert len(retry_recorder.attempts) == 1
    assert celery_faults.clock.elapsed == 0
    assert [letter.reason for letter in celery_dlq] == ["failed"]


def test_a_day_that_the_service_does_not_know_is_such_an_error(retry_recorder, rates_service):
    rates_service.statuses = [404]

    with pytest.raises(LookupError, match="no rates for 2024-05-32: status 404"):
        import_rates.delay("2024-05-32").get()
    assert len(retry_recorder.attempts) == 1


@pytest.mark.inject(ServiceDownError("maintenance"), task=import_rates, at="start")
def test_the_same_error_outside_of_the_tasks_own_try_is_not_retried(celery_faults, retry_recorder, rates_service):
    with pytest.raises(ServiceDownError, match="maintenance"):
        import_rates.delay("2024-05-31").get()

    assert len(retry_recorder.attempts) == 1
    assert celery_faults.clock.elapsed == 0
