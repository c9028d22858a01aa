"""Plugins that run tests elsewhere, in another order, or again."""

from __future__ import annotations

import sys

import pytest

from company import needs

IMPORTS = """
import time
import pytest
import shop
from shop import add, boom, download, slow

"""


@pytest.fixture
def run(company):
    def run(source, *args, plugins=(), **options):
        company.shop.test(IMPORTS + source)
        return company.run(*args, plugins=plugins, **options)

    return run


MANY = """
@pytest.mark.parametrize("i", range(4))
@pytest.mark.inject(OSError, times=2)
def test_download(i, celery_faults):
    assert download.delay("x").get() == "done"
    assert celery_faults.clock.elapsed == 3

def test_fails(celery_faults):
    boom.delay().get()
"""


@pytest.mark.parametrize("mode", ["load", "loadscope", "loadfile", "loadgroup", "worksteal", "each"])
@needs("xdist", "pytest-xdist")
def test_xdist_sums_up_in_the_controller(run, mode):
    result = run(MANY, "-n", "2", "--dist", mode, plugins=("xdist",))
    times = 2 if mode == "each" else 1
    result.assert_outcomes(passed=4 * times, failed=times)
    tests, executions = 5 * times, 13 * times
    result.stdout.fnmatch_lines([f"{tests} tests, {tests} tasks in {executions} executions, *"])
    assert str(result.stdout).count("= celery faults =") == 1
    assert str(result.stdout).count("- celery faults timeline -") == times


@needs("pytest_randomly", "pytest-randomly")
def test_randomly_changes_no_jitter(run):
    source = """
@pytest.mark.inject(OSError, times=3)
def test_jitter(retry_recorder):
    shop.jittery.delay().get()
    print("DELAYS", retry_recorder.delays)
"""
    printed = []
    for seed in ("1", "2"):
        result = run(source, "-s", f"--randomly-seed={seed}", "--celery-faults-seed=7", plugins=("randomly",))
        result.assert_outcomes(passed=1)
        printed.append([line for line in result.outlines if "DELAYS" in line])
    assert printed[0]
    assert printed[0] == printed[1]


AGAIN = """
tries = []

@pytest.mark.inject(OSError, times=2)
def test_again(celery_faults, retry_recorder):
    tries.append(1)
    assert celery_faults.clock.elapsed == 0
    assert not celery_faults.sent
    download.delay("x").get()
    assert retry_recorder.delays == ([1, 2] if len(tries) > 1 else [3])
"""


@needs("pytest_rerunfailures", "pytest-rerunfailures")
def test_rerunfailures_begins_afresh(run):
    result = run(AGAIN, "--reruns", "1", "-rR", plugins=("rerunfailures",))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*1 passed, 1 rerun*"])


@needs("pytest_rerunfailures", "pytest-rerunfailures")
def test_rerunfailures_shows_the_last_tries_timeline(run):
    result = run(AGAIN.replace("[1, 2] if len(tries) > 1 else [3]", "[3]"), "--reruns", "1", plugins=("rerunfailures",))
    result.stdout.fnmatch_lines(["*celery faults timeline*", "*fault fired*shop.download#1*", "*1 failed, 1 rerun*"])


@needs("flaky", "flaky")
def test_flaky_begins_afresh(run):
    result = run(AGAIN, "--force-flaky", "--max-runs=2", plugins=("flaky.flaky_pytest_plugin",))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*1 passed*"])


@needs("pytest_repeat", "pytest-repeat")
def test_repeat_begins_afresh_each_time(run):
    source = AGAIN.replace("[1, 2] if len(tries) > 1 else [3]", "[1, 2]")
    run(source, "--count", "3", plugins=("repeat",)).assert_outcomes(passed=3)


#: They came with pytest 9; before, they are pytest-subtests.
OF_PYTEST = hasattr(pytest, "Subtests")


@(needs("pytest", "pytest") if OF_PYTEST else needs("pytest_subtests", "pytest-subtests"))
def test_subtests(run):
    result = run(
        """
def test_each(celery_faults, subtests):
    for name in "abc":
        with subtests.test(name):
            assert add.delay(name, "!").get() == ("b!" if name == "b" else "a!")
    assert len(celery_faults.sent) == 3

@pytest.mark.inject(OSError, task=download, times=2)
def test_faults(subtests, retry_recorder):
    with subtests.test("one"):
        assert download.delay("x").get() == "done"
    with subtests.test("two"):
        assert retry_recorder.delays == [1, 2]
""",
        "-rf",
        plugins=() if OF_PYTEST else ("subtests",),
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*- celery faults timeline -*", "*succeeded*shop.add#3*", "*c*assert 'c!' == 'a!'*"])
    # That of the subtest, and before pytest 9.1 no more of the test itself.
    assert "test_faults" not in str(result.stdout)


@pytest.mark.parametrize(
    "method", ["thread", pytest.param("signal", marks=pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM"))]
)
@needs("pytest_timeout", "pytest-timeout")
def test_timeout_shows_the_task(run, method):
    result = run(
        """
@shop.app.task
def hang_for_real():
    while True:
        pass

def test_hang(celery_faults):
    hang_for_real.delay().get()
""",
        "--timeout=2",
        f"--timeout-method={method}",
        plugins=("timeout",),
    )
    assert result.ret == 1
    assert "in hang_for_real" in str(result.stdout) + str(result.stderr) or "hang_for_real()" in str(result.stdout)
    assert "Timeout" in str(result.stdout) + str(result.stderr)


@needs("pytest_mock", "pytest-mock")
def test_mock(run):
    result = run(
        """
@pytest.mark.inject(OSError, task=download, times=1)
def test_patch(mocker, celery_faults):
    fee = mocker.patch("shop.time.sleep")
    assert slow.delay(60).get() == 60
    fee.assert_called_once_with(60)
    assert celery_faults.clock.elapsed == 0
    mocker.stopall()
    assert slow.delay(60).get() == 60
    assert celery_faults.clock.elapsed == 60
    assert download.delay("x").get() == "done"

def test_after():
    assert time.sleep.__module__ == "time"
""",
        plugins=("pytest_mock",),
    )
    result.assert_outcomes(passed=2)
