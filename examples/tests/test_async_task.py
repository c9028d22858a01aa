"""A task that runs an event loop: its sleeps and timeouts are virtual, as those of all others."""

import asyncio

import pytest

from worker import branches
from worker.celery_tasks import tell_branches


@pytest.fixture
def seconds(monkeypatch):
    """How many seconds each branch takes to answer."""
    seconds = {"Bern": 2, "Basel": 3, "Chur": 4}

    async def tell(name, day):
        await asyncio.sleep(seconds[name])
        return f"{name} has the rates of {day}"

    monkeypatch.setattr(branches, "tell", tell)
    return seconds


def test_the_task_takes_as_long_as_the_slowest_branch(celery_faults, seconds):
    answers = tell_branches.delay(["Bern", "Basel", "Chur"], "Friday").get()

    assert answers["Chur"] == "Chur has the rates of Friday"
    assert list(answers) == ["Bern", "Basel", "Chur"]
    assert celery_faults.clock.elapsed == 4


def test_a_branch_that_is_silent_is_given_up_after_5_s_and_asked_again(celery_faults, retry_recorder, seconds):
    seconds["Basel"] = 60
    result = tell_branches.delay(["Bern", "Basel", "Chur"], "Friday")

    celery_faults.worker.advance(5)
    assert result.state == "RETRY"
    seconds["Basel"] = 3
    assert result.get()["Basel"] == "Basel has the rates of Friday"
    assert retry_recorder.delays == [10]
    assert celery_faults.clock.elapsed == 5 + 10 + 4


def test_a_branch_that_stays_silent_fails_the_task(celery_faults, retry_recorder, seconds):
    seconds["Basel"] = 60

    with pytest.raises(asyncio.TimeoutError):
        tell_branches.delay(["Bern", "Basel", "Chur"], "Friday").get()
    assert retry_recorder.exhausted
    assert [attempt.started for attempt in retry_recorder.attempts] == [0, 15, 30, 45]
    assert celery_faults.clock.elapsed == 50
