"""What runs at night: an application of its own, all of whose tasks log what they fail with."""

import os

from celery import Celery

from .tasks_base import LoggedTask

app = Celery(
    "worker.night",
    broker=os.environ.get("WORKER_BROKER_URL", "redis://localhost:6379/0"),
    backend=os.environ.get("WORKER_RESULT_BACKEND", "redis://localhost:6379/1"),
    task_cls=LoggedTask,
    # In a process that imports both, the other one stays the current application.
    set_as_current=False,
)

# A broker that both use, and a queue of its own.
app.conf.update(task_default_queue="night", broker_connection_retry_on_startup=True)


@app.task
def average(prices):
    return sum(prices) / len(prices)


@app.task
def lowest(prices):
    return min(prices)
