"""A worker of Celery's test tools that several tests have, beside plugins that own the database or the time."""

from __future__ import annotations

import pytest

from company import needs

CONFTEST = """
import datetime, time
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from freezegun import freeze_time

app = Celery("kept", broker="redis://nowhere.invalid/0", backend="redis://nowhere.invalid/0")
YEAR_2030 = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc).timestamp()

@app.task
def now():
    return time.time()

@pytest.fixture(scope="session")
def worker():
    with start_worker(app, perform_ping_check=False) as worker:
        yield worker
"""


@pytest.fixture
def kept(company):
    company.shop.ini("addopts =")

    def run(source, *args, **options):
        company.pytester.makeconftest(CONFTEST)
        company.pytester.makepyfile("import datetime, time\nimport pytest\nfrom conftest import *\n" + source)
        return company.run(*args, **options)

    return run


@needs("freezegun", "freezegun")
def test_a_freeze_that_is_older_than_the_worker_is_its_start_and_stays_for_the_others(kept):
    kept("""
@pytest.fixture(scope="session", autouse=True)
def frozen():
    with freeze_time("2030-01-01") as freeze:
        yield freeze

def test_before():
    assert time.time() == YEAR_2030

def test_1(worker):
    assert time.time() == YEAR_2030
    assert now.apply_async(countdown=60).get() == YEAR_2030 + 60

def test_without():
    assert time.time() == datetime.datetime.now().replace(tzinfo=datetime.timezone.utc).timestamp() == YEAR_2030

def test_goes_on(worker, celery_faults, frozen):
    assert time.time() == YEAR_2030 + 60
    frozen.tick(5)
    assert now.delay().get() == YEAR_2030 + 65
    assert celery_faults.clock.elapsed == 5

def test_after(frozen):
    assert time.time() == YEAR_2030
    frozen.tick(1)
    assert time.time() == YEAR_2030 + 1

def test_the_clock_of_the_worker_is_its_own(worker):
    assert now.delay().get() == YEAR_2030 + 65
""").assert_outcomes(passed=6)


@needs("freezegun", "freezegun")
def test_a_freeze_that_is_younger_than_the_worker_is_refused(kept):
    result = kept("""
def test_first(worker):
    now.delay().get()

@pytest.fixture
def frozen():
    with freeze_time("2030-01-01"):
        yield

def test_of_a_fixture(frozen, worker):
    raise NotImplementedError("not reached")

@pytest.fixture(scope="class")
def frozen_class():
    with freeze_time("2030-01-01"):
        yield

@pytest.mark.usefixtures("frozen_class")
class TestOfAClass:
    def test_without(self):
        assert time.time() == YEAR_2030

    def test_it(self, worker):
        raise NotImplementedError("not reached")

    def test_without_again(self):
        assert time.time() == YEAR_2030

def test_real_time_again(worker):
    assert now.delay().get() == time.time() < YEAR_2030
""")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(
        ["E *OtherClockError: freeze_time() comes too late: the worker of this test is one that several tests have*"]
        * 2
    )
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")
