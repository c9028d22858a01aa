"""Every name of Celery's and kombu's that is replaced while a test runs, and why no extension point would do.

What can be done by subclassing (transport, channel, backend, result consumer, pool, worker, consumer) is done so,
elsewhere. ``tests/test_replaced.py`` fails when one of these names is gone or is used differently.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import billiard.pool
import celery.app.base
import celery.app.task
import celery.canvas
import celery.result
import celery.worker.components
import kombu.connection


@dataclass(frozen=True)
class Replaced:
    """One name, and the reason."""

    owner: Any
    name: str
    reason: str

    @property
    def path(self) -> str:
        module = getattr(self.owner, "__module__", "")
        return f"{module}.{self.owner.__qualname__}.{self.name}" if module else f"{self.owner.__name__}.{self.name}"


TRANSPORT = Replaced(
    kombu.connection.Connection,
    "get_transport_cls",
    "The one place where a connection's URL becomes a transport. Whatever made the connection (app.conf, an "
    "environment variable, which beats app.conf, `connection=`), it leads to the in-memory broker, or is refused.",
)
BACKEND = Replaced(
    celery.app.base.Celery,
    "backend",
    "An app makes its result backend once for a process. Here the test and each pool process have one of their own, "
    "as in production: a shared one would give the test's messages to a task that waits for a result, too.",
)
TASK_BACKEND = Replaced(
    celery.app.task.Task,
    "backend",
    "A task may carry a result backend of its own, made when the task was defined.",
)
RETRY = Replaced(
    celery.app.task.Task,
    "retry",
    "A refused retry raises the task's own exception: afterwards nobody can tell that a retry was asked for.",
)
TIMER = Replaced(
    celery.worker.components,
    "_Timer",
    "The timer of a worker with an event loop is not configurable; ours fires to the microsecond.",
)
HUB = Replaced(
    celery.worker.components,
    "_Hub",
    "The event loop is chosen by this name; ours waits in the simulation instead of in epoll.",
)

JOB_COUNTER = Replaced(
    billiard.pool,
    "job_counter",
    "billiard numbers the jobs of a process, and says the number in the text of WorkerLostError. A test's worker is a "
    "process of its own, so that its numbers do not depend on the tests before it.",
)

CALL = Replaced(
    celery.canvas.Signature,
    "__call__",
    "Celery calls an errback of the new style in place. No signal, message or hook of the task's own tells of it.",
)

JOIN_BLOCKS = Replaced(
    celery.result,
    "task_join_will_block",
    "A flag of the process says that `get()` is called in a task. In an async test a task may run in one thread while "
    "the test, which may wait for results, runs in another.",
)

ALL = (TRANSPORT, BACKEND, TASK_BACKEND, RETRY, TIMER, HUB, JOB_COUNTER, CALL, JOIN_BLOCKS)


def replace(stack: ExitStack, what: Replaced, make: Callable[[Any], Any]) -> None:
    """Replace a name by ``make(original)`` until ``stack`` is closed."""
    original = vars(what.owner)[what.name]
    stack.callback(setattr, what.owner, what.name, original)
    setattr(what.owner, what.name, make(original))
