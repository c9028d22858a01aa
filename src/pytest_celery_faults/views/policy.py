"""The retry schedule that a task's own settings promise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from celery.utils.time import get_exponential_backoff_interval

from ..errors import FaultTypeError, FaultValueError, element, hide_ours

__tracebackhide__ = hide_ours

#: Where Celery caps an exponential backoff when `retry_backoff_max` is not set.
SILENT_CAP = 600


@dataclass(frozen=True, eq=False)
class Bounds:
    """What a retry may ask for, in seconds; without jitter ``low`` and ``high`` are the same.

    Equal to a number when both are that number, and to a pair of numbers: ``policy[0] == 1``, ``policy[0] == (0, 1)``.
    """

    low: float
    high: float

    def __contains__(self, seconds: object) -> bool:
        return isinstance(seconds, (int, float)) and self.low <= seconds <= self.high

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (int, float)):
            return self.low == self.high == other
        if isinstance(other, Bounds):
            other = (other.low, other.high)
        return (self.low, self.high) == other

    def __hash__(self) -> int:
        return hash((self.low, self.high))

    def __repr__(self) -> str:
        return f"{self.high:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


class RetryPolicy(Sequence[Bounds]):
    """The delays that a task's settings promise, in seconds, retry by retry: as many as ``max_retries``.

    The settings are ``default_retry_delay``, ``retry_backoff`` (and its factor), ``retry_backoff_max``,
    ``retry_jitter``, ``retry_kwargs`` and ``max_retries``, wherever they come from: the task's options, its base class
    or the configuration. See https://docs.celeryq.dev/en/stable/userguide/tasks.html#retrying. A cap that none of them
    sets is not promised: Celery's own of 600 s is not part of the schedule.
    """

    def __init__(self, task: Any) -> None:
        retry_kwargs = getattr(task, "retry_kwargs", None) or {}
        limit = retry_kwargs.get("max_retries")
        countdown = retry_kwargs.get("countdown")
        backoff = float(getattr(task, "retry_backoff", False) or 0)
        #: The greatest number of retries; ``None``: no end.
        self.max_retries: int | None = task.max_retries if limit is None else limit
        #: The factor of an exponential backoff in seconds, as Celery takes it: a whole number. ``None`` without one.
        self.backoff: int | None = int(max(1.0, backoff)) if backoff else None
        #: The cap in seconds that the task sets; ``None`` when it sets none.
        cap = getattr(task, "retry_backoff_max", None)
        self.backoff_max: int | None = None if cap is None else int(cap)
        #: Whether each delay is drawn from 0 up to that of the backoff.
        self.jitter: bool = self.backoff is not None and bool(getattr(task, "retry_jitter", True))
        #: The delay in seconds of each retry without a backoff.
        self.delay: float = task.default_retry_delay if countdown is None else countdown

    def of_retry(self, number: int) -> Bounds:
        """The bounds of the n-th retry, counted from 1, whether or not ``max_retries`` allows it."""
        if isinstance(number, bool) or not isinstance(number, int):
            raise FaultTypeError(f"of_retry({number!r}): a whole number from 1 up")
        if number < 1:
            raise FaultValueError(f"of_retry({number!r}): a whole number from 1 up")
        if self.backoff is None:
            return Bounds(self.delay, self.delay)
        retries = number - 1
        uncapped = self.backoff * 2**retries
        cap = uncapped if self.backoff_max is None else self.backoff_max
        highest = get_exponential_backoff_interval(self.backoff, retries, cap)
        return Bounds(0 if self.jitter else highest, highest)

    def __len__(self) -> int:
        if self.max_retries is None:
            raise FaultValueError("max_retries is None, so the schedule has no end: ask of_retry(number)")
        return self.max_retries

    @overload
    def __getitem__(self, index: int) -> Bounds: ...
    @overload
    def __getitem__(self, index: slice) -> list[Bounds]: ...
    def __getitem__(self, index: int | slice) -> Bounds | list[Bounds]:
        endless = self.max_retries is None
        if isinstance(index, slice):
            ends = all(end is not None and end >= 0 for end in (index.start or 0, index.stop))
            length = index.stop if endless and ends else len(self)
            return [self.of_retry(number + 1) for number in range(*index.indices(length))]
        if endless and index >= 0:
            return self.of_retry(index + 1)
        number: int = element(range(len(self)), index, "the policy promises", "retries")
        return self.of_retry(number + 1)

    def __iter__(self) -> Iterator[Bounds]:
        number = 0
        while self.max_retries is None or number < self.max_retries:
            number += 1
            yield self.of_retry(number)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RetryPolicy):
            return vars(self) == vars(other)
        if isinstance(other, (list, tuple)):
            return list(self) == list(other)
        return NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __str__(self) -> str:
        if self.backoff is None:
            said = [f"{self.delay:g} s each time"]
        else:
            cap = "not set" if self.backoff_max is None else f"{self.backoff_max:g}"
            said = [f"retry_backoff={self.backoff}", f"retry_backoff_max={cap}", f"retry_jitter={self.jitter}"]
        return ", ".join([*said, f"max_retries={self.max_retries}"])

    def __repr__(self) -> str:
        return f"<RetryPolicy {self}>"
