"""``celery_faults.sent``: every task message that was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from ..errors import element, hide_ours
from ..recorder import Recorder, SentMessage

__tracebackhide__ = hide_ours


class Sent(Sequence[SentMessage]):
    """The published task messages in order, retries included."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._messages = recorder.sent

    def of(self, task: Any) -> list[SentMessage]:
        """Those of a task, given itself or its name. ``assert not celery_faults.sent.of(task)``: it was not sent."""
        name = self._recorder.name_of(task)
        return [message for message in self._messages if message.task == name]

    @overload
    def __getitem__(self, index: int) -> SentMessage: ...
    @overload
    def __getitem__(self, index: slice) -> list[SentMessage]: ...
    def __getitem__(self, index: int | slice) -> SentMessage | list[SentMessage]:
        return element(self._messages, index, "celery_faults.sent has", "messages")

    def __len__(self) -> int:
        return len(self._messages)

    def __repr__(self) -> str:
        return f"<Sent {self._messages!r}>"
