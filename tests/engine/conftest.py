"""What the tests of the engine share: an application of their own, and harnesses built by hand."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import signal
import threading

import pytest
from celery import Celery, _state

from pytest_celery_faults.harness import Harness, make_options
from pytest_celery_faults.watchdog import Watchdog

# Nothing may listen at port 1: whatever got out of memory would fail.
URL = "redis://127.0.0.1:1/0"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Each coroutine function is a test in a loop of its own; no plugin is needed for it."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def bare_app():
    """An application without tasks and without a harness around it; most tests define their tasks."""
    default, current = _state.default_app, _state._tls.current_app
    # Where tasks are kept that other applications get as well.
    finalizers = set(_state._on_app_finalizers)
    yield Celery("shop", broker=URL, backend=URL, set_as_current=False)
    _state.default_app, _state._tls.current_app = default, current
    _state._on_app_finalizers.intersection_update(finalizers)


@pytest.fixture
def celery_faults_app(bare_app):
    return bare_app


@pytest.fixture
def app(celery_faults):
    return celery_faults.app


@pytest.fixture
def add(app):
    @app.task(name="shop.add")
    def add(x, y):
        return x + y

    return add


@pytest.fixture
def failing(app):
    """Makes a task that fails with a TypeError for ever, with these options."""

    def failing(**options):
        @app.task(name="shop.failing", **options)
        def failing():
            raise TypeError("bad")

        return failing

    return failing


@pytest.fixture
def total(app, log):
    def total(numbers):
        log.append(("total", list(numbers)))
        return sum(numbers)

    return app.task(name="shop.total")(total)


@pytest.fixture
def fail(app):
    def fail(*_):
        raise LookupError("failed")

    return app.task(name="shop.fail")(fail)


@pytest.fixture
def errback(app, log):
    def errback(request, exc, traceback):
        log.append((request.id, repr(exc), "raise LookupError" in (traceback or "")))

    return app.task(name="shop.errback")(errback)


@pytest.fixture
def log():
    return []


@pytest.fixture
def worker(celery_faults):
    return celery_faults.worker


@pytest.fixture
def elapsed(celery_faults):
    return lambda: celery_faults.clock.elapsed


@pytest.fixture(scope="session")
def watchdog():
    """One for the whole run, as the plugin has it."""
    watchdog = Watchdog()
    yield watchdog
    watchdog.stop()


@pytest.fixture
def build(bare_app, watchdog):
    """Builds a harness by hand, for what is before, between and after tests."""
    numbers = itertools.count(1)
    built = []

    def build(app=bare_app, seed=0, name=None, is_async=False, **options):
        name = name or f"test {next(numbers)}"
        harness = Harness(app, make_options(options), seed, name, watchdog, is_async=is_async)
        built.append(harness)
        return harness

    yield build
    for harness in built:
        harness.close()


@pytest.fixture
def hang_is_failure():
    """Interrupts a test that hangs in real time."""

    def interrupt(*_):
        pytest.fail("it hung")

    previous = signal.signal(signal.SIGUSR2, interrupt)
    timer = threading.Timer(10, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR2))
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
    timer.join()
    signal.signal(signal.SIGUSR2, previous)
