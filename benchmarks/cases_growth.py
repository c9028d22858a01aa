"""This plugin: more tasks in one test, and more tests in one process."""

from recording import surroundings
from workload import add


def test_tasks(celery_faults, tasks, timed, note):
    for number in range(20):
        assert add.delay(number, 1).get() == number + 1

    def work():
        for number in range(tasks):
            assert add.delay(number, 1).get() == number + 1

    before = surroundings()["memory"]
    timed(work)
    note(tasks=tasks, memory=[before, surroundings()["memory"]])


def test_many(celery_faults, repetition):
    assert add.delay(repetition, 1).get() == repetition + 1
