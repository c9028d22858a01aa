"""Tells which of the messages that are sent, and which calls in place, are callbacks, and of whom.

Celery says it of none of them. What is known is where it sends or calls them: links from the process that has just run
the body of their parent, errbacks from a method of the result backend, and the body of a chord from another one.

See https://docs.celeryq.dev/en/stable/userguide/canvas.html.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from .errors import hide_ours
from .simulation import Fiber, Simulation

__tracebackhide__ = hide_ours

LINK, ERRBACK, BODY = "link", "link_error", "chord body"


@dataclass(eq=False)
class Call:
    """A callback that was sent, as the message ``sent``, or called in place."""

    kind: str
    task: str
    parent: str | None
    args: Sequence[Any] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    at: float
    index: int
    sent: Any = field(default=None, repr=False)
    error: BaseException | None = None


@dataclass(eq=False)
class Chord:
    """A chord whose header was sent: its body, and which parts of the header have told that they are done."""

    group: str
    body: Mapping[str, Any] = field(repr=False)
    #: The ids of the tasks that were sent and will tell, in order.
    parts: dict[str, None] = field(default_factory=dict)
    returned: set[str] = field(default_factory=set)
    over: bool = False

    @property
    def body_id(self) -> str | None:
        return self.body.get("options", {}).get("task_id")

    @property
    def task(self) -> str:
        return " and ".join(first_tasks(self.body)) or "nothing"


@dataclass
class _Cause:
    """Why messages are sent on a fiber now: they are callbacks of that kind, as long as they are of these tasks."""

    kind: str
    parent: str | None
    tasks: Counter[str]
    chord: Chord | None = None


class CallbackLog:
    """All callbacks of a test, in the order in which they were sent or called."""

    def __init__(self, simulation: Simulation, now: Callable[[], tuple[float, int]]) -> None:
        self.calls: list[Call] = []
        #: By the id of the header's group; and of how many parts each is.
        self.chords: dict[str, Chord] = {}
        self.sizes: dict[str, int] = {}
        #: What the last message of each task id says beside its arguments: callbacks, errbacks, chain and chord.
        self.embedded: dict[str, Mapping[str, Any]] = {}
        #: The id of the task whose process runs and is not in the task's body, if there is one.
        self.between: Callable[[], str | None] = lambda: None
        self._simulation = simulation
        self._now = now
        self._causes: dict[Fiber, list[_Cause | None]] = {}
        self._links: WeakKeyDictionary[Fiber, _Cause] = WeakKeyDictionary()

    def to_come(self) -> dict[str, str]:
        """The names of the tasks that are to be sent when others are done, by id."""
        found: dict[str, str] = {}
        for embedded in self.embedded.values():
            chord = embedded.get("chord")
            for signature in [*(embedded.get("chain") or ()), *([chord] if chord else ())]:
                found |= tasks_by_id(signature)
        return found

    # -- told by the recorder

    def published(self, message: Any, embedded: Mapping[str, Any]) -> None:
        """A task message was sent, and says this beside its arguments."""
        cause = self._cause_of(message.parent)
        if cause is not None and cause.tasks[message.task] > 0:
            cause.tasks[message.task] -= 1
            parent = message.parent if cause.kind == BODY else cause.parent
            self._write(cause.kind, message.task, parent, message.args, message.kwargs, message)
            if cause.chord is not None:
                cause.chord.over = True
        if not any(embedded.values()):
            self.embedded.pop(message.task_id, None)
            return
        self.embedded[message.task_id] = embedded
        body, group = embedded.get("chord"), message.headers.get("group")
        if body and group:
            chord = self.chords.setdefault(group, Chord(group, body))
            chord.parts[message.task_id] = None

    def _cause_of(self, parent: str | None) -> _Cause | None:
        fiber = self._simulation.current
        causes = self._causes.get(fiber)
        if causes:
            return causes[-1]
        worked = self.between()
        if worked is None or parent not in (worked, None):  # Celery's first protocol says nothing of parents
            return None
        cause = self._links.get(fiber)
        if cause is None:
            callbacks = self.embedded.get(worked, {}).get("callbacks") or ()
            cause = self._links[fiber] = _Cause(LINK, worked, names(callbacks))
        return cause

    # -- told by the result backend

    @contextmanager
    def calling_errbacks(self, request: Any) -> Iterator[None]:
        """The errbacks of a request are called, in place or by messages."""
        with self._because(_Cause(ERRBACK, request.id, names(request.errbacks or ()))):
            yield

    @contextmanager
    def returning_part(self, request: Any) -> Iterator[None]:
        """A part of a chord's header is done; the last of them sends the body."""
        group, body = request.group, request.chord
        chord = self.chords.setdefault(group, Chord(group, body)) if group and body else None
        with self._because(_Cause(BODY, None, names([body] if body else ()), chord)):
            yield
        if chord is not None:
            chord.returned.add(request.id)

    def chord_failed(self) -> None:
        """The body of the chord whose part returns will not run, since the header failed."""
        for cause in self._causes.get(self._simulation.current, ()):
            if cause is not None and cause.chord is not None:
                cause.chord.over = True

    # -- told by the signature of an errback

    @contextmanager
    def called(self, signature: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """A signature is called in place: an errback of the new style, or something that an application calls."""
        causes = self._causes.get(self._simulation.current)
        cause = causes[-1] if causes else None
        if cause is None or cause.kind != ERRBACK:
            yield
            return
        cause.tasks[signature.task] -= 1
        call = self._write(ERRBACK, signature.task, cause.parent, list(args), dict(kwargs))
        with self._because(None):  # what it sends itself is no errback
            try:
                yield
            except BaseException as error:
                call.error = error
                raise

    # -- helpers

    @contextmanager
    def _because(self, cause: _Cause | None) -> Iterator[None]:
        fiber = self._simulation.current
        causes = self._causes.setdefault(fiber, [])
        causes.append(cause)
        try:
            yield
        finally:
            causes.pop()
            if not causes:
                self._causes.pop(fiber, None)

    def _write(
        self,
        kind: str,
        task: str,
        parent: str | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        sent: Any = None,
    ) -> Call:
        at, index = self._now()
        call = Call(kind, task, parent, args, kwargs, at, index if sent is None else sent.index, sent)
        self.calls.append(call)
        return call

    def let_go(self) -> None:
        """Drop what leads to fibers; at the end of the test."""
        self._causes.clear()
        self._links.clear()
        del self.between


def names(signatures: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """The tasks of which messages are sent when these signatures are applied."""
    return Counter(task for signature in signatures for task in first_tasks(signature))


def first_tasks(signature: Mapping[str, Any]) -> list[str]:
    """The tasks with which a signature begins: the members of a group, the header of a chord, the head of a chain."""
    kind, header, rest = _parts(signature)
    if kind == "chain":
        return first_tasks(rest[0]) if rest else []
    if kind == "chord":
        return [task for member in header or rest for task in first_tasks(member)]
    if kind == "group":
        return [task for member in rest for task in first_tasks(member)]
    return [signature["task"]] if signature.get("task") else []


def tasks_by_id(signature: Mapping[str, Any]) -> dict[str, str]:
    """The names of all single tasks in a signature that have an id already."""
    kind, header, rest = _parts(signature)
    if kind is not None:
        return {task_id: task for part in [*header, *rest] for task_id, task in tasks_by_id(part).items()}
    task_id = (signature.get("options") or {}).get("task_id")
    return {task_id: signature["task"]} if task_id else {}


def _parts(signature: Mapping[str, Any]) -> tuple[str | None, list[Any], list[Any]]:
    """``"group"``, ``"chain"``, ``"chord"`` or ``None``, the header's signatures, and the others in it."""
    kind, kwargs = signature.get("subtask_type"), signature.get("kwargs") or {}
    if kind in ("chain", "group"):
        return kind, [], list(kwargs.get("tasks") or ())
    if kind == "chord":
        header, body = kwargs.get("header") or (), kwargs.get("body")
        members = (header.get("kwargs") or {}).get("tasks") or () if isinstance(header, Mapping) else header
        return kind, list(members), [body] if body else []
    return None, [], []
