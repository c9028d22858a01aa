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

    from .harness import Harness, Options
    from .views.letters import DeadLetterQueue
    from .views.retries import RetryRecorder
    from .watchdog import Watchdog

__tracebackhide__ = hide_ours

HARNESS: pytest.StashKey[Harness] = pytest.StashKey()
#: That of the test which runs.
NOW: pytest.StashKey[Harness | None] = pytest.StashKey()
WATCHDOG: pytest.StashKey[Watchdog] = pytest.StashKey()
#: Of a test with Celery's fixture ``celery_worker``, which asks for a worker of the fixture ``celery_app``.
STARTS_WORKER: pytest.StashKey[bool] = pytest.StashKey()

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

    harness = request.node.stash.get(HARNESS, None)
    if harness is not None:
        return harness.app
    run = request.config.stash[options.STASH_KEY]
    has_worker = STARTS_WORKER in request.node.stash
    if run.app is not None and not has_worker:
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
    item: pytest.Item = request.node
    kept = item.stash.get(HARNESS, None)
    app: Any = request.getfixturevalue("celery_faults_app")
    from celery import Celery

    app = getattr(app, "_get_current_object", lambda: app)()
    if not isinstance(app, Celery):
        pytest.fail(f"the fixture celery_faults_app returned {app!r}, not a Celery application", pytrace=False)
    if kept is not None:
        if kept.app is not app:
            pytest.fail(
                f"the fixture celery_faults_app returned {app!r}, but the worker of this test, which other tests have "
                f"as well, is that of {kept.app!r}",
                pytrace=False,
            )
        yield kept
        return
    harness = build_harness(request.config, item, app, markers.settings(item))
    try:
        if STARTS_WORKER in item.stash:
            harness.worker.wait_to_be_asked()
        yield harness
    finally:
        harness.close()


def build_harness(
    config: pytest.Config, node: pytest.Item | pytest.Collector, app: Celery, settings: Options
) -> Harness:
    """A harness for one test, or for all tests of a class, module or session."""
    from .harness import Harness
    from .secrets import DEFAULT, Secrets
    from .watchdog import Watchdog

    watchdog = config.stash.setdefault(WATCHDOG, Watchdog())
    run = config.stash[options.STASH_KEY]
    secrets = Secrets(DEFAULT if run.secrets is None else run.secrets)
    is_async = inspect.iscoroutinefunction(getattr(node, "obj", None))
    harness = Harness(app, settings, run.seed, node.nodeid, watchdog, config.hook, is_async, secrets)
    if isinstance(node, pytest.Item):
        node.stash[HARNESS] = harness
        try:
            add_plans(harness, node)
        except BaseException:
            harness.close()
            raise
    return harness


def add_plans(harness: Harness, item: pytest.Item) -> None:
    """Have the faults of a test's marks strike, in an armed run."""
    if not item.config.stash[options.STASH_KEY].armed:
        return
    try:
        for plan in markers.plans(item):
            harness.add(plan)
    except CeleryFaultsError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture
def retry_recorder(celery_faults: Harness) -> RetryRecorder:
    """Attempts, retries and their delays."""
    return celery_faults.retries


@pytest.fixture
def celery_dlq(celery_faults: Harness) -> DeadLetterQueue:
    """Every message that ended badly, with the reason."""
    return celery_faults.dlq
