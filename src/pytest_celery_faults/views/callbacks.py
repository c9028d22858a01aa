"""``celery_faults.callbacks``: links, errbacks and the bodies of chords."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celery.app.task import Context

from ..callbacks import BODY, ERRBACK, LINK, Call, Chord, names
from ..errors import hide_ours, safe_repr
from ..recorder import Record, Recorder, SentMessage
from .base import View, chosen
from .lost import Snapshot
from .prospects import Prospects

__tracebackhide__ = hide_ours


@dataclass(frozen=True)
class Callback:
    """A callback that ran, or that was due and did not.

    ``kind`` is ``"link"``, ``"link_error"`` or ``"chord body"``, ``task`` the callback's name. ``parent`` is the id
    of the task that it was linked to; of a chord's body that of the task of the header which was done last, and of
    the errback of a chord that of its body. ``args`` are what it got: the parent's result first, for an errback
    called in place the request, the exception and the traceback, for one that is sent the parent's id. ``at`` is
    when it started, in virtual seconds since the start of the test. ``task_id`` is ``None`` for an errback that was
    called in place, and ``error`` what such a one raised. ``why`` says of one that did not run why; its ``at`` is
    ``None``.
    """

    kind: str
    task: str
    parent: str | None
    args: Sequence[Any] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    at: float | None
    task_id: str | None = None
    error: BaseException | None = None
    why: str = ""
    #: The parent's name and ordinal in this test, as in the timeline; a chord is named by the first of its header.
    parent_label: str = ""
    #: What it was called with, in words that are the same in each run.
    said: str = ""

    def __repr__(self) -> str:
        when = f"at {self.at:g} s" if self.at is not None else f"did not run: {self.why}"
        raised = f", raised {safe_repr(self.error)}" if self.error is not None else ""
        called = f"{self.task}({self.said})" if self.at is not None else self.task
        return f"<{self.kind} {called} of {self.parent_label} {when}{raised}>"


def _short(value: object, readable: Callable[[str], str]) -> str:
    """An argument in a few words: the request of an errback has many attributes, and the traceback many lines."""
    if isinstance(value, Context):
        return f"<Context of {value.task}>"
    text = readable(safe_repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


class Callbacks(View[Callback]):
    """The callbacks of a test that ran, in the order in which they did.

    See https://docs.celeryq.dev/en/stable/userguide/canvas.html.
    """

    _name, _elements = "celery_faults.callbacks", "callbacks"

    def __init__(self, recorder: Recorder, snapshot: Callable[[], Snapshot]) -> None:
        self._recorder = recorder
        self._snapshot = snapshot
        self.begin()

    def begin(self) -> None:
        """A test begins: nothing has run."""
        # Those that ran, when the record was that long.
        self._ran: list[Callback] = []
        self._at = (0, 0)

    def _present(self) -> Sequence[Callback]:
        # Nothing about them changes without an event or a call.
        now = (len(self._recorder.callbacks.calls), len(self._recorder.timeline))
        if now != self._at:
            self._at, self._ran = now, self._that_ran()
        return self._ran

    def _that_ran(self) -> list[Callback]:
        ran = []
        for call in self._recorder.callbacks.calls:
            start = self._start(call)
            if start is not None:
                ran.append((start[1], self._callback(call, start[0])))
        return [callback for _, callback in sorted(ran, key=lambda pair: pair[0])]

    def _start(self, call: Call) -> tuple[float, int] | None:
        """When a callback started, and its place in the timeline; ``None`` when it has not."""
        if call.sent is None:
            return call.at, call.index
        attempts = self._recorder.records[call.sent.task_id].attempts
        return next(((a.started, a.index) for a in attempts if a.index > call.sent.index), None)

    def _callback(self, call: Call, at: float | None, why: str = "") -> Callback:
        readable = self._recorder.timeline.readable
        headers = None if call.sent is None else call.sent.headers
        given = self._recorder.shown.words(
            call.task, call.args, call.kwargs, headers, lambda value: _short(value, readable)
        )
        return Callback(
            kind=call.kind,
            task=call.task,
            parent=call.parent,
            args=call.args,
            kwargs=call.kwargs,
            at=at,
            task_id=None if call.sent is None else call.sent.task_id,
            error=call.error,
            why=why,
            parent_label=self._label(call.parent),
            said=", ".join(given),
        )

    def _label(self, task_id: str | None) -> str:
        if task_id is None or task_id in self._recorder.records:
            return self._recorder.timeline.label(None, task_id) or "no task"
        chords = (chord for chord in list(self._recorder.callbacks.chords.values()) if chord.body_id == task_id)
        return self._label_of_chord(next(chords, None))

    def _label_of_chord(self, chord: Chord | None) -> str:
        first = next(iter(chord.parts), None) if chord is not None else None
        return f"the chord of {self._recorder.timeline.label(None, first) or 'an unknown task'}"

    def of(self, parent: Any) -> list[Callback]:
        """Those of a parent, given as a task, its name, its id or its result."""
        is_chosen = chosen(parent, self._recorder)
        to_come = self._recorder.callbacks.to_come()
        return self._looked_at([o for o in self._present() if is_chosen(self._task_of(o.parent, to_come), o.parent)])

    def _task_of(self, task_id: str | None, to_come: Mapping[str, str]) -> str | None:
        if task_id is None:
            return None
        record = self._recorder.records.get(task_id)
        return record.task if record is not None else to_come.get(task_id)

    @property
    def links(self) -> list[Callback]:
        """The callbacks of tasks that succeeded (``link``)."""
        return self._looked_at([callback for callback in self._present() if callback.kind == LINK])

    @property
    def errbacks(self) -> list[Callback]:
        """The callbacks of tasks and chords that failed (``link_error``)."""
        return self._looked_at([callback for callback in self._present() if callback.kind == ERRBACK])

    @property
    def bodies(self) -> list[Callback]:
        """The bodies of chords."""
        return self._looked_at([callback for callback in self._present() if callback.kind == BODY])

    @property
    def missing(self) -> list[Callback]:
        """The callbacks that were due and have not run, each with the reason (``why``).

        Due is a link when its parent has succeeded, an errback when it has failed, and the body of a chord when all of
        its header is done, or when a task of it can never tell that it is.
        """
        snapshot = self._snapshot()
        missing = [
            self._callback(call, None, _why_not_run(call.sent, snapshot))
            for call in self._recorder.callbacks.calls
            if self._start(call) is None
        ]
        log = self._recorder.callbacks
        # An id may be sent again, with other callbacks: what was before that is over.
        known = Counter(
            (call.kind, call.parent, call.task)
            for call in log.calls
            if call.parent is None or call.index > log.embedded_at.get(call.parent, -1)
        )
        for record in list(self._recorder.records.values()):
            missing += self._never_called(record, known)
        for chord, why in Prospects(self._recorder, snapshot).stuck_chords():
            label = self._label_of_chord(chord)
            missing.append(Callback(BODY, chord.task, None, (), {}, None, why=why, parent_label=label))
        return missing

    def _never_called(self, record: Record, known: Counter[tuple[str, str | None, str]]) -> Iterator[Callback]:
        """The callbacks that a task owes, and of which neither a message nor a call is known."""
        embedded = self._recorder.callbacks.embedded.get(record.task_id, {})
        for kind, state, key in ((LINK, "SUCCESS", "callbacks"), (ERRBACK, "FAILURE", "errbacks")):
            sent_at = self._recorder.callbacks.embedded_at.get(record.task_id, -1)
            ends = sum(attempt.state == state and attempt.index > sent_at for attempt in record.attempts)
            for task, count in names(embedded.get(key) or ()).items():
                for _ in range(count * ends - known[kind, record.task_id, task]):
                    why = f"its parent ended with {state}, and it was never called"
                    label = self._label(record.task_id)
                    yield Callback(kind, task, record.task_id, (), {}, None, why=why, parent_label=label)

    def __repr__(self) -> str:
        missing = self.missing
        return f"<Callbacks {list(self._present())!r}{f', missing {missing!r}' if missing else ''}>"


def _why_not_run(message: SentMessage, snapshot: Snapshot) -> str:
    return snapshot.waits(message) or snapshot.refused(message) or snapshot.lost(message) or "the worker has it"
