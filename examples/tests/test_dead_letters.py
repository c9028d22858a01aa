"""The dead-letter queue: what could not be worked, kept so that the software can be mended."""

import pytest

from pytest_celery_faults import CeleryFaultsError, Sleep
from worker import money
from worker.celery_tasks import archive, book

ORDER = {"id": 7, "price": 20, "count": 3}
ORDER_WITHOUT_ID = {"price": 20, "count": 3}
ORDER_WITHOUT_PRICE = {"id": 7, "count": 3}
ANOTHER_WITHOUT_PRICE = {"id": 8, "count": 4}
LIST_PRICE = 15


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


# -- sent back


def test_after_the_software_was_mended_the_letters_are_sent_back_and_succeed(celery_faults, celery_dlq, monkeypatch):
    sent = [book.delay(ORDER_WITHOUT_PRICE), book.delay(ANOTHER_WITHOUT_PRICE)]
    celery_faults.worker.drain()
    letters = list(celery_dlq)
    assert [letter.reason for letter in letters] == ["failed", "failed"]

    monkeypatch.setattr(money, "amount_of", lambda order: order.get("price", LIST_PRICE) * order["count"])
    assert celery_dlq.redrive() == letters
    celery_faults.worker.drain()

    assert list(celery_dlq) == []
    # An AsyncResult that has once seen a task end keeps what it saw, so these are asked for the first time here.
    assert [result.get() for result in sent] == [3 * LIST_PRICE, 4 * LIST_PRICE]
    back = celery_faults.sent.of(book)[2:]
    assert [message.task_id for message in back] == [result.id for result in sent]
    assert [message.queue for message in back] == ["orders", "orders"]


def test_after_what_was_missing_is_there_the_task_runs_under_its_id_with_no_retries_counted(
    celery_faults, celery_dlq, retry_recorder, tmp_path
):
    report, archived = tmp_path / "report.pdf", tmp_path / "archive" / "report.pdf"
    report.write_text("a report")
    result = archive.delay(str(report), str(archived))
    celery_faults.worker.drain()
    [letter] = celery_dlq
    assert (letter.reason, letter.retries, letter.task_id) == ("max_retries", 3, result.id)

    archived.parent.mkdir()
    assert celery_dlq.redrive(letter) == [letter]
    celery_faults.worker.drain()

    assert result.get() == str(archived)
    assert archived.read_text() == "a report"
    assert list(celery_dlq) == []
    *_, last_retry, sent_back = retry_recorder.of(result.id).attempts
    assert (last_retry.retries, last_retry.state) == (3, "FAILURE")
    assert (sent_back.retries, sent_back.state, sent_back.started) == (0, "SUCCESS", 30)


def test_what_was_not_mended_is_a_letter_again_and_the_others_stay(celery_faults, celery_dlq):
    book.delay(ORDER_WITHOUT_ID)
    book.delay(ORDER_WITHOUT_PRICE)
    celery_faults.worker.drain()
    rejected, failed = celery_dlq

    celery_dlq.redrive(rejected)
    assert list(celery_dlq) == [failed]
    celery_faults.worker.drain()

    assert [letter.reason for letter in celery_dlq] == ["failed", "rejected"]
    assert celery_dlq[1].task_id == rejected.task_id


# -- poison messages: Celery itself works them again and again, so `quarantine` stands for a broker or consumer that
# knows what lies in the dead-letter queue


@pytest.mark.celery_faults(quarantine=True)
def test_an_order_that_lies_in_the_dead_letter_queue_is_not_run_a_second_time(
    celery_faults, celery_dlq, retry_recorder
):
    first = book.delay(ORDER_WITHOUT_PRICE)
    celery_faults.worker.drain()
    again = book.delay(ORDER_WITHOUT_PRICE)
    celery_faults.worker.drain()

    assert len(retry_recorder.of(first).attempts) == 1
    assert retry_recorder.of(again).attempts == []
    assert [(letter.task_id, letter.reason) for letter in celery_dlq] == [
        (first.id, "failed"),
        (again.id, "quarantined"),
    ]
    assert again.state == "FAILURE"
    with pytest.raises(CeleryFaultsError, match="a message equal to this one is a dead letter already: failed"):
        again.get()


@pytest.mark.celery_faults(quarantine=True)
def test_another_order_is_worked(celery_faults, celery_dlq):
    book.delay(ORDER_WITHOUT_PRICE)
    celery_faults.worker.drain()

    assert book.delay({**ORDER_WITHOUT_PRICE, "price": 20}).get() == 60
    assert celery_dlq.reasons == {"failed": 1}


@pytest.mark.celery_faults(quarantine=True)
def test_after_it_was_sent_back_the_order_may_run(celery_faults, celery_dlq, monkeypatch):
    sent = [book.delay(ORDER_WITHOUT_PRICE) for _ in range(2)]
    celery_faults.worker.drain()
    assert celery_dlq.reasons == {"failed": 1, "quarantined": 1}

    monkeypatch.setattr(money, "amount_of", lambda order: order.get("price", LIST_PRICE) * order["count"])
    celery_dlq.redrive()
    sent.append(book.delay(ORDER_WITHOUT_PRICE))
    celery_faults.worker.drain()

    assert [result.get() for result in sent] == [3 * LIST_PRICE] * 3
    assert list(celery_dlq) == []


def test_without_quarantine_it_is_run_again(celery_faults, celery_dlq):
    for _ in range(2):
        book.delay(ORDER_WITHOUT_PRICE)
    celery_faults.worker.drain()

    assert celery_dlq.reasons == {"failed": 2}
