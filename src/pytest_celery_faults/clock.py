"""What time it is in a test.

Time is an integer number of microseconds since the Unix epoch. A float of the epoch resolves about 0.24
microseconds, so sums of floats drift; integers do not, and waits can be compared exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from time import sleep

import freezegun.api as _freezegun

from .errors import hide_ours

__tracebackhide__ = hide_ours

MICROSECOND = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

real_sleep: Callable[[float], None] = sleep


# Not names for freezegun's own: a freeze replaces those in all modules, but never in its own.
def real_time_ns() -> int:
    """``time.time_ns()``, also while the clock, or a freeze, is shown to everybody else."""
    return _freezegun.real_time_ns()


def real_monotonic() -> float:
    return _freezegun.real_monotonic()


def real_monotonic_ns() -> int:
    return _freezegun.real_monotonic_ns()


def microseconds(span: float | timedelta) -> int:
    """A span of seconds in whole microseconds, rounded to the nearest one, halves up."""
    if isinstance(span, timedelta):
        return (span.days * 86_400 + span.seconds) * MICROSECOND + span.microseconds
    return math.floor(span * MICROSECOND + 0.5)


class TimeSource:
    """Virtual time: it stands still until the simulation moves it."""

    virtual = True

    def __init__(self, start: datetime | None = None) -> None:
        if start is None:
            start_us = real_time_ns() // 1000
        else:
            aware = start if start.tzinfo is not None else start.replace(tzinfo=timezone.utc)
            start_us = microseconds(aware - _EPOCH)
        # Code that kept a reading of the real monotonic clock from before the test must not see it run backwards.
        self._monotonic_start = math.ceil(real_monotonic())
        self.start_at(start_us - start_us % MICROSECOND)

    def start_at(self, start_us: int) -> None:
        """Begin at that moment, before anything has happened."""
        self.start_us: int = start_us
        #: When the test began, where it is not the first one on this clock.
        self.begin_us: int = start_us
        self._now_us: int = start_us

    @property
    def now_us(self) -> int:
        return self._now_us

    def move_to(self, when_us: int) -> None:
        """Let time pass until ``when_us``; time can't go backwards."""
        if when_us < self._now_us:
            raise ValueError("time can't go backwards")
        self._now_us = when_us

    def monotonic_at(self, when_us: int) -> float:
        """What ``time.monotonic()`` returns at ``when_us``."""
        return self._monotonic_start + (when_us - self.start_us) / MICROSECOND

    def from_monotonic(self, reading: float) -> int:
        """The microsecond at which ``time.monotonic()`` returns ``reading``."""
        return self.start_us + microseconds(reading - self._monotonic_start)

    def monotonic(self) -> float:
        return self.monotonic_at(self.now_us)

    def monotonic_ns(self) -> int:
        return self._monotonic_start * 1_000_000_000 + (self.now_us - self.start_us) * 1000

    def time(self) -> float:
        return self.now_us / MICROSECOND

    def time_ns(self) -> int:
        return self.now_us * 1000

    def utc(self) -> datetime:
        """The current time, aware, in UTC."""
        return _EPOCH + timedelta(microseconds=self.now_us)

    def begin(self) -> float:
        """Another test begins; returns how many seconds after the one before."""
        since = self.seconds_since_start(self.now_us)
        self.begin_us = self.now_us
        return since

    def seconds_since_start(self, when_us: int) -> float:
        return (when_us - self.begin_us) / MICROSECOND


class RealTimeSource(TimeSource):
    """Real time, for ``clock="real"``: moving it on means sleeping."""

    virtual = False

    def __init__(self, start: datetime | None = None) -> None:
        super().__init__(start)
        self._real_start_ns = real_monotonic_ns()

    @property
    def now_us(self) -> int:
        return self.start_us + (real_monotonic_ns() - self._real_start_ns) // 1000

    def move_to(self, when_us: int) -> None:
        remaining = when_us - self.now_us
        while remaining > 0:
            real_sleep(remaining / MICROSECOND)
            remaining = when_us - self.now_us


class Clock:
    """The clock as a test reads it. Only the worker and waiting move it."""

    def __init__(self, source: TimeSource, show_real: Callable[[], AbstractContextManager[None]]) -> None:
        self._source = source
        self._show_real = show_real

    def now(self) -> datetime:
        """The current virtual time, aware, in UTC."""
        return self._source.utc()

    def time(self) -> float:
        """The current virtual time in seconds since the epoch."""
        return self._source.time()

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the start of the test."""
        return self._source.seconds_since_start(self._source.now_us)

    def real(self) -> AbstractContextManager[None]:
        """Real time for a while, to wait for something that is not Celery.

        Inside the block ``time.sleep`` and all clocks are the operating system's, and nothing drives the worker.
        The virtual clock stands still meanwhile and goes on where it stood.
        """
        return self._show_real()

    def __repr__(self) -> str:
        return f"<Clock {self.now():%Y-%m-%d %H:%M:%S.%f} UTC, {self.elapsed:g} s since the start>"
