"""asyncio inside tasks: event loops on virtual time.

A loop that runs on a fiber of the worker or of a pool process waits in the simulation instead of in its selector, and
reads the simulation's clock. What is real and in flight (a socket, a call in another thread, a subprocess) is waited
for in real time. A loop of the test's own, or of any other thread, is not touched.

Each process that fibers stand for has a current event loop of its own. What asyncio keeps by thread (the running loop,
the hooks for asynchronous generators) is kept by fiber, in `Loops.leaving` and `Loops.entering`.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import asyncio.events
import asyncio.selector_events
import atexit
import concurrent.futures.thread
import functools
import inspect
import select
import selectors
import signal
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

from . import replaced
from .errors import hide_ours
from .simulation import TASK_RANK, WORKER_RANK, Fiber, Files, Simulation, never_collect

__tracebackhide__ = hide_ours

#: Virtual time is whole microseconds, so that what is due within half of one is due now.
_RESOLUTION = 0.5e-6


_ran: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _keep_loops() -> None:
    """A pool process leaves without a word about loops that an application keeps open."""
    for loop in _ran:
        never_collect(loop)


class FiberFuture(Future[Any]):
    """What a fiber brings about, and no other thread: nobody waits for it in real time."""


class _Thread:
    """What asyncio keeps for one thread that fibers stand for: a process has a main one, and those of its helpers."""

    def __init__(self, is_main: bool) -> None:
        self.current: asyncio.AbstractEventLoop | None = None
        #: Whether it has no loop, rather than none yet.
        self.has_decided: bool = not is_main
        #: The loops that have run in it.
        self.loops: weakref.WeakSet[Any] = weakref.WeakSet()


class _Left:
    """What asyncio keeps by thread, of a fiber that has a loop running and is not the one that runs."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.hooks = sys.get_asyncgen_hooks()
        self.origins = sys.get_coroutine_origin_tracking_depth()

    def restore(self) -> None:
        _set_thread_state(self.loop, self.hooks, self.origins)


def _set_thread_state(loop: Any, hooks: Any, origins: int) -> None:
    asyncio._set_running_loop(loop)
    sys.set_asyncgen_hooks(*hooks)
    sys.set_coroutine_origin_tracking_depth(origins)


class _Selector:
    """Stands in for a loop's selector while the loop runs on a fiber."""

    def __init__(self, loops: Loops, loop: Any) -> None:
        self._loops = loops
        self._loop = loop
        self._real = loop._selector
        self._threads = set(threading.enumerate())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def select(self, timeout: float | None = None) -> Any:
        events = self._real.select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        simulation, ready, real = self._loops.simulation, self._loop._ready, self._real
        # Looked at first: a thread puts its callback into `ready` before it is over.
        files = self._files()
        until = None if timeout is None else simulation.clock.now_us + max(1, round(timeout * 1_000_000))
        simulation.wait(
            self._what() if files or until is None else "asyncio",
            ready=(lambda: bool(ready or real.select(0))) if files else lambda: bool(ready),
            until=until,
            files=files,
        )
        return real.select(0)

    def _files(self) -> Files:
        """The files by which something real may end the wait; none where only fibers and time can."""
        keys = self._real.get_map().values()
        # The self-pipe is always there; through it other threads wake the loop.
        if len(keys) == 1 and not self._loops.in_flight(self._loop) and not self._has_thread():
            return {}
        return {
            key.fd: (select.POLLIN if key.events & selectors.EVENT_READ else 0)
            | (select.POLLOUT if key.events & selectors.EVENT_WRITE else 0)
            for key in keys
        }

    def _has_thread(self) -> bool:
        """Whether a thread lives that was started while the loop ran, and that does not merely wait for calls."""
        pools = concurrent.futures.thread._threads_queues
        return any(
            thread not in self._threads and thread not in pools and thread.name != "celery-faults watchdog"
            for thread in threading.enumerate()
        )

    def _what(self) -> str:
        names = sorted({_awaited(task.get_coro()) for task in asyncio.all_tasks(self._loop)})
        return f"asyncio: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _awaited(coroutine: Any) -> str:
    """The names of a coroutine and of those that it awaits, one in the other."""
    names = []
    while inspect.iscoroutine(coroutine):
        names.append(coroutine.__qualname__)
        coroutine = coroutine.cr_await
    return " > ".join(names)


class _NoSelector:
    """What an abandoned loop has in place of its selector: one that knows no file, and gives way when it is used."""

    def __init__(self, loop: Any) -> None:
        self._loop = weakref.ref(loop)

    def __getattr__(self, name: str) -> Any:
        loop: Any = self._loop()
        _revive(loop)
        return getattr(loop._selector, name)

    def get_map(self) -> dict[int, Any]:
        return {}

    def get_key(self, file: Any) -> Any:
        raise KeyError(file)

    def close(self) -> None:
        pass


class _NoSocket:
    """What an abandoned loop has in place of the ends of its self-pipe."""

    def fileno(self) -> int:
        return -1

    def send(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        pass


def _abandon(loop: Any) -> None:
    """Leave a loop as SIGKILL would: nothing that is in it runs any more, and its files are closed.

    A loop that an application keeps in a variable can run again afterwards, with nothing in it: in production the next
    process would have another one.
    """
    if loop.is_closed() or isinstance(loop._selector, _NoSelector):
        return
    if loop._default_executor is not None:
        loop._default_executor.shutdown(wait=False, cancel_futures=True)
        loop._default_executor = None
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        _forget(getattr(task, "_fut_waiter", None))
        never_collect(task)
    real = loop._selector._real if isinstance(loop._selector, _Selector) else loop._selector
    never_collect((list(loop._ready), list(loop._scheduled), list(loop._asyncgens)))
    for key in list(real.get_map().values()):
        never_collect(key.data)
        for handle in key.data:
            _close_transport(getattr(getattr(handle, "_callback", None), "__self__", None), loop)
    for transport in list(loop._transports.values()):
        _close_transport(transport, loop)
    loop._transports.clear()
    loop._ready.clear()
    loop._scheduled.clear()
    loop._asyncgens.clear()
    loop._timer_cancelled_count = 0
    loop._stopping = False
    loop._thread_id = loop._current_handle = None
    loop._clock_resolution = time.get_clock_info("monotonic").resolution
    loop._coroutine_origin_tracking_enabled = False
    loop._asyncgens_shutdown_called = loop._executor_shutdown_called = False
    if hasattr(loop, "_old_agen_hooks"):
        loop._old_agen_hooks = None
    asyncio.tasks._current_tasks.pop(loop, None)  # type: ignore[attr-defined]
    for thing in (real, loop._ssock, loop._csock):
        thing.close()
    loop._selector, loop._ssock, loop._csock = _NoSelector(loop), _NoSocket(), _NoSocket()


def _forget(future: Any) -> None:
    """Make sure that a future wakes nobody: what waits for it is told in a callback that will never be called."""
    if future is None or isinstance(future, asyncio.Task):
        return
    # Not its own `cancel`: that of gather() would cancel others.
    (asyncio.Future.cancel if isinstance(future, asyncio.Future) else type(future).cancel)(future)


def _close_transport(transport: Any, loop: Any) -> None:
    if not isinstance(transport, asyncio.BaseTransport):
        return
    never_collect(transport)
    for name in ("_sock", "_pipe"):
        file = getattr(transport, name, None)
        if file is not None:
            file.close()


def _revive(loop: Any) -> None:
    if isinstance(loop._selector, _NoSelector):
        loop._selector = selectors.DefaultSelector()
        loop._internal_fds -= 1
        loop._make_self_pipe()


class _Signals(types.ModuleType):
    """Stands in for the module ``signal``: a pool process ignores SIGINT, so that asyncio leaves it alone there."""

    def __init__(self, is_fiber: Callable[[], bool]) -> None:
        super().__init__("signal")
        self._is_fiber = is_fiber

    def __getattr__(self, name: str) -> Any:
        return getattr(signal, name)

    def getsignal(self, number: int) -> Any:
        return signal.SIG_IGN if number == signal.SIGINT and self._is_fiber() else signal.getsignal(number)


class Loops:
    """The event loops of one simulation's fibers."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._threads: dict[object, _Thread] = {}
        self._left: dict[Fiber, _Left] = {}
        # Calls in other threads that a loop waits for, the test's loops included: what they bring about, by loop.
        self._calls: weakref.WeakKeyDictionary[Any, dict[Future[Any], Any]] = weakref.WeakKeyDictionary()
        running = asyncio._get_running_loop() is not None
        self._no_hooks: Any = (None, None) if running else sys.get_asyncgen_hooks()
        self._no_origins = 0 if running else sys.get_coroutine_origin_tracking_depth()

    def thread(self) -> _Thread | None:
        """The thread for which the calling fiber stands; ``None`` for the test and for other threads."""
        if not self.simulation.here or self.simulation.current.rank not in (WORKER_RANK, TASK_RANK):
            return None
        return self._thread_of(self.simulation.current)

    def _thread_of(self, fiber: Fiber) -> _Thread:
        is_main = fiber not in getattr(fiber.data, "helpers", ())
        key = fiber.data if is_main else fiber
        thread = self._threads.get(key)
        if thread is None:
            thread = self._threads[key] = _Thread(is_main)
        return thread

    # -- told of each switch

    def entering(self, fiber: Fiber) -> None:
        if self._left:
            left = self._left.pop(fiber, None)
            if left is not None:
                left.restore()

    def leaving(self, fiber: Fiber) -> None:
        loop = asyncio._get_running_loop()
        if loop is not None:
            self._left[fiber] = _Left(loop)
            self._leave_thread()

    def _leave_thread(self) -> None:
        _set_thread_state(None, self._no_hooks, self._no_origins)

    def killed(self, fiber: Fiber) -> None:
        """Its process is gone, and with it all the loops in it."""
        left = self._left.pop(fiber, None)
        running: Any = left.loop if left is not None else None
        if fiber is self.simulation.current:
            running = asyncio._get_running_loop()
            self._leave_thread()
        thread = self._thread_of(fiber)
        theirs = {left.loop for left in self._left.values()}
        for loop in [*thread.loops, thread.current]:
            if _is_ours(loop) and (loop is running or loop not in theirs):
                self._forget_calls(loop)
                _abandon(loop)
        thread.current, thread.has_decided = None, False

    # -- calls in other threads

    def in_flight(self, loop: Any) -> int:
        """How many calls in other threads a loop waits for."""
        return len(self._calls.get(loop, ()))

    def of_test(self) -> list[Any]:
        """The test's loops that wait for a call in another thread."""
        mine = {loop for thread in self._threads.values() for loop in thread.loops}
        return [loop for loop, calls in list(self._calls.items()) if calls and loop not in mine]

    def _add_call(self, source: Any, destination: Any) -> None:
        if not isinstance(source, Future) or isinstance(source, FiberFuture):
            return
        calls = self._calls.setdefault(destination.get_loop(), {})
        calls[source] = destination
        source.add_done_callback(lambda source: calls.pop(source, None))

    def _forget_calls(self, loop: Any) -> None:
        for future in list(self._calls.pop(loop, {}).values()):
            if not loop.is_closed():
                _forget(future)

    # -- what is replaced

    def replace_names(self, stack: ExitStack) -> None:
        """Replace asyncio's names until ``stack`` is closed."""
        loops, clock = self, self.simulation.clock

        def time(original: Any) -> Any:
            def time(loop: Any) -> float:
                return clock.monotonic() if clock.virtual and loops.thread() is not None else original(loop)

            return time

        def run_forever(original: Any) -> Any:
            @functools.wraps(original)
            def run_forever(loop: Any) -> None:
                thread = loops.thread()
                if thread is None or not _is_ours(loop) or loop.is_closed():
                    return original(loop)
                _revive(loop)
                thread.loops.add(loop)
                _ran.add(loop)
                with loops._waiting_in_simulation(loop):
                    try:
                        return original(loop)
                    except KeyboardInterrupt as interrupt:
                        # `asyncio.run` may now wait for a coroutine whose next step the interrupt took the place of.
                        loops.simulation.abort(interrupt)
                        raise

            return run_forever

        def chain(original: Any) -> Any:
            def chain(source: Any, destination: Any) -> None:
                original(source, destination)
                loops._add_call(source, destination)

            return chain

        def get_event_loop(original: Any) -> Any:
            def get_event_loop(policy: Any) -> Any:
                thread = loops.thread()
                return original(policy) if thread is None else _current_loop(thread, policy)

            return get_event_loop

        def set_event_loop(original: Any) -> Any:
            def set_event_loop(policy: Any, loop: Any) -> None:
                thread = loops.thread()
                if thread is None:
                    original(policy, loop)
                else:
                    thread.current, thread.has_decided = loop, True

            return set_event_loop

        replaced.replace(stack, replaced.LOOP_TIME, time)
        replaced.replace(stack, replaced.RUN_FOREVER, run_forever)
        replaced.replace(stack, replaced.CHAIN_FUTURE, chain)
        replaced.replace(stack, replaced.GET_EVENT_LOOP, get_event_loop)
        replaced.replace(stack, replaced.SET_EVENT_LOOP, set_event_loop)
        if sys.version_info >= (3, 11):
            replaced.replace(stack, replaced.RUNNER_SIGNAL, lambda _: _Signals(lambda: loops.thread() is not None))

    @contextmanager
    def _waiting_in_simulation(self, loop: Any) -> Iterator[None]:
        before = loop._selector, loop._clock_resolution
        loop._selector = _Selector(self, loop)
        if self.simulation.clock.virtual:
            loop._clock_resolution = _RESOLUTION
        try:
            yield
        finally:
            loop._selector, loop._clock_resolution = before

    def close(self) -> None:
        """The processes of the test are gone, and with them their current loops; nobody else's loop is closed."""
        for thread in self._threads.values():
            loop: Any = thread.current
            thread.current = None
            if not _is_ours(loop) or loop.is_closed():
                continue
            self._forget_calls(loop)
            _abandon(loop)
            if sys.getrefcount(loop) <= 2:
                loop.close()
            else:
                never_collect(loop)
        self._threads.clear()
        self._left.clear()


def _is_ours(loop: Any) -> bool:
    return isinstance(loop, asyncio.selector_events.BaseSelectorEventLoop)


def _current_loop(thread: _Thread, policy: Any) -> Any:
    """See asyncio.events.BaseDefaultEventLoopPolicy.get_event_loop: what it does in a main thread."""
    if thread.current is None and not thread.has_decided:
        if sys.version_info >= (3, 12):
            ours = (asyncio.__file__.rpartition("__init__")[0], __file__)
            warnings.warn("There is no current event loop", DeprecationWarning, skip_file_prefixes=ours, stacklevel=2)
        policy.set_event_loop(policy.new_event_loop())
    if thread.current is None:
        raise RuntimeError(f"There is no current event loop in thread {threading.current_thread().name!r}.")
    return thread.current
