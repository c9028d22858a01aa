"""The report of tests that run more than once: each try is kept, and the last one counts."""

from __future__ import annotations

import pytest

from company import needs
from report_helpers import Page

TESTS = """
import pytest
from shop import add, download

tried = []

{mark}
def test_flaky(celery_faults):
    tried.append(1)
    add.delay(len(tried), 0).get()
    assert len(tried) == 3, f"try {{len(tried)}}"

def test_steady(celery_faults):
    add.delay(1, 2).get()
"""


def check(page: Page) -> None:
    assert page.outcomes == {"test_flaky": "passed", "test_steady": "passed"}
    tries = page.tries_of("test_flaky")
    assert [one["record"]["tasks"][0]["call"] for one in tries] == ["1, 0", "2, 0", "3, 0"]
    assert [one["outcome"] for one in tries] == ["failed", "failed", "passed"]
    assert [phase[3] for one in tries for phase in one["phases"]] == ["AssertionError: try 1", "AssertionError: try 2"]
    assert page.index("test_flaky")["tries"] == 3
    assert page.index("test_steady")["tries"] == 1


@needs("pytest_rerunfailures", "pytest-rerunfailures")
@pytest.mark.parametrize("first", [False, True], ids=["ours last", "ours first"])
@pytest.mark.parametrize("xdist", [[], ["-n1"]], ids=["one process", "xdist"])
def test_rerunfailures(company, xdist, first):
    company.shop.test(TESTS.format(mark="@pytest.mark.flaky(reruns=5)"))
    plugins = ("xdist", "rerunfailures") if xdist else ("rerunfailures",)
    company.run("--celery-faults-report=report.html", *xdist, plugins=plugins, first=first)
    check(Page.read(company.pytester.path / "report.html"))


@needs("pytest_rerunfailures", "pytest-rerunfailures")
def test_a_test_that_fails_each_time_has_failed(company):
    company.shop.test(TESTS.format(mark="@pytest.mark.flaky(reruns=1)"))
    company.run("--celery-faults-report=report.html", plugins=("rerunfailures",))
    page = Page.read(company.pytester.path / "report.html")
    assert page.outcomes == {"test_flaky": "failed", "test_steady": "passed"}
    assert len(page.tries_of("test_flaky")) == 2


@needs("flaky", "flaky")
@pytest.mark.parametrize("xdist", [[], ["-n1"]], ids=["one process", "xdist"])
def test_flaky(company, xdist):
    company.shop.test(TESTS.format(mark="@pytest.mark.flaky(max_runs=5)"))
    plugins = ("flaky.flaky_pytest_plugin", "xdist") if xdist else ("flaky.flaky_pytest_plugin",)
    company.run("--celery-faults-report=report.html", *xdist, plugins=plugins)
    check(Page.read(company.pytester.path / "report.html"))


@needs("pytest_rerunfailures", "pytest-rerunfailures")
def test_a_test_that_crashes_a_worker_of_xdists_and_is_run_again_by_another(company):
    company.shop.test(
        """
        import os
        from pathlib import Path
        from shop import add
        def test_it(celery_faults):
            add.delay(1, 2).get()
            if not Path("crashed").exists():
                Path("crashed").touch()
                os._exit(1)
        """
    )
    arguments = ("--celery-faults-report=report.html", "--reruns=2", "-n1")
    company.run(*arguments, plugins=("xdist", "rerunfailures"))
    page = Page.read(company.pytester.path / "report.html")
    assert page.outcomes == {"test_it": "passed"}
    crashed, passed = page.tries_of("test_it")
    assert "crashed while running" in crashed["phases"][0][2]
    assert passed["record"]["tasks"][0]["state"] == "SUCCESS"
