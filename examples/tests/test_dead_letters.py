"""The dead-letter queue: what could not be worked, kept so that the software can be mended."""

import pytest

from pytest_celery_faults import Sleep
from worker.celery_tasks import archive, book

ORDER = {"id": 7, "price": 20, "count": 3}
ORDER_WITHOUT_ID = {"price": 20, "count": 3}
ORDER_WITHOUT_PRICE = {"id": 7, "count": 3}


def test_an_order_that_is_worked_leaves_no_letter(celery_dlq):
    assert book.delay(ORDER).get() == 60
    assert list(celery_dlq) == []


def test_a_rejected_message_is_kept_with_contents_reason_origin_and_traceback(celery_faults, celery_dlq):
    sent = book.delay(ORDER_WITHOUT_ID)
    celery_faults.worker.drain()

    [letter] = celery_dlq
    assert (letter.task, letter.task_id) == (book.name, sent.id)
    assert (letter.args, letter.kwargs) == ([ORDER_WITHOUT_ID], {})
    assert letter.reason == "rejected"
    assert letter.exception.reason == "an order without an id"
    assert letter.queue == "orders"
    assert 'raise Reject("an order without an id"' in letter.traceback


@pytest.mark.inject(Sleep(beyond="time_limit"), task=book)
def test_a_message_that_timed_out_is_kept_with_contents_reason_origin_and_traceback(celery_faults, celery_dlq):
    sent = book.delay(ORDER)
    celery_faults.worker.drain()

    [letter] = celery_dlq
    assert (letter.task, letter.task_id) == (book.name, sent.id)
    assert (letter.args, letter.kwargs) == ([ORDER], {})
    assert letter.reason == "time_limit"
    assert letter.at == 5
    assert letter.queue == "orders"
    assert "TimeLimitExceeded: TimeLimitExceeded(5" in letter.traceback


def test_a_failed_message_is_kept_with_contents_reason_origin_and_traceback(celery_faults, celery_dlq):
    sent = book.delay(ORDER_WITHOUT_PRICE)
    celery_faults.worker.drain()

    [letter] = celery_dlq
    assert (letter.task, letter.task_id) == (book.name, sent.id)
    assert (letter.args, letter.kwargs) == ([ORDER_WITHOUT_PRICE], {})
    assert letter.reason == "failed"
    assert type(letter.exception) is KeyError
    assert letter.queue == "orders"
    assert 'return order["price"] * order["count"]' in letter.traceback
    assert letter.traceback.endswith("KeyError: 'price'\n")


@pytest.mark.inject(OSError("the drive is gone"), task=archive, times=None)
def test_a_message_whose_retries_are_used_up_is_kept_once(celery_faults, celery_dlq):
    archive.delay("report.pdf", "archive/report.pdf")
    celery_faults.worker.drain()

    [letter] = celery_dlq
    assert letter.reason == "max_retries"
    assert letter.retries == 3
    assert letter.at == 30
    assert letter.args == ["report.pdf", "archive/report.pdf"]
    assert letter.queue == "celery"
    assert "OSError: the drive is gone" in letter.traceback


@pytest.mark.inject(Sleep(beyond="time_limit"), task=book)
def test_letters_lie_in_the_order_in_which_they_came(celery_faults, celery_dlq):
    for order in (ORDER, ORDER_WITHOUT_ID, ORDER_WITHOUT_PRICE):
        book.delay(order)
    celery_faults.worker.drain()

    assert [letter.reason for letter in celery_dlq] == ["time_limit", "rejected", "failed"]
    assert [letter.args for letter in celery_dlq] == [[ORDER], [ORDER_WITHOUT_ID], [ORDER_WITHOUT_PRICE]]
    # A broker with a dead-letter exchange keeps what was rejected. Nobody keeps the others: they were acknowledged.
    assert [letter.route for letter in celery_dlq] == ["harness", "broker", "harness"]
