"""What a monitor such as Flower shows of the worker, while it works and after."""

from worker.celery_tasks import add, close_books, import_rates, pay_out


def test_tasks_by_state(celery_faults, rates_service):
    monitor = celery_faults.monitor
    closing = close_books.delay("Friday")
    add.delay(2, 2)
    pay_out.delay(-20)
    import_rates.apply_async(("2024-05-31",), countdown=600)
    assert monitor.queues["celery"] == 4

    celery_faults.worker.advance(1)
    assert monitor.by_state == {"STARTED": 1, "RECEIVED": 3}
    assert monitor.workers["celery@in-memory"].active == 1

    closing.get()
    celery_faults.worker.advance(1)
    assert monitor.by_state == {"SUCCESS": 2, "FAILURE": 1, "RECEIVED": 1}
    assert [task.name for task in monitor.tasks(state="FAILURE")] == [pay_out.name]
    assert monitor.queues["celery"] == 0

    celery_faults.worker.drain()
    assert monitor.by_state == {"SUCCESS": 3, "FAILURE": 1}
    assert monitor.counters == {"received": 4, "started": 4, "succeeded": 3, "failed": 1}


def test_how_long_closing_the_books_takes(celery_faults):
    for day in ("Thursday", "Friday"):
        close_books.delay(day)
    celery_faults.worker.drain()

    times = celery_faults.monitor.runtimes[close_books.name]
    assert (times.count, times.mean, times.longest) == (2, 10, 10)


def test_a_worker_that_lost_its_power_is_missed_after_four_seconds(celery_faults):
    add.delay(2, 2).get()
    celery_faults.worker.crash()
    celery_faults.worker.advance(3)
    assert celery_faults.monitor.workers["celery@in-memory"].status == "online"

    celery_faults.worker.advance(1)
    assert celery_faults.monitor.workers["celery@in-memory"].status == "offline"

    celery_faults.worker.start()
    assert celery_faults.monitor.workers["celery@in-memory"].status == "online"


def test_a_worker_that_was_stopped_says_goodbye(celery_faults):
    add.delay(2, 2).get()
    celery_faults.worker.stop()
    add.delay(2, 3)

    monitor = celery_faults.monitor
    assert monitor.workers["celery@in-memory"].status == "offline"
    assert monitor.queues["celery"] == 1
