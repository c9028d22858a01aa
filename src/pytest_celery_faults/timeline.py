"""The record of a test: one append-only list of events, of which retries, letters and the rest are views."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, overload

from .errors import FaultValueError, element, hide_ours, nearest

__tracebackhide__ = hide_ours

SENT = "sent"
RECEIVED = "received"
STARTED = "started"
SUCCEEDED = "succeeded"
FAILED = "failed"
RETRIED = "retried"
REJECTED = "rejected"
REVOKED = "revoked"
ACKED = "acked"
REQUEUED = "requeued"
REDELIVERED = "redelivered"
FAULT_FIRED = "fault fired"
TIME_JUMPED = "time jumped"
DEAD_LETTERED = "dead-lettered"
SOFT_TIME_LIMIT = "soft time limit"
KILLED = "killed"
WORKER = "worker"

KINDS = (
    SENT, RECEIVED, STARTED, SUCCEEDED, FAILED, RETRIED, REJECTED, REVOKED, ACKED, REQUEUED, REDELIVERED,
    FAULT_FIRED, TIME_JUMPED, DEAD_LETTERED, SOFT_TIME_LIMIT, KILLED, WORKER,
)  # fmt: skip

_UUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    ``at`` is virtual seconds since the start of the test, ``attempt`` counts executions from 1 (0: none yet).
    ``label`` is the task's name and ordinal: ``shop.download#2`` is the second ``shop.download`` of the test.
    """

    index: int
    at: float
    kind: str
    task: str | None = None
    task_id: str | None = None
    label: str = ""
    attempt: int = 0
    detail: str = ""
    data: Mapping[str, Any] = field(default_factory=lambda: _NOTHING, repr=False, compare=False)

    def __str__(self) -> str:
        attempt = f" attempt {self.attempt}" if self.attempt else ""
        text = f"{self.at:12.6f} s  {self.kind:<15} {self.label}{attempt}"
        return f"{text}  {self.detail}".rstrip()

    def __repr__(self) -> str:
        return f"<Event {' '.join(str(self).split())}>"


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a test at which a fault can strike, free of ids and times: the same in each run.

    ``task`` is the task's name and ordinal; ``retry`` counts from 0, ``delivery`` from 1 (0: not delivered yet).
    """

    point: str
    task: str
    retry: int
    delivery: int

    def __str__(self) -> str:
        return f"{self.task} retry {self.retry} delivery {self.delivery} {self.point}"


class Timeline(Sequence[Event]):
    """All events of a test in order. ``str()`` is a table that is the same for two runs with one seed."""

    def __init__(self, now: Callable[[], float], name_of: Callable[[Any], str]) -> None:
        self._now = now
        self._name_of = name_of
        #: Called after each event, where it happened.
        self.on_record: Callable[[], None] | None = None
        #: Called as well, by who only looks.
        self.watcher: Callable[[], None] | None = None
        #: The places that the test passed through at which a fault could have struck, in order.
        self.sites: list[Site] = []
        # An async test may send while the worker, in another thread, works.
        self._lock = threading.RLock()
        self._events: list[Event] = []
        self._tasks: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._ordinals: Counter[str] = Counter()

    def record(
        self,
        kind: str,
        task: str | None = None,
        task_id: str | None = None,
        *,
        attempt: int = 0,
        detail: str = "",
        **data: Any,
    ) -> Event:
        """Append an event that happens now, after a ``time jumped`` where the clock moved since the one before."""
        with self._lock:
            now = self._now()
            before = self._events[-1].at if self._events else 0.0
            if now > before:
                self._append(Event(len(self._events), now, TIME_JUMPED, detail=f"by {now - before:.6f} s"))
            label = self.label(task, task_id)
            detail = self.readable(detail)
            if task is None and task_id is not None:
                task = self._tasks.get(task_id)
            event = self._append(
                Event(len(self._events), now, kind, task, task_id, label, attempt, detail, data or _NOTHING)
            )
        if self.watcher is not None:
            self.watcher()
        if self.on_record is not None:
            self.on_record()
        return event

    def _append(self, event: Event) -> Event:
        self._events.append(event)
        return event

    def readable(self, text: str) -> str:
        """A text without what differs from run to run: task ids, which become labels, other ids, and addresses."""
        text = _UUID.sub(lambda found: self._labels.get(found[0], "<uuid>"), text)
        return _ADDRESS.sub(" at 0x...", text)

    def label(self, task: str | None, task_id: str | None) -> str:
        """``name#ordinal`` of a task id, given at its first mention."""
        if task_id is None:
            return task or ""
        label = self._labels.get(task_id)
        if label is None:
            if task is None:
                return "an unknown task"
            with self._lock:
                self._tasks[task_id] = task
                self._ordinals[task] += 1
                label = self._labels[task_id] = f"{task}#{self._ordinals[task]}"
        return label

    def begin(self) -> None:
        """Another test begins: nothing has happened in it."""
        with self._lock:
            self._events.clear()
            self.sites.clear()
            self._tasks.clear()
            self._labels.clear()
            self._ordinals.clear()

    def where(
        self, kind: str | None = None, *, task: Any = None, task_id: str | None = None, attempt: int | None = None
    ) -> list[Event]:
        """The events of that kind, task (or its name), task id and attempt.

        Raises:
            FaultValueError: there is no such kind, or no such task.
        """
        if kind is not None and kind not in KINDS:
            raise FaultValueError(
                f"{kind!r} is no kind of event{nearest(str(kind), KINDS)} There is: {', '.join(KINDS)}"
            )
        name = None if task is None else self._name_of(task)
        return [
            event
            for event in self._events
            if (kind is None or event.kind == kind)
            and (name is None or event.task == name)
            and (task_id is None or event.task_id == task_id)
            and (attempt is None or event.attempt == attempt)
        ]

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return element(self._events, index, "celery_faults.timeline has", "events")

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __str__(self) -> str:
        return "\n".join(map(str, self._events))

    def __repr__(self) -> str:
        return f"<Timeline of {len(self._events)} events>"
