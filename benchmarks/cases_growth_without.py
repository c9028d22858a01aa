"""As many tests in one process without this plugin: what pytest itself keeps of each."""

from workload import add


def test_many(repetition):
    assert add.apply((repetition, 1)).get() == repetition + 1
