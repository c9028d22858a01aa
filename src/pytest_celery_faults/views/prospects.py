"""What is still to be sent and by whom, the rest of chains and bodies of chords, and what nothing can send any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..callbacks import Chord, parts_of
from ..errors import hide_ours
from ..recorder import Recorder, SentMessage
from .lost import ENDS, Snapshot

__tracebackhide__ = hide_ours


@dataclass(frozen=True)
class _Sender:
    """Who sends a task that is to come: one of these ids when it is done, or a chord when all of its header is."""

    ids: tuple[str, ...] = ()
    group: str | None = None


class Prospects:
    """What may still be sent at one moment. Where Celery says ``PENDING`` for ever, this knows why."""

    def __init__(self, recorder: Recorder, snapshot: Snapshot) -> None:
        self._recorder = recorder
        self._snapshot = snapshot
        self._log = recorder.callbacks
        self._last = {message.task_id: message for message in recorder.sent}
        self._senders: dict[str, _Sender] = {}
        #: The names of the tasks that are to be sent when others are done, by id.
        self.names: dict[str, str] = self._log.to_come()
        # The parts of each chord's header, sent or not, by the id of its group.
        self._parts: dict[str, dict[str, None]] = {
            group: dict(chord.parts) for group, chord in list(self._log.chords.items())
        }
        self._asked: set[str] = set()
        for task_id, embedded in list(self._log.embedded.items()):
            sender = _Sender((task_id,))
            for signature in reversed(embedded.get("chain") or ()):
                sender = self._plan(signature, sender)
        for chord in list(self._log.chords.values()):
            self._plan(chord.body, _Sender(group=chord.group))

    def _plan(self, signature: Mapping[str, Any], sender: _Sender) -> _Sender:
        """Note who sends the tasks of a signature; returns who sends what comes after it."""
        kind, header, rest = parts_of(signature)
        options = signature.get("options") or {}
        if kind == "chain":
            for step in rest:
                sender = self._plan(step, sender)
        elif kind == "group":
            sender = _Sender(tuple(task_id for member in rest for task_id in self._plan(member, sender).ids))
        elif kind == "chord":
            sender = _Sender(tuple(task_id for member in header for task_id in self._plan(member, sender).ids))
            for body in rest:
                sender = self._plan(body, sender)
        else:
            task_id, group = options.get("task_id"), options.get("group_id")
            if not task_id:
                return sender
            self._senders.setdefault(task_id, sender)
            if options.get("chord") and group:
                self._parts.setdefault(group, {})[task_id] = None
            sender = _Sender((task_id,))
        for step in reversed(options.get("chain") or ()):
            sender = self._plan(step, sender)
        return sender

    def stuck_chords(self) -> Iterator[tuple[Chord, str]]:
        """The chords whose body nothing can send any more, each with the reason."""
        for chord in list(self._log.chords.values()):
            why = self._why_stuck(chord.group)
            if why:
                yield chord, why

    def _why_stuck(self, group: str) -> str:
        """Why nothing can send the body of a chord any more; nothing when it was sent, failed, or may still come."""
        chord = self._log.chords.get(group)
        if chord is None or chord.over or group in self._asked:
            return ""
        self._asked.add(group)
        try:
            for part in self._parts.get(group, {}):
                if part not in chord.returned:
                    why = self._why_not_told(part)
                    if why:
                        return why
        finally:
            self._asked.discard(group)
        size = self._log.sizes.get(group)
        if size is not None and len(chord.returned) >= size:
            return "its header is done, and it was never sent"
        return ""

    def _why_not_told(self, task_id: str) -> str:
        """Why a part of a header will never tell its chord that it is done; nothing when it may still do so."""
        message = self._last.get(task_id)
        if message is None:
            why = self.why_never_sent(task_id)
            return f"{self.names.get(task_id, 'a task')} of its header will not be sent: {why}" if why else ""
        label = self._label(message)
        lost = self._snapshot.lost(message)
        if lost:
            return "" if self.comes_again(task_id) else f"{label} of its header is lost: {lost}"
        end = self._end_of(message)
        return f"{label} of its header {end}, and the chord was never told" if end else ""

    def why_never_sent(self, task_id: str) -> str:
        """Why nothing can send a task any more that is to come; nothing when it may still come."""
        sender = self._senders.get(task_id)
        if sender is None:
            return ""
        if sender.group is not None:
            chord = self._log.chords[sender.group]
            if chord.over:
                return f"the chord of {self._of_chord(chord)} failed"
            return self._why_stuck(sender.group)
        for before in sender.ids:
            message = self._last.get(before)
            if message is None:
                why = self.why_never_sent(before)
            elif self._snapshot.lost(message):
                lost = f"{self._label(message)} is lost: {self._snapshot.lost(message)}"
                why = "" if self.comes_again(before) else lost
            else:
                end = self._end_of(message)
                why = f"{self._label(message)} {end}, and it was never sent" if end else ""
            if why:
                return why
        return ""

    def comes_again(self, task_id: str) -> bool:
        """Whether what has sent a task is to be worked once more, and will send it once more."""
        sender = self._senders.get(task_id)
        before = [self._last[id_] for id_ in sender.ids if id_ in self._last] if sender is not None else []
        return any(self._snapshot.waits(message) for message in before)

    def _end_of(self, message: SentMessage) -> str:
        """How a message ended, when nothing more will come of it by itself."""
        snapshot = self._snapshot
        if snapshot.waits(message) or snapshot.is_worked(message):
            return ""
        attempts = snapshot.attempts(message)
        if not attempts:
            refused = snapshot.refused(message)
            return f"did not run: {refused}" if refused else ""
        last = attempts[-1]
        if last.ended is None or last.state == "RETRY":
            return ""
        return f"ended with {last.state}" if last.state in ENDS else "stored its result"

    def _label(self, message: SentMessage) -> str:
        return self._recorder.timeline.label(message.task, message.task_id)

    def _of_chord(self, chord: Chord) -> str:
        return self._recorder.timeline.label(None, next(iter(chord.parts), None)) or "an unknown task"
