"""Tells which of the messages that are sent, and which calls in place, are callbacks, and of whom.

Celery says it of none of them. What is known is where it sends or calls them: links from the process that has just run
the body of their parent, errbacks from a method of the result backend, and the body of a chord from another one.

See https://docs.celeryq.dev/en/stable/userguide/canvas.html.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from .errors import hide_ours
from .simulation import Fiber, Simulation

__tracebackhide__ = hide_ours

LINK, ERRBACK, BODY = "link", "link_error", "chord body"


@dataclass(eq=False, slots=True)
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
        #: The place of that message in the timeline.
        self.embedded_at: dict[str, int] = {}
        #: The id of the task that the process works which runs, if there is one.
        self.worked: Callable[[], str | None] = lambda: None
        self._simulation = simulation
        self._now = now
        self._causes: dict[Fiber, list[_Cause | None]] = {}
        self._links: WeakKeyDictionary[Fiber, _Cause] = WeakKeyDictionary()
        # Those whose task is in its body, or in a handler of the application's: what is sent there is no link.
        self._with_handlers: WeakSet[Fiber] = WeakSet()

    def to_come(self) -> dict[str, str]:
        """The names of the tasks that are sent when others are done, by id, sent yet or not."""
        chains = [signature for embedded in list(self.embedded.values()) for signature in embedded.get("chain") or ()]
        found: dict[str, str] = {}
        for signature in [*chains, *(chord.body for chord in list(self.chords.values()))]:
            _collect(signature, found)
        return found

    def begin(self, alive: Set[str]) -> None:
        """Another test begins: only what becomes of tasks that are still under way can still be of interest."""
        self.calls.clear()
        for of_task in (self.embedded, self.embedded_at):
            for task_id in of_task.keys() - alive:
                of_task.pop(task_id, None)
        for group, chord in list(self.chords.items()):
            if alive.isdisjoint(chord.parts):
                del self.chords[group]
                self.sizes.pop(group, None)

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
        self.embedded_at[message.task_id] = message.index
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
        worked = None if fiber in self._with_handlers else self.worked()
        if worked is None or parent not in (worked, None):  # Celery's first protocol says nothing of parents
            return None
        cause = self._links.get(fiber)
        if cause is None:
            callbacks = self.embedded.get(worked, {}).get("callbacks") or ()
            cause = self._links[fiber] = _Cause(LINK, worked, names(callbacks))
        return cause

    def begins(self) -> None:
        """A task is about to begin on the fiber that runs."""
        self._with_handlers.add(self._simulation.current)

    # -- told by the wrapper around a task's body

    def returned(self) -> None:
        """The body of a task has returned: next Celery sends its links and the next step of its chain."""
        self._with_handlers.discard(self._simulation.current)

    # -- told by the result backend

    def ends(self) -> None:
        """The end of a task is about to be stored; all of its links are sent."""
        self._with_handlers.add(self._simulation.current)

    def add_part(self, group: str) -> None:
        """A chord's header has got one more part."""
        self.sizes[group] = self.sizes.get(group, 0) + 1

    @contextmanager
    def calling_errbacks(self, request: Any) -> Iterator[None]:
        """The errbacks of a request are called, in place or by messages."""
        if request.is_eager or (request.delivery_info or {}).get("is_eager"):
            yield
            return
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
        args, kwargs, _ = signature._merge(args, kwargs, None)
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
        self._with_handlers.clear()
        del self.worked


def names(signatures: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """The tasks of which messages are sent when these signatures are applied."""
    return Counter(task for signature in signatures for task in first_tasks(signature))


def first_tasks(signature: Mapping[str, Any]) -> list[str]:
    """The tasks with which a signature begins: the members of a group, the header of a chord, the head of a chain."""
    kind, header, rest = parts_of(signature)
    if kind == "chain":
        return first_tasks(rest[0]) if rest else []
    if kind == "chord":
        return [task for member in header or rest for task in first_tasks(member)]
    if kind == "group":
        return [task for member in rest for task in first_tasks(member)]
    return [signature["task"]] if signature.get("task") else []


def parts_of(signature: Mapping[str, Any]) -> tuple[str | None, list[Any], list[Any]]:
    """``"group"``, ``"chain"``, ``"chord"`` or ``None``, the header's signatures, and the others in it."""
    kind, kwargs = signature.get("subtask_type"), signature.get("kwargs") or {}
    if kind in ("chain", "group"):
        return kind, [], list(kwargs.get("tasks") or ())
    if kind == "chord":
        header, body = kwargs.get("header") or (), kwargs.get("body")
        members = (header.get("kwargs") or {}).get("tasks") or () if isinstance(header, Mapping) else header
        return kind, list(members), [body] if body else []
    return None, [], []


def _collect(signature: Mapping[str, Any], found: dict[str, str]) -> None:
    kind, header, rest = parts_of(signature)
    options = signature.get("options") or {}
    if kind is None and options.get("task_id"):
        found[options["task_id"]] = signature["task"]
    for part in [*header, *rest, *(options.get("chain") or ())]:
        _collect(part, found)
