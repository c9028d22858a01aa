"""What the page is told of a test, as plain data: it crosses from xdist's workers to the controller."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from reprlib import Repr
from typing import TYPE_CHECKING, Any

from .. import timeline as happened
from ..timeline import KINDS, Event

if TYPE_CHECKING:
    from ..harness import Harness
    from ..recorder import Attempt, DeadLetter, SentMessage

#: More of one test than this is counted, not listed.
MOST_EVENTS, MOST_TASKS = 10_000, 2_000

_LONGEST_NAME, _LONGEST_DETAIL, _LONGEST_CALL, _LONGEST_TEXT = 200, 300, 400, 20_000

_ENDS = frozenset({happened.SUCCEEDED, happened.FAILED, happened.RETRIED, happened.REVOKED})

#: What a browser would not show, or would show as something else: control characters, halves of a pair, and those that
#: turn the direction of a text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")

_brief = Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80
_brief.maxlist = _brief.maxtuple = _brief.maxset = _brief.maxdict = 8


def record_of(harness: Harness) -> dict[str, Any]:
    """One test: its tasks with their attempts, its events, its letters."""
    return _Test(harness).record()


class _Test:
    """What a test's recorder knows, looked at once."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._recorder = harness.recorder
        self._readable = harness.timeline.readable
        self._events = list(harness.timeline)
        ids = dict.fromkeys(event.task_id for event in self._events if event.task_id is not None)
        #: A number for each task id, in the order of their first mention.
        self._rows = {task_id: number for number, task_id in enumerate(ids)}
        self._states = dict(zip(self._rows, self._find_states(), strict=True))
        self._shown = [event for event in self._events[:MOST_EVENTS] if self._row(event.task_id) < MOST_TASKS]
        self._places = {event.index: place for place, event in enumerate(self._shown)}

    def record(self) -> dict[str, Any]:
        letters = self._recorder.letters
        faults = Counter(e.data.get("fault", "") for e in self._events if e.kind == happened.FAULT_FIRED)
        return {
            "elapsed": self._harness.clock.elapsed,
            "real": round(self._harness.real_seconds, 4),
            "executions": self._recorder.executions,
            "states": dict(Counter(self._states.values())),
            "faults": {clean(kind, _LONGEST_NAME): count for kind, count in faults.items()},
            "letters": {clean(why, _LONGEST_NAME): n for why, n in Counter(one.reason for one in letters).items()},
            "tasks": self._tasks(),
            "dead": [self._letter(letter) for letter in letters[:MOST_TASKS]],
            "events": [
                [e.at, KINDS.index(e.kind), self._row(e.task_id), e.attempt, clean(e.detail, _LONGEST_DETAIL)]
                for e in self._shown
            ],
            "omitted": [len(self._events) - len(self._shown), max(0, len(self._rows) - MOST_TASKS)],
        }

    def _row(self, task_id: str | None) -> int:
        return self._rows.get(task_id, -1) if task_id is not None else -1

    def _place(self, index: int | None) -> int:
        return self._places.get(index, -1) if index is not None else -1

    def _find_states(self) -> Iterator[str]:
        """The state of each task's last execution; of one that was not executed what became of it."""
        revoked = {letter.task_id for letter in self._recorder.letters if letter.reason == "expired"}
        revoked |= {event.task_id for event in self._events if event.kind == happened.REVOKED}
        for task_id in self._rows:
            record = self._recorder.records.get(task_id)
            attempts = record.attempts if record is not None else []
            yield (
                clean(attempts[-1].state, _LONGEST_NAME) if attempts else "REVOKED" if task_id in revoked else "NOT RUN"
            )

    def _tasks(self) -> list[dict[str, Any]]:
        first: dict[str, SentMessage] = {}
        for message in self._recorder.sent:
            first.setdefault(message.task_id, message)
        mentioned: dict[str | None, Event] = {}
        for event in self._events:
            mentioned.setdefault(event.task_id, event)
        starts, ends = self._ends_of_attempts()
        tasks = []
        for task_id, state in islice(self._states.items(), MOST_TASKS):
            event, sent, record = mentioned[task_id], first.get(task_id), self._recorder.records.get(task_id)
            tasks.append(
                {
                    "label": clean(event.label, _LONGEST_NAME),
                    "name": clean(event.task or "", _LONGEST_NAME),
                    "parent": self._row(sent.parent) if sent is not None else -1,
                    "sent": self._place(sent.index) if sent is not None else -1,
                    "call": self._call(sent.task, sent.args, sent.kwargs, sent.headers) if sent is not None else "",
                    "queue": clean(sent.queue, _LONGEST_NAME) if sent is not None else "",
                    "state": state,
                    "attempts": [
                        self._attempt(attempt, starts.get(key), ends.get(key))
                        for attempt in (record.attempts if record is not None else ())
                        # A worker that several tests have may have ended it in one before.
                        if attempt.ended is None or attempt.ended >= 0
                        for key in [(task_id, attempt.number)]
                    ],
                }
            )
        return tasks

    def _ends_of_attempts(self) -> tuple[dict[Any, int], dict[Any, int]]:
        """At which events attempts begin and end, by task id and number."""
        starts: dict[Any, int] = {}
        ends: dict[Any, int] = {}
        latest: dict[str | None, Any] = {}
        for event in self._events:
            key = (event.task_id, event.attempt)
            if event.kind == happened.STARTED:
                starts[key] = event.index
                latest[event.task_id] = key
            elif event.kind == happened.KILLED and event.task_id in latest:
                ends.setdefault(latest[event.task_id], event.index)
            elif event.kind in _ENDS:
                # A revoked task has its event without a number, also one that never ran.
                ends.setdefault(key if event.attempt else latest.get(event.task_id), event.index)
        return starts, ends

    def _attempt(self, attempt: Attempt, start: int | None, end: int | None) -> list[Any]:
        return [
            attempt.number,
            max(0.0, attempt.started),
            attempt.ended,
            self._place(start),
            self._place(end),
            clean(attempt.state, _LONGEST_NAME),
            self._exception(attempt.exception),
            _seconds(attempt.planned_delay),
            attempt.redelivered,
        ]

    def _letter(self, fact: DeadLetter) -> list[Any]:
        from ..views.letters import Letter

        letter = Letter(fact)
        return [
            letter.at,
            self._row(letter.task_id),
            clean(letter.reason, _LONGEST_NAME),
            letter.route,
            clean(letter.queue, _LONGEST_NAME),
            self._exception(letter.exception),
            self._call(letter.task, letter.args, letter.kwargs, letter.headers),
        ]

    def _call(
        self, task: str | None, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]
    ) -> str:
        """Arguments as in a call."""
        words = self._recorder.shown.words(task, args, kwargs, headers, _repr)
        return clean(self._readable(", ".join(words[:20])), _LONGEST_CALL)

    def _exception(self, exception: BaseException | None) -> str:
        return "" if exception is None else clean(self._readable(_repr(exception)), _LONGEST_DETAIL)


def _seconds(value: Any) -> float | None:
    """What JSON can say of a delay; an application may ask for any."""
    try:
        return float(value) if value is not None and math.isfinite(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _repr(value: object) -> str:
    """A short one, also of what an application made so that it raises."""
    try:
        return _brief.repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr() raises {type(error).__name__}>"


def clean(text: str, longest: int = _LONGEST_TEXT) -> str:
    """A text that says what is in it, and not more than that much of it: the beginning, and of a long one the end."""
    if len(text) > longest:
        tail = longest // 3 if longest >= _LONGEST_TEXT else 0
        text = f"{text[: longest - tail]}… [{len(text) - longest} characters left out]{text[-tail:] if tail else ''}"
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)
