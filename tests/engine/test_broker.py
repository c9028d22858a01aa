"""`celery_faults.broker` and `celery_faults.sent`: what a test sees of messages, wherever they are."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from celery import chain
from kombu import Queue

from pytest_celery_faults import Delay, FaultTypeError, FaultValueError, Sleep


@pytest.fixture
def broker(celery_faults):
    return celery_faults.broker


# -- the broker


def test_a_message_in_its_queue_is_decoded(celery_faults, broker, add):
    start = celery_faults.clock.now()
    result = add.apply_async(
        (1,), {"y": 2}, countdown=60, expires=90, priority=3, queue="later", headers={"tenant": "north"}
    )
    assert broker.queues["later"] == 1
    [message] = broker.messages("later")
    assert (message.queue, message.task, message.task_id) == ("later", "shop.add", result.id)
    assert (message.args, message.kwargs) == ([1], {"y": 2})
    assert (message.eta, message.expires) == (start + timedelta(seconds=60), start + timedelta(seconds=90))
    assert (message.priority, message.redelivered, message.retries, message.parent) == (3, False, 0, None)
    assert message.headers["tenant"] == "north"
    assert repr(message).startswith("Message(queue='later', task='shop.add'")


@pytest.mark.parametrize("manners", ["redis", "rabbitmq"])
def test_keys_with_a_prefix(bare_app, build, manners):
    bare_app.conf.broker_transport_options = {"global_keyprefix": "shop-"}

    @bare_app.task(name="shop.noted", shared=False)
    def noted():
        return "noted"

    faults = build(broker=manners)
    noted.apply_async(queue="later")
    noted.apply_async(queue="later", priority=3)
    assert faults.broker.queues["later"] == faults.monitor.queues["later"] == 2
    assert [message.task for message in faults.broker.messages("later")] == ["shop.noted"] * 2
    noted.apply_async(countdown=60)
    faults.worker.advance(1)
    assert [message.task for message in faults.broker.unacked] == ["shop.noted"]
    assert b"shop-unacked" in faults.broker.client.keys("shop-*")
    faults.assert_nothing_lost()
    with faults.inject(Delay(5), task=noted):
        assert noted.delay().get() == "noted"
    assert faults.clock.elapsed == 6


def test_a_message_of_a_task_tells_its_parent_and_its_retries(celery_faults, broker, app, worker, add):
    @app.task(bind=True, name="shop.parent")
    def parent(self):
        add.apply_async((1, 2), queue="later")
        raise self.retry(countdown=60)

    result = parent.delay()
    worker.advance(1)
    [child] = broker.messages("later")
    assert (child.parent, child.retries) == (result.id, 0)
    [retry] = broker.unacked
    assert (retry.task, retry.queue, retry.retries, retry.eta) == (
        "shop.parent",
        "celery",
        1,
        celery_faults.clock.now() + timedelta(seconds=59),
    )


def test_the_order_is_that_of_the_delivery(celery_faults, broker, add):
    for priority in (9, 0, 6):
        add.apply_async((priority, 0), priority=priority, queue="later")
    assert [message.priority for message in broker.messages("later")] == [0, 6, 9]


# The routing key is another name than the queue's.
@pytest.mark.celery_faults(conf={"task_queues": [Queue("celery"), Queue("orders", routing_key="order.new")]})
def test_what_the_worker_holds_is_unacked_under_its_queue(celery_faults, broker, app, worker):
    @app.task(acks_late=True, name="shop.late")
    def late():
        pass

    celery_faults.inject(Sleep(10), task=late)
    late.apply_async(queue="orders")
    worker.advance(5)
    assert [(message.task, message.queue) for message in broker.unacked] == [("shop.late", "orders")]
    worker.drain()
    assert broker.unacked == []


def test_a_message_that_was_given_back_is_redelivered(celery_faults, broker, app, worker):
    @app.task(acks_late=True, name="shop.late")
    def late():
        pass

    celery_faults.inject(Sleep(10), task=late)
    late.delay()
    worker.advance(5)
    worker.stop(warm=False)
    assert [message.redelivered for message in broker.messages("celery")] == [True]


def test_queues_that_the_application_knows_may_be_empty(broker, app):
    app.amqp.queues.add(Queue("orders"))
    assert [broker.messages(queue) for queue in ("celery", "orders", "dlq")] == [[], [], []]
    assert broker.queues == {}


@pytest.mark.parametrize(
    ("queue", "error", "text"),
    [
        ("celry", FaultValueError, r"there is no queue 'celry', did you mean 'celery'\? Queues: celery, dlq"),
        (None, FaultTypeError, r"broker\.messages\(None\): the name of a queue"),
    ],
)
def test_a_queue_that_nobody_knows(broker, app, queue, error, text):
    with pytest.raises(error, match=text):
        broker.messages(queue)


def test_the_client_is_that_of_the_broker(broker, app, worker):
    @app.task
    def signal():
        broker.client.rpush("signals", "go")

    signal.delay()
    assert broker.client.blpop("signals") == (b"signals", b"go")


# -- sent


def test_each_message_in_order_with_its_parent(celery_faults, worker, app, add):
    @app.task(bind=True, name="shop.parent")
    def parent(self):
        if not self.request.retries:
            add.delay(1, 2)
            raise self.retry(countdown=60)

    result = parent.delay()
    worker.drain()
    first, child, retry = celery_faults.sent
    assert [(message.task, message.parent) for message in (first, child)] == [
        ("shop.parent", None),
        ("shop.add", result.id),
    ]
    assert (retry.task_id, retry.retries, retry.countdown, retry.at) == (result.id, 1, 60, 0)
    assert retry.eta == celery_faults.clock.now()
    assert celery_faults.sent.of(parent) == celery_faults.sent.of(result) == [first, retry]
    assert celery_faults.sent.of(child.task_id) == [child]


def test_headers_and_the_steps_of_a_chain(celery_faults, worker, add):
    result = chain(add.s(1, 2), add.s(3)).apply_async(headers={"tenant": "north"})
    worker.drain()
    one, two = celery_faults.sent
    assert one.headers["tenant"] == "north"
    assert (two.parent, two.headers["root_id"]) == (one.task_id, one.task_id)
    assert result.id == two.task_id


def test_what_was_not_sent(celery_faults, worker, app, add):
    @app.task(name="shop.other")
    def other():
        pass

    add.delay(1, 2)
    worker.drain()
    assert not celery_faults.sent.of(other)
    assert celery_faults.sent.of(add)
    with pytest.raises(FaultValueError, match=r"there is no task 'shop\.othr', did you mean 'shop\.other'"):
        celery_faults.sent.of("shop.othr")


def test_what_the_broker_holds_back_was_sent_all_the_same(celery_faults, worker, add):
    celery_faults.inject(Delay(60), at="publish", task=add)
    add.delay(1, 2)
    assert [message.queue for message in celery_faults.sent] == ["celery"]
    assert celery_faults.broker.messages("celery") == []
    worker.drain()
    assert celery_faults.clock.elapsed == 60


def test_a_thread_of_the_tests_own_may_be_the_first_to_send(worker, add, hang_is_failure):
    sent = []
    thread = threading.Thread(target=lambda: sent.append(add.delay(1, 2)))
    thread.start()
    thread.join()
    worker.drain()
    assert sent[0].get() == 3
