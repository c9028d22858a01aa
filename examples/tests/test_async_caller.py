"""Callers in an event loop: while the worker is driven it goes on, and `api.py` is tested as it stands."""

import asyncio
import json
from datetime import timedelta

import pytest
from celery import exceptions

from worker.api import api
from worker.celery_tasks import close_books, import_rates
from worker.client import ServiceDownError, TooManyRequestsError

pytest.importorskip("pytest_asyncio", reason="async tests need pytest-asyncio")

RATES = {"EUR": 1.0, "CHF": 0.98}

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("rates_service")]


async def ask(path):
    """Status and content of the answer to ``GET path``, as an ASGI server gets them."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await api({"type": "http", "method": "GET", "path": path}, receive, send)
    start, body = sent
    return start["status"], json.loads(body["body"])


# -- through `api.py`, which waits for `get()` in a thread


async def test_the_caller_gets_its_answer(celery_faults):
    assert await ask("/rates/2024-05-31") == (200, RATES)
    assert celery_faults.clock.elapsed == 0


@pytest.mark.inject(TooManyRequestsError, at="worker.client.Client.fetch_rates", times=2)
async def test_the_caller_gets_its_answer_through_two_retries(celery_faults, retry_recorder):
    assert await ask("/rates/2024-05-31") == (200, RATES)
    assert retry_recorder.delays == [60, 60]
    assert celery_faults.clock.elapsed == 120


@pytest.mark.inject(TooManyRequestsError, at="worker.client.Client.fetch_rates", times=1)
async def test_several_callers_at_once_and_only_one_of_them_waits_for_a_retry(celery_faults, retry_recorder):
    answers = await asyncio.gather(*(ask(f"/rates/2024-05-{day}") for day in (29, 30, 31)))

    assert answers == [(200, RATES)] * 3
    first, *others = celery_faults.sent.of(import_rates)[:3]
    assert first.args == ["2024-05-29"]
    assert retry_recorder.of(first.task_id).delays == [60]
    assert [retry_recorder.of(other.task_id).count for other in others] == [0, 0]


@pytest.mark.inject(ServiceDownError, at="worker.client.Client.fetch_rates", times=1)
async def test_the_caller_gives_up_after_five_minutes_and_the_task_still_succeeds_after_half_an_hour(celery_faults):
    status, content = await ask("/rates/2024-05-31")

    assert (status, content["error"]) == (504, "not there yet")
    assert celery_faults.clock.elapsed == 5 * 60
    result = celery_faults.app.AsyncResult(content["task"])
    assert result.state == "RETRY"

    await celery_faults.worker.adrain()
    assert celery_faults.clock.elapsed == 30 * 60
    assert result.state == "SUCCESS"
    assert result.get() == RATES


@pytest.mark.inject(TooManyRequestsError, at="worker.client.Client.fetch_rates", times=None)
async def test_when_the_task_has_used_up_its_retries_the_answer_is_502(celery_faults, retry_recorder):
    assert await ask("/rates/2024-05-31") == (502, {"error": "the rates cannot be had"})
    assert retry_recorder.delays == [60, 60, 60]
    assert retry_recorder.exhausted
    assert celery_faults.clock.elapsed == 180


async def test_what_no_retry_makes_better_is_not_waited_for(celery_faults, rates_service, retry_recorder):
    rates_service.statuses = [404]

    assert await ask("/rates/1024-05-31") == (404, {"error": "no rates for 1024-05-31"})
    assert retry_recorder.of(import_rates).count == 0


# The task does not know that nobody waits for it any more.
@pytest.mark.inject(TooManyRequestsError, at="worker.client.Client.fetch_rates", times=1)
async def test_a_caller_that_is_cancelled_leaves_a_task_that_goes_on(celery_faults, retry_recorder):
    caller = asyncio.create_task(ask("/rates/2024-05-31"))
    await asyncio.sleep(0)  # it has sent the task, and waits
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    await celery_faults.worker.adrain()
    [result] = {message.task_id for message in celery_faults.sent.of(import_rates)}
    assert celery_faults.app.AsyncResult(result).get() == RATES
    assert retry_recorder.delays == [60]


# -- without `api.py`: the test awaits the worker itself


async def test_a_result_is_awaited_up_to_a_time(celery_faults):
    result = close_books.delay("Friday")

    with pytest.raises(exceptions.TimeoutError):
        await celery_faults.worker.aget(result, timeout=3)
    assert celery_faults.clock.elapsed == 3

    assert await celery_faults.worker.aget(result) == "Friday is closed"
    assert celery_faults.clock.elapsed == 10


@pytest.mark.inject(ServiceDownError, at="worker.client.Client.fetch_rates", times=1)
async def test_time_is_moved_and_work_is_finished(celery_faults):
    result = import_rates.delay("2024-05-31")

    await celery_faults.worker.aadvance(timedelta(minutes=29))
    assert result.state == "RETRY"
    await celery_faults.worker.aadvance(60)
    assert result.state == "SUCCESS"

    close_books.delay("Friday")
    await celery_faults.worker.adrain()
    assert celery_faults.clock.elapsed == 30 * 60 + 10
    celery_faults.assert_nothing_lost()
