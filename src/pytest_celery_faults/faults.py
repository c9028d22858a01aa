"""The faults that can be injected, as plain data: no I/O, no pytest, no Celery."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .errors import FaultTypeError, FaultValueError, hide_ours, nearest, safe_repr

__tracebackhide__ = hide_ours

LIMITS = ("time_limit", "soft_time_limit")

#: The points of a task's life, in Celery's own order. A fault can also strike at the call of a named function.
POINTS = ("publish", "receive", "start", "return", "store", "stored", "ack")
FUNCTION = "function"


def check_seconds(value: object, what: str) -> float:
    """A length of time in seconds, or a clear error."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FaultTypeError(f"{what} takes seconds as a number, not {value!r}")
    if math.isnan(value) or math.isinf(value) or value < 0:
        raise FaultValueError(f"{what} takes seconds from 0 up, not {value!r}")
    return value


class Fault:
    """What can be injected: where it can strike, the first of its points by default.

    A subclass of another plugin's says what it does in ``strike``, which is called at that point of the execution, in
    the process where that point is reached.
    """

    points: ClassVar[tuple[str, ...]] = ("start", "return", FUNCTION)

    @property
    def kind(self) -> str:
        """The name under which it is counted."""
        return type(self).__name__

    def strike(self, execution: object) -> None:
        """What happens, for faults that this plugin does not know itself."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does: it has no method `strike`")


@dataclass(frozen=True)
class Sleep(Fault):
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
class Raise(Fault):
    """The body raises an exception; what the test wrote as an exception class or instance."""

    exception: BaseException | type[BaseException]

    def __post_init__(self) -> None:
        if isinstance(self.exception, type):
            try:
                self.exception()
            except (Exception, SystemExit) as error:
                name = self.exception.__name__
                raise FaultTypeError(
                    f"{name} cannot be made without arguments ({error}): pass an instance, inject({name}(...))"
                ) from None

    @property
    def kind(self) -> str:
        return self.exception.__name__ if isinstance(self.exception, type) else type(self.exception).__name__

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
        return safe_repr(self.exception)


@dataclass(frozen=True)
class Crash(Fault):
    """The pool process is killed there, as by SIGKILL: nothing of the task's code runs any more.

    What becomes of the task is said by ``acks_late``, ``task_reject_on_worker_lost`` and, from Celery 5.7,
    ``retry_on_worker_lost``; see https://docs.celeryq.dev/en/stable/userguide/configuration.html.
    """

    points: ClassVar[tuple[str, ...]] = ("start", "return", "store", "stored", FUNCTION)

    def __repr__(self) -> str:
        return "Crash()"


@dataclass(frozen=True)
class Duplicate(Fault):
    """The broker delivers the message again, ``copies`` times, each ``delay`` seconds later than the one before."""

    copies: int = 1
    delay: float = 0
    points: ClassVar[tuple[str, ...]] = ("receive", "publish")

    def __post_init__(self) -> None:
        if isinstance(self.copies, bool) or not isinstance(self.copies, int):
            raise FaultTypeError(f"Duplicate(copies={self.copies!r}): a whole number from 1 up")
        if self.copies < 1:
            raise FaultValueError(f"Duplicate(copies={self.copies!r}): a whole number from 1 up")
        check_seconds(self.delay, "Duplicate(delay=)")


@dataclass(frozen=True)
class Drop(Fault):
    """The broker loses the message."""

    points: ClassVar[tuple[str, ...]] = ("publish", "receive")

    def __repr__(self) -> str:
        return "Drop()"


@dataclass(frozen=True)
class Delay(Fault):
    """The broker holds the message back for so many seconds."""

    seconds: float
    points: ClassVar[tuple[str, ...]] = ("receive", "publish")

    def __post_init__(self) -> None:
        check_seconds(self.seconds, "Delay()")

    def __repr__(self) -> str:
        return f"Delay({self.seconds:g})"


@dataclass(frozen=True)
class BrokerDown(Fault):
    """The broker is unreachable for so many seconds: connections break, and new ones are refused.

    Publishing fails after Celery's publish retries, and the worker connects again afterwards; see
    https://docs.celeryq.dev/en/stable/userguide/calling.html#message-sending-retry.
    """

    seconds: float
    points: ClassVar[tuple[str, ...]] = ("publish", "receive", "ack")

    def __post_init__(self) -> None:
        check_seconds(self.seconds, "BrokerDown()")

    def __repr__(self) -> str:
        return f"BrokerDown({self.seconds:g})"


@dataclass(frozen=True)
class BackendDown(Fault):
    """The result backend is unreachable for so many seconds; its own retry policy is in force."""

    seconds: float
    points: ClassVar[tuple[str, ...]] = ("store", "stored")

    def __post_init__(self) -> None:
        check_seconds(self.seconds, "BackendDown()")

    def __repr__(self) -> str:
        return f"BackendDown({self.seconds:g})"


@dataclass(frozen=True)
class Revoke(Fault):
    """Somebody revokes the task; with ``terminate`` also one that runs, by SIGTERM.

    See https://docs.celeryq.dev/en/stable/userguide/workers.html#revoke-revoking-tasks.
    """

    terminate: bool = False
    points: ClassVar[tuple[str, ...]] = ("receive", "start", FUNCTION)

    def __post_init__(self) -> None:
        if not isinstance(self.terminate, bool):
            raise FaultTypeError(f"Revoke(terminate={self.terminate!r}): True or False")


KINDS = (Sleep, Crash, Duplicate, Drop, Delay, BrokerDown, BackendDown, Revoke)


def as_fault(value: object, hook: Any = None) -> Fault:
    """What a test wrote as a fault, or an error that says what can be."""
    if isinstance(value, Fault):
        points: object = type(value).points
        if not isinstance(points, tuple) or not points or not set(points) <= {*POINTS, FUNCTION}:
            choices = ", ".join([*POINTS, FUNCTION])
            raise FaultTypeError(f"{type(value).__name__}.points is {points!r}: a tuple with some of {choices}")
        return value
    if hook is not None:
        other = hook.pytest_celery_faults_as_fault(value=value)
        if other is not None:
            return as_fault(other)
    if isinstance(value, BaseException) or (isinstance(value, type) and issubclass(value, BaseException)):
        return Raise(value)
    if isinstance(value, type) and issubclass(value, Fault):
        call = {"Sleep": "Sleep(30)", "Delay": "Delay(30)"}.get(value.__name__, f"{value.__name__}()")
        if value in (BrokerDown, BackendDown):
            call = f"{value.__name__}(30)"
        needs = "its seconds" if "30" in call else "to be called"
        raise FaultTypeError(f"{value.__name__} needs {needs}: inject({call})")
    names = ", ".join(kind.__name__ for kind in KINDS)
    raise FaultTypeError(f"inject() takes an exception class, an exception or a fault ({names}), not {value!r}")


def check_point(fault: Fault, point: str) -> None:
    """Raise when a fault cannot strike at a point of a task's life, or at a function."""
    if point in fault.points:
        return
    where = "at a function" if point == FUNCTION else f"there, at={point!r}"
    possible = [name if name != FUNCTION else "a function" for name in fault.points]
    raise FaultValueError(f"{fault!r} cannot strike {where}: choose one of {', '.join(possible)}")
