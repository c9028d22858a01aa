"""`celery_dlq`: what becomes a letter and why, who has it in production, and what can be done with it."""

from __future__ import annotations

import json
import time
from collections import Counter

import celery
import pytest
from celery import group
from celery.exceptions import Reject
from kombu import Exchange, Queue

from pytest_celery_faults import CeleryFaultsError, EndlessTaskError, FaultTypeError, FaultValueError, Sleep


@pytest.fixture
def book(app, log):
    """Fails, or logs and succeeds once the test has mended it."""

    @app.task(name="shop.book", bind=True, max_retries=1)
    def book(self, order, mended=False):
        log.append((order, self.request.retries))
        if not (mended or "mended" in log):
            raise self.retry(exc=KeyError("price"), countdown=10)
        return f"{order} is booked"

    return book


@pytest.fixture
def publish(app):
    """Publish a message by hand."""

    def publish(body, queue="celery", content_type="application/json", **headers):
        with app.connection_for_write() as connection:
            connection.Producer().publish(
                body, routing_key=queue, headers=headers, content_type=content_type, content_encoding="utf-8"
            )

    return publish


ADD = {"task": "shop.add", "id": "an-id"}
PICKLE = "application/x-python-serialize"
CALL = "[[1, 2], {}, {}]"


# -- messages of which no task can be made


@pytest.mark.parametrize(
    ("body", "headers", "identity", "route", "says"),
    [
        ("{", {}, (None, None), "harness", "DecodeError"),
        ("{", ADD, ("shop.add", "an-id"), "harness", "DecodeError"),
        ('{"x": 1}', {}, (None, None), "broker", "None"),
        ("3", {}, (None, None), "broker", "None"),
        pytest.param(
            CALL,
            {**ADD, "eta": "9999-12-31T23:59:59-12:00"},
            ("shop.add", "an-id"),
            "broker",
            "None",
            marks=pytest.mark.skipif(celery.__version__ < "5.7", reason="this Celery works it at once"),
        ),
        (CALL, {**ADD, "eta": "tomorrow"}, ("shop.add", "an-id"), "broker", "InvalidTaskError"),
        (
            CALL,
            {**ADD, "content_type": "application/x-python-serialize"},
            ("shop.add", "an-id"),
            "broker",
            "Disallowed",
        ),
    ],
    ids=["not JSON", "a task's body is not JSON", "no task", "a number", "an ETA beyond time", "no ETA", "pickle"],
)
def test_what_cannot_be_decoded_is_a_letter(
    worker, celery_faults, add, publish, celery_dlq, body, headers, identity, route, says
):
    publish(body, **headers)
    worker.drain()
    [letter] = celery_dlq
    assert letter.reason == "undecodable"
    assert (letter.task, letter.task_id) == identity
    assert letter.queue == "celery"
    # Celery acknowledges what it cannot decode, and rejects what it can and does not understand.
    assert letter.route == route
    assert says in repr(letter.exception)
    assert celery_faults.broker.queues["celery"] == 0
    assert celery_faults.broker.unacked == []
    ended = {"harness": "acked", "broker": "rejected"}[route]
    assert {event.kind for event in celery_faults.timeline[-2:]} == {ended, "dead-lettered"}


def test_a_task_that_the_worker_does_not_know_is_a_letter(worker, app, celery_dlq):
    sent = app.send_task("shop.gone", (1,), {"y": 2})
    worker.drain()
    [letter] = celery_dlq
    assert (letter.reason, letter.route, letter.queue) == ("unregistered", "broker", "celery")
    assert (letter.task, letter.task_id, letter.args, letter.kwargs) == ("shop.gone", sent.id, [1], {"y": 2})
    assert isinstance(letter.exception, KeyError)
    assert celery_dlq.of("shop.gone") == [letter]


def test_a_task_of_celerys_first_protocol_is_a_task(worker, add, publish, celery_faults, celery_dlq, retry_recorder):
    publish(json.dumps({"task": "shop.add", "id": "one", "args": [1, 2], "kwargs": {}}))
    publish(json.dumps({"task": "shop.add", "id": "two", "args": [1, "2"], "kwargs": {}}))
    worker.drain()
    assert [(message.task_id, message.args) for message in celery_faults.sent.of(add)] == [
        ("one", [1, 2]),
        ("two", [1, "2"]),
    ]
    assert retry_recorder.of("one").attempts[0].state == "SUCCESS"
    [letter] = celery_dlq
    assert (letter.task_id, letter.args, letter.reason, letter.queue) == ("two", [1, "2"], "failed", "celery")


# -- who would have it


@pytest.mark.parametrize(
    ("options", "route"),
    [
        ({}, "harness"),
        ({"acks_late": True}, "harness"),
        ({"acks_late": True, "acks_on_failure_or_timeout": False}, "broker"),
        ({"acks_on_failure_or_timeout": False}, "harness"),
    ],
    ids=["early", "late", "late, not on failure", "early, not on failure"],
)
def test_the_route_of_a_failure(worker, app, celery_dlq, options, route):
    @app.task(**options)
    def fails():
        raise ValueError("no")

    fails.delay()
    worker.drain()
    [letter] = celery_dlq
    assert (letter.reason, letter.route) == ("failed", route)
    lost = {
        "harness": "LOST in production: it had been acknowledged>",
        "broker": "kept by a RabbitMQ with a dead-letter exchange, LOST in production on Redis>",
    }
    assert repr(letter).endswith(lost[route])


@pytest.mark.parametrize(
    ("late", "requeue", "letters"),
    [(False, False, ["harness"]), (False, True, ["harness"]), (True, False, ["broker"]), (True, True, [])],
)
def test_the_route_of_a_rejection(worker, app, log, celery_dlq, late, requeue, letters):
    @app.task(acks_late=late)
    def rejects():
        log.append("ran")
        if len(log) == 1:
            raise Reject("no", requeue=requeue)

    rejects.delay()
    worker.drain()
    assert [letter.route for letter in celery_dlq] == letters
    assert set(celery_dlq.reasons) <= {"rejected"}
    assert len(log) == (2 if late and requeue else 1)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("where", ["in the queue", "held by the worker"])
def test_the_route_of_what_expires(build, bare_app, broker, where):
    """On RabbitMQ a message expires in its queue. What a worker has, it finds out itself, and acknowledges."""

    @bare_app.task
    def slow():
        time.sleep(100)

    harness = build(broker=broker)
    if where == "held by the worker":
        slow.delay()
    else:
        harness.worker.stop()
    slow.apply_async(expires=50)
    harness.worker.advance(60)
    harness.worker.start()
    harness.worker.drain()
    [letter] = harness.dlq
    assert letter.reason == "expired"
    assert letter.route == ("broker" if (broker, where) == ("rabbitmq", "in the queue") else "harness")


def test_what_the_application_sends_there_is_a_letter_at_once(celery_faults, add, celery_dlq):
    sent = add.apply_async((1, 2), queue="dlq")
    [letter] = celery_dlq
    assert (letter.reason, letter.route, letter.queue) == ("published", "app", "dlq")
    assert (letter.task_id, letter.args, letter.retries, letter.exception) == (sent.id, [1, 2], 0, None)
    assert repr(letter) == "<Letter shop.add(1, 2) from 'dlq': published>"
    celery_faults.worker.drain()
    assert not sent.ready(), "nobody works the dead-letter queue"
    assert celery_faults.broker.queues["dlq"] == 1


def test_the_arguments_are_in_the_repr(worker, app, celery_dlq):
    @app.task(name="shop.fails")
    def fails(*args, **kwargs):
        raise ValueError("no")

    fails.delay(1, "two", three=3)
    worker.drain()
    assert repr(celery_dlq[0]).startswith(
        "<Letter shop.fails(1, 'two', three=3) from 'celery': failed ValueError('no'), LOST"
    )


# -- sent back


def test_a_letter_that_is_sent_back_is_worked_as_if_new(
    worker, celery_faults, app, book, log, celery_dlq, retry_recorder
):
    result = book.delay("order 1")
    worker.drain()
    [letter] = celery_dlq
    assert (letter.reason, letter.retries, letter.at) == ("max_retries", 1, 10)

    log.append("mended")
    assert celery_dlq.redrive() == [letter]
    assert list(celery_dlq) == []
    assert celery_faults.broker.queues["celery"] == 1
    assert result.state == "FAILURE", "as in production it stays what it was until the task has run"

    worker.drain()
    assert app.AsyncResult(result.id).get() == "order 1 is booked"
    assert log == [("order 1", 0), ("order 1", 1), "mended", ("order 1", 0)]
    back = celery_faults.sent[-1]
    assert (back.task_id, back.retries, back.eta, back.queue) == (result.id, 0, None, "celery")
    assert celery_faults.clock.elapsed == 10, "no countdown is left"
    assert list(celery_dlq) == []
    assert retry_recorder.of(result).count == 1


def test_one_letter_of_several_is_sent_back(worker, book, log, celery_dlq):
    for order in (1, 2, 3):
        book.delay(order)
    worker.drain()
    first, second, third = celery_dlq
    log.clear()
    log.append("mended")
    assert celery_dlq.redrive(second) == [second]
    worker.drain()
    assert log == ["mended", (2, 0)]
    assert list(celery_dlq) == [first, third]
    with pytest.raises(FaultValueError, match="does not lie in the dead-letter queue any more"):
        celery_dlq.redrive(second)


def test_what_is_sent_back_and_fails_again_is_a_letter_again(worker, book, celery_dlq):
    book.delay(1)
    worker.drain()
    [first] = celery_dlq
    celery_dlq.redrive()
    worker.drain()
    [second] = celery_dlq
    assert second is not first
    assert (second.task_id, second.reason, second.retries, second.at) == (first.task_id, "max_retries", 1, 20)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_what_expired_is_sent_back_without_its_expiry(build, bare_app, broker):
    @bare_app.task
    def slow():
        time.sleep(100)
        return "done"

    harness = build(broker=broker)
    harness.worker.stop()
    result = slow.apply_async(expires=50)
    harness.worker.advance(60)
    harness.worker.start()
    harness.worker.drain()
    [letter] = harness.dlq
    assert letter.reason == "expired"
    harness.dlq.redrive(letter)
    harness.worker.advance(99)
    assert list(harness.dlq) == []
    harness.worker.drain()
    assert bare_app.AsyncResult(result.id).get() == "done"


def test_it_goes_back_to_the_queue_that_it_came_from_with_its_priority(celery_faults, worker, app, celery_dlq):
    @app.task
    def fails():
        raise ValueError("no")

    app.amqp.queues.select_add("orders")
    fails.apply_async(queue="orders", priority=3)
    worker.drain()
    celery_dlq.redrive()
    [message] = celery_faults.broker.messages("orders")
    assert (message.priority, message.redelivered) == (3, False)


@pytest.mark.parametrize(
    ("body", "headers"), [("{", ADD), ('{"x": 1}', {"mine": 1})], ids=["undecodable body", "no task"]
)
def test_what_cannot_be_decoded_is_sent_back_as_it_is(celery_faults, worker, add, publish, celery_dlq, body, headers):
    publish(body, **headers)
    worker.drain()
    celery_dlq.redrive()
    [message] = celery_faults.broker.messages("celery")
    assert dict(message.headers).items() >= headers.items()
    worker.drain()
    assert celery_dlq.reasons == {"undecodable": 1}


def test_what_the_application_sent_to_its_queue_came_from_nowhere_else(worker, book, add, celery_dlq):
    book.delay(1)
    worker.drain()
    add.apply_async((1, 2), queue="dlq")
    failed, published = celery_dlq
    with pytest.raises(FaultValueError, match=r"the application sent it to 'dlq' itself; consume\(\) works it there"):
        celery_dlq.redrive(published)
    assert celery_dlq.redrive() == [failed]
    assert list(celery_dlq) == [published]


@pytest.mark.parametrize("wrong", ["shop.add", 0, True], ids=repr)
def test_only_a_letter_can_be_sent_back(worker, book, celery_dlq, wrong):
    book.delay(1)
    worker.drain()
    with pytest.raises(FaultTypeError, match="a letter of celery_dlq, or nothing for all of them"):
        celery_dlq.redrive(wrong)
    assert len(celery_dlq) == 1


# -- worked where they are


def test_the_dead_letter_queue_is_worked_until_it_is_empty(celery_faults, worker, add, celery_dlq):
    results = [add.apply_async((n, n), queue="dlq") for n in range(3)]
    later = add.apply_async((1, 1), countdown=3600)
    letters = list(celery_dlq)
    assert celery_dlq.consume() == letters
    assert [result.get(timeout=0) for result in results] == [0, 2, 4]
    assert list(celery_dlq) == []
    assert celery_faults.broker.queues["dlq"] == 0
    assert celery_faults.clock.elapsed == 0, "what else is due does not matter"
    assert not later.ready()

    add.apply_async((1, 2), queue="dlq")
    worker.drain()
    assert len(celery_dlq) == 1, "it is not consumed any longer"
    assert celery_faults.broker.queues["dlq"] == 1


def test_a_task_in_it_that_takes_long_and_is_retried_is_waited_for(celery_faults, book, log, celery_dlq, app):
    @app.task
    def slow():
        time.sleep(30)

    slow.apply_async(queue="dlq")
    book.apply_async((1,), queue="dlq")
    assert Counter(letter.reason for letter in celery_dlq.consume()) == {"published": 2}
    assert celery_faults.clock.elapsed == 40
    [letter] = celery_dlq
    assert (letter.task, letter.reason, letter.queue) == ("shop.book", "max_retries", "dlq")
    assert log == [(1, 0), (1, 1)]


def test_a_letter_that_fails_there_can_be_sent_back_there(worker, celery_faults, book, log, celery_dlq):
    book.apply_async((1,), queue="dlq")
    celery_dlq.consume()
    [letter] = celery_dlq
    log.append("mended")
    celery_dlq.redrive(letter)
    assert celery_faults.broker.queues["dlq"] == 1
    worker.drain()
    celery_dlq.consume()
    assert list(celery_dlq) == []
    assert log[-1] == (1, 0)


def test_letters_that_do_not_lie_in_a_queue_stay(worker, book, celery_dlq):
    book.delay(1)
    worker.drain()
    letters = list(celery_dlq)
    assert celery_dlq.consume() == []
    assert list(celery_dlq) == letters


@pytest.mark.celery_faults(queues=["celery", "dlq"])
def test_a_queue_that_the_worker_consumes_anyhow_is_not_left(worker, celery_faults, add, celery_dlq):
    results = [add.apply_async((1, 2), queue="dlq")]
    assert len(celery_dlq.consume()) == 1
    results.append(add.apply_async((3, 4), queue="dlq"))
    worker.drain()
    assert [result.get() for result in results] == [3, 7]


@pytest.mark.celery_faults(dlq="graveyard")
def test_the_name_of_the_queue(celery_faults, add, celery_dlq):
    result = add.apply_async((1, 2), queue="graveyard")
    assert len(celery_dlq.consume()) == 1
    assert result.get(timeout=0) == 3


@pytest.mark.celery_faults(dlq=None)
def test_without_a_queue_there_is_none_to_work(add, celery_dlq):
    with pytest.raises(FaultValueError, match=r"no dead-letter queue, @pytest.mark.celery_faults\(dlq=None\)"):
        celery_dlq.consume()
    celery_dlq.clear()


def test_a_worker_that_is_stopped_works_nothing(worker, add, celery_dlq):
    result = add.apply_async((1, 2), queue="dlq")
    worker.stop()
    with pytest.raises(FaultValueError, match=r"the worker is stopped, celery_faults\.worker\.start\(\)"):
        celery_dlq.consume()
    worker.start()
    celery_dlq.consume()
    assert result.get(timeout=0) == 3


@pytest.mark.celery_faults(queues=["dlq"])
def test_what_a_worker_of_its_own_took_from_the_queue_lies_there_no_more(worker, add, celery_dlq):
    add.apply_async((1, 2), queue="dlq")
    add.apply_async((3, 4), queue="dlq", countdown=60)
    assert len(celery_dlq) == 2
    worker.advance(59)
    assert [letter.args for letter in celery_dlq] == [[3, 4]], "the worker has it, and has not acknowledged it"
    worker.drain()
    assert list(celery_dlq) == celery_dlq.consume() == []


# -- thrown away


def test_cleared_letters_and_their_messages_are_gone(celery_faults, worker, add, book, log, celery_dlq):
    book.delay(1)
    add.apply_async((1, 2), queue="dlq")
    worker.drain()
    assert celery_dlq.reasons == {"max_retries": 1, "published": 1}
    celery_dlq.clear()
    assert list(celery_dlq) == []
    assert celery_dlq.reasons == {}
    assert celery_faults.broker.queues == {"celery": 0, "dlq": 0}
    log.clear()
    assert celery_dlq.consume() == celery_dlq.redrive() == []
    worker.drain()
    assert log == []
    book.delay(2)
    worker.drain()
    assert [letter.args for letter in celery_dlq] == [[2]]


def test_an_empty_queue_can_be_cleared(celery_dlq):
    celery_dlq.clear()
    assert list(celery_dlq) == []


# -- poison messages


@pytest.mark.celery_faults(quarantine=True)
def test_a_message_equal_to_a_dead_one_is_not_run(celery_faults, worker, book, log, celery_dlq):
    book.delay("order 1")
    worker.drain()
    again = book.delay("order 1")
    other = book.delay("order 2", mended=True)
    worker.drain()
    assert log == [("order 1", 0), ("order 1", 1), ("order 2", 0)]
    first, second = celery_dlq
    assert (first.reason, second.reason) == ("max_retries", "quarantined")
    assert (second.task_id, second.args, second.route) == (again.id, ["order 1"], "broker")
    assert again.state == "FAILURE"
    with pytest.raises(Exception, match="a message equal to this one is a dead letter already: max_retries"):
        again.get()
    assert other.get() == "order 2 is booked"
    assert celery_faults.broker.unacked == []
    kinds = [event.kind for event in celery_faults.timeline if event.task_id == again.id]
    assert kinds == ["sent", "received", "rejected", "dead-lettered"]


@pytest.mark.celery_faults(quarantine=True)
def test_messages_that_were_there_already_are_not_run_either(worker, app, log, celery_dlq):
    @app.task
    def fails(n):
        log.append(n)
        raise ValueError("no")

    for n in (1, 1, 2, 1, 2):
        fails.delay(n)
    worker.drain()
    assert log == [1, 2]
    assert [letter.reason for letter in celery_dlq] == ["failed", "quarantined", "failed", "quarantined", "quarantined"]


@pytest.mark.celery_faults(quarantine=True, concurrency=2)
def test_a_slot_is_free_again_after_a_refusal(worker, app, log, celery_dlq):
    @app.task
    def fails(n):
        log.append(n)
        raise ValueError("no")

    for _ in range(10):
        fails.delay(1)
        worker.drain()
    fails.delay(2)
    worker.drain()
    assert log == [1, 2]
    assert celery_dlq.reasons == {"failed": 2, "quarantined": 9}


@pytest.mark.celery_faults(quarantine=True)
@pytest.mark.parametrize("equal", [((1,), {}), ((), {"n": 1})], ids=["positional", "keyword"])
def test_equal_is_the_same_task_with_the_same_arguments(worker, app, log, celery_dlq, equal):
    @app.task
    def one(n=0, m=0):
        log.append("one")
        raise ValueError("no")

    @app.task
    def other(n=0, m=0):
        log.append("other")

    one.apply_async(*equal)
    worker.drain()
    other.apply_async(*equal)
    one.apply_async(equal[0], {**equal[1], "m": 2})
    one.apply_async(*equal)
    worker.drain()
    assert log == ["one", "other", "one"]
    assert celery_dlq.reasons == {"failed": 2, "quarantined": 1}


@pytest.mark.celery_faults(quarantine=True)
def test_what_is_sent_back_is_run_and_what_was_cleared_is_forgotten(worker, book, log, celery_dlq):
    for _ in range(2):
        book.delay(1)
    worker.drain()
    dead, _ = celery_dlq
    log.clear()
    celery_dlq.redrive(dead)
    worker.drain()
    assert log == [(1, 0), (1, 1)]
    celery_dlq.clear()
    book.delay(1)
    worker.drain()
    assert celery_dlq.reasons == {"max_retries": 1}


@pytest.mark.celery_faults(quarantine=True)
def test_a_refused_member_fails_its_chord(worker, app, log, celery_dlq):
    @app.task
    def part(n):
        if n == 2:
            raise ValueError("no")
        return n

    @app.task
    def total(parts):
        log.append(parts)

    @app.task
    def on_error(request, exc, traceback):
        log.append(type(exc).__name__)

    part.delay(2)
    worker.drain()
    chord = (group(part.s(n) for n in (1, 2)) | total.s().on_error(on_error.s())).delay()
    worker.drain()
    assert chord.state == "FAILURE"
    assert log == ["ChordError"]


@pytest.mark.celery_faults(quarantine=True)
def test_the_dead_letter_queue_itself_is_worked(add, celery_dlq):
    results = [add.apply_async((1, 2), queue="dlq") for _ in range(2)]
    assert len(celery_dlq.consume()) == 2
    assert [result.get() for result in results] == [3, 3]


def test_without_quarantine_it_is_run_again(worker, book, log, celery_dlq):
    for _ in range(2):
        book.delay(1)
    worker.drain()
    assert log == [(1, 0), (1, 0), (1, 1), (1, 1)]
    assert celery_dlq.reasons == {"max_retries": 2}


# -- endless


@pytest.mark.celery_faults(max_executions=5)
def test_an_eta_that_the_visibility_timeout_keeps_from_coming_is_an_error(worker, add):
    """On Redis a message that is held for an ETA beyond the timeout comes back each time, and never runs."""
    add.apply_async((1, 2), countdown=3600 * 24)
    with pytest.raises(AssertionError, match=r"shop\.add#1 was delivered more than 5 times .* and never ran"):
        worker.drain()


def test_a_sleeping_task_is_no_letter_yet(celery_faults, worker, add, celery_dlq):
    celery_faults.inject(Sleep(5))
    add.delay(1, 2)
    worker.advance(3)
    assert list(celery_dlq) == []


# -- exchanges, compression, protocols


@pytest.fixture
def routed(build, bare_app):
    """An application whose queues are bound to exchanges by keys of other names."""
    shop, dead = Exchange("shop", "topic"), Exchange("dead", "direct")
    bare_app.conf.update(
        task_queues=[Queue("orders", shop, routing_key="order.#"), Queue("dlq", dead, routing_key="dead.key")],
        task_default_queue="orders",
    )

    @bare_app.task(name="shop.fails")
    def fails(seconds=0):
        time.sleep(seconds)
        raise ValueError("no")

    return fails


def test_a_letter_comes_from_its_queue_and_goes_back_there(routed, build):
    harness = build()
    routed.apply_async(exchange="shop", routing_key="order.new")
    harness.worker.drain()
    [letter] = harness.dlq
    assert letter.queue == harness.sent[0].queue == "orders"
    harness.dlq.redrive()
    assert harness.broker.queues["orders"] == 1
    harness.worker.drain()
    assert [(letter.reason, letter.queue) for letter in harness.dlq] == [("failed", "orders")]
    assert harness.recorder.executions == 2


def test_a_dead_letter_queue_with_an_exchange_is_worked_to_its_end(routed, build):
    harness = build(quarantine=True)
    routed.apply_async(queue="dlq", args=(10,))
    assert [letter.reason for letter in harness.dlq] == ["published"]
    assert len(harness.dlq.consume()) == 1
    assert harness.clock.elapsed == 10
    assert [(letter.reason, letter.queue) for letter in harness.dlq] == [("failed", "dlq")]


@pytest.mark.parametrize("compression", ["gzip", "zlib", "bzip2"])
def test_compressed_arguments_are_seen(build, bare_app, compression):
    @bare_app.task(name="shop.fails")
    def fails(n):
        raise ValueError("no")

    harness = build(conf={"task_compression": compression}, quarantine=True)
    for n in (1, 2, 1):
        fails.delay(n)
    harness.worker.drain()
    assert [message.args for message in harness.sent] == [[1], [2], [1]]
    assert sorted((letter.args[0], letter.reason) for letter in harness.dlq) == [
        (1, "failed"), (1, "quarantined"), (2, "failed")
    ]  # fmt: skip
    harness.dlq.redrive(harness.dlq[0])
    [message] = harness.broker.messages("celery")
    assert len(message.args) == 1


def test_a_task_of_the_first_protocol_is_sent_back_as_new(build, bare_app):
    ran = []

    @bare_app.task(name="shop.book", bind=True, max_retries=1)
    def book(self, order):
        ran.append(self.request.retries)
        if len(ran) < 3:
            raise self.retry(exc=KeyError("price"), countdown=10)
        return order

    harness = build(conf={"task_protocol": 1})
    result = book.delay("order 1")
    harness.worker.drain()
    assert [letter.reason for letter in harness.dlq] == ["max_retries"]
    harness.dlq.redrive()
    harness.worker.drain()
    assert ran == [0, 1, 0]
    assert bare_app.AsyncResult(result.id).get() == "order 1"


# -- what is no letter, and what is


@pytest.mark.parametrize("quarantine", [False, True])
def test_a_message_that_is_requeued_is_no_letter(build, bare_app, quarantine):
    ran = []

    @bare_app.task(name="shop.slow", acks_late=True, acks_on_failure_or_timeout=False, time_limit=5)
    def slow():
        ran.append("ran")
        if len(ran) == 1:
            time.sleep(10)
        return "done"

    harness = build(quarantine=quarantine)
    result = slow.delay()
    harness.worker.drain()
    if "requeued" in [event.kind for event in harness.timeline]:
        assert bare_app.AsyncResult(result.id).get() == "done"
        assert list(harness.dlq) == []
    else:
        assert [(letter.reason, letter.route) for letter in harness.dlq] == [("time_limit", "broker")]


def test_what_is_run_eagerly_sends_no_message_and_leaves_no_letter(app, worker, celery_dlq):
    @app.task
    def fails():
        raise ValueError("no")

    @app.task
    def outer():
        return str(fails.apply().result)

    fails.apply()
    assert outer.delay().get() == "no"
    assert list(celery_dlq) == []


def test_a_retry_that_goes_to_the_dead_letter_queue_is_a_letter(app, worker, log, celery_dlq):
    @app.task(bind=True)
    def gives_up(self):
        log.append(self.request.retries)
        if not self.request.retries:
            raise self.retry(queue="dlq", countdown=0)

    gives_up.delay()
    worker.drain()
    assert [(letter.reason, letter.retries) for letter in celery_dlq] == [("published", 1)]
    assert len(celery_dlq.consume()) == 1
    assert log == [0, 1]


def test_what_is_no_task_in_the_dead_letter_queue_is_a_letter(celery_faults, worker, publish, celery_dlq):
    publish('{"what": "a note"}', queue="dlq")
    [letter] = celery_dlq
    assert (letter.task, letter.reason, letter.route) == (None, "published", "app")
    celery_dlq.clear()
    assert celery_faults.broker.client.llen("dlq") == 0
    publish('{"what": "a note"}', queue="dlq")
    celery_dlq.consume()
    assert celery_dlq.reasons == {"undecodable": 1}


class UnprintableError(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")


def test_an_exception_that_cannot_be_shown_is_a_letter(app, worker, celery_dlq, retry_recorder):
    @app.task
    def fails():
        raise UnprintableError

    fails.delay()
    worker.drain()
    [letter] = celery_dlq
    assert "<UnprintableError, whose repr() raises RuntimeError>" in repr(letter)
    assert "UnprintableError" in retry_recorder.of(fails).table()


# -- going through them


def test_letters_can_be_sent_back_one_by_one_in_a_loop(worker, book, celery_dlq):
    for order in range(4):
        book.delay(order)
    worker.drain()
    for letter in celery_dlq:
        celery_dlq.redrive(letter)
    assert list(celery_dlq) == []


def test_a_number_that_is_not_there(celery_faults, celery_dlq):
    views = {
        "celery_dlq": celery_dlq,
        "celery_faults.sent": celery_faults.sent,
        "celery_faults.timeline": celery_faults.timeline,
    }
    for name, view in views.items():
        with pytest.raises(IndexError, match=rf"there is no number 0: {name} has 0 \w+") as caught:
            view[0]
        assert isinstance(caught.value, CeleryFaultsError)


# -- a worker that is hard to reach


def test_the_queue_is_worked_without_remote_control(build, bare_app):
    @bare_app.task
    def task():
        return "done"

    harness = build(conf={"worker_enable_remote_control": False})
    result = task.apply_async(queue="dlq")
    assert len(harness.dlq.consume()) == 1
    assert result.get() == "done"
    assert harness.consumed_queues() == ["celery"]


@pytest.mark.celery_faults(max_executions=5)
def test_the_worker_leaves_the_queue_also_after_an_error(celery_faults, app, celery_dlq):
    @app.task(bind=True, max_retries=None)
    def endless(self):
        raise self.retry(countdown=1)

    endless.apply_async(queue="dlq")
    with pytest.raises(EndlessTaskError):
        celery_dlq.consume()
    assert celery_faults.consumed_queues() == ["celery"]
