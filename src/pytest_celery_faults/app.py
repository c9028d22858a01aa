"""Adopting the application under test, and giving it back exactly as it was."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import WeakSet

import billiard.pool
import kombu.asynchronous.hub
import kombu.pools
from celery import Celery, _state, signals
from celery.app import trace
from celery.app.task import Task as CeleryTask
from celery.utils.dispatch import Signal
from celery.utils.imports import import_from_cwd
from celery.worker import state as worker_state

from .errors import AppError, hide_ours, nearest

__tracebackhide__ = hide_ours

#: Settings that would lead out of memory, onto the disk, or past the worker.
_OVERRIDES: dict[str, Any] = {
    "task_always_eager": False,
    "task_eager_propagates": False,
    "worker_state_db": None,
    "redis_backend_use_ssl": None,
    "redis_backend_credential_provider": None,
}


def find_app(path: str, option: str) -> Celery:
    """The app that ``celery -A path`` would use; ``option`` is where the path was given.

    Raises:
        AppError: the path does not import, or leads to no Celery app.
    """
    from celery.app.utils import find_app as celery_find_app

    module_name, colon, attribute = path.partition(":")
    if not colon:
        module_name, _, attribute = path.rpartition(".")
    try:
        if colon and not hasattr(import_from_cwd(module_name), attribute):
            raise _no_such_app(option, path, module_name, attribute)
        found = celery_find_app(path)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if missing == path and module_name in sys.modules:
            raise _no_such_app(option, path, module_name, attribute) from None
        if path != missing and not path.startswith((f"{missing}.", f"{missing}:")):
            raise  # the application's own module imports something that is not there
        raise AppError(
            f"{option}={path}: there is no module {missing!r}{nearest(missing, sys.modules)} "
            "Write it as for `celery -A`: package.module:attribute"
        ) from None
    if not isinstance(found, Celery):
        raise AppError(f"{option}={path}: that is {found!r}, not a Celery application")
    return found


def _no_such_app(option: str, path: str, module_name: str, attribute: str) -> AppError:
    apps = sorted(name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, Celery))
    return AppError(
        f"{option}={path}: {module_name} has no Celery app {attribute!r}{nearest(attribute, apps)} "
        f"Apps there: {', '.join(apps) or 'none'}"
    )


def current_app_with_tasks() -> Celery | None:
    """The current app, if it has tasks of the user's."""
    if _state.default_app is None and _state._tls.current_app is None:
        return None
    app = _state.get_current_app()
    if any(not name.startswith("celery.") for name in app.tasks):
        return app
    return None


def _all_signals() -> list[Signal]:
    return [value for value in vars(signals).values() if isinstance(value, Signal)]


def _connect_again(signal: Signal, receivers: list[Any]) -> None:
    """Put receivers back, before those that have come since."""
    signal.receivers[:] = receivers + [entry for entry in signal.receivers or () if entry not in receivers]
    signal.sender_receivers_cache.clear()


#: What a worker keeps in module globals: containers that others hold, and flags.
_CONTAINERS = (
    "requests", "reserved_requests", "active_requests", "scheduled_requests", "successful_requests", "total_count",
    "revoked", "revoked_stamps",
)  # fmt: skip
_FLAGS = ("should_stop", "should_terminate")


def _worker_state_as_it_is() -> Callable[[], None]:
    """A function that brings the worker's state of now back."""
    containers = {name: getattr(worker_state, name) for name in _CONTAINERS if hasattr(worker_state, name)}
    contents = {name: copy.copy(container) for name, container in containers.items()}
    flags = {name: getattr(worker_state, name) for name in _FLAGS}
    total = list(worker_state.all_total_count)

    def bring_back() -> None:
        for name, container in containers.items():
            container.clear()
            container.update(contents[name])
        worker_state.all_total_count[:] = total
        for name, value in flags.items():
            setattr(worker_state, name, value)

    return bring_back


_registered_for_forks: WeakSet[Celery] = WeakSet()


def put_connections_aside() -> Callable[[bool], None]:
    """Take away the connections that all apps keep, so that they open new ones.

    Returns:
        A function that brings them back. When its argument is true the new ones lead to a broker in memory that is
        gone, and are forgotten; else they are kept, but for those to where an older one leads.
    """
    groups = [(group, dict(dict.items(group))) for group in (kombu.pools.connections, kombu.pools.producers)]
    pools = {app: (app._pool, getattr(app.__dict__.get("amqp"), "_producer_pool", None)) for app in _apps()}

    def forget() -> None:
        for app in _apps():
            app._pool = None
            if "amqp" in app.__dict__:
                app.amqp._producer_pool = None
        for group, _ in groups:
            dict.clear(group)

    def bring_back(is_gone: bool) -> None:
        if is_gone:
            forget()
        for app, (pool, producers) in pools.items():
            app._pool = app._pool if pool is None else pool
            if producers is not None:
                app.amqp._producer_pool = producers
        for group, kept in groups:
            for key in dict.keys(group) & kept.keys():
                dict.__getitem__(group, key).force_close_all()
            dict.update(group, kept)

    forget()
    return bring_back


def _apps() -> list[Celery]:
    return list(_state._get_active_apps())


class Adoption:
    """Remembers all state of an app, and of Celery and kombu, that a test may change."""

    def __init__(self, app: Celery, conf: dict[str, Any]) -> None:
        self.app = app
        self._conf = conf
        # What the test changes in the settings lands here.
        self._layer = {**_OVERRIDES, **conf}
        self._undo = ExitStack()
        self._modules: set[str] = set()
        self._known_queues: list[str] = []
        # What brings back the state that the app was in when it was given back for a while.
        self._again: list[Callable[[], object]] = []

    def take(self) -> None:
        """Take the app, as it is, or as it was when it was given back for a while."""
        app = self.app
        # A worker imports its task modules first of all. Done here, before anything is remembered, they stay
        # registered after the test: a module is imported once in a process.
        app.loader.import_default_modules()
        app.finalize()
        self._modules = set(sys.modules)
        remember = self._undo.callback
        for other in list(_state._get_active_apps()):
            self._disconnect(other)
        remember(self._restore_dict, app.__dict__, dict(app.__dict__))
        # multiprocessing keeps what is registered with it: once for an app is enough, for each test would pile up.
        if app in _registered_for_forks:
            app._after_fork_registered = True
        else:
            app._ensure_after_fork()
            _registered_for_forks.add(app)
        self._lay_over()
        self._copy_amqp()
        self._remember_tasks()
        self._take_away_own_backends()
        self._apply_to_bound_tasks(self._conf)
        self._remember_process_state()
        app.set_current()
        app.set_default()
        while self._again:
            self._again.pop()()

    def give_back(self) -> None:
        """Everything as it was, whatever happened in the test."""
        self._undo.close()

    def lend_back(self) -> None:
        """Everything as it was for a while: the next `take` goes on with what is now."""
        app, again = self.app, self._again.append
        again(partial(self._restore_dict, app.__dict__, dict(app.__dict__)))
        for task in app._tasks.values():
            again(partial(self._restore_dict, task.__dict__, dict(task.__dict__)))
        again(partial(dict.update, app._tasks, dict(app._tasks)))
        for signal in _all_signals():
            if signal.receivers:
                again(partial(_connect_again, signal, list(signal.receivers)))
        again(partial(kombu.asynchronous.hub.set_event_loop, kombu.asynchronous.hub.get_event_loop()))
        for group in (kombu.pools.connections, kombu.pools.producers):
            again(partial(dict.update, group, dict(dict.items(group))))
        again(partial(setattr, app.clock, "value", app.clock.value))
        if app.use_fast_trace_task:
            again(partial(trace.setup_worker_optimizations, app, trace._localized[1]))
        again(_worker_state_as_it_is())
        self.give_back()

    def declared_queues(self) -> list[str]:
        """What a worker consumes that is told nothing, or what it was told last."""
        queues = self.app.amqp.queues
        if queues._consume_from is not None or hasattr(queues, "_default_consume_from"):
            return list(queues.consume_from)
        # Before 5.7 it consumes all that its process knows, and here that has those which the test sends to as well.
        return [*self._known_queues, *self.app.amqp.Queues(self.app.conf.task_queues)]

    @staticmethod
    def _restore_dict(namespace: dict[str, Any], original: dict[str, Any]) -> None:
        namespace.clear()
        namespace.update(original)

    def _disconnect(self, app: Celery) -> None:
        """Take away what an app has cached that leads to a real broker or backend."""
        local, had = app._local, getattr(app._local, "backend", None)
        cache, pool = app._backend_cache, app._pool
        amqp = app.__dict__.get("amqp")
        producers = getattr(amqp, "_producer_pool", None)

        def restore() -> None:
            app._backend_cache, app._pool = cache, pool
            if had is not None:
                local.backend = had
            elif hasattr(local, "backend"):
                del local.backend
            if amqp is not None:
                amqp._producer_pool = producers

        self._undo.callback(restore)
        app._backend_cache = app._pool = None
        if had is not None:
            del local.backend
        if amqp is not None:
            amqp._producer_pool = None

    def _lay_over(self) -> None:
        """Put a mapping over the app's settings: all that the test changes lands in it."""
        settings, layer = self.app.conf, self._layer
        settings.get("task_always_eager")  # the first access loads the configuration
        remember = {name: settings.__dict__[name] for name in ("maps", "changes", "defaults", "_observers")}
        self._undo.callback(settings.__dict__.update, remember)
        settings.__dict__.update(
            maps=[layer, *settings.maps],
            changes=layer,
            defaults=list(settings.maps),
            _observers=list(settings._observers),
        )

    def _copy_amqp(self) -> None:
        app = self.app
        app.__dict__.pop("timezone", None)
        original = app.amqp
        mine = copy.copy(original)
        for cached in ("queues", "routes", "router", "send_task_message", "create_task_message"):
            mine.__dict__.pop(cached, None)
        if "queues" in original.__dict__:
            self._known_queues = list(original.queues)
            mine.__dict__["queues"] = queues = copy.copy(original.queues)
            for name, value in list(vars(queues).items()):
                if isinstance(value, dict):
                    vars(queues)[name] = dict(value)
        mine._producer_pool = None
        app.__dict__["amqp"] = mine

    def _remember_tasks(self) -> None:
        registry = self.app._tasks
        tasks = dict(registry)
        attributes = [(task.__dict__, dict(task.__dict__)) for task in tasks.values()]
        finalizers = set(_state._on_app_finalizers)

        def restore() -> None:
            for name, task in list(registry.items()):
                if name not in tasks and not self._is_of_new_module(task):
                    dict.pop(registry, name)
            dict.update(registry, tasks)
            for namespace, original in attributes:
                if namespace != original:
                    self._restore_dict(namespace, original)
            for finalizer in _state._on_app_finalizers - finalizers:
                if getattr(finalizer, "__module__", None) in self._modules:
                    _state._on_app_finalizers.discard(finalizer)

        self._undo.callback(restore)

    def _take_away_own_backends(self) -> None:
        """A backend given to ``@app.task(backend=...)`` stands in the task's class, before the property of Celery's."""
        for task in self.app._tasks.values():
            for owner in type(task).__mro__:
                if owner is CeleryTask:
                    break
                if "backend" in vars(owner):
                    self._undo.callback(setattr, owner, "backend", vars(owner)["backend"])
                    delattr(owner, "backend")

    def _apply_to_bound_tasks(self, conf: dict[str, Any]) -> None:
        """Let the test's settings reach tasks that took theirs from the app's configuration when they were bound.

        What ``Task.bind`` set stands behind ``__bound__`` in the class, what the task's author wrote before it.
        """
        settings = dict(CeleryTask.from_config)
        if not conf.keys() & set(settings.values()):
            return
        for task in self.app._tasks.values():
            names = list(vars(type(task)))
            inherited = names[names.index("__bound__") :] if "__bound__" in names else []
            for attribute in inherited:
                if settings.get(attribute) in conf:
                    task.__dict__[attribute] = conf[settings[attribute]]
            both = conf.get("task_acks_on_failure_or_timeout")
            for attribute in ("acks_on_failure", "acks_on_timeout"):
                if both is not None and attribute in inherited and settings.get(attribute) not in conf:
                    task.__dict__[attribute] = both

    def _is_of_new_module(self, thing: Any) -> bool:
        """Whether it was defined by a module that was imported meanwhile, and so is there to stay."""
        module = getattr(thing, "__module__", None)
        return module in sys.modules and module not in self._modules

    def _remember_process_state(self) -> None:
        remember = self._undo.callback
        receivers = [(signal, list(signal.receivers or ())) for signal in _all_signals()]

        def restore_receivers() -> None:
            for signal, original in receivers:
                if signal.receivers == original:
                    continue
                kept = [entry for entry in signal.receivers or () if entry not in original and self._stays(entry[1])]
                signal.receivers[:] = original + kept
                signal.sender_receivers_cache.clear()

        remember(restore_receivers)
        remember(setattr, _state, "default_app", _state.default_app)
        remember(setattr, _state._tls, "current_app", _state._tls.current_app)
        remember(_state._set_task_join_will_block, False)
        _state._set_task_join_will_block(False)
        remember(kombu.asynchronous.hub.set_event_loop, kombu.asynchronous.hub.get_event_loop())
        kombu.asynchronous.hub.set_event_loop(None)
        for group in (kombu.pools.connections, kombu.pools.producers):
            pools = dict(dict.items(group))
            remember(dict.update, group, pools)
            remember(dict.clear, group)
            dict.clear(group)
        remember(kombu.pools._limit.__setitem__, 0, kombu.pools._limit[0])
        remember(setattr, billiard.pool, "Lock", billiard.pool.Lock)
        clock = self.app.clock
        remember(setattr, clock, "value", clock.value)
        remember(setattr, clock, "mutex", clock.mutex)
        remember(worker_state.reset_state)
        remember(setattr, worker_state, "should_stop", worker_state.should_stop)
        remember(setattr, worker_state, "should_terminate", worker_state.should_terminate)
        optimized = self.app.use_fast_trace_task
        localized = list(trace._localized)

        def restore_optimizations() -> None:
            if not optimized:
                trace.reset_worker_optimizations(self.app)
            trace._localized[:] = localized

        remember(restore_optimizations)
        worker_state.reset_state()
        worker_state.should_stop = worker_state.should_terminate = None

    def _stays(self, receiver: Any) -> bool:
        alive = receiver() if hasattr(receiver, "__callback__") or type(receiver).__name__ in _WEAK else receiver
        return alive is not None and self._is_of_new_module(alive)


_WEAK = ("ReferenceType", "weakref", "WeakMethod", "BoundMethodWeakref")
