"""``retry_recorder``: attempts, and the delays between them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

from ..errors import (
    AmbiguousHistoryError,
    FaultTypeError,
    FaultValueError,
    PolicyNotFollowedError,
    hide_ours,
    nearest,
    safe_repr,
)
from ..recorder import Attempt, Record, Recorder
from .policy import SILENT_CAP, RetryPolicy
from .table import Table

__tracebackhide__ = hide_ours

T = TypeVar("T")


class RetryHistory:
    """The attempts of one task id. ``str()`` is a table of them."""

    def __init__(self, record: Record, recorder: Recorder) -> None:
        self._record = record
        self._recorder = recorder
        self._label = recorder.timeline.label(record.task, record.task_id)

    @property
    def task_id(self) -> str:
        return self._record.task_id

    @property
    def attempts(self) -> Sequence[Attempt]:
        """Each execution, redeliveries included."""
        attempts = list(self._record.attempts)
        return self._recorder.tell(
            list(attempts), lambda with_states=False: self.as_table(attempts, with_states=with_states)
        )

    @property
    def _retried(self) -> list[Attempt]:
        return [attempt for attempt in self._record.attempts if attempt.planned_delay is not None]

    @property
    def count(self) -> int:
        """How often the task was retried: retries, not executions."""
        return len(self._retried)

    @property
    def delays(self) -> list[float]:
        """What each retry asked for, in seconds."""
        attempts = [attempt for attempt in self._retried if attempt.planned_delay is not None]
        return self._told([a.planned_delay for a in attempts if a.planned_delay is not None], attempts)

    @property
    def waits(self) -> list[float]:
        """What each retry got, in seconds: from the publishing of its message to the next start.

        It is longer than the delay when the worker was busy. A retry that has not started again has none.
        """
        waits = [(attempt, self._wait_after(attempt)) for attempt in self._retried]
        return self._told(
            [wait for _, wait in waits if wait is not None], [attempt for attempt, wait in waits if wait is not None]
        )

    def _told(self, values: list[T], attempts: Sequence[Attempt]) -> list[T]:
        """Remember which attempts these values are from, so that a failing comparison can show all of them."""
        return self._recorder.tell(values, lambda: self.as_table(attempts))

    def _wait_after(self, attempt: Attempt) -> float | None:
        """The n-th retry with one number waits from the n-th publishing of the next number to the n-th start of it.

        There is more than one where a message was delivered again after its retry had been published.
        """
        again = attempt.retries + 1
        position = [a for a in self._retried if a.retries == attempt.retries].index(attempt)
        published = self._record.published.get(again, [])
        started = [a for a in self._record.attempts if a.retries == again]
        for later in reversed(started[1:]):
            if later.redelivered and len(started) > len(published):
                started.remove(later)
        if position >= min(len(published), len(started)):
            return None
        return round(started[position].started - published[position], 6)

    @property
    def exceptions(self) -> list[BaseException]:
        """The exception of each attempt that raised one."""
        attempts = [attempt for attempt in self._record.attempts if attempt.exception is not None]
        return self._told([a.exception for a in attempts if a.exception is not None], attempts)

    @property
    def exhausted(self) -> bool:
        """Whether a retry was asked for and refused, because ``max_retries`` was reached."""
        return any(attempt.retry_refused for attempt in self._record.attempts)

    @property
    def policy(self) -> RetryPolicy:
        """The schedule that the task's own settings promise.

        Raises:
            FaultValueError: the worker does not know the task, so there are no settings.
        """
        task = self._recorder.tasks().get(self._record.task)
        if task is None:
            raise FaultValueError(f"no application of this test has the task {self._record.task!r}: it has no policy")
        return RetryPolicy(task)

    def assert_follows_policy(self) -> None:
        """Compare what each retry asked for with the policy.

        Raises:
            PolicyNotFollowedError: a delay is another one or out of the bounds of the jitter, Celery capped it at 600 s
                although ``retry_backoff_max`` is not set, there were more retries than ``max_retries``, or it gave up
                before; or nothing was retried, so that there is nothing to compare.
        """
        policy = self.policy
        if not self._retried and not self.exhausted:
            raise PolicyNotFollowedError(f"{self._label} was not retried: there is nothing to compare with its policy")
        remarks = {attempt.number: _remark(attempt, policy) for attempt in self._record.attempts}
        if any(remarks.values()):
            raise PolicyNotFollowedError(
                f"{self._label} does not follow its policy: {policy}\n{self.table(policy, remarks)}"
            )

    def table(self, policy: RetryPolicy | None = None, remarks: dict[int, str] | None = None) -> str:
        """The attempts, a line each; with a policy also what it promises."""
        # A remark is about an attempt by its number, which counts from 1.
        at_rows = {number - 1: remark for number, remark in (remarks or {}).items() if remark}
        return "\n".join(line.text for line in self.as_table((), policy).lines(at_rows))

    def as_table(
        self, attempts: Sequence[Attempt], policy: RetryPolicy | None = None, with_states: bool = False
    ) -> Table:
        """All attempts, a row each, where it is about values of these."""
        head = ["attempt", "started at", "exception", "planned delay", "real delay"]
        if policy is not None:
            head.insert(4, "promised")
        if with_states:
            head.insert(1, "state")
        rows = []
        for attempt in self._record.attempts:
            delay = attempt.planned_delay
            wait = self._wait_after(attempt) if delay is not None else None
            exception = "-" if attempt.exception is None else safe_repr(attempt.exception)
            exception = self._recorder.timeline.readable(exception)
            exception = textwrap.shorten(exception, 40, placeholder="...")
            row = [str(attempt.number), _seconds(attempt.started), exception, _seconds(delay), _seconds(wait)]
            if policy is not None:
                row.insert(4, f"{policy.of_retry(attempt.retries + 1)} s" if delay is not None else "-")
            if with_states:
                row.insert(1, attempt.state)
            rows.append(row)
        return Table(self._label, head, rows, [attempt.number - 1 for attempt in attempts])

    def __str__(self) -> str:
        return f"{self._label}\n{self.table()}"

    def __repr__(self) -> str:
        end = self._record.attempts[-1].state if self._record.attempts else "not started"
        return f"<RetryHistory of {self._label}: {self.count} retries, delays {self.delays}, {end}>"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:g} s"


def _remark(attempt: Attempt, policy: RetryPolicy) -> str:
    """What is wrong with the retry that an attempt asked for."""
    delay, limit = attempt.planned_delay, policy.max_retries
    if attempt.retry_refused and (limit is None or attempt.retries < limit):
        return f"gave up after {attempt.retries} retries"
    if delay is None:
        return ""
    if limit is not None and attempt.retries >= limit:
        return f"retry {attempt.retries + 1} of {limit}"
    promised = policy.of_retry(attempt.retries + 1)
    capped = policy.backoff is not None and policy.backoff_max is None and promised.high > SILENT_CAP
    if capped and (delay == SILENT_CAP or (policy.jitter and delay < SILENT_CAP)):
        return f"Celery's silent cap of {SILENT_CAP} s: set retry_backoff_max"
    if delay in promised:
        return ""
    if policy.backoff is not None:
        return "not what retry_backoff says; self.retry() by hand does not look at it"
    return "another countdown than the task's settings say"


class RetryRecorder:
    """All retries of a test: the fixture ``retry_recorder``.

    The attributes of a history stand on the recorder itself while only one task id was retried.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def of(self, which: Any) -> RetryHistory:
        """The history of a task or its name, of an ``AsyncResult`` or of a task id.

        A task (or name) has to be sent once, or retried as one id only.

        Raises:
            AmbiguousHistoryError: more than one id could be meant, or none.
        """
        records = self._recorder.records
        task_id = getattr(which, "id", None) if not hasattr(which, "delay") else None
        name = which if isinstance(which, str) else getattr(which, "name", None)
        if task_id is None and isinstance(which, str) and which in records:
            task_id = which
        if task_id is None and not isinstance(name, str):
            raise FaultTypeError(f"{which!r} is neither a task, the name of one, a result nor the id of one")
        if task_id is not None:
            if task_id not in records:
                raise AmbiguousHistoryError(f"no task with the id {task_id!r} was sent in this test")
            return self._history(records[task_id])
        found = [record for record in list(records.values()) if record.task == name]
        if not found:
            names = sorted({record.task for record in list(records.values())})
            raise AmbiguousHistoryError(
                f"no task {name!r} was sent in this test{nearest(str(name), names)} Sent: {', '.join(names) or 'none'}"
            )
        return self._only(found, f"the task {name!r} was sent {len(found)} times")

    def _only(self, found: list[Record], problem: str) -> RetryHistory:
        found = [record for record in found if record.was_retried] or found
        if len(found) == 1:
            return self._history(found[0])
        label = self._recorder.timeline.label
        choices = ", ".join(f"{label(r.task, r.task_id)} ({r.task_id})" for r in found)
        raise AmbiguousHistoryError(f"{problem}: ask retry_recorder.of() with the result or id of one of {choices}")

    def _history(self, record: Record) -> RetryHistory:
        return RetryHistory(record, self._recorder)

    @property
    def histories(self) -> list[RetryHistory]:
        """A history for each task id, in the order in which they were first seen."""
        return [self._history(record) for record in list(self._recorder.records.values())]

    def _sole(self) -> RetryHistory | None:
        """The history of the one task id that was retried, or that was executed at all; ``None`` when none was."""
        executed = [record for record in list(self._recorder.records.values()) if record.attempts]
        if not executed:
            return None
        retried = sum(record.was_retried for record in executed)
        return self._only(executed, f"{retried or len(executed)} tasks were {'retried' if retried else 'executed'}")

    def _sole_retried(self) -> RetryHistory | None:
        retried = [record for record in list(self._recorder.records.values()) if record.was_retried]
        return self._only(retried, f"{len(retried)} tasks were retried") if retried else None

    @property
    def count(self) -> int:
        """Retries of the one task that was retried; 0 when none was."""
        sole = self._sole_retried()
        return sole.count if sole is not None else 0

    @property
    def delays(self) -> list[float]:
        sole = self._sole_retried()
        return sole.delays if sole is not None else []

    @property
    def waits(self) -> list[float]:
        sole = self._sole_retried()
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
        sole = self._sole_retried()
        return sole.exhausted if sole is not None else False

    @property
    def policy(self) -> RetryPolicy:
        """The schedule that the settings of the one task promise.

        Raises:
            AmbiguousHistoryError: no task was executed, or more than one could be meant.
        """
        return self._some().policy

    def assert_follows_policy(self) -> None:
        """Compare the retries of the one task that was retried with its policy; see `RetryHistory`."""
        self._some().assert_follows_policy()

    def _some(self) -> RetryHistory:
        sole = self._sole()
        if sole is None:
            raise AmbiguousHistoryError("no task was executed in this test")
        return sole

    def __repr__(self) -> str:
        retried = [history for history in self.histories if history.count]
        return f"<RetryRecorder: {', '.join(map(repr, retried)) or 'no retries'}>"
