"""Redis in memory: a client that waits lets the worker run, on virtual time."""

from __future__ import annotations

import gc
import itertools
import threading
import time

import pytest
import redis

from pytest_celery_faults import WaitNeverEndsError
from pytest_celery_faults.memory import Socket


@pytest.fixture
def client(celery_faults):
    return celery_faults.broker.client


# -- BLPOP and BRPOP


@pytest.mark.parametrize("command", ["blpop", "brpop"])
def test_the_test_waits_for_a_task(celery_faults, app, client, elapsed, command):
    @app.task
    def signal():
        client.rpush("done", "a", "b")

    signal.apply_async(countdown=5)
    assert getattr(client, command)("done") == (b"done", b"a" if command == "blpop" else b"b")
    assert elapsed() == 5


@pytest.mark.parametrize("command", ["blpop", "brpop"])
@pytest.mark.parametrize("timeout", [3, 1, 0.1, 0.3, 2.5])
def test_a_timeout_is_exact(client, elapsed, command, timeout):
    assert getattr(client, command)("nothing", timeout=timeout) is None
    assert elapsed() == timeout


def test_timeouts_add_up_exactly(client, elapsed):
    for _ in range(3):
        assert client.blpop("nothing", timeout=0.1) is None
    assert elapsed() == 0.3


def test_what_is_there_is_returned_at_once(client, elapsed):
    client.rpush("list", "x")
    assert client.blpop("list", timeout=5) == (b"list", b"x")
    assert elapsed() == 0


def test_several_keys(celery_faults, app, client, elapsed):
    @app.task
    def signal(key):
        client.rpush(key, "x")

    signal.apply_async(("second",), countdown=2)
    signal.apply_async(("first",), countdown=4)
    assert client.blpop(["first", "second"], timeout=10) == (b"second", b"x")
    assert client.blpop(["first", "second"], timeout=10) == (b"first", b"x")
    assert elapsed() == 4


def test_a_value_that_comes_at_the_very_end_of_the_timeout(celery_faults, app, client, elapsed):
    @app.task
    def signal():
        client.rpush("done", "x")

    signal.apply_async(countdown=3)
    assert client.blpop("done", timeout=3) == (b"done", b"x")
    assert elapsed() == 3


def test_a_wait_without_end(client):
    with pytest.raises(WaitNeverEndsError, match="waiting for an answer from Redis can never end: "):
        client.blpop("nothing")


def test_the_client_works_on_after_a_wait_without_end(client):
    with pytest.raises(WaitNeverEndsError):
        client.blpop("nothing")
    client.set("key", "value")
    assert client.get("key") == b"value"
    client.rpush("list", "x")
    assert client.blpop("list") == (b"list", b"x")


@pytest.mark.celery_faults(concurrency=2)
def test_a_task_waits_for_a_task(celery_faults, app, client, elapsed):
    @app.task
    def consumer():
        return client.blpop("jobs")[1].decode(), elapsed()

    @app.task
    def producer():
        time.sleep(7)
        client.rpush("jobs", "job")

    result = consumer.delay()
    producer.delay()
    assert result.get() == ["job", 7]


def test_a_task_waits_for_the_test(celery_faults, app, client, elapsed):
    @app.task
    def consumer():
        return client.blpop("jobs")[1].decode(), elapsed()

    result = consumer.delay()
    celery_faults.worker.advance(4)
    client.rpush("jobs", "job")
    assert result.get() == ["job", 4]


@pytest.mark.parametrize("timeout", [3, 0.1])
def test_a_tasks_timeout_is_exact(celery_faults, app, client, elapsed, timeout):
    @app.task
    def consumer():
        assert client.blpop("nothing", timeout=timeout) is None
        return elapsed()

    assert consumer.delay().get() == timeout


@pytest.mark.celery_faults(concurrency=2)
def test_two_tasks_that_wait_are_served_in_the_order_of_their_waiting(celery_faults, app, client):
    @app.task
    def consumer(name):
        return name, client.blpop("jobs")[1].decode()

    results = [consumer.delay(name) for name in ("a", "b")]
    celery_faults.worker.advance(1)
    client.rpush("jobs", "first", "second")
    assert [result.get() for result in results] == [["a", "first"], ["b", "second"]]


def test_a_task_that_waits_for_ever_is_named(celery_faults, app, client):
    @app.task(name="shop.consumer")
    def consumer():
        client.blpop("nothing")

    consumer.delay()
    with pytest.raises(WaitNeverEndsError, match=r"shop\.consumer#1 waits for an answer from Redis"):
        celery_faults.worker.drain()


def test_a_time_limit_ends_a_task_that_waits(celery_faults, app, client, elapsed):
    from celery.exceptions import TimeLimitExceeded

    @app.task(time_limit=5)
    def consumer():
        client.blpop("nothing")

    with pytest.raises(TimeLimitExceeded):
        consumer.delay().get()
    assert elapsed() == 5
    # What the killed task's connection waits for is not served to it.
    client.rpush("nothing", "x")
    celery_faults.worker.advance(1)
    assert client.lrange("nothing", 0, -1) == [b"x"]


# -- streams, pub/sub, locks


def test_xread_block(celery_faults, app, client, elapsed):
    @app.task
    def signal():
        client.xadd("stream", {"key": "value"}, id="1-1")

    signal.apply_async(countdown=2)
    assert client.xread({"stream": "$"}, block=10_000) == [[b"stream", [(b"1-1", {b"key": b"value"})]]]
    assert elapsed() == 2


@pytest.mark.parametrize("milliseconds", [3000, 100, 1])
def test_xread_block_gives_up_exactly(client, elapsed, milliseconds):
    assert not client.xread({"stream": "$"}, block=milliseconds)
    assert elapsed() == milliseconds / 1000


def test_a_task_reads_a_stream(celery_faults, app, client, elapsed):
    @app.task
    def reader():
        [[_, [(number, _)]]] = client.xread({"stream": "0"}, block=10_000)
        return number.decode(), elapsed()

    result = reader.delay()
    celery_faults.worker.advance(3)
    client.xadd("stream", {"key": "value"}, id="7-0")
    assert result.get() == ["7-0", 3]


def test_pubsub(celery_faults, app, client, elapsed):
    @app.task
    def publish():
        client.publish("news", "hello")

    with client.pubsub() as pubsub:
        pubsub.subscribe("news")
        assert pubsub.get_message(timeout=1)["type"] == "subscribe"
        publish.apply_async(countdown=6)
        assert pubsub.get_message(timeout=2.5) is None
        assert elapsed() == 2.5
        message = pubsub.get_message(timeout=60)
        assert (message["channel"], message["data"]) == (b"news", b"hello")
        assert elapsed() == 6


def test_listening(celery_faults, app, client, elapsed):
    @app.task
    def publish(text):
        client.publish("news", text)

    for seconds in (1, 2, 3):
        publish.apply_async((seconds,), countdown=seconds)
    heard = []
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe("new*")
        for message in pubsub.listen():
            heard.append((message["data"], elapsed()))
            if len(heard) == 3:
                break
    assert heard == [(b"1", 1), (b"2", 2), (b"3", 3)]


def test_a_task_hears_a_message(celery_faults, app, client, elapsed):
    @app.task
    def listener():
        with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("news")
            while (message := pubsub.get_message(timeout=100)) is None:
                pass
            return message["data"].decode(), elapsed()

    result = listener.delay()
    celery_faults.worker.advance(5)
    assert client.publish("news", "hello") == 1
    assert result.get() == ["hello", 5]


def test_a_lock(celery_faults, app, client, elapsed):
    @app.task
    def holder():
        with client.lock("door"):
            time.sleep(10)

    holder.delay()
    celery_faults.worker.advance(1)
    lock = client.lock("door", sleep=0.5)
    assert lock.acquire(blocking=False) is False
    assert lock.acquire(blocking_timeout=2) is False
    # redis-py does not begin a sleep that would end after the timeout.
    assert 2.5 <= elapsed() <= 3
    assert lock.acquire() is True
    assert 10 <= elapsed() <= 10.5
    lock.release()


def test_a_lock_times_out_on_virtual_time(client, elapsed):
    assert client.lock("door", timeout=30).acquire()
    assert client.lock("door", sleep=1).acquire()
    # A key lives to the end of its last millisecond, and the lock looks once a second.
    assert elapsed() == 31


@pytest.mark.celery_faults(concurrency=3)
def test_tasks_take_turns_at_a_lock(celery_faults, app, client, elapsed):
    spans = []

    @app.task
    def work():
        with client.lock("door", sleep=1):
            start = elapsed()
            time.sleep(10)
            spans.append((start, elapsed()))

    for _ in range(3):
        work.delay()
    celery_faults.worker.drain()
    assert len(spans) == 3
    assert all(end == start + 10 for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(("seconds", "alive"), [(9.999, True), (10.001, False)])
def test_keys_expire_on_virtual_time(client, seconds, alive):
    client.set("key", "value", ex=10)
    time.sleep(seconds)
    assert (client.get("key") is not None) is alive


def test_transactions_do_not_block(client, elapsed):
    with client.pipeline(transaction=True) as pipe:
        pipe.blpop("nothing")
        pipe.set("key", "value")
        assert pipe.execute() == [None, True]
    assert elapsed() == 0


# -- commands and connections


def test_commands_reach_the_server_as_they_would_through_a_socket(client):
    assert client.set("key", 1.5)
    assert client.get(b"key") == b"1.5"
    client.set("bytes", memoryview(b"\r\n$3"))
    client.set("empty", "")
    client.set("umlaut", "ü")
    assert client.mget("bytes", "empty", "umlaut") == [b"\r\n$3", b"", "ü".encode()]
    assert client.execute_command("SCRIPT EXISTS", "00") == client.execute_command(b"script exists", "00")
    with pytest.raises(redis.DataError):
        client.set("key", object())
    with pytest.raises(redis.ResponseError, match="unknown command"):
        client.execute_command("NOSUCH")
    with client.pipeline() as pipe:
        pipe.set("a", b"x y").append("a", "z")
        assert pipe.execute() == [True, 4]
    # What is sent as bytes is parsed.
    connection = client.connection_pool.get_connection()
    connection.send_packed_command([b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"])
    assert connection.read_response() == b"x yz"


def test_an_idle_connection_is_used_again_and_one_with_an_answer_left_is_not(client):
    client.ping()
    pool = client.connection_pool
    connection = pool.get_connection()
    other = pool.get_connection()
    assert connection is not other
    pool.release(connection)
    assert pool.get_connection() is connection
    sock = connection._sock
    connection.send_command("PING")  # and nobody reads
    pool.release(connection)
    assert pool.get_connection() is connection
    assert connection._sock is not sock, "it was opened anew"
    connection.disconnect()
    pool.release(connection)
    pool.release(connection)
    assert client.ping()
    pool.release(other)
    assert not pool._in_use_connections


def test_a_connection_that_broke_is_opened_anew(celery_faults, client):
    client.ping()
    celery_faults.server.take_down(None, 5)
    for file in celery_faults.server.files.values():
        file.broken = True
    assert client.ping()


def test_each_test_has_a_server_of_its_own(build):
    first = build()
    first.broker.client.set("key", "value")
    first.close()
    assert build().broker.client.get("key") is None


def test_another_client_and_another_thread_reach_the_same_server(client):
    found = []
    other = redis.Redis(connection_pool=client.connection_pool)

    def body():
        client.rpush("list", "x")
        found.append(client.blpop("list", timeout=1))
        found.append(client.blpop("list", timeout=0.01))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(10)
    assert found == [(b"list", b"x"), None]
    assert other.llen("list") == 0


# -- garbage collection in the middle of a command


def orphan(result):
    """Leaves a result in a cycle, so that only a collection ends it; its `__del__` unsubscribes then."""
    cycle = [result]
    cycle.append(cycle)


@pytest.fixture
def young():
    """Collections look at what this test makes only, or hundreds of them would take minutes."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def collect_in_commands(monkeypatch, young):
    """A garbage collection inside each Redis command, with the server's lock held."""
    collected = []

    def hook(function):
        def wrapped(self, *args, **kwargs):
            collected.append(gc.collect())
            return function(self, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(Socket, "_process_command", hook(Socket._process_command))
    return collected


def test_a_collection_inside_a_command_does_no_harm(celery_faults, app, client, collect_in_commands):
    @app.task
    def add(x, y):
        return x + y

    def subscribe():
        result = add.apply_async((1, 2), countdown=60)
        with pytest.raises(Exception, match="timed out"):
            result.get(timeout=0.001)
        orphan(result)

    for number in range(5):
        subscribe()
        client.rpush("list", number)
        assert add.delay(number, 1).get() == number + 1
    assert client.lrange("list", 0, -1) == [b"0", b"1", b"2", b"3", b"4"]
    assert any(collect_in_commands)
    celery_faults.worker.drain()
    assert len(celery_faults.timeline.where("succeeded")) == 10


def test_a_collection_while_subscribers_are_told_does_no_harm(celery_faults, app, client, monkeypatch, young):
    """`PUBLISH` iterates over the subscribers, of whom an unsubscribing would take one away."""

    @app.task
    def add(x, y):
        return x + y

    results = [add.apply_async((number, 0), countdown=5) for number in range(20)]
    for result in results:
        with pytest.raises(Exception, match="timed out"):
            result.get(timeout=0.001)
    original = Socket.put_response
    collected = []

    def put_response(self, message):
        collected.append(gc.collect())
        original(self, message)

    monkeypatch.setattr(Socket, "put_response", put_response)
    kept = results.pop()
    for result in results:
        orphan(result)
    del result, results
    assert kept.get() == 19
    celery_faults.worker.drain()
    assert len(celery_faults.timeline.where("succeeded")) == 20
    assert collected


def test_a_command_inside_a_command_is_answered(celery_faults, client, monkeypatch):
    """What a `__del__` does on the same server must not wait for the lock that its own thread holds."""
    found = []
    original = Socket._process_command

    def nested(self, fields):
        if fields[0].upper() == b"SET" and not found:
            found.append(None)
            found[0] = other.get("outer")
        return original(self, fields)

    client.set("outer", "before")
    other = redis.Redis(connection_pool=client.connection_pool)
    monkeypatch.setattr(Socket, "_process_command", nested)
    client.set("outer", "after")
    assert found == [b"before"]
    assert client.get("outer") == b"after"


def test_the_servers_lock_is_re_entrant(celery_faults):
    lock = celery_faults.server.lock
    with lock:
        assert lock.acquire(blocking=False)
        lock.release()


def test_no_lock_is_held_while_somebody_waits(celery_faults, app, client):
    @app.task
    def consumer():
        client.blpop("jobs")

    consumer.delay()
    celery_faults.worker.advance(1)
    taken = []

    def body():
        taken.append(celery_faults.server.lock.acquire(blocking=False))
        if taken[0]:
            celery_faults.server.lock.release()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert taken == [True]


def test_collecting_goes_on_as_it_was(client):
    assert gc.isenabled()
    client.set("key", "value")
    assert gc.isenabled()
    gc.disable()
    try:
        client.set("key", "value")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_result_that_outlives_its_test_finds_its_dead_backend(build, bare_app, hang_is_failure):
    @bare_app.task
    def add(x, y):
        return x + y

    harness = build()
    result = add.delay(1, 2)
    assert result.get() == 3
    waiting = add.apply_async((1, 2), countdown=5)
    with pytest.raises(Exception, match="timed out"):
        waiting.get(timeout=1)
    harness.close()
    assert result.get() == 3
    orphan(waiting)
    del waiting
    gc.collect()
    with pytest.raises(WaitNeverEndsError, match="the test is over"):
        bare_app.AsyncResult("unknown", backend=result.backend).get()


# -- after the test


def test_what_is_said_to_a_server_that_is_being_collected_is_heard_by_nobody(celery_faults, client):
    """A result in the garbage of a past test unsubscribes after the generator that parses commands was finalized."""
    assert client.ping()
    sock = next(file for file in celery_faults.server.files.values() if isinstance(file, Socket) and file.role is None)
    sock._parser.close()
    sock.sendall(b"*1\r\n$4\r\nPING\r\n")
    assert not sock.responses.queue
