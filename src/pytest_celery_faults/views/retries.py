"""``retry_recorder``: attempts, and the delays between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import AmbiguousHistoryError, hide_ours, nearest
from ..recorder import Attempt, Record, Recorder

__tracebackhide__ = hide_ours


class RetryHistory:
    """The attempts of one task id."""

    def __init__(self, record: Record, label: str) -> None:
        self._record = record
        self._label = label

    @property
    def task_id(self) -> str:
        return self._record.task_id

    @property
    def attempts(self) -> Sequence[Attempt]:
        """Each execution, redeliveries included."""
        return list(self._record.attempts)

    @property
    def _retries(self) -> list[Attempt]:
        return [attempt for attempt in self._record.attempts if attempt.planned_delay is not None]

    @property
    def count(self) -> int:
        """How often the task was retried: retries, not executions."""
        return len(self._retries)

    @property
    def delays(self) -> list[float]:
        """What each retry asked for, in seconds."""
        return [attempt.planned_delay for attempt in self._retries if attempt.planned_delay is not None]

    @property
    def waits(self) -> list[float]:
        """What each retry got, in seconds: from the publishing of its message to the next start.

        It is longer than the delay when the worker was busy. A retry that has not started again has none.
        """
        waits = []
        for attempt in self._retries:
            again = attempt.retries + 1
            started = next((a.started for a in self._record.attempts if a.retries == again), None)
            published = self._record.published.get(again)
            if started is not None and published is not None:
                waits.append(round(started - published, 6))
        return waits

    @property
    def exceptions(self) -> list[BaseException]:
        """The exception of each attempt that raised one."""
        return [attempt.exception for attempt in self._record.attempts if attempt.exception is not None]

    @property
    def exhausted(self) -> bool:
        """Whether a retry was asked for and refused, because ``max_retries`` was reached."""
        return any(attempt.retry_refused for attempt in self._record.attempts)

    def __repr__(self) -> str:
        end = self._record.attempts[-1].state if self._record.attempts else "not started"
        return f"<RetryHistory of {self._label}: {self.count} retries, delays {self.delays}, {end}>"


class RetryRecorder:
    """All retries of a test: the fixture ``retry_recorder``.

    The attributes of a history stand on the recorder itself while only one task id was retried.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def of(self, which: Any) -> RetryHistory:
        """The history of a task (or its name), when it was sent once, of an ``AsyncResult`` or of a task id.

        Raises:
            AmbiguousHistoryError: that task was sent more than once, or never.
        """
        records = self._recorder.records
        task_id = getattr(which, "id", None) if not hasattr(which, "delay") else None
        name = which if isinstance(which, str) else getattr(which, "name", None)
        if task_id is None and isinstance(which, str) and which in records:
            task_id = which
        if task_id is not None:
            if task_id not in records:
                raise AmbiguousHistoryError(f"no task with the id {task_id!r} was sent in this test")
            return self._history(records[task_id])
        found = [record for record in records.values() if record.task == name]
        if not found:
            names = sorted({record.task for record in records.values()})
            raise AmbiguousHistoryError(
                f"no task {name!r} was sent in this test{nearest(str(name), names)} Sent: {', '.join(names) or 'none'}"
            )
        return self._only(found, f"the task {name!r} was sent {len(found)} times")

    def _only(self, found: list[Record], problem: str) -> RetryHistory:
        if len(found) == 1:
            return self._history(found[0])
        label = self._recorder.timeline.label
        choices = ", ".join(f"{label(r.task, r.task_id)} ({r.task_id})" for r in found)
        raise AmbiguousHistoryError(f"{problem}: ask retry_recorder.of() with the result or id of one of {choices}")

    def _history(self, record: Record) -> RetryHistory:
        return RetryHistory(record, self._recorder.timeline.label(record.task, record.task_id))

    @property
    def histories(self) -> list[RetryHistory]:
        """A history for each task id, in the order in which they were first seen."""
        return [self._history(record) for record in self._recorder.records.values()]

    def _sole(self) -> RetryHistory | None:
        retried = [r for r in self._recorder.records.values() if any(a.planned_delay is not None for a in r.attempts)]
        if not retried:
            executed = [record for record in self._recorder.records.values() if record.attempts]
            return self._history(executed[0]) if len(executed) == 1 else None
        return self._only(retried, f"{len(retried)} tasks were retried")

    @property
    def count(self) -> int:
        """Retries of the one task that was retried; 0 when none was."""
        sole = self._sole()
        return sole.count if sole is not None else 0

    @property
    def delays(self) -> list[float]:
        sole = self._sole()
        return sole.delays if sole is not None else []

    @property
    def waits(self) -> list[float]:
        sole = self._sole()
        return sole.waits if sole is not None else []

    @property
    def attempts(self) -> Sequence[Attempt]:
        sole = self._sole()
        return sole.attempts if sole is not None else []

    @property
    def exceptions(self) -> list[BaseException]:
        sole = self._sole()
        return sole.exceptions if sole is not None else []

    @property
    def exhausted(self) -> bool:
        sole = self._sole()
        return sole.exhausted if sole is not None else False

    def __repr__(self) -> str:
        retried = [history for history in self.histories if history.count]
        return f"<RetryRecorder: {', '.join(map(repr, retried)) or 'no retries'}>"
