"""``celery_faults.signals``: Celery's task and worker signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import FaultTypeError, FaultValueError, hide_ours, nearest
from ..recorder import Recorder
from ..signal_log import NAMES, SentSignal, name_of_sender
from .base import View, chosen
from .table import Table

__tracebackhide__ = hide_ours


class Signals(View[SentSignal]):
    """The signals of a test in order, those included for which the application has no receiver.

    See https://docs.celeryq.dev/en/stable/userguide/signals.html. A receiver of the application that raises is
    logged by Celery, and the others are called all the same.
    """

    _name, _elements = "celery_faults.signals", "signals"

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def _present(self) -> Sequence[SentSignal]:
        return self._recorder.signals.sent

    def where(self, name: str | None = None, *, task: Any = None, sender: Any = None) -> list[SentSignal]:
        """The signals of a name, about a task, from a sender.

        Args:
            name: such as ``"task_failure"``.
            task: a task, its name, its id or its result; of a group's result all members.
            sender: what the signal was sent by. A task stands for its name here, which is the sender of the signals
                about publishing.

        Raises:
            FaultTypeError, FaultValueError: there is no such signal, or no such task.
        """
        if name is not None and not isinstance(name, str):
            raise FaultTypeError(f"{name!r}: a signal is given by its name, such as 'task_failure'")
        if name is not None and name not in NAMES:
            raise FaultValueError(f"{name!r} is no signal{nearest(name, NAMES)} There is: {', '.join(NAMES)}")
        found = list(self._present())
        if name is not None:
            found = [signal for signal in found if signal.name == name]
        if task is not None:
            is_chosen = chosen(task, self._recorder)
            found = [signal for signal in found if is_chosen(signal.task, signal.task_id)]
        if sender is not None:
            wanted = name_of_sender(sender)
            senders = [name_of_sender(signal.sender) for signal in self._present()]
            if isinstance(wanted, str) and wanted not in [other for other in senders if isinstance(other, str)]:
                wanted = self._recorder.name_of(wanted)
            found = [signal for signal in found if _same(name_of_sender(signal.sender), wanted)]
        return self._looked_at(found)

    def of(self, task: Any) -> list[SentSignal]:
        """The signals about a task, given itself, its name, its id or its result."""
        return self.where(task=task)

    def names(self, task: Any = None) -> list[str]:
        """The names of the signals in order; of a task, given itself, its name, its id or its result, or of all."""
        found = self.where(task=task)
        readable = self._recorder.timeline.readable
        return self._recorder.tell(
            [signal.name for signal in found],
            lambda: Table.of(self._name, found, ("name", "label", "process", "at"), readable),
        )

    def count(self, name: Any = None, *, sender: Any = None, task: Any = None) -> int:
        """How many signals of a name there were, from a sender, about a task: see `where`."""
        return len(self.where(name, sender=sender, task=task))


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, str) and one == other)
