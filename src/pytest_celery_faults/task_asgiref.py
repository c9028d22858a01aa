"""asgiref's `async_to_sync` and `sync_to_async` inside tasks, on virtual time.

asgiref runs the coroutine in another thread, and meanwhile waits in the calling one for calls to run there. Where a
fiber calls it, a *helper* fiber of the same process takes the place of that thread, and the wait is the simulation's.
asgiref is not imported for it: its names are replaced when it is there, or as soon as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from contextvars import Context
from typing import Any

from . import replaced
from .errors import hide_ours
from .imports import WhenImported
from .pool import Child
from .simulation import Fiber, Simulation
from .task_loops import FiberFuture, Loops

__tracebackhide__ = hide_ours

_MODULE = "asgiref.sync"


class _Calls(Executor):
    """Calls that a fiber runs, one after another."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._calls: deque[tuple[FiberFuture, Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> FiberFuture:
        future = FiberFuture()
        self._calls.append((future, lambda: fn(*args, **kwargs)))
        return future

    def _run_next(self) -> None:
        future, call = self._calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


class HelperExecutor(_Calls):
    """A `ThreadPoolExecutor` of one thread, with a helper fiber for the thread."""

    _busy = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> FiberFuture:
        future = super().submit(fn, *args, **kwargs)
        if not self._busy:
            self._busy = True
            self._spawn()
        return future

    def _spawn(self) -> None:
        caller = self._simulation.current
        helper = self._simulation.spawn(caller.name, caller.rank, lambda: self._run(helper), data=caller.data)
        # As a new thread has it.
        helper.greenlet.gr_context = Context()
        if isinstance(helper.data, Child):
            helper.data.helpers[helper] = helper.data.helpers.get(caller, caller)

    def _run(self, helper: Fiber) -> None:
        while self._calls:
            self._run_next()
        self._busy = False
        if isinstance(helper.data, Child):
            del helper.data.helpers[helper]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if wait and self._simulation.here:
            self._simulation.wait("a helper of asgiref to end", ready=lambda: not self._busy)


class CallerExecutor(_Calls):
    """asgiref's `CurrentThreadExecutor`: runs calls on the fiber that made it, while that one waits for a future."""

    def __init__(self, simulation: Simulation, outer: Executor | None) -> None:
        super().__init__(simulation)
        self._fiber = simulation.current
        self._old_executor = outer
        self._broken = False

    def run_until_future(self, future: Any) -> None:
        if self._simulation.current is not self._fiber:
            raise RuntimeError("You cannot run CurrentThreadExecutor from a different thread")
        try:
            while True:
                self._simulation.wait("async_to_sync", ready=lambda: bool(self._calls) or future.done())
                if not self._calls:
                    break
                self._run_next()
        finally:
            self._broken = future.done()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._simulation.current is self._fiber:
            raise RuntimeError("You cannot submit onto CurrentThreadExecutor from its own thread")
        if not self._broken:
            return super().submit(fn, *args, **kwargs)
        if self._old_executor is None:
            raise RuntimeError("CurrentThreadExecutor already quit or is broken")
        return self._old_executor.submit(fn, *args, **kwargs)


class _Dispatcher(Executor):
    """The one thread of asgiref for calls from a loop that nobody waits for: one in each process."""

    def __init__(self, asgiref: Asgiref, original: Executor) -> None:
        self._asgiref = asgiref
        self._original = original

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._asgiref.loops.thread() is None:
            return self._original.submit(fn, *args, **kwargs)
        return self._asgiref.helper_of_process().submit(fn, *args, **kwargs)


class _FiberLocal:
    """A ``threading.local`` that on fibers is local to each of them."""

    def __init__(self, asgiref: Asgiref, original: Any) -> None:
        vars(self).update(_asgiref=asgiref, _original=original)

    def _namespace(self) -> Any:
        return vars(self._original) if self._asgiref.loops.thread() is None else self._asgiref.namespace()

    def __getattr__(self, name: str) -> Any:
        try:
            return self._namespace()[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._namespace()[name] = value


class Asgiref:
    """asgiref's threads for one simulation."""

    def __init__(self, loops: Loops) -> None:
        self.loops = loops
        self._simulation = loops.simulation
        self._helpers: dict[object, HelperExecutor] = {}
        self._namespaces: dict[Fiber, dict[str, Any]] = {}

    def helper_of_process(self) -> HelperExecutor:
        process = self._simulation.current.data
        if process not in self._helpers:
            self._helpers[process] = HelperExecutor(self._simulation)
        return self._helpers[process]

    def namespace(self) -> dict[str, Any]:
        return self._namespaces.setdefault(self._simulation.current, {})

    def close(self) -> None:
        self._helpers.clear()
        self._namespaces.clear()

    def replace_names(self, stack: ExitStack) -> None:
        """Replace asgiref's names, now or when it is imported, until ``stack`` is closed."""
        stack.enter_context(WhenImported(_MODULE, lambda module: self._replace_in(module, stack)))

    def _replace_in(self, module: Any, stack: ExitStack) -> None:
        loops, simulation = self.loops, self._simulation

        def thread_pool(original: Any) -> Any:
            def thread_pool(*args: Any, **options: Any) -> Any:
                return original(*args, **options) if loops.thread() is None else HelperExecutor(simulation)

            return thread_pool

        def current_thread(original: Any) -> Any:
            def current_thread(*outer: Any) -> Any:
                if loops.thread() is None:
                    return original(*outer)
                return CallerExecutor(simulation, outer[0] if outer else None)

            return current_thread

        names = replaced.asgiref_names(module)
        replaced.replace(stack, names.thread_pool, thread_pool)
        replaced.replace(stack, names.current_thread, current_thread)
        replaced.replace(stack, names.single_thread, lambda original: _Dispatcher(self, original))
        replaced.replace(stack, names.threadlocal, lambda original: _FiberLocal(self, original))
        stack.callback(self.close)
