"""The plugin's own hooks: what a conftest or another plugin can add, and what it can watch."""

from __future__ import annotations

import pytest

CONFTEST = """
from pytest_celery_faults import Fault

class Quota(Fault):
    points = ("start",)

    def __init__(self, left):
        self.left = left

    def __repr__(self):
        return f"Quota({self.left})"

    def strike(self, execution):
        raise PermissionError(f"quota of {execution.name}: {self.left} left")

def pytest_celery_faults_as_fault(value):
    if isinstance(value, str) and value.startswith("quota "):
        return Quota(int(value.removeprefix("quota ")))

def pytest_celery_faults_before_fault(fault, execution):
    print("before", fault, execution.name, execution.retries)

def pytest_celery_faults_after_fault(fault, execution):
    print("after", fault, execution.name, execution.retries)

def pytest_celery_faults_letter_reason(task, exception, reason):
    if isinstance(exception, PermissionError):
        return "over_quota"
"""

TESTS = """
import pytest
from conftest import Quota
from pytest_celery_faults import Crash, Delay, Drop
from shop import add, download, slow

@pytest.mark.inject("quota 0")
def test_spelled(celery_dlq):
    with pytest.raises(PermissionError, match="quota of shop.add: 0 left"):
        add.delay(1, 2).get()
    assert [letter.reason for letter in celery_dlq] == ["over_quota"]

def test_called(celery_faults, celery_dlq):
    celery_faults.inject(Quota(3), task=slow)
    slow.delay(1).get(propagate=False)
    assert celery_dlq.reasons == {"over_quota": 1}

@pytest.mark.inject(OSError("no net"), times=2)
def test_watched():
    download.delay("x").get()

@pytest.mark.inject(Crash())
@pytest.mark.inject(Delay(5))
def test_others_watched(celery_dlq):
    add.delay(1, 2).get(propagate=False)
    assert celery_dlq.reasons == {"worker_lost": 1}
"""

WATCHED = {
    "test_spelled": ["before Quota(0) shop.add 0"],
    "test_watched": [
        "before OSError('no net') shop.download 0",
        "after OSError('no net') shop.download 0",
        "before OSError('no net') shop.download 1",
        "after OSError('no net') shop.download 1",
    ],
    "test_others_watched": [
        "before Delay(5) shop.add 0",
        "after Delay(5) shop.add 0",
        "before Crash() shop.add 0",
        "after Crash() shop.add 0",
    ],
}


@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
def test_a_conftest_adds_a_fault_and_watches(shop, arguments):
    shop.pytester.makeconftest(CONFTEST)
    shop.test(TESTS)
    result = shop.armed("-rP", *arguments, subprocess=bool(arguments))
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["faults fired:*Quota 2*", "dead letters: over_quota 2, worker_lost 1"])
    for lines in WATCHED.values():
        result.stdout.fnmatch_lines(lines, consecutive=True)


def test_a_fault_that_nobody_knows_is_wrong_all_the_same(shop):
    shop.pytester.makeconftest(CONFTEST)
    shop.test("import pytest\n@pytest.mark.inject('qota 0')\ndef test_it(): pass\n")
    result = shop.armed()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["@pytest.mark.inject: inject() takes an exception class*not 'qota 0'"])


@pytest.mark.parametrize("hook", ["before_fault(fault, execution)", "after_fault(fault, execution)"])
@pytest.mark.parametrize("fault", ["Crash()", "Delay(5)", "Drop()", "KeyError('k')"])
def test_a_hook_that_raises_fails_the_test(shop, hook, fault):
    shop.pytester.makeconftest(f"def pytest_celery_faults_{hook}: raise ZeroDivisionError('in a hook')\n")
    shop.test(
        f"""
import pytest
from pytest_celery_faults import Crash, Delay, Drop
from shop import add

@pytest.mark.inject({fault})
def test_it(celery_faults):
    add.delay(1, 2)
    celery_faults.worker.drain()
"""
    )
    result = shop.armed()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *ZeroDivisionError: in a hook"])


def test_a_reason_that_raises_fails_the_test(shop):
    shop.pytester.makeconftest(
        "def pytest_celery_faults_letter_reason(task, exception, reason): raise ZeroDivisionError('in a hook')\n"
    )
    shop.test(
        """
from shop import boom

def test_it(celery_faults):
    boom.delay()
    celery_faults.worker.drain()
"""
    )
    result = shop.armed()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *ZeroDivisionError: in a hook"])
