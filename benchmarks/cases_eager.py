"""Contender: eager execution: a function call with Celery's tracing, without message, worker, broker or wait."""

from celery import chord
from workload import add, flaky, total


def test_warm_up(repetition):
    assert add.apply((repetition, 1)).get() == repetition + 1


def test_one_task(repetition):
    assert add.apply((repetition, 1)).get() == repetition + 1


def test_round_trips(timed, trips):
    assert add.apply((1, 2)).get() == 3
    for number in range(trips):
        assert timed(lambda: add.apply((number, 1)).get()) == number + 1  # noqa: B023  called at once


def test_chord(timed, chords):
    for number in range(chords + 1):
        whole = chord([add.s(number, part) for part in range(3)], total.s())
        if number:  # the worker has started
            assert timed(lambda: whole.apply().get()) == 3 * number + 3  # noqa: B023  called at once
        else:
            assert whole.apply().get() == 3


def test_schedule(timed, repetition):
    assert timed(lambda: flaky.apply().get()) == "done"
