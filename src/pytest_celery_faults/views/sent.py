"""``celery_faults.sent``: every task message that was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import hide_ours
from ..recorder import Recorder, SentMessage
from .base import View, chosen

__tracebackhide__ = hide_ours


class Sent(View[SentMessage]):
    """The published task messages in order, retries included."""

    _name, _elements = "celery_faults.sent", "messages"

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def _present(self) -> Sequence[SentMessage]:
        return self._recorder.sent

    def of(self, task: Any) -> list[SentMessage]:
        """Those of a task, given itself, its name, its id or its result.

        ``assert not celery_faults.sent.of(task)``: it was not sent.

        Raises:
            FaultValueError: no app has a task of that name, and none was sent.
        """
        is_chosen = chosen(task, self._recorder)
        return self._looked_at([m for m in self._recorder.sent if is_chosen(m.task, m.task_id)])
