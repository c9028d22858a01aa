"""Hears all of Celery's task and worker signals, before any receiver of the application does.

See https://docs.celeryq.dev/en/stable/userguide/signals.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Task, signals
from celery.utils.dispatch import Signal

from .errors import hide_ours, safe_repr
from .messages import as_message
from .simulation import TASK_RANK, WORKER_RANK, Simulation
from .timeline import Timeline

__tracebackhide__ = hide_ours

TASK_SIGNALS = (
    "before_task_publish", "after_task_publish", "task_received", "task_prerun", "task_postrun", "task_success",
    "task_retry", "task_failure", "task_internal_error", "task_revoked", "task_rejected", "task_unknown",
)  # fmt: skip
WORKER_SIGNALS = (
    "celeryd_init", "celeryd_after_setup", "import_modules", "worker_init", "worker_before_create_process",
    "worker_process_init", "worker_process_shutdown", "worker_ready", "heartbeat_sent", "worker_shutting_down",
    "worker_shutdown",
)  # fmt: skip
# Not `task_sent`, which is deprecated and sent together with `after_task_publish`; nor those about logging, whose
# receivers Celery takes for the application's own set-up of its logging.
NAMES = (*TASK_SIGNALS, *WORKER_SIGNALS)


@dataclass(frozen=True, eq=False, slots=True)
class SentSignal:
    """A signal of Celery's that was sent.

    ``sender`` and ``arguments`` are what its receivers got; ``task`` and ``task_id`` say which task it is about,
    ``None`` for a worker's signal. ``at`` is virtual seconds since the start of the test. ``process`` is where it
    would have been sent in production: ``"test"``, the worker's ``"main"`` process or a ``"child"`` of its pool.
    """

    name: str
    sender: Any
    arguments: Mapping[str, Any]
    task: str | None
    task_id: str | None
    at: float
    process: str
    #: The task's name and ordinal in this test, as in the timeline.
    label: str = ""

    def __repr__(self) -> str:
        about = f" of {self.label}" if self.label else ""
        given = [f"{name}={safe_repr(self.arguments[name])}" for name in _TELLING if name in self.arguments]
        return f"<{self.name}{about} at {self.at:g} s{': ' if given else ''}{', '.join(given)}>"


# The arguments that say most of a signal in a line.
_TELLING = ("exception", "result", "reason", "retval", "terminated", "expired", "exc")


class SignalLog:
    """All signals of a test in order."""

    def __init__(self, timeline: Timeline, simulation: Simulation, now: Callable[[], float]) -> None:
        self.sent: list[SentSignal] = []
        self._timeline = timeline
        self._simulation = simulation
        self._now = now

    def connect(self) -> None:
        """Listen to Celery's signals; the harness puts the receivers back afterwards."""
        for name in NAMES:
            connect_first(getattr(signals, name), self._receiver_for(name), self._simulation)

    def _receiver_for(self, name: str) -> Callable[..., None]:
        def receiver(signal: Any, sender: Any, **arguments: Any) -> None:
            self._write(name, sender, arguments)

        return receiver

    def _write(self, name: str, sender: Any, arguments: dict[str, Any]) -> None:
        task, task_id = _subject(name, sender, arguments)
        rank = self._simulation.current.rank
        self.sent.append(
            SentSignal(
                name=name,
                sender=sender,
                arguments=arguments,
                task=task,
                task_id=task_id,
                at=self._now(),
                process="child" if rank == TASK_RANK else "main" if rank == WORKER_RANK else "test",
                label=self._timeline.label(task, task_id),
            )
        )


def connect_first(signal: Signal, receiver: Callable[..., Any], simulation: Simulation) -> None:
    """Connect a receiver so that it hears a signal before the others: what those do comes after it in the record.

    Celery only logs what a receiver raises. This one is ours, so it ends the test.
    """

    def first(**arguments: Any) -> None:
        try:
            receiver(**arguments)
        except Exception as error:
            simulation.abort(error)

    signal.connect(first, weak=False)
    signal.receivers.insert(0, signal.receivers.pop())


def name_of_sender(sender: Any) -> Any:
    """A task's name for a task, which is what the signals about publishing have for a sender; or the sender itself."""
    return sender.name if isinstance(sender, Task) else sender


def _subject(name: str, sender: Any, arguments: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The name and id of the task that a signal is about; ``None`` for each that it does not say."""
    if name not in TASK_SIGNALS:
        return None, None
    if name in ("before_task_publish", "after_task_publish"):
        headers, body = arguments.get("headers") or {}, arguments.get("body")
        fields = headers if "id" in headers else body if isinstance(body, dict) else {}  # the latter in protocol 1
        return fields.get("task") or sender, fields.get("id")
    if name == "task_unknown":
        return arguments.get("name"), arguments.get("id")
    if name == "task_rejected":
        message = as_message(arguments["message"]._raw, "")
        return message.task, message.task_id
    task_id = arguments.get("task_id")
    if task_id is None:
        task_id = (arguments.get("request") or sender.request).id
    own = sender.name if isinstance(sender, Task) else None
    return own or getattr(arguments.get("request"), "name", None), task_id
