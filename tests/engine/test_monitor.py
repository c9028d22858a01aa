"""``celery_faults.monitor``, and the events that it and monitors of the application's own get."""

from __future__ import annotations

import pickle
import time

import celery
import pytest
from celery.events.state import State

from pytest_celery_faults import Crash, FaultTypeError, FaultValueError

NAME = "celery@in-memory"


@pytest.fixture
def monitor(celery_faults):
    return celery_faults.monitor


@pytest.fixture
def tasks(app):
    @app.task(name="shop.slow")
    def slow(seconds=3):
        time.sleep(seconds)
        return seconds

    @app.task(name="shop.flaky", autoretry_for=(OSError,), max_retries=1, default_retry_delay=5)
    def flaky():
        raise OSError("down")

    return slow, flaky


def test_before_anything_happens(monitor):
    assert (monitor.by_state, monitor.tasks(), monitor.workers, monitor.counters, monitor.runtimes) == (
        {},
        [],
        {},
        {},
        {},
    )
    assert repr(monitor) == "<Monitor 0 of 0 workers online>"


def test_while_tasks_run_and_after(celery_faults, monitor, worker, tasks):
    slow, flaky = tasks
    first, second, bad = slow.delay(), slow.delay(5), flaky.delay()
    assert monitor.queues == {"celery": 3}
    assert monitor.by_state == {}
    worker.advance(2)
    assert monitor.by_state == {"STARTED": 1, "RECEIVED": 2}
    assert [task.uuid for task in monitor.tasks(state="STARTED")] == [first.id]
    assert monitor.queues == {"celery": 0}
    assert repr(monitor) == "<Monitor 1 of 1 workers online, RECEIVED 2, STARTED 1>"
    status = monitor.workers[NAME]
    assert (status.status, status.active, status.processed, status.heard_at) == ("online", 1, 1, 2)
    worker.advance(6)
    assert monitor.by_state == {"SUCCESS": 2, "RECEIVED": 1}
    worker.drain()
    assert monitor.by_state == {"SUCCESS": 2, "FAILURE": 1}
    assert monitor.counters == {"received": 4, "started": 4, "succeeded": 2, "retried": 1, "failed": 1}
    assert [task.uuid for task in monitor.tasks(slow)] == [first.id, second.id]
    assert [task.exception for task in monitor.tasks("shop.flaky")] == ["OSError('down')"]
    assert [task.uuid for task in monitor.tasks(flaky, state="FAILURE")] == [bad.id]
    assert monitor.runtimes["shop.slow"].count == 2
    assert (monitor.runtimes["shop.slow"].mean, monitor.runtimes["shop.slow"].longest) == (4, 5)
    assert str(monitor).splitlines() == [
        "worker celery@in-memory  online, 0 active, 4 processed",
        "tasks  FAILURE 1",
        "tasks  SUCCESS 2",
        "runtime of shop.slow  <2 x 4 s, at most 5 s>",
        "queue celery  0",
    ]


def test_it_is_celerys_own_state(monitor, worker, tasks):
    slow, _ = tasks
    result = slow.delay()
    worker.drain()
    assert isinstance(monitor.state, State)
    task = monitor.state.tasks[result.id]
    assert (task.name, task.args, task.result, task.runtime, task.worker.hostname) == ("shop.slow", "()", "3", 3, NAME)
    assert pickle.loads(pickle.dumps(monitor.state)).tasks[result.id].state == "SUCCESS"


def test_a_revoked_task(app, monitor, worker, tasks):
    slow, _ = tasks
    result = slow.apply_async(countdown=60)
    worker.advance(1)
    result.revoke()
    worker.drain()
    assert monitor.by_state == {"REVOKED": 1}
    assert monitor.counters["revoked"] == 1


def test_a_task_whose_process_dies(celery_faults, monitor, worker, tasks):
    slow, _ = tasks
    with celery_faults.inject(Crash(), task=slow):
        slow.delay()
        worker.drain()
    assert monitor.by_state == {"FAILURE": 1}


@pytest.mark.celery_faults(conf={"task_send_sent_event": True})
def test_sent_is_told_where_the_application_tells_it(monitor, worker, tasks):
    """As in production: the event is the client's, and goes to the broker."""
    slow, _ = tasks
    slow.delay()
    worker.drain()
    assert monitor.counters == {"received": 1, "started": 1, "succeeded": 1}


@pytest.mark.parametrize(("seconds", "status"), [(0, "online"), (2.5, "online"), (4, "offline")])
def test_a_worker_that_crashed_is_missed(monitor, worker, tasks, seconds, status):
    slow, _ = tasks
    slow.delay(2.5).get()
    worker.crash()
    worker.advance(seconds)
    assert monitor.workers[NAME].status == status
    assert monitor.workers[NAME].heard_at == 2.5  # what it tells of a task tells of it, too


def test_hours_without_a_task(monitor, worker, tasks):
    tasks[0].delay().get()
    worker.advance(36_000)
    assert monitor.workers[NAME].status == "online"
    assert monitor.workers[NAME].heard_at == 36_003


@pytest.mark.parametrize("warm", [True, False])
def test_a_worker_that_was_stopped_and_started(monitor, worker, tasks, warm):
    tasks[0].delay().get()
    worker.stop(warm=warm)
    assert monitor.workers[NAME].status == "offline"
    worker.start()
    assert monitor.workers[NAME].status == "online"
    assert monitor.workers[NAME].processed == 0


def test_an_outage(celery_faults, monitor, worker, tasks):
    tasks[0].delay().get()
    with celery_faults.broker.down():
        worker.advance(1)
    worker.advance(60)
    assert monitor.workers[NAME].status == "online"
    assert tasks[0].delay().get() == 3
    assert monitor.by_state == {"SUCCESS": 2}


def test_after_the_test(build, bare_app):
    harness = build()

    @bare_app.task(name="shop.add")
    def add(x, y):
        return x + y

    add.delay(1, 2).get()
    harness.worker.stop()
    add.delay(1, 2)
    monitor = harness.monitor
    harness.close()
    assert monitor.by_state == {"SUCCESS": 1}
    assert monitor.queues == {"celery": 1}
    assert monitor.workers[NAME].status == "offline"


def test_more_than_ten_thousand_tasks_are_remembered(monitor):
    """Celery's own record forgets the first of so many."""
    assert monitor.state.tasks.limit > 10**9


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"state": "SUCESS"}, FaultValueError, r"choose one of PENDING, .*did you mean 'SUCCESS'"),
        ({"state": 3}, FaultTypeError, "the name of a state, such as 'SUCCESS'"),
        ({"task": "shop.slwo"}, FaultValueError, "there is no task 'shop.slwo', did you mean 'shop.slow'"),
    ],
)
def test_what_is_asked_for_is_not_there(monitor, tasks, arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        monitor.tasks(**arguments)


# -- monitors of the application's own


def seen_by_a_monitor(app, send, ask=False):
    """The types of the events about tasks that a monitor gets while something happens."""
    seen = []

    def look(event):
        if not seen:  # the heartbeat for which a receiver asks when it has begun to listen
            if ask:
                app.control.enable_events()
            send()
        seen.append(event["type"])

    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": look})
        try:
            for _ in receiver.consume(limit=None, timeout=10):
                pass
        except TimeoutError:
            pass
    assert seen[0] == "worker-heartbeat"
    return [event for event in seen if event.startswith("task-")]


def test_a_monitor_gets_events_about_tasks_when_it_asks_for_them(app, worker, tasks):
    """As from a worker in production, also without ``-E``."""
    slow, _ = tasks
    assert seen_by_a_monitor(app, slow.delay) == []
    seen = seen_by_a_monitor(app, slow.delay, ask=True)
    assert seen == ["task-received", "task-started", "task-succeeded"]


@pytest.mark.celery_faults(conf={"worker_send_task_events": True})
def test_a_worker_that_sends_them_anyway(app, monitor, worker, tasks):
    slow, _ = tasks
    seen = seen_by_a_monitor(app, slow.delay)
    assert seen == ["task-received", "task-started", "task-succeeded"]
    assert monitor.counters == {"received": 1, "started": 1, "succeeded": 1}


def test_what_is_asked_for_outlives_an_outage(celery_faults, app, worker, tasks):
    slow, _ = tasks
    slow.delay().get()
    app.control.enable_events()
    worker.advance(1)
    with celery_faults.broker.down():
        worker.advance(1)
    worker.advance(60)
    assert seen_by_a_monitor(app, slow.delay) == ["task-received", "task-started", "task-succeeded"]


def test_events_are_those_of_this_celery():
    """What Celery's record knows of events is what the monitor counts."""
    assert celery.events.state.Task._fields[0] == "uuid"
    assert {"sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected"} <= set(
        celery.events.state.TASK_EVENT_TO_STATE
    )


def test_the_last_heartbeat_of_a_worker_that_crashed(monitor, worker, tasks):
    tasks[0].delay(0).get()
    worker.advance(100.5)
    worker.crash()
    worker.advance(3)
    assert monitor.workers[NAME].heard_at == 100
    assert monitor.workers[NAME].status == "online"
    worker.advance(1)
    assert monitor.workers[NAME].status == "offline"
