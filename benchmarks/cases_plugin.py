"""Contender: this plugin."""

from celery import chord
from workload import RETRIES, add, flaky, total


def test_warm_up(celery_faults, repetition):
    assert add.delay(repetition, 1).get() == repetition + 1


def test_one_task(celery_faults, repetition):
    assert add.delay(repetition, 1).get() == repetition + 1


def test_round_trips(celery_faults, timed, trips):
    assert add.delay(1, 2).get() == 3  # the worker has started
    for number in range(trips):
        assert timed(lambda: add.delay(number, 1).get()) == number + 1  # noqa: B023  called at once


def test_chord(celery_faults, timed, chords):
    for number in range(chords + 1):
        whole = chord([add.s(number, part) for part in range(3)], total.s())
        if number:  # the worker has started
            assert timed(lambda: whole.delay().get()) == 3 * number + 3  # noqa: B023  called at once
        else:
            assert whole.delay().get() == 3


def test_schedule(celery_faults, retry_recorder, timed, note, repetition):
    assert timed(lambda: flaky.delay().get()) == "done"
    assert retry_recorder.delays == [2**number for number in range(RETRIES)]
    note(waited=celery_faults.clock.elapsed)
