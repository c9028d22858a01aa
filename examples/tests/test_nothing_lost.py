"""What happens when a consumer has a problem: each message ends in a result, a retry or a letter, or a test says so."""

import pytest
from kombu.exceptions import OperationalError

from pytest_celery_faults import BrokerDown, Crash, Drop, Duplicate
from worker.celery_tasks import add, archive, book, close_books, import_rates, pay_out

ORDER = {"id": 7, "price": 20, "count": 3}
ORDER_WITHOUT_ID = {"price": 20, "count": 3}


def a_day_of_work(tmp_path):
    book.delay(ORDER)
    book.delay(ORDER_WITHOUT_ID)
    pay_out.delay(-20)
    archive.delay(str(tmp_path / "missing.pdf"), str(tmp_path / "archived.pdf"))
    import_rates.apply_async(("2024-05-31",), countdown=3600)
    close_books.delay("Friday")


def test_every_message_ends_somewhere(celery_faults, celery_dlq, rates_service, tmp_path):
    a_day_of_work(tmp_path)
    celery_faults.worker.drain()

    celery_faults.assert_nothing_lost()
    assert celery_dlq.reasons == {"rejected": 1, "failed": 1, "published": 1, "max_retries": 1}


def test_in_the_middle_of_the_day_nothing_is_lost_either(celery_faults, rates_service, tmp_path):
    a_day_of_work(tmp_path)
    for _ in range(8):
        celery_faults.worker.advance(2)
        celery_faults.assert_nothing_lost()


@pytest.mark.inject(Crash(), task=book)
def test_an_order_whose_process_dies_is_a_letter(celery_faults, celery_dlq):
    result = book.delay(ORDER)
    celery_faults.worker.drain()

    celery_faults.assert_nothing_lost()
    assert result.state == "FAILURE"
    assert celery_dlq.reasons == {"worker_lost": 1}


@pytest.mark.inject(Duplicate(), task=book)
def test_an_order_that_is_delivered_twice_is_booked_twice(celery_faults, retry_recorder):
    result = book.delay(ORDER)
    celery_faults.worker.drain()

    assert result.get() == 60
    assert [attempt.state for attempt in retry_recorder.of(result).attempts] == ["SUCCESS", "SUCCESS"]


def test_a_power_cut_loses_what_was_acknowledged_early_and_nothing_else(celery_faults):
    closing = close_books.delay("Friday")
    order = book.delay(ORDER)
    celery_faults.worker.advance(5)
    celery_faults.worker.crash()
    celery_faults.worker.start()
    celery_faults.worker.drain()

    assert order.get() == 60
    assert closing.state == "PENDING"
    with pytest.raises(AssertionError, match=r"close_books#1, sent to 'celery' at 0 s: its worker was gone at 5 s"):
        celery_faults.assert_nothing_lost()


@pytest.mark.inject(Drop(), task=add)
def test_what_the_broker_loses_is_noticed(celery_faults):
    add.delay(2, 2)
    celery_faults.worker.drain()

    with pytest.raises(AssertionError, match=r"add#1, sent to 'celery' at 0 s: the broker lost it"):
        celery_faults.assert_nothing_lost()


@pytest.mark.inject(BrokerDown(60), task=add)
def test_what_cannot_be_sent_is_an_error_of_the_sender(celery_faults):
    with pytest.raises(OperationalError):
        add.delay(2, 2)
    celery_faults.worker.advance(70)

    assert add.delay(2, 2).get() == 4
    celery_faults.assert_nothing_lost()
