"""The faults that can be injected, as plain data: no I/O, no pytest, no Celery."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

from .errors import FaultTypeError, FaultValueError, hide_ours, nearest

__tracebackhide__ = hide_ours

LIMITS = ("time_limit", "soft_time_limit")


def check_seconds(value: object, what: str) -> float:
    """A length of time in seconds, or a clear error."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FaultTypeError(f"{what} takes seconds as a number, not {value!r}")
    if math.isnan(value) or math.isinf(value) or value < 0:
        raise FaultValueError(f"{what} takes seconds from 0 up, not {value!r}")
    return value


@dataclass(frozen=True)
class Sleep:
    """The body takes longer: ``Sleep(30)`` thirty seconds, ``Sleep(beyond="time_limit")`` one more than that limit.

    A task without the limit in question does not match. Time limits are those of
    https://docs.celeryq.dev/en/stable/userguide/workers.html#time-limits.
    """

    seconds: float | None = None
    beyond: Literal["time_limit", "soft_time_limit"] | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.beyond is None):
            raise FaultTypeError('Sleep takes seconds or beyond="time_limit", one of the two: Sleep(30)')
        if self.seconds is not None:
            check_seconds(self.seconds, "Sleep()")
        elif self.beyond not in LIMITS:
            raise FaultValueError(
                f"Sleep(beyond={self.beyond!r}): choose one of {', '.join(LIMITS)}{nearest(str(self.beyond), LIMITS)}"
            )

    def __repr__(self) -> str:
        return f"Sleep({self.seconds:g})" if self.seconds is not None else f"Sleep(beyond={self.beyond!r})"


@dataclass(frozen=True)
class Raise:
    """The body raises an exception; what the test wrote as an exception class or instance."""

    exception: BaseException | type[BaseException]

    def __post_init__(self) -> None:
        if isinstance(self.exception, type):
            try:
                self.exception()
            except Exception as error:
                name = self.exception.__name__
                raise FaultTypeError(
                    f"{name} cannot be made without arguments ({error}): pass an instance, inject({name}(...))"
                ) from None

    def make(self) -> BaseException:
        """A fresh exception for one firing."""
        if isinstance(self.exception, type):
            return self.exception()
        fresh = copy.copy(self.exception)
        fresh.__traceback__ = None
        return fresh

    def __repr__(self) -> str:
        if isinstance(self.exception, type):
            return self.exception.__name__
        return repr(self.exception)


Fault = Sleep | Raise


def kind_of(fault: Fault) -> str:
    """The name under which a fault is counted: that of its class, or of the exception's."""
    if isinstance(fault, Raise):
        exception = fault.exception
        return exception.__name__ if isinstance(exception, type) else type(exception).__name__
    return type(fault).__name__


def as_fault(value: object) -> Fault:
    """What a test wrote as a fault, or an error that says what can be."""
    if isinstance(value, Sleep):
        return value
    if isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException)):
        return Raise(value)
    if value is Sleep:
        raise FaultTypeError("Sleep needs its seconds: inject(Sleep(30))")
    raise FaultTypeError(f"inject() takes an exception class, an exception or a fault such as Sleep(30), not {value!r}")
