"""The Celery application: where the broker is, which queues there are, and where the tasks are found."""

import os

from celery import Celery
from kombu import Queue

app = Celery(
    "worker",
    broker=os.environ.get("WORKER_BROKER_URL", "redis://localhost:6379/0"),
    backend=os.environ.get("WORKER_RESULT_BACKEND", "redis://localhost:6379/1"),
    # The receivers of signals: nobody calls them by name, so the worker is told to import them.
    include=["worker.signals"],
)

app.conf.update(
    # A worker that is not told by `-Q` which queues to consume takes all that are declared, "dlq" as well.
    task_queues=[
        Queue("celery", routing_key="celery"),
        Queue("orders", routing_key="orders"),
        Queue("dlq", routing_key="dlq"),
    ],
    # Where a task goes is said here and not by `@app.task(queue=...)`: from Celery 5.7 on that option is deprecated
    # in favour of this setting, and warns when the task is bound. The messages take the same way.
    task_routes={
        "worker.celery_tasks.archive": {"queue": "celery"},
        "worker.celery_tasks.book": {"queue": "orders"},
        "worker.celery_tasks.handle_error": {"queue": "dlq"},
    },
    # What is in reach when the worker starts may be gone a minute later, and the other way round: keep trying.
    broker_connection_retry_on_startup=True,
)

# The module is not called `tasks`, which is what Celery looks for by default.
app.autodiscover_tasks(["worker"], related_name="celery_tasks")
