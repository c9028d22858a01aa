"""Other libraries that set the time: a freeze of freezegun's says where the clock starts, and the rest is refused.

A freeze from before the test is taken off for its length, so that its own functions are nowhere to be seen. One that
a fixture of the test makes sets the clock's start. From then on the clock moves, and what moves the freeze moves it.
"""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import FrameType, MethodType
from typing import Any, NamedTuple, cast

import freezegun.api as _freezegun

from . import replaced
from .clock import TimeSource
from .errors import FaultValueError, OtherClockError, hide_ours

__tracebackhide__ = hide_ours

STACKS = cast(
    "tuple[list[Any], ...]",
    (_freezegun.freeze_factories, _freezegun.tz_offsets, _freezegun.ignore_lists, _freezegun.tick_flags),
)

_HOW = (
    "A freeze that a fixture makes is where the clock starts, and so is @pytest.mark.celery_faults(start=...); "
    "celery_faults.worker.advance() moves it"
)
_UNITTEST_SET_UP = ("setUp", "asyncSetUp")


def pickle_as_freezegun_does() -> None:
    copyreg.dispatch_table[_freezegun.real_datetime] = cast(Any, _freezegun.pickle_fake_datetime)
    copyreg.dispatch_table[_freezegun.real_date] = cast(Any, _freezegun.pickle_fake_date)


def pickle_as_usual() -> None:
    copyreg.dispatch_table.pop(_freezegun.real_datetime, None)
    copyreg.dispatch_table.pop(_freezegun.real_date, None)


def _put(stacks: list[list[Any]]) -> None:
    for stack, values in zip(STACKS, stacks, strict=True):
        stack[:] = values


def _refuse_time_machine(*args: Any) -> Any:
    raise OtherClockError(
        "time-machine and celery_faults would both set the time of this test. The clock of celery_faults starts where "
        "@pytest.mark.celery_faults(start=...) says, and celery_faults.worker.advance() moves it; without either: "
        '@pytest.mark.celery_faults(clock="real")'
    )


class _Made(NamedTuple):
    """A freeze that was made during the test, and what the clock said before."""

    freeze: Any
    factory: Any
    start_us: int
    offset: timedelta | None


class Freezes:
    """The freezes of one test."""

    def __init__(
        self, clock: TimeSource, what_ran: Callable[[], str], advance: Callable[[timedelta], None], start_given: bool
    ) -> None:
        self._clock = clock
        self._what_ran = what_ran
        self._advance = advance
        self._start_given = start_given
        #: What freezegun adds to UTC for local time; without a freeze it is that of the process's time zone.
        self.offset: timedelta | None = None
        #: Whether the set-up is over.
        self.begun = False
        # Whether the clock has started, and with which freeze.
        self._started = False
        self._older: Any = None
        self._before: list[list[Any]] = []
        self._made: list[_Made] = []

    # -- those from before the test

    def take_over(self) -> bool:
        """Start the clock where it is frozen, and have freezegun forget its freezes until `give_back()`.

        A clock that has started before goes on, under the freeze that it started with.

        Raises:
            OtherClockError: the clock cannot be started there, or another library sets the time.
        """
        if getattr(sys.modules.get("time_machine"), "traveller_stack", None):
            _refuse_time_machine()
        had_started, self._started = self._started, True
        if not _freezegun.freeze_factories:
            return False
        factory = _freezegun.freeze_factories[-1]
        if had_started and factory is not self._older:
            raise _too_late("freeze_time()", self._what_ran())
        if not had_started:
            self._check(factory)
            self._start_at(factory(), _freezegun.tz_offsets[-1])
            self._older = factory
        self._before = [list(stack) for stack in STACKS]
        _put([[] for _ in STACKS])
        pickle_as_usual()
        return True

    def as_before(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """A function of freezegun's that says what it would say if there were no clock."""
        factories, *others = self._before
        # What a factory says when it is called is replaced while the clock is shown.
        frozen = [[MethodType(type(factory).__call__, factory) for factory in factories], *others]

        def as_before(*args: Any) -> Any:
            now = [list(stack) for stack in STACKS]
            _put(frozen)
            try:
                return fake(*args)
            finally:
                _put(now)

        return as_before

    def give_back(self) -> bool:
        """Give freezegun the freezes from before the test, and those that were made in it and go on after it.

        Returns:
            Whether there is one.
        """
        if self._before:
            _put(self._before)
            pickle_as_freezegun_does()
        for made in self._made:
            made.freeze.start()
            _freezegun.freeze_factories[-1] = made.factory
        is_frozen = bool(self._before or self._made)
        self._before, self._made = [], []
        return is_frozen

    # -- those that are made in it

    def replacements(self) -> Iterator[tuple[replaced.Replaced, Any]]:
        """What stands in place of freezegun's and time-machine's own while the clock is shown."""
        original = _freezegun._freeze_time.start

        def start(freeze: Any) -> Any:
            self._refuse_late("freeze_time()")
            factory = original(freeze)
            offset = [stack.pop() for stack in STACKS][1]
            self._check(factory)
            self._made.append(_Made(freeze, factory, self._clock.start_us, self.offset))
            self._start_at(freeze.time_to_freeze, offset)
            return factory

        def stop(freeze: Any) -> None:
            self._stop(freeze)

        def tick(factory: Any, delta: Any = None) -> Any:
            if delta is None:
                delta = timedelta(seconds=1)
            elif not isinstance(delta, timedelta):
                delta = timedelta(seconds=delta)
            return self._move(f"tick({delta.total_seconds():g})", delta)

        def move_to(factory: Any, target: Any) -> Any:
            moment = _freezegun._parse_time_to_freeze(target)
            return self._move(f"move_to({str(moment)!r})", moment - self._moment())

        def moment(factory: Any) -> Any:
            return self._moment()

        yield replaced.FREEZE, start
        yield replaced.UNFREEZE, stop
        for what in replaced.FACTORIES:
            yield what, {"tick": tick, "move_to": move_to, "__call__": moment}[what.name]
        if "time_machine" in sys.modules:
            yield replaced.time_machine_start(sys.modules["time_machine"]), _refuse_time_machine

    def _stop(self, freeze: Any) -> None:
        position = next((i for i, made in reversed([*enumerate(self._made)]) if made.freeze is freeze), None)
        if position is None:
            raise OtherClockError(
                "this freeze of freezegun is older than the test, whose clock started with it: stop it after the test"
            )
        made = self._made.pop(position)
        what = self._what_ran()
        if not what:
            self._clock.start_at(made.start_us)
            self.offset = made.offset
        elif not self.begun:
            raise OtherClockError(
                f"a freeze that the clock of celery_faults started with ends before the test begins, and {what}: let "
                "it last until the end of the test, or leave that to the test"
            )

    def _move(self, what: str, by: timedelta) -> Any:
        if not self.begun and not self._what_ran():
            self._clock.start_at(self._clock.start_us + by // timedelta(microseconds=1))
            return self._moment()
        if by < timedelta(0):
            raise FaultValueError(
                f"{what} would turn the clock of celery_faults back from {self._moment()}: it goes forward only. "
                f"{_HOW}. pytest-freezer's is made at @pytest.mark.freeze_time(...)"
            )
        self._advance(by)
        return self._moment()

    def _moment(self) -> Any:
        return self._clock.utc().replace(tzinfo=None)

    # -- both

    def _check(self, factory: Any) -> None:
        if self._start_given:
            raise OtherClockError(
                "this test has a freeze of freezegun and @pytest.mark.celery_faults(start=...), and both say where its "
                "clock starts: leave one of them out"
            )
        if isinstance(factory, _freezegun.StepTickTimeFactory):
            raise OtherClockError(
                "freeze_time(auto_tick_seconds=...) and celery_faults would both move the clock of this test: leave "
                "auto_tick_seconds out. time.sleep() and celery_faults.worker.advance() move it"
            )

    def _start_at(self, moment: datetime, offset: timedelta) -> None:
        self._clock.start_at((moment - _freezegun._EPOCH) // timedelta(microseconds=1))
        self.offset = offset

    def _refuse_late(self, what: str) -> None:
        if self.begun and not _in_set_up(sys._getframe()):
            raise OtherClockError(
                f"{what} on the test or in it comes too late: freezegun and celery_faults would both set its time. "
                f'{_HOW}; without it: @pytest.mark.celery_faults(clock="real")'
            )
        ran = self._what_ran()
        if ran:
            raise _too_late(what, ran)


def _too_late(what: str, ran: str) -> OtherClockError:
    return OtherClockError(f"{what} comes too late: {ran}. {_HOW}. Let the fixture that freezes come first")


def _in_set_up(frame: FrameType | None) -> bool:
    """Whether a ``setUp`` of unittest's freezes: pytest calls it together with the test."""
    while frame is not None:
        if frame.f_code.co_name in _UNITTEST_SET_UP:
            return True
        frame = frame.f_back
    return False
