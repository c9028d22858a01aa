"""The clock alone: whole microseconds, and no way back."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta, timezone

import pytest

from pytest_celery_faults.clock import Clock, RealTimeSource, TimeSource, microseconds

START = datetime(2026, 3, 1, 12, 30, 15, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (0, 0),
        (1, 1_000_000),
        (0.1, 100_000),
        (0.3, 300_000),
        (0.1 + 0.2, 300_000),
        (1e-6, 1),
        (4e-7, 0),
        (5e-7, 1),
        (-1, -1_000_000),
        (timedelta(microseconds=1), 1),
        (timedelta(days=1, microseconds=3), 86_400_000_003),
        (timedelta(seconds=-1), -1_000_000),
    ],
)
def test_a_span_is_whole_microseconds(span, expected):
    found = microseconds(span)
    assert found == expected
    assert isinstance(found, int)


def test_a_long_timedelta_keeps_its_microseconds():
    # As a float of seconds it would not: 10**10 s and one microsecond need 54 bits.
    assert microseconds(timedelta(seconds=10**10, microseconds=1)) == 10**16 + 1


def test_the_clock_starts_at_a_whole_second():
    source = TimeSource(START.replace(microsecond=999_999))
    assert source.utc() == START
    assert source.now_us == source.start_us
    assert source.time() == START.timestamp()
    assert source.time_ns() == int(START.timestamp()) * 10**9


def test_without_a_start_it_is_the_real_time_in_whole_seconds():
    before = datetime.now(timezone.utc)
    source = TimeSource()
    after = datetime.now(timezone.utc)
    assert before.replace(microsecond=0) <= source.utc() <= after
    assert source.start_us % 1_000_000 == 0


def test_a_naive_start_is_utc():
    assert TimeSource(START.replace(tzinfo=None)).utc() == START


def test_a_start_in_another_zone_is_that_instant():
    zone = timezone(timedelta(hours=5, minutes=45))
    assert TimeSource(START.astimezone(zone)).utc() == START


def test_a_start_before_the_epoch():
    assert TimeSource(datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=timezone.utc)).utc() == datetime(
        1969, 12, 31, 23, 59, 58, tzinfo=timezone.utc
    )


def test_it_stands_where_it_was_moved():
    source = TimeSource(START)
    source.move_to(source.start_us + 100_000)
    assert source.seconds_since_start(source.now_us) == 0.1
    assert source.utc() == START + timedelta(microseconds=100_000)
    source.move_to(source.now_us)
    assert source.seconds_since_start(source.now_us) == 0.1


def test_time_can_not_go_backwards():
    source = TimeSource(START)
    source.move_to(source.start_us + 10)
    with pytest.raises(ValueError, match="time can't go backwards"):
        source.move_to(source.start_us + 9)
    assert source.now_us == source.start_us + 10


def test_monotonic_follows_and_leads_back():
    source = TimeSource(START)
    first, first_ns = source.monotonic(), source.monotonic_ns()
    for step in (1, 100_000, 300_000, 86_400_000_000, 7):
        source.move_to(source.now_us + step)
        assert source.from_monotonic(source.monotonic()) == source.now_us
        assert source.monotonic_ns() - first_ns == (source.now_us - source.start_us) * 1000
    assert source.monotonic() - first == pytest.approx(86_400.400008, abs=1e-9)


def test_monotonic_is_never_before_a_real_reading():
    import time

    reading = time.monotonic()
    assert TimeSource(START).monotonic() >= reading


def test_real_time_goes_on_by_itself_and_moving_on_means_sleeping():
    source = RealTimeSource(START)
    assert source.utc() >= START
    target = source.now_us + 20_000
    source.move_to(target)
    assert source.now_us >= target
    assert not source.virtual
    assert TimeSource(START).virtual


def test_real_time_may_be_late():
    source = RealTimeSource(START)
    source.move_to(source.start_us - 1)
    assert source.now_us >= source.start_us


def test_what_a_test_sees_of_the_clock():
    source = TimeSource(START)
    clock = Clock(source, nullcontext)
    source.move_to(source.start_us + 1_500_000)
    assert clock.now() == START + timedelta(seconds=1.5)
    assert clock.now().utcoffset() == timedelta(0)
    assert clock.time() == START.timestamp() + 1.5
    assert clock.elapsed == 1.5
    assert repr(clock) == "<Clock 2026-03-01 12:30:16.500000 UTC, 1.5 s since the start>"


@pytest.mark.parametrize("name", ["elapsed", "time", "now"])
def test_a_test_can_not_set_it(name):
    source = TimeSource(START)
    clock = Clock(source, nullcontext)
    if name == "elapsed":
        with pytest.raises(AttributeError):
            clock.elapsed = 5  # type: ignore[misc]
    else:
        with pytest.raises(TypeError):
            getattr(clock, name)(5)
    assert clock.elapsed == 0


def test_real_shows_real_time_for_the_block():
    log = []

    @contextmanager
    def show_real():
        log.append("real")
        yield
        log.append("virtual")

    with Clock(TimeSource(START), show_real).real():
        log.append("block")
    assert log == ["real", "block", "virtual"]
