"""The four fixtures."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from . import markers, options
from .errors import CeleryFaultsError, hide_ours

if TYPE_CHECKING:
    from celery import Celery

    from .harness import Harness
    from .views.letters import DeadLetterQueue
    from .views.retries import RetryRecorder
    from .watchdog import Watchdog

__tracebackhide__ = hide_ours

HARNESS: pytest.StashKey[Harness] = pytest.StashKey()
#: That of the test which runs.
NOW: pytest.StashKey[Harness | None] = pytest.StashKey()
WATCHDOG: pytest.StashKey[Watchdog] = pytest.StashKey()

_NO_APP = """\
no Celery application to test. Name it on the command line or in the configuration:
    [tool.pytest.ini_options]
    celery_faults_app = "package.module:app"
or by a fixture:
    @pytest.fixture
    def celery_faults_app():
        return app"""


@pytest.fixture
def celery_faults_app(request: pytest.FixtureRequest) -> Celery:
    """The Celery application under test; override it to name another one."""
    from .app import current_app_with_tasks, find_app

    run = request.config.stash[options.STASH_KEY]
    if run.app is not None:
        try:
            return find_app(run.app, run.app_option)
        except CeleryFaultsError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
    if request._fixturemanager.getfixturedefs("celery_app", request.node):
        return request.getfixturevalue("celery_app")
    app = current_app_with_tasks()
    if app is None:
        pytest.fail(_NO_APP, pytrace=False)
    return app


@pytest.fixture
def celery_faults(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """The test's worker, broker, clock and record; see the reference for its parts."""
    harness = _build(request, request.node)
    try:
        yield harness
    finally:
        harness.close()


def _build(request: pytest.FixtureRequest, item: pytest.Item) -> Harness:
    app: Any = request.getfixturevalue("celery_faults_app")
    from celery import Celery

    app = getattr(app, "_get_current_object", lambda: app)()
    if not isinstance(app, Celery):
        pytest.fail(f"the fixture celery_faults_app returned {app!r}, not a Celery application", pytrace=False)
    from .harness import Harness
    from .watchdog import Watchdog

    config = request.config
    watchdog = config.stash.setdefault(WATCHDOG, Watchdog())
    run = config.stash[options.STASH_KEY]
    is_async = inspect.iscoroutinefunction(getattr(item, "obj", None))
    harness = Harness(app, markers.settings(item), run.seed, item.nodeid, watchdog, config.hook, is_async)
    item.stash[HARNESS] = harness
    if run.armed:
        try:
            for plan in markers.plans(item):
                harness.add(plan)
        except CeleryFaultsError as error:
            harness.close()
            raise pytest.fail.Exception(str(error), pytrace=False) from None
    return harness


@pytest.fixture
def retry_recorder(celery_faults: Harness) -> RetryRecorder:
    """Attempts, retries and their delays."""
    return celery_faults.retries


@pytest.fixture
def celery_dlq(celery_faults: Harness) -> DeadLetterQueue:
    """Every message that ended badly, with the reason."""
    return celery_faults.dlq
