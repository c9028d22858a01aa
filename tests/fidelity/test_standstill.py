"""A run on the real side in which the machine stood still is made again."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from fidelity_drivers import RealSide
from fidelity_standstill import Standstill


def stand_still() -> None:
    """Half a second in which no thread of this process runs: the lock of the interpreter is kept."""
    ctypes.PyDLL(None).usleep(500_000)


class Side(RealSide):
    """It has no servers, and stands still in the first runs."""

    def __init__(self, stands_still: int, error: type[Exception] | None = None) -> None:
        self.runs = 0
        self._stands_still = stands_still
        self._error = error

    def _run(self, scenario: Any) -> Any:
        self.runs += 1
        if self.runs <= self._stands_still:
            stand_still()
            if self._error is not None:
                raise self._error
        return self.runs


@pytest.mark.parametrize("error", [None, AssertionError])
@pytest.mark.parametrize(("stands_still", "runs"), [(0, 1), (1, 2), (2, 3)])
def test_it_is_made_again(stands_still: int, runs: int, error: type[Exception] | None) -> None:
    assert Side(stands_still, error).run(None) == runs


def test_it_is_made_three_times_at_most() -> None:
    assert Side(9).run(None) == 3
    with pytest.raises(AssertionError):
        Side(9, AssertionError).run(None)


def test_what_fails_on_a_machine_that_goes_on_is_not_made_again() -> None:
    class Fails(Side):
        def _run(self, scenario: Any) -> Any:
            self.runs += 1
            raise AssertionError

    side = Fails(0)
    with pytest.raises(AssertionError):
        side.run(None)
    assert side.runs == 1


def test_it_is_seen_while_there_is_a_look() -> None:
    with Standstill() as standstill:
        stand_still()
    assert standstill.was_seen


def test_it_is_seen_before_the_first_look() -> None:
    standstill = Standstill()
    stand_still()
    with standstill:
        pass
    assert standstill.was_seen
