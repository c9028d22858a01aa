"""Options of pytest's own that change how tests are run or shown."""

from __future__ import annotations

import sys

import pytest

SOURCE = """
import pytest
from shop import add, boom, download

@pytest.mark.inject(OSError, times=2)
def test_download(celery_faults, retry_recorder):
    assert download.delay("x").get() == "done"
    assert retry_recorder.delays == [1, 2]

@pytest.mark.inject(OSError, times=2)
@pytest.mark.celery_faults(concurrency=2)
def test_fails(celery_faults):
    assert download.delay("x").get() == "lost"
"""


@pytest.mark.parametrize(
    "options",
    [
        "--strict-markers",
        "--strict-config",
        "--assert=plain",
        "--import-mode=importlib",
        "-p no:cacheprovider",
        "-p no:logging",
        "-p no:faulthandler",
        "-s",
        "--tb=native",
        "--tb=no",
        "-vv",
        "-q",
        "--junitxml=report.xml",
    ],
)
def test_it_works_with(company, options):
    company.shop.ini("celery_faults_app = shop:app", "pythonpath = .")
    company.shop.test(SOURCE)
    result = company.run(*options.split())
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["2 tests, 2 tasks in 6 executions, *"])
    if options != "--tb=no":
        result.stdout.fnmatch_lines(["*celery faults timeline*", "*fault fired*shop.download#1*"])


def test_without_a_terminal(company):
    company.shop.test(SOURCE)
    result = company.run("-p", "no:terminal", "--junitxml=report.xml")
    assert result.ret == 1
    assert "Traceback" not in str(result.stderr)
    report = (company.pytester.path / "report.xml").read_text()
    assert 'tests="2"' in report
    assert 'failures="1"' in report
    assert 'errors="0"' in report


def test_pdb_in_a_task(company):
    company.shop.test("""
import shop

@shop.app.task
def stops(secret):
    breakpoint()
    return secret

def test_stop(celery_faults):
    assert stops.delay("sesame").get() == "sesame"
""")
    command = (sys.executable, "-m", "pytest", "-p", "celery_faults", "--celery-faults", "-s")
    result = company.pytester.run(*command, stdin=b"p 'open ' + secret\ncontinue\n", timeout=90)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*stops()*", "*'open sesame'*"])
