"""Celery's own test tools give the in-process worker, in an armed run.

``celery.contrib.testing.worker.start_worker``, which the fixtures of ``celery.contrib.pytest`` call as well, stays
Celery's; the function by which it starts a worker in a thread is replaced. See
https://docs.celeryq.dev/en/stable/userguide/testing.html.

A worker that a fixture of a test's class, module or session starts is there as long as that fixture: its queues,
results and clock go on from test to test. While none of its tests runs it stands still, and the process is as it was.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from . import markers, options
from .errors import TakeoverError, hide_ours
from .fixtures import HARNESS, add_plans, build_harness
from .imports import WhenImported

if TYPE_CHECKING:
    from celery import Celery

    from .harness import Harness, Options

__tracebackhide__ = hide_ours

_MODULE = "celery.contrib.testing.worker"
#: The plugin of Celery's whose fixture ``celery_worker`` starts a worker for one test.
_PLUGIN = "celery.contrib.pytest"

#: Arguments of Celery's that do not apply: the pool is the harness's, and the worker has no neighbours.
_NOT_OURS = (
    "pool", "pool_cls", "autoscale", "statedb", "state_db", "use_eventloop",
    "without_mingle", "without_gossip",
)  # fmt: skip


def _definitions(item: Any) -> Mapping[str, Sequence[Any]]:
    """The fixtures of a test, by name; items of other kinds have none."""
    return item._fixtureinfo.name2fixturedefs if hasattr(item, "_fixtureinfo") else {}


@dataclass(eq=False)
class _Kept:
    """A worker that outlives a test, and the fixture that started it; ``None``: no fixture, so it is every test's."""

    harness: Harness
    fixture: Any
    settings: Options

    def is_for(self, item: Any) -> bool:
        return self.fixture is None or any(self.fixture in several for several in _definitions(item).values())

    @property
    def source(self) -> str:
        if self.fixture is None:
            return "outside of any fixture"
        name = str(self.fixture.argname).lstrip("_")
        return f"by the {self.fixture.scope} fixture {name!r}"


def starts_worker(item: Any) -> bool:
    """Whether a test has Celery's function-scoped fixture ``celery_worker``."""
    if os.environ.get("NO_WORKER"):  # Celery's own way to say that a worker runs elsewhere
        return False
    definitions = _definitions(item).get("celery_worker", ())
    return bool(definitions) and getattr(definitions[-1].func, "__module__", None) == _PLUGIN


def is_on(node: pytest.Item | pytest.Collector) -> bool:
    """Whether an armed run takes Celery's test tools over for a test, or for those of a class, module or session."""
    run = node.config.stash[options.STASH_KEY]
    marks = node.iter_markers(markers.SETTINGS)
    return bool(next((mark.kwargs["takeover"] for mark in marks if "takeover" in mark.kwargs), run.takeover))


def _may_ask_later(item: Any) -> bool:
    """Whether a test may call ``start_worker`` itself, after it has sent something: it names it, or its module does."""
    function = inspect.unwrap(getattr(item, "obj", None) or _may_ask_later)
    if "start_worker" in getattr(getattr(function, "__code__", None), "co_names", ()):
        return True
    tool = getattr(sys.modules.get(_MODULE), "start_worker", None)
    return tool is not None and any(
        value is tool or (type(value) is ModuleType and vars(value).get("start_worker") is tool)
        for value in _globals(item).values()
    )


def _globals(item: Any) -> dict[str, Any]:
    """Those of a test's module; items that are no Python tests have none."""
    return vars(item.module) if isinstance(getattr(item, "module", None), ModuleType) else {}


class Takeover:
    """A plugin of an armed run: knows who asks for a worker, and whose it is."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._stack = ExitStack()
        self._session: pytest.Session | None = None
        self._item: pytest.Item | None = None
        # The fixtures that are being set up, the innermost last.
        self._setting_up: list[tuple[Any, Any]] = []
        self._kept: list[_Kept] = []

    # -- pytest's hooks

    def pytest_configure(self) -> None:
        self._stack.enter_context(WhenImported(_MODULE, self._replace_in))

    def pytest_unconfigure(self) -> None:
        for kept in self._kept:  # an interrupt kept their fixtures from ending
            self._stack.callback(kept.harness.close)
        self._kept.clear()
        self._stack.close()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> Generator[None, Any, Any]:
        self._session = session
        value = yield
        self._pause()
        return value

    def _pause(self) -> None:
        for kept in self._kept:
            kept.harness.pause()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._pause()
        self._item = item
        with ExitStack() as stack:
            stack.callback(setattr, self, "_item", None)
            if is_on(item):
                may_ask = _may_ask_later(item)
                if self._kept or may_ask:
                    self._watch_for_contact(item, stack, may_ask)
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        for kept in self._kept:
            if kept.is_for(item):
                self._lend(kept, item)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        __tracebackhide__ = True  # of each fixture that fails
        self._setting_up.append((fixturedef, request))
        known = list(self._kept)
        try:
            value = yield
        finally:
            self._setting_up.pop()
        # Not in the fixture itself, which is there for other tests as well: pytest would give them the same error.
        for kept in self._kept:
            if kept not in known and self._item is not None:
                self._lend(kept, self._item)
        return value

    def _watch_for_contact(self, item: pytest.Item, stack: ExitStack, may_ask: bool) -> None:
        """Have a test whose application talks to its broker or backend do that in memory, where that is to be.

        It may count on a worker that it did not ask for, or asked for while it ran, by ``request.getfixturevalue``: one
        that is kept is lent. Or it sends before it starts a worker, which then has to find the message.
        """
        from celery import Celery

        from . import replaced
        from .app import put_connections_aside

        bring_back = put_connections_aside()
        came_in = False
        stack.callback(lambda: bring_back(came_in))

        def comes_in(reaches: Callable[[Harness], bool], app: Callable[[], Celery | None]) -> bool:
            nonlocal came_in
            is_tests_own = all(fixture.scope == "function" for fixture, _ in self._setting_up)
            kept = next((kept for kept in self._kept if kept.harness.is_paused and reaches(kept.harness)), None)
            if kept is not None:
                self._lend(kept, item)
            elif may_ask and is_tests_own and HARNESS not in item.stash and (asks := app()) is not None:
                self._build(asks, item)
            else:
                return False
            came_in = True
            return True

        def transport(original: Any) -> Any:
            def get_transport_cls(connection: Any) -> Any:
                from .harness import app_of

                in_memory = comes_in(
                    lambda harness: harness.has_broker_of(connection),
                    lambda: app_of(connection, [it for it in _globals(item).values() if issubclass(type(it), Celery)]),
                )
                return connection.get_transport_cls() if in_memory else original(connection)

            return get_transport_cls

        def backend(original: Any) -> Any:
            def app_backend(app: Any) -> Any:
                in_memory = comes_in(lambda harness: harness.has_backend_of(app), lambda: app)
                return app.backend if in_memory else original.fget(app)

            return property(app_backend)

        replaced.replace(stack, replaced.TRANSPORT, transport)
        replaced.replace(stack, replaced.BACKEND, backend)

    # -- the worker that Celery's tools ask for

    def _replace_in(self, module: Any) -> None:
        from . import replaced

        def start_worker_thread(original: Callable[..., Any]) -> Callable[..., Any]:
            @contextmanager
            def _start_worker_thread(app: Celery, *args: Any, **kwargs: Any) -> Iterator[Any]:
                __tracebackhide__ = True
                asks = self._who_asks()
                with original(app, *args, **kwargs) if asks is None else self._worker(app, *asks, *args, **kwargs) as w:
                    yield w

            return _start_worker_thread

        replaced.replace(self._stack, replaced.takeover_name(module), start_worker_thread)

    def _who_asks(self) -> tuple[Any, pytest.Item | pytest.Collector] | None:
        """The fixture and the node for whose length a worker is asked for; ``None``: leave it alone."""
        fixture: Any = None
        node: Any = self._item or self._session
        if self._setting_up:
            fixture, request = self._setting_up[-1]
            node = request.node
        if node is None:
            return None
        if not is_on(node):
            if self._item is not None and HARNESS in self._item.stash:
                raise TakeoverError(
                    "start_worker(): with takeover=False it is Celery's own, in a thread and in real time, which "
                    "cannot be in a test that has a worker of this plugin as well"
                )
            return None
        return fixture, node

    @contextmanager
    def _worker(
        self,
        app: Celery,
        fixture: Any,
        node: Any,
        concurrency: int = 1,
        pool: Any = None,
        loglevel: Any = "WARN",
        logfile: str | None = None,
        WorkController: Any = None,  # noqa: N803 - the parameters are Celery's
        perform_ping_check: bool = True,
        shutdown_timeout: float = 10.0,
        **arguments: Any,
    ) -> Iterator[Any]:
        """What ``start_worker`` uses in place of a thread."""
        __tracebackhide__ = True
        from celery.contrib.testing.worker import TestWorkController

        app.finalize()
        if perform_ping_check:
            assert "celery.ping" in app.tasks, "celery.contrib.testing.tasks is not imported, which has celery.ping"
        arguments = {name: value for name, value in arguments.items() if name not in _NOT_OURS}
        arguments.update(loglevel=loglevel, logfile=logfile)
        if concurrency != 1:  # Celery's default: what the marker says may be more
            arguments["concurrency"] = concurrency
        if markers.settings(node).queues is None:
            arguments.setdefault("queues", None)  # Celery chooses
        kind = _kind(WorkController or TestWorkController)
        with (
            self._harness(app, fixture, node) as harness,
            harness.worker.serve(kind, arguments, shutdown_timeout) as worker,
        ):
            try:
                yield worker
            finally:
                harness.go_on()

    @contextmanager
    def _harness(self, app: Celery, fixture: Any, node: Any) -> Iterator[Harness]:
        """The harness of the test that runs, or a new one, kept as long as its fixture where several tests share it."""
        item = self._item
        harness = item.stash.get(HARNESS, None) if item is not None else None
        app = getattr(app, "_get_current_object", lambda: app)()
        if harness is not None and harness.app is not app:
            raise TakeoverError(
                f"start_worker({app!r}): this test runs {harness.app!r}, and has one application whose worker runs. "
                "Name that one by a fixture celery_faults_app, or by --celery-faults-app"
            )
        if harness is not None:
            yield harness
            return
        settings = markers.settings(node)
        if node is item:
            yield self._build(app, item)
            return
        harness = build_harness(self._config, node, app, settings)
        if item is not None:
            item.stash[HARNESS] = harness
        harness.is_kept = True
        harness.worker.wait_to_be_asked()
        kept = _Kept(harness, fixture, settings)
        self._kept.append(kept)
        try:
            yield harness
        finally:
            if kept in self._kept:
                self._kept.remove(kept)
            harness.close()

    def _build(self, app: Celery, item: pytest.Item) -> Harness:
        """A harness for one test that asks for a worker while it runs."""
        harness = build_harness(self._config, item, app, markers.settings(item))
        harness.worker.wait_to_be_asked()
        item.addfinalizer(harness.close)
        return harness

    def _lend(self, kept: _Kept, item: pytest.Item) -> None:
        """Have a test use a worker that is kept."""
        harness, other = kept.harness, item.stash.get(HARNESS, None)
        if other is harness:  # it has come with this test
            pass
        elif other is not None:
            raise pytest.fail.Exception(
                f"the worker of this test is started {kept.source} for {harness.app!r}, and another one for "
                f"{other.app!r}: a test has one",
                pytrace=False,
            )
        else:
            item.stash[HARNESS] = harness
            harness.begin_test(item.nodeid)
        self._check(kept, item)
        add_plans(harness, item)

    def _check(self, kept: _Kept, item: pytest.Item) -> None:
        if not is_on(item):
            raise pytest.fail.Exception(
                "@pytest.mark.celery_faults(takeover=False): the worker of this test is started "
                f"{kept.source} and shared with other tests, in process. Mark all of them alike, or set "
                "celery_faults_takeover = false",
                pytrace=False,
            )
        wanted = markers.settings(item)
        differing = [
            field.name
            for field in fields(wanted)
            if field.name != "takeover" and getattr(wanted, field.name) != getattr(kept.settings, field.name)
        ]
        if differing:
            said = ", ".join(f"{name}={getattr(wanted, name)!r}" for name in differing)
            raise pytest.fail.Exception(
                f"@pytest.mark.celery_faults({said}): the worker of this test is started {kept.source} and runs on "
                f"from test to test; a single test cannot change it",
                pytrace=False,
            )


def _kind(given: type) -> type:
    """The worker's class: ours, and the one that Celery's tools were asked for."""
    from .worker import Worker

    class TestWorker(given, Worker):
        __test__ = False

        def on_consumer_ready(self, consumer: Any) -> None:
            Worker.on_consumer_ready(self, consumer)
            super().on_consumer_ready(consumer)

    return TestWorker
