"""Contender: Celery's own test worker, as the fixture ``celery_worker`` of celery.contrib.pytest starts it."""

import celery.contrib.testing.tasks  # noqa: F401  the ping with which the worker is greeted
import pytest
from celery import chord
from celery.contrib.testing.worker import start_worker
from workload import add, app, total


@pytest.fixture
def worker():
    with start_worker(app):
        yield


def test_warm_up(worker):
    assert add.delay(1, 2).get() == 3


def test_one_task(worker, repetition):
    assert add.delay(repetition, 1).get() == repetition + 1


def test_round_trips(worker, timed, trips):
    assert add.delay(1, 2).get() == 3
    for number in range(trips):
        assert timed(lambda: add.delay(number, 1).get()) == number + 1  # noqa: B023  called at once


def test_chord(worker, timed, chords):
    for number in range(chords + 1):
        whole = chord([add.s(number, part) for part in range(3)], total.s())
        if number:  # the worker has started
            assert timed(lambda: whole.delay().get()) == 3 * number + 3  # noqa: B023  called at once
        else:
            assert whole.delay().get() == 3
