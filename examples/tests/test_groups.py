"""A group of five: its result, and what one failing member does to it."""

import pytest
from celery import group

from pytest_celery_faults import Drop
from worker.celery_tasks import add


def five_additions():
    return group(add.s(n, n) for n in (2, 4, 8, 16, 32))


def test_a_group_is_ready_and_successful_and_gives_its_results_in_order(celery_faults):
    result = five_additions().delay()
    assert not result.ready()

    celery_faults.worker.drain()

    assert result.ready()
    assert result.successful()
    assert result.get() == [4, 8, 16, 32, 64]


def test_the_order_is_that_of_the_signatures_not_that_in_which_they_end(celery_faults):
    additions = five_additions()
    additions.tasks[0].set(countdown=60)
    result = additions.delay()

    celery_faults.worker.advance(59)
    assert [member.ready() for member in result.results] == [False, True, True, True, True]
    assert result.get() == [4, 8, 16, 32, 64]


# Messages are worked in the order in which they were sent, so it is the first member that fails.
@pytest.mark.inject(OverflowError("out of range"), task=add)
def test_one_failing_member_fails_the_group_and_the_results_of_the_others_are_still_there(celery_faults):
    result = five_additions().delay()
    celery_faults.worker.drain()

    assert result.ready()
    assert result.failed()
    assert not result.successful()
    with pytest.raises(OverflowError, match="out of range"):
        result.get()
    failed, *others = result.results
    assert failed.state == "FAILURE"
    assert [other.state for other in others] == ["SUCCESS"] * 4
    assert [other.get() for other in others] == [8, 16, 32, 64]


def test_the_member_that_fails_is_the_one_whose_error_get_raises(celery_faults):
    result = group(add.s(2, 2), add.s(4, 4), add.s(8, "eight"), add.s(16, 16), add.s(32, 32)).delay()

    with pytest.raises(TypeError, match="unsupported operand"):
        result.get()
    celery_faults.worker.drain()
    assert [member.state for member in result.results] == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS", "SUCCESS"]
    assert [member.result for member in result.results if member.successful()] == [4, 8, 32, 64]
    assert result.completed_count() == 4


# -- the same in a line: what has become of all members, as a tree


@pytest.mark.inject(OverflowError("out of range"), task=add, skip=2)
def test_the_outcome_of_a_group_tells_what_became_of_each_member(celery_faults):
    result = five_additions().delay()
    celery_faults.worker.drain()

    outcome = celery_faults.outcome(result)
    assert outcome.state == "FAILURE"
    assert outcome.states == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS", "SUCCESS"]
    assert outcome.values == [4, 8, None, 32, 64]
    assert repr(outcome.errors) == "[None, None, OverflowError('out of range'), None, None]"
    assert str(outcome).splitlines() == [
        "group  FAILURE",
        "  worker.celery_tasks.add#1  SUCCESS  4",
        "  worker.celery_tasks.add#2  SUCCESS  8",
        "  worker.celery_tasks.add#3  FAILURE  OverflowError('out of range')",
        "  worker.celery_tasks.add#4  SUCCESS  32",
        "  worker.celery_tasks.add#5  SUCCESS  64",
    ]


def test_the_outcome_tells_what_is_so_now_and_runs_nothing(celery_faults):
    result = five_additions().delay()

    assert celery_faults.outcome(result).states == ["PENDING"] * 5
    assert celery_faults.timeline.where("started") == []

    celery_faults.worker.drain()
    outcome = celery_faults.outcome(result)
    assert outcome.state == "SUCCESS"
    assert outcome.values == [4, 8, 16, 32, 64]


@pytest.mark.inject(Drop(), task=add, skip=4)
def test_a_member_that_never_comes_is_lost_and_not_only_pending(celery_faults):
    result = five_additions().delay()
    celery_faults.worker.drain()

    assert [member.state for member in result.results][-1] == "PENDING"
    outcome = celery_faults.outcome(result)
    assert outcome.states == ["SUCCESS"] * 4 + ["LOST"]
    assert outcome[4].why == "the broker lost it when it was published"
