"""`handle_error`, a task on a queue of its own: what is known of an error waits there for a worker of that queue."""

import pytest

from worker.celery_tasks import handle_error, pay_out


@pytest.fixture
def failed(celery_faults):
    result = pay_out.delay(-20)
    celery_faults.worker.drain()
    return result


def test_a_negative_amount_fails_and_its_id_exception_and_traceback_are_sent_to_the_handler(failed, celery_dlq):
    assert failed.state == "FAILURE"
    [letter] = celery_dlq.of(handle_error)
    assert (letter.reason, letter.route, letter.queue) == ("published", "app", "dlq")
    [task_id, exception_text, traceback_text] = letter.args
    assert letter.kwargs == {}
    assert task_id == failed.id
    assert exception_text == str(failed.result) == "-20 cannot be paid out"
    assert traceback_text.startswith("Traceback (most recent call last):\n")
    assert "return money.pay(amount)" in traceback_text
    assert traceback_text.endswith("ValueError: -20 cannot be paid out\n")


def test_an_amount_that_is_paid_out_sends_nothing_to_the_handler(celery_faults):
    assert pay_out.delay(20).get() == "20 paid out"
    assert celery_faults.sent.of(handle_error) == []


def test_a_normal_worker_does_not_consume_the_queue_of_the_handler(failed, celery_faults, retry_recorder, caplog):
    celery_faults.worker.advance(24 * 60 * 60)

    assert celery_faults.broker.queues["dlq"] == 1
    assert retry_recorder.of(handle_error).attempts == []
    assert handled(caplog) == []


def test_a_worker_of_that_queue_gives_the_handler_exactly_these_three(failed, celery_faults, celery_dlq, caplog):
    [letter] = celery_dlq.of(handle_error)

    assert celery_dlq.consume() == [letter]

    assert handled(caplog) == [tuple(letter.args)]
    assert celery_dlq.of(handle_error) == []


def test_the_handler_runs_on_its_queue_and_nowhere_else(failed, celery_faults, celery_dlq, retry_recorder):
    celery_dlq.consume()
    celery_faults.worker.drain()

    [message] = celery_faults.sent.of(handle_error)
    assert (message.queue, message.parent) == ("dlq", failed.id)
    assert celery_faults.broker.queues["dlq"] == 0
    [attempt] = retry_recorder.of(handle_error).attempts
    assert attempt.state == "SUCCESS"


@pytest.mark.celery_faults(queues=["dlq"])
def test_a_worker_of_that_queue_alone_works_nothing_else(celery_faults, caplog):
    error = ("7", "-20 cannot be paid out", "Traceback (most recent call last): ...")
    handle_error.delay(*error)
    payment = pay_out.delay(20)
    celery_faults.worker.drain()

    assert handled(caplog) == [error]
    assert not payment.ready()


def handled(caplog):
    """What the handler logged, record by record."""
    return [record.args for record in caplog.records if record.name == "worker.celery_tasks"]
