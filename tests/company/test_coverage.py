"""coverage and pytest-cov measure the bodies of tasks in full."""

from __future__ import annotations

import sys

import pytest

from company import needs

pytestmark = needs("coverage", "coverage")

TASKS = """\
import time

from celery import Celery

app = Celery("jobs", broker="{url}", backend="{url}")


def fetch():
    value = 1
    time.sleep(1)
    return value


@app.task
def sleeps(name):
    first = name + "!"
    time.sleep(5)
    second = first * 2
    time.sleep(5)
    return second


@app.task(bind=True, max_retries=3)
def retries(self):
    if self.request.retries < 1:
        time.sleep(1)
        raise self.retry(countdown=60)
    time.sleep(1)
    done = self.request.retries
    return done


@app.task
def fetches():
    try:
        got = fetch()
    except OSError:
        time.sleep(1)
        got = fetch()
    return got
"""

TEST = """\
import pytest
from jobs import fetches, retries, sleeps

@pytest.mark.celery_faults(concurrency=2)
def test_two_at_once(celery_faults):
    results = [sleeps.delay("a"), sleeps.delay("b")]
    assert [result.get() for result in results] == ["a!a!", "b!b!"]
    assert celery_faults.clock.elapsed == 10

def test_retry(celery_faults):
    assert retries.delay().get() == 1

@pytest.mark.inject(OSError, at="jobs.fetch", times=1)
def test_fault_inside(celery_faults):
    assert fetches.delay().get() == 1
"""


@pytest.fixture
def jobs(company, unmeasured):
    company.pytester.makepyfile(jobs=TASKS.replace("{url}", company.shop.url), test_jobs=TEST)
    company.shop.ini("celery_faults_app = jobs:app", "pythonpath = .")
    return company


def all_covered(result):
    assert result.ret == 0
    result.stdout.re_match_lines([r"jobs\.py +\d+ +0 .*100%.*"])


@pytest.mark.parametrize("branch", ["", "--cov-branch"])
@needs("pytest_cov", "pytest-cov")
def test_pytest_cov(jobs, branch):
    args = [branch] if branch else []
    all_covered(jobs.run("--cov=jobs", "--cov-report=term-missing", *args, plugins=("pytest_cov",)))


@pytest.mark.parametrize("core", ["ctrace", "pytrace", "sysmon"])
def test_coverage_run(jobs, core, monkeypatch):
    if core == "sysmon" and sys.version_info < (3, 12):
        pytest.skip("sys.monitoring came with Python 3.12")
    monkeypatch.setenv("COVERAGE_CORE", core)
    plain = ["-m", "pytest", "-p", "celery_faults", "--celery-faults"]
    assert jobs.pytester.run(sys.executable, "-m", "coverage", "run", "--source=.", *plain, timeout=90).ret == 0
    all_covered(jobs.pytester.run(sys.executable, "-m", "coverage", "report", "-m"))
