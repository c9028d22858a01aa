"""Every name of Celery's, kombu's, asyncio's, asgiref's, freezegun's and time-machine's that is replaced while a test
runs, and why no extension point would do.

What can be done by subclassing (transport, channel, backend, result consumer, pool, worker, consumer) is done so,
elsewhere. ``tests/engine/test_replaced.py`` fails when one of these names is gone or is used differently, and
``tests/test_internals.py`` when something is that is overridden or read.
"""

from __future__ import annotations

import asyncio.base_events
import asyncio.events
import asyncio.futures
import asyncio.runners
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import billiard.einfo
import billiard.pool
import celery.app.base
import celery.app.task
import celery.canvas
import celery.fixups.django
import celery.result
import celery.worker.components
import freezegun.api
import kombu.connection

from .errors import InternalsError


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

    @property
    def original(self) -> Any:
        """What stands there, no descriptor of it called."""
        if self.name not in vars(self.owner):
            library = self.path.partition(".")[0]
            raise InternalsError(
                f"pytest-celery-faults replaces {self.path} in a test, and this version of {library} does not have it: "
                "an older one does, or a newer version of pytest-celery-faults can do without"
            )
        return vars(self.owner)[self.name]


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

COPY_OF_CODE = Replaced(
    billiard.einfo._Frame,
    "Code",
    "Each frame of each traceback gets a copy of its code object, with the position of every instruction: thousands of "
    "objects for a retry. One copy of each code object will do.",
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

CLOSE_DATABASE = Replaced(
    celery.fixups.django.DjangoWorkerFixup,
    "_close_database",
    "Celery closes Django's connections when a worker starts and around each task. Here they are the test's own, in "
    "its transaction, or those of a task that goes on.",
)

CLOSE_DATABASE_FILE = Replaced(
    celery.fixups.django.DjangoWorkerFixup,
    "_maybe_close_db_fd",
    "A pool process closes the descriptors that it inherited. Here nothing was inherited: they are the test's own.",
)

CELERY = (
    TRANSPORT, BACKEND, TASK_BACKEND, RETRY, TIMER, HUB, JOB_COUNTER, COPY_OF_CODE, CALL, JOIN_BLOCKS,
    CLOSE_DATABASE, CLOSE_DATABASE_FILE,
)  # fmt: skip

# asyncio has extension points for all of these, the event loop policy and loops of one's own; but a task that makes its
# loop by `asyncio.run` or `asyncio.new_event_loop` is to have the loop that it has in production.

LOOP_TIME = Replaced(
    asyncio.base_events.BaseEventLoop,
    "time",
    "The clock of a loop: in a task the simulation's.",
)
RUN_FOREVER = Replaced(
    asyncio.base_events.BaseEventLoop,
    "run_forever",
    "Each loop runs through it, and for so long a task's loop waits in the simulation instead of in its selector.",
)
CHAIN_FUTURE = Replaced(
    asyncio.futures,
    "_chain_future",
    "The one place where a loop begins to wait for another thread. Virtual time must not jump over that.",
)
GET_EVENT_LOOP = Replaced(
    asyncio.events.BaseDefaultEventLoopPolicy,
    "get_event_loop",
    "A thread has one current event loop. Here the test and each pool process have one of their own in one thread.",
)
SET_EVENT_LOOP = Replaced(
    asyncio.events.BaseDefaultEventLoopPolicy,
    "set_event_loop",
    "See get_event_loop.",
)

ASYNCIO: tuple[Replaced, ...] = (LOOP_TIME, RUN_FOREVER, CHAIN_FUTURE, GET_EVENT_LOOP, SET_EVENT_LOOP)

if sys.version_info >= (3, 11):
    RUNNER_SIGNAL = Replaced(
        asyncio.runners,
        "signal",
        "asyncio.run takes Ctrl-C for itself, but not in a pool process, which ignores it. Here Ctrl-C is the test's.",
    )
    ASYNCIO += (RUNNER_SIGNAL,)

FREEZE = Replaced(
    freezegun.api._freeze_time,
    "start",
    "A freeze that a fixture makes is where the test's clock starts; freezegun's own would hold it there.",
)
UNFREEZE = Replaced(
    freezegun.api._freeze_time,
    "stop",
    "What began with the replaced `start` ends with this.",
)

#: What moves a freeze moves the clock instead, and what it says is what the clock says.
FACTORIES = tuple(
    Replaced(factory, name, "A frozen time that a fixture has given to the test is the test's clock.")
    for factory in (freezegun.api.FrozenDateTimeFactory, freezegun.api.TickingDateTimeFactory)
    for name in ("tick", "move_to", "__call__")
)

_LOCAL_TIME = "freezegun shows naive local time as UTC and gives aware times an offset, too. This is right in any zone."
DATETIME_NOW = Replaced(freezegun.api.FakeDatetime, "now", _LOCAL_TIME)
DATETIME_FROMTIMESTAMP = Replaced(freezegun.api.FakeDatetime, "fromtimestamp", _LOCAL_TIME)
DATETIME_TIMESTAMP = Replaced(freezegun.api.FakeDatetime, "timestamp", _LOCAL_TIME)
DATETIME_ASTIMEZONE = Replaced(freezegun.api.FakeDatetime, "astimezone", _LOCAL_TIME)
DATE_TODAY = Replaced(freezegun.api.FakeDate, "today", _LOCAL_TIME)

FREEZEGUN = (
    FREEZE, UNFREEZE, *FACTORIES, DATETIME_NOW, DATETIME_FROMTIMESTAMP, DATETIME_TIMESTAMP, DATETIME_ASTIMEZONE,
    DATE_TODAY,
)  # fmt: skip

ALL = CELERY + ASYNCIO + FREEZEGUN


def time_machine_start(module: Any) -> Replaced:
    """The name in ``time_machine``, which is not imported for its sake."""
    return Replaced(module.travel, "start", "It would set the time of a test that has a clock: refused by name.")


class AsgirefNames(NamedTuple):
    """What is replaced in ``asgiref.sync``, where asgiref is in use."""

    thread_pool: Replaced
    current_thread: Replaced
    single_thread: Replaced
    threadlocal: Replaced


def asgiref_names(module: Any) -> AsgirefNames:
    """The names in the module ``asgiref.sync``, which is not imported for their sake."""
    return AsgirefNames(
        Replaced(
            module,
            "ThreadPoolExecutor",
            "async_to_sync runs its coroutine in a thread of its own, which would run in real time.",
        ),
        Replaced(
            module,
            "CurrentThreadExecutor",
            "In it a thread waits for its coroutine, for real: here the fiber that called waits in the simulation.",
        ),
        Replaced(
            module.SyncToAsync,
            "single_thread_executor",
            "The thread in which sync_to_async runs what asyncio.run has called. Each pool process has one.",
        ),
        Replaced(
            module.SyncToAsync,
            "threadlocal",
            "Tells async_to_sync of the loop that waits for it. Here several loops take turns in one thread.",
        ),
    )


def takeover_name(module: Any) -> Replaced:
    """The name in the module ``celery.contrib.testing.worker``, which is not imported for its sake.

    It is replaced for the whole of an armed run, since a test may bind ``start_worker`` at any time.
    """
    return Replaced(
        module,
        "_start_worker_thread",
        "start_worker, whose signals and ping stay Celery's, has it run a worker in a thread, in real time. It gives "
        "the worker of the test instead.",
    )


def replace(stack: ExitStack, what: Replaced, make: Callable[[Any], Any]) -> None:
    """Replace a name by ``make(original)`` until ``stack`` is closed.

    Raises:
        InternalsError: the library has it no more.
    """
    original = what.original
    stack.callback(setattr, what.owner, what.name, original)
    setattr(what.owner, what.name, make(original))
