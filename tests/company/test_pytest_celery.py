"""pytest-celery, the one that starts containers: no name of ours is one of its, in either order of loading."""

from __future__ import annotations

import pytest

from company import needs

pytestmark = needs("pytest_celery", "pytest-celery")

SOURCE = """
import pytest
from shop import download

@pytest.mark.inject(OSError, times=2)
def test_ours(celery_faults, celery_faults_app, retry_recorder, celery_dlq):
    assert celery_faults_app.main == "shop"
    assert download.delay("x").get() == "done"
    assert retry_recorder.count == 2
    assert not celery_dlq
"""


ORDER = pytest.mark.parametrize("first", [False, True], ids=["ours last", "ours first"])
#: It asks for pytest-docker-tools, and imports Docker's client, which warns.
PLUGINS = ("docker_tools", "celery")


@ORDER
def test_our_fixtures_work_beside_it(company, first):
    company.shop.test(SOURCE)
    result = company.run("-W", "default", plugins=PLUGINS, first=first)
    result.assert_outcomes(passed=1)


@ORDER
def test_no_fixture_has_two_owners(company, first):
    company.shop.test(SOURCE)

    def homes(*plugins):
        result = company.run("--fixtures", "-q", "-W", "default", plugins=plugins, first=first)
        assert result.ret == 0
        words = [line.split(" -- ") for line in result.outlines if " -- " in line]
        return {name.split()[0]: home.split(":")[0] for name, home in words}

    both, alone = homes(*PLUGINS), homes()
    ours = {name for name, home in alone.items() if "pytest_celery_faults/" in home}
    assert ours == {"celery_faults", "celery_faults_app", "retry_recorder", "celery_dlq"}
    assert {name: both[name] for name in alone} == alone
    theirs = {name: home for name, home in both.items() if "pytest_celery/" in home}
    assert {"celery_worker", "celery_setup", "celery_backend_cluster"} <= theirs.keys()
    assert not theirs.keys() & alone.keys()
