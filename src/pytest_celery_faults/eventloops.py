"""The event loop that an async test runs in, asyncio's or trio's, as the simulation's thread sees it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from .errors import hide_ours

__tracebackhide__ = hide_ours


class EventLoop(Protocol):
    """One loop of a test; all but `event` and `turn` may be called from any thread."""

    #: The thread that it runs in.
    thread: int

    def event(self) -> Any:
        """An event with ``await event.wait()`` and ``event.set()``, for coroutines of the loop."""

    def post(self, function: Callable[[], object]) -> bool:
        """Call a function in the loop, soon; not at all (False) when the loop is over."""

    def when_at_rest(self, function: Callable[[int], object]) -> None:
        """Call a function in the loop as soon as none of its tasks can run; it is told how many threads work for it."""

    def working(self) -> int:
        """How many threads work for the loop, as in ``asyncio.to_thread()``, as far as it is known."""

    def turn(self) -> object:
        """Something that is the same until the loop makes its next turn; in the loop's own thread."""

    def is_running(self) -> bool: ...

    def may_act(self) -> bool:
        """Whether one of its tasks waits for real time to pass, or for real I/O."""


def is_running_here() -> bool:
    """Whether a loop runs in the calling thread."""
    return running(lambda loop: 0) is not None


def running(in_flight: Callable[[Any], int]) -> EventLoop | None:
    """The loop that runs in the calling thread.

    ``in_flight`` tells how many calls in executors an asyncio loop waits for.
    """
    loop = asyncio._get_running_loop()
    if loop is not None:
        return AsyncioLoop(loop, threading.get_ident(), in_flight)
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        return _TrioLoop(trio)
    except RuntimeError:  # trio does not run in this thread
        return None


# Timers that only end a wait: `asyncio.timeout()`, `asyncio.wait_for()`, anyio's cancel scopes.
_GIVING_UP = {"Timeout._on_timeout", "_release_waiter", "CancelScope._timeout"}


#: Turns after which a loop is taken to be at rest: a coroutine may spin for ever, and uvloop does not tell.
_TURNS = 100


class AsyncioLoop:
    """A loop of asyncio's, or one that behaves like it (uvloop)."""

    def __init__(self, loop: Any, thread: int, in_flight: Callable[[Any], int]) -> None:
        self._loop = loop
        self._in_flight = in_flight
        self._at_rest: list[Callable[[int], object]] = []
        self._turns = 0
        self._turn: object | None = None
        self.thread = thread

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncioLoop) and other._loop is self._loop

    def __hash__(self) -> int:
        return hash(self._loop)

    def event(self) -> asyncio.Event:
        return asyncio.Event()

    def post(self, function: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            return False
        return True

    def when_at_rest(self, function: Callable[[int], object]) -> None:
        if not self.post(lambda: self._watch(function)):
            function(0)

    def _watch(self, function: Callable[[int], object]) -> None:
        is_watching = bool(self._at_rest)
        self._at_rest.append(function)
        self._turns = 0
        if not is_watching:  # two of them would keep each other from seeing the loop at rest
            self._look()

    def working(self) -> int:
        return self._in_flight(self._loop) + _anyio_workers(self._loop)

    def _look(self) -> None:
        # Counted first: a thread says what came out before it is counted as done.
        working = self.working()
        ready = getattr(self._loop, "_ready", None)
        self._turns += 1
        if (ready is None or ready) and self._turns < _TURNS:
            self._loop.call_soon(self._look)
            return
        functions, self._at_rest = self._at_rest, []
        for function in functions:
            function(working)

    def turn(self) -> object:
        if self._turn is None:
            self._turn = object()
            self._loop.call_soon(self._make_turn)
        return self._turn

    def _make_turn(self) -> None:
        self._turn = None

    def is_running(self) -> bool:
        return bool(self._loop.is_running())

    def may_act(self) -> bool:
        timers = list(getattr(self._loop, "_scheduled", ()))
        if any(
            not timer.cancelled() and getattr(timer._callback, "__qualname__", "") not in _GIVING_UP for timer in timers
        ):
            return True
        selector = getattr(self._loop, "_selector", None)
        own_files = 1  # through which other threads wake it
        return selector is not None and len(selector.get_map() or ()) > own_files


def _anyio_workers(loop: Any) -> int:
    """How many threads work for ``anyio.to_thread.run_sync`` in an asyncio loop; Starlette's handlers are run so."""
    if "anyio._backends._asyncio" not in sys.modules:
        return 0
    return sum(
        getattr(thread, "loop", None) is loop and thread not in getattr(thread, "idle_workers", ())
        for thread in threading.enumerate()
        if type(thread).__module__ == "anyio._backends._asyncio"
    )


def _sleeps(task: Any) -> bool:
    """Whether a task of trio's, or one that it has begun, is in ``trio.sleep()``. A deadline alone only ends waits."""
    frames = (frame for frame, _ in task.iter_await_frames())
    return any(
        frame.f_code.co_name == "sleep_until" and frame.f_globals["__name__"].startswith("trio.") for frame in frames
    ) or any(_sleeps(child) for nursery in task.child_nurseries for child in nursery.child_tasks)


#: Real seconds after which the same goes for trio, which does not count turns.
_SPINNING = 0.05


class _TrioLoop:
    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._over = self._may_act = False
        self._working = 0
        self._turn: object | None = None
        self.thread = threading.get_ident()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TrioLoop) and other._token is self._token

    def __hash__(self) -> int:
        return hash(self._token)

    def event(self) -> Any:
        return self._trio.Event()

    def post(self, function: Callable[[], object]) -> bool:
        try:
            self._token.run_sync_soon(function)
        except self._trio.RunFinishedError:
            self._over = True
        return not self._over

    def when_at_rest(self, function: Callable[[int], object]) -> None:
        if not self.post(lambda: self._watch(function)):
            function(0)

    def _watch(self, function: Callable[[int], object]) -> None:
        try:
            self._trio.lowlevel.spawn_system_task(self._come_to_rest, function)
        except RuntimeError:  # trio is about to end, and takes no more tasks
            self._over = True
            function(0)

    async def _come_to_rest(self, function: Callable[[int], object]) -> None:
        import trio.testing

        try:
            with trio.move_on_after(_SPINNING):
                await trio.testing.wait_all_tasks_blocked()
            own_files = 1  # through which other threads wake it
            files = getattr(trio.lowlevel.current_statistics().io_statistics, "tasks_waiting_read", own_files)
            self._may_act = files > own_files or _sleeps(trio.lowlevel.current_root_task())
            self._working = trio.to_thread.current_default_thread_limiter().borrowed_tokens
        finally:  # it may be cancelled, when trio ends
            function(self._working)

    def working(self) -> int:
        return self._working

    def turn(self) -> object:
        if self._turn is None:
            self._turn = object()
            self.post(self._make_turn)
        return self._turn

    def _make_turn(self) -> None:
        self._turn = None

    def is_running(self) -> bool:
        return not self._over

    def may_act(self) -> bool:
        return self._may_act
