"""pytest's hooks, each of which only calls a function. What a run without tasks can do without is imported late."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from . import hookspecs, markers, options
from .errors import FaultNeverFiredError
from .fixtures import (
    HARNESS,
    NOW,
    STARTS_WORKER,
    WATCHDOG,
    celery_dlq,
    celery_faults,
    celery_faults_app,
    retry_recorder,
)
from .summary import SKIP_REASON, Summary

if TYPE_CHECKING:
    from .harness import Harness

__all__ = ["celery_dlq", "celery_faults", "celery_faults_app", "retry_recorder"]

_FIXTURES = frozenset(__all__)

#: Our marks of a test at its collection, and what is wrong with one that nobody could check before.
MARKS: pytest.StashKey[list[pytest.Mark]] = pytest.StashKey()
WRONG: pytest.StashKey[str] = pytest.StashKey()

#: Why the live view that was asked for is not there.
NO_VIEW: pytest.StashKey[str | None] = pytest.StashKey()

#: The state of `random` before the test is called.
CHANCE: pytest.StashKey[Any] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[options.STASH_KEY] = run = options.read_options(config)
    if run.armed:
        from . import takeover

        config.pluginmanager.register(takeover.Takeover(config), "celery_faults_takeover")
    if run.live:
        from . import live

        live.check()
    summary = Summary()
    config.pluginmanager.register(summary, "celery_faults_summary")
    if run.report is not None:
        from .report import session

        session.register(config, run.report, summary)
    for description in markers.DESCRIPTIONS:
        config.addinivalue_line("markers", description)


def pytest_unconfigure(config: pytest.Config) -> None:
    watchdog = config.stash.get(WATCHDOG, None)
    if watchdog is not None:
        watchdog.stop()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["celery_faults_seed"] = node.config.stash[options.STASH_KEY].seed


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.stash[options.STASH_KEY].live and not hasattr(session.config, "workerinput"):
        from . import live

        session.config.stash[NO_VIEW] = live.register(session.config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    run = config.stash[options.STASH_KEY]
    lines = [f"celery faults: armed, --celery-faults-seed={run.seed}"] if run.armed else []
    why = config.stash.get(NO_VIEW, None)
    return [*lines, f"celery faults: no live view: {why}"] if why else lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    markers.check(markers.of_test(metafunc), metafunc.config.hook)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
    markers.check_slip(name, obj)
    markers.check(markers.of_test_case(obj), collector.config.hook)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.failed:
        markers.explain_slip(report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    armed = config.stash[options.STASH_KEY].armed
    for item in items:
        item.stash[MARKS] = marks = markers.of_item(item)
        wrong = markers.what_is_wrong([(mark, getattr(item, "obj", None)) for mark in marks], config.hook)
        injects = markers.carries_inject(item)
        if wrong:
            item.stash[WRONG] = wrong
        elif injects and not armed:
            item.add_marker(pytest.mark.skip(reason=SKIP_REASON))
        else:
            if armed and _starts_worker(item):
                item.stash[STARTS_WORKER] = True
            if injects or _needs_harness(item):
                _set_up_first(item)


def _starts_worker(item: pytest.Item) -> bool:
    from . import takeover

    return takeover.starts_worker(item) and takeover.is_on(item)


def _needs_harness(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    return STARTS_WORKER in item.stash or markers.carries_settings(item) or not _FIXTURES.isdisjoint(names)


def _set_up_first(item: Any) -> None:
    """Put the harness before every other function-scoped fixture of this item, and of this item only."""
    definitions = item._fixtureinfo.name2fixturedefs
    names = [name for name in item.fixturenames if name != "celery_faults"]
    first = next(
        (
            position
            for position, name in enumerate(names)
            if name not in definitions or definitions[name][-1].scope == "function"
        ),
        len(names),
    )
    names.insert(first, "celery_faults")
    item.fixturenames = names


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: object, right: object) -> list[str] | None:
    harness = config.stash.get(NOW, None)
    if harness is None:
        return None
    from . import comparisons

    return comparisons.explain(harness, op, left, right, config.get_verbosity(config.VERBOSITY_ASSERTIONS) > 1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    wrong = item.stash.get(WRONG, None)
    if wrong is not None:
        raise pytest.fail.Exception(wrong, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    harness = item.config.stash[NOW] = item.stash.get(HARNESS, None)
    if harness is not None:
        harness.set_up_is_over()
        item.stash[CHANCE] = random.getstate()
        _look_before_tear_down(item, harness)
    try:
        yield
    except Exception as error:
        if harness is not None:
            from . import failures

            failures.add_note(error, harness)
        raise
    finally:
        if CHANCE in item.stash:
            del item.stash[CHANCE]  # 25 kB, and pytest keeps its items
    late = markers.added_since(item, item.stash.get(MARKS, []))
    if late:
        raise pytest.fail.Exception(late, pytrace=False)
    if harness is not None:
        try:
            harness.verify()
        except FaultNeverFiredError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None


def _look_before_tear_down(item: Any, harness: Harness) -> None:
    """A Django test case rolls back within the call. Before that, unittest tells its result, the item, of the end."""
    if hasattr(item, "stopTest"):
        stop = type(item).stopTest

        def stop_test(testcase: object) -> None:
            harness.body_is_over()
            stop(item, testcase)

        item.stopTest = stop_test


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """pytest-randomly sets a seed of its own right before; jitter is to follow ours."""
    state = pyfuncitem.stash.get(CHANCE, None)
    if state is not None:
        random.setstate(state)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    harness = item.stash.get(HARNESS, None)
    if harness is not None:
        harness.set_up_is_over()
    try:
        yield
        if HARNESS in item.stash:
            item.stash[HARNESS].settle()
    finally:
        # When another fixture's tear-down is interrupted, ours is not reached.
        item.config.stash[NOW] = None
        if harness is not None:
            harness.end_test()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[Any]:
    report = yield
    harness = item.stash.get(HARNESS, None)
    if harness is not None:
        from . import failures

        failures.add_to_report(report, harness, explained=item.config.option.assertmode != "plain")
        if call.when == "teardown":  # nobody needs it any more
            del item.stash[HARNESS]
    return report
