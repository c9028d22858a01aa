"""What shares the broker with a worker that Celery's tools started: other apps, control, events, and Redis clients."""

from __future__ import annotations

import pytest

HEAD = """
import time
import celery, pytest, redis, shop
from celery import Celery, shared_task
from celery.contrib.testing import tasks
from celery.contrib.testing.manager import Manager
from celery.contrib.testing.worker import start_worker
from celery.result import AsyncResult
from pytest_celery_faults import redis_client

@pytest.fixture(scope="module")
def worker():
    with start_worker(shop.app, task_events=True) as worker:
        yield worker

pytestmark = pytest.mark.usefixtures("worker")
"""


@pytest.fixture
def contrib(shop):
    shop.ini()
    shop.pytester.makeconftest('pytest_plugins = ("celery.contrib.pytest",)\n')
    return shop


def runs(contrib, source, count):
    contrib.test(HEAD + source)
    contrib.armed().assert_outcomes(passed=count)


def test_apps_of_the_same_urls_share_it(contrib):
    """A producer, one that reads results, and both in one; in each test of a worker that is kept."""
    runs(contrib, """
RESULTS = f"{shop.URL}".replace("/0", "/3")
shop.app.conf.result_backend = RESULTS
producer = Celery("producer", broker=shop.URL, set_as_current=False)
reader = Celery("reader", backend=RESULTS, set_as_current=False)
both = Celery("both", broker=shop.URL, backend=RESULTS, set_as_current=False)
elsewhere = Celery("elsewhere", broker=shop.URL, backend=shop.URL, set_as_current=False)

@pytest.mark.parametrize("number", [1, 2])
def test_it(number):
    sent = producer.send_task("shop.add", (number, 2))
    assert both.send_task("shop.add", (number, 3)).get(timeout=3) == number + 3
    assert AsyncResult(sent.id, app=reader).get(timeout=3) == number + 2
    assert AsyncResult(sent.id, app=both).state == "SUCCESS"
    assert AsyncResult(sent.id, app=elsewhere).state == "PENDING", "another database"

def test_a_queue_of_ones_own():
    with both.connection() as connection:
        queue = connection.SimpleQueue("mine")
        queue.put({"a": 1})
    with producer.connection() as connection:
        assert connection.SimpleQueue("mine").get(timeout=1).payload == {"a": 1}
""", 3)  # fmt: skip


def test_an_app_of_other_urls_is_an_error_that_names_it(contrib):
    contrib.test(HEAD + """
other = Celery("other", broker="redis://127.0.0.1:1/7", backend="redis://127.0.0.1:1/7", set_as_current=False)
def test_it():
    other.send_task("shop.add", (1, 2))
def test_result():
    AsyncResult("x", app=other).state
""")  # fmt: skip
    result = contrib.armed()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["E *ForeignBrokerError: *the app 'other'*"] * 2)


def test_control(contrib):
    runs(contrib, """
def test_inspect(worker):
    name = worker.hostname
    inspect = shop.app.control.inspect()
    running, later = shop.slow.delay(60), shop.add.apply_async((1, 2), countdown=3600)
    waiting = shop.add.delay(3, 4)
    assert inspect.ping() == {name: {"ok": "pong"}}
    assert [task["id"] for task in inspect.active()[name]] == [running.id]
    assert [task["id"] for task in inspect.reserved()[name]] == [waiting.id]
    assert [task["request"]["id"] for task in inspect.scheduled()[name]] == [later.id]
    assert "shop.add" in inspect.registered()[name]
    assert inspect.stats()[name]["total"]["celery.ping"] == 1
    assert [queue["name"] for queue in inspect.active_queues()[name]] == ["celery"]
    if celery.VERSION >= (5, 7):  # before, it is not looked for among those that are due later
        assert inspect.query_task(later.id)[name][later.id][0] == "scheduled"
    assert inspect.query_task(waiting.id)[name][waiting.id][0] == "reserved"
    assert inspect.conf()[name]["broker_url"]
    assert shop.app.control.ping(timeout=0.5) == [{name: {"ok": "pong"}}]
    running.revoke(terminate=True)
    assert inspect.active() == {name: []}
    assert waiting.get(timeout=1) == 7

def test_revoked_before_it_is_sent(worker):
    shop.app.control.revoke("known beforehand")
    result = shop.add.apply_async((1, 2), task_id="known beforehand")
    with pytest.raises(Exception, match="revoked"):
        result.get(timeout=3)
    assert "known beforehand" in shop.app.control.inspect().revoked()[worker.hostname]

def test_broadcast(worker):
    reply = shop.app.control.broadcast("rate_limit", {"task_name": "shop.add", "rate_limit": "1/m"}, reply=True)
    assert reply == [{worker.hostname: {"ok": "new rate limit set successfully"}}]
    before = time.time()
    for _ in range(3):
        result = shop.add.delay(1, 2)
    result.get(timeout=300)
    assert 119 <= time.time() - before <= 180  # kombu 5.6 counts from the command, a second before
    shop.app.control.rate_limit("shop.add", None)

def test_queues(worker):
    result = shop.add.apply_async((1, 2), queue="another")
    shop.app.control.add_consumer("another", reply=True)
    assert result.get(timeout=3) == 3
    assert shop.app.control.cancel_consumer("another", reply=True)
    shop.add.apply_async((1, 2), queue="another")
    time.sleep(3600)
    assert shop.app.control.purge() == 0
""", 4)  # fmt: skip


def test_a_command_does_not_overtake_a_task(contrib):
    """What was sent first is read first, as by a worker that waits for both."""
    runs(contrib, """
def test_revoked_after_it_was_sent(celery_faults):
    result = shop.add.delay(1, 2)
    result.revoke()
    celery_faults.worker.drain()
    assert [event.kind for event in celery_faults.timeline.where(task=shop.add)][:4] == [
        "sent", "received", "acked", "started"]
    assert not celery_faults.timeline.where("revoked")

def test_revoked_before(celery_faults):
    shop.app.control.revoke("x")
    shop.add.apply_async((1, 2), task_id="x")
    celery_faults.worker.drain()
    assert not celery_faults.timeline.where("started", task=shop.add)
    assert celery_faults.timeline.where("revoked")
""", 2)  # fmt: skip


def test_events(contrib):
    runs(contrib, """
def capture(app, seen, **options):
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        try:
            receiver.capture(timeout=5, **options)
        except TimeoutError:
            pass

def test_receiver(worker):
    seen = []
    result = shop.add.apply_async((1, 2), countdown=1)
    capture(shop.app, seen, wakeup=False)
    mine = [event["type"] for event in seen if event.get("uuid") == result.id]
    assert mine == ["task-received", "task-started", "task-succeeded"]
    assert {event["hostname"] for event in seen} == {worker.hostname}

def test_state(worker):
    state = shop.app.events.State()
    result = shop.boom.apply_async(countdown=1)
    with shop.app.connection() as connection:
        receiver = shop.app.events.Receiver(connection, handlers={"*": state.event})
        with pytest.raises(TimeoutError):
            receiver.capture(timeout=5, wakeup=False)
    assert state.tasks[result.id].state == "FAILURE"
""", 2)  # fmt: skip


def test_manager(contrib):
    runs(contrib, """
def test_it(capsys):
    manager = Manager(shop.app)
    result = shop.slow.delay(60)
    manager.assert_received([result.id])
    manager.assert_accepted([result.id])
    manager.join(result, timeout=120)
    manager.assert_result_tasks_in_progress_or_completed([shop.add.delay(1, 2)])
    manager.wait_until_idle()
    assert shop.app.control.inspect().active() == manager.inspect().active()
    with pytest.raises(AssertionError, match="Missing task results"):
        manager.join(shop.slow.delay(5), timeout=1, max_retries=2)
    assert "Still waiting for 1/1" in capsys.readouterr().out
""", 1)  # fmt: skip


def test_clients_of_the_applications_own(contrib):
    runs(contrib, """
OTHER = shop.URL.replace("/0", "/5")

def cached(key):
    return redis.Redis.from_url(OTHER, decode_responses=True).get(key)

@shop.app.task
def put(key, value):
    redis.Redis.from_url(OTHER).set(key, value)

@shop.app.task
def push(value):
    time.sleep(3600)
    redis_client().lpush("list", value)

def test_one_line(monkeypatch):
    monkeypatch.setattr("redis.Redis.from_url", redis_client)
    put.delay("a", "1").get(timeout=3)
    assert cached("a") == "1"
    assert redis.Redis.from_url(shop.URL).get("a") is None

def test_it_keeps_its_data_and_waits_in_virtual_time(celery_faults):
    assert redis_client(OTHER).get("a") == b"1"
    before = time.time()
    push.delay("x")
    assert celery_faults.broker.client.blpop("list", timeout=7200) == (b"list", b"x")
    assert time.time() - before == 3600

def test_another_server():
    with pytest.raises(Exception, match="no Redis of the application 'shop', which has: redis://127.0.0.1:"):
        redis_client("redis://elsewhere/0")
""", 3)  # fmt: skip


def test_a_client_where_there_is_no_server(shop):
    shop.test("""
        import pytest
        from pytest_celery_faults import CeleryFaultsError, redis_client
        def test_it():
            with pytest.raises(CeleryFaultsError, match="no worker of this plugin is up"):
                redis_client()
        def test_fixture(celery_faults):
            redis_client().set("a", 1)
            assert celery_faults.broker.client.get("a") == b"1"
        def test_again():
            with pytest.raises(CeleryFaultsError):
                redis_client()
    """)
    shop.run().assert_outcomes(passed=3)


def test_memory_urls(contrib):
    """kombu's memory transport is one broker for the whole process: all that name it share the test's."""
    contrib.test("""
        from celery import Celery
        other = Celery("other", broker="memory://", backend="cache+memory://", set_as_current=False)
        def test_it(celery_app, celery_worker):
            @celery_app.task(name="add")
            def add(x, y):
                return x + y
            assert other.send_task("add", (1, 2)).get(timeout=3) == 3
    """)
    contrib.armed().assert_outcomes(passed=1)
