"""A simulation in a thread of its own, for an async test: its event loop goes on while the worker is driven.

The test calls, blocking or awaiting; each call is a fiber in the simulation's thread. Two threads would make the order
of things a matter of chance. So the simulation runs only while the test's event loops are at rest: before anything
begins, and each time a call has got its answer, they run all that they can; calls that they make then begin together.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, TypeVar, cast

from . import eventloops
from .clock import real_monotonic
from .errors import CeleryFaultsError, StalledTaskError, WaitNeverEndsError, hide_ours
from .eventloops import EventLoop
from .simulation import Fiber, PassThrough, Simulation
from .task_loops import Loops

__tracebackhide__ = hide_ours

T = TypeVar("T")

#: Real seconds that the simulation waits for a loop to come to rest of which no coroutine waits for it, and for threads
#: that work for a loop: they may wait, and nobody can see it, for something that only the simulation brings about.
_PATIENCE = 0.5


class _TakenBack(BaseException):
    """Unwinds a call that nobody waits for any more."""


class Call:
    """What a test wants done in the simulation's thread."""

    def __init__(
        self, function: Callable[[], Any], when_done: Callable[[], object], thread: int | None = None, what: str = ""
    ) -> None:
        self.context: Context = copy_context()
        #: The thread that is blocked until it gets the answer, and what it waits for.
        self.thread: int | None = thread
        self.what: str = what
        #: What the call is to raise where it waits, since nobody waits for it any more.
        self.taken_back: BaseException | None = None
        self.fiber: Fiber | None = None
        self.done: bool = False
        self._function = function
        self._when_done = when_done
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        self.end()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.end()

    def end(self) -> None:
        self.done = True
        self._when_done()

    def result(self) -> Any:
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error


class SimulationThread:
    """Runs the simulation's fibers from `start` to `stop`, and answers calls from other threads."""

    def __init__(self, simulation: Simulation, set_up: Callable[[], None], loops: Loops) -> None:
        self._simulation = simulation
        self._set_up = set_up
        self._in_flight = loops.in_flight
        self._thread = threading.Thread(target=self._main, name="celery-faults simulation", daemon=True)
        self._started = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._new: deque[Call] = deque()
        self._taken_back: deque[Call] = deque()
        self._last: Call | None = None
        self._calls: list[Call] = []
        #: The test's event loops that called, and how many of their coroutines wait for an answer.
        self._loops: dict[EventLoop, EventLoop] = {}
        for loop in loops.of_test():  # it may be the thread that it waits for that calls first
            known = eventloops.AsyncioLoop(loop, loop._thread_id, loops.in_flight)
            self._loops[known] = known
        self._awaiting = 0
        #: Of the threads that work for the test's loops, so many take longer than anybody waits for.
        self._slow_threads = 0
        self._broken: BaseException | None = None
        self._has_told = False
        self._over = False
        #: Whether the test has ended without it. When it goes on some day, other tests run.
        self._abandoned = False

    # -- from the test's threads

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def call(self, function: Callable[[], T], what: Callable[[], str] = str) -> T:
        self._loop_here()
        done = threading.Event()
        call = Call(function, done.set, threading.get_ident(), what())
        try:
            self._begin(call)
            done.wait()
        except BaseException:
            self._take_back(call, _TakenBack())
            raise
        return cast(T, call.result())

    async def acall(self, function: Callable[[], T]) -> T:
        loop = self._loop_here()
        if loop is None:
            raise CeleryFaultsError("the coroutines of celery_faults.worker run in asyncio, or in trio")
        event = loop.event()
        call = Call(function, lambda: loop.post(event.set))
        self._awaiting += 1
        try:
            self._begin(call)
            await event.wait()
        except BaseException:
            self._take_back(call, _TakenBack())
            raise
        finally:
            self._awaiting -= 1
        return cast(T, call.result())

    def _loop_here(self) -> EventLoop | None:
        loop = eventloops.running(self._in_flight)
        if loop is None:
            return None
        self._simulation.threads.add(loop.thread)
        return self._loops.setdefault(loop, loop)

    def turn(self) -> object | None:
        """Something that is the same until the event loop of the calling thread makes its next turn."""
        loop = self._loop_here()
        return None if loop is None else loop.turn()

    def _begin(self, call: Call) -> None:
        if self._broken is not None:
            raise self._broken
        self._new.append(call)
        self.notify()

    def _take_back(self, call: Call, why: BaseException) -> None:
        if not call.done:
            call.taken_back = why
            self._taken_back.append(call)
            self.notify()

    def notify(self) -> None:
        """Have the simulation look at what has changed."""
        if self._over:
            return
        with suppress(BlockingIOError):  # it has enough to wake up for
            os.write(self._wake_write, b"!")

    def give_up(self, error: BaseException) -> None:
        """The thread is stuck for ever: nobody gets an answer from it any more, only the reason."""
        self._broken = error
        waiting = [call for call in [*self._calls, *self._new] if not (call.done or call.taken_back)]
        if waiting:
            self._has_told = True
            self._simulation.forget(error)
        for call in waiting:
            call.fail(error)

    def come_to_rest(self) -> None:
        """Take all calls back: nobody waits for the simulation any more, so it does not run from now on.

        Raises:
            StalledTaskError: a task blocks, and the test has not been told.
        """
        for call in [*self._calls, *self._new]:
            self._take_back(call, WaitNeverEndsError("a call of the test", "the test is over"))
        if self._broken is not None and not self._has_told:
            self._has_told = True
            raise self._broken
        if self._broken is None:
            done = threading.Event()
            call = Call(lambda: None, done.set, threading.get_ident())
            self._begin(call)
            # A task that blocks is ended before, or given up.
            if not done.wait(2 * self._simulation.patience):
                self.give_up(StalledTaskError("the worker itself blocks in real time at the end of the test"))
            call.result()
            self._simulation.raise_escaped()

    def stop(self, function: Callable[[], None], patience: float) -> None:
        """Run a function as the last thing of all, and end the thread.

        Raises:
            StalledTaskError: a task still blocks, after so many real seconds. Its thread cannot be ended.
        """
        done = threading.Event()
        self._last = Call(function, done.set)
        self.notify()
        self._thread.join(patience if self._broken is None else 0)
        if self._thread.is_alive():
            self._over = self._abandoned = True
            # What it does to the state of the process, when it comes free, would be done to another test.
            self._simulation.let_go()
            if self._broken is not None:  # the test knows
                return
            raise StalledTaskError(
                "a task blocks in real time at the end of the test; its thread goes on, since nothing can end it"
            )
        self._over = True
        os.close(self._wake_read)
        os.close(self._wake_write)
        if self._broken is not None:
            raise self._broken
        self._last.result()

    # -- the simulation's side

    def has_news(self) -> bool:
        return bool(self._new or self._taken_back or self._last)

    def fileno(self) -> int:
        return self._wake_read

    def hear(self) -> None:
        with suppress(BlockingIOError):  # it was the time that was over
            os.read(self._wake_read, 4096)

    def may_act(self) -> bool:
        if any(loop.may_act() for loop in self._free_loops()):
            return True
        # One whose time is over may be at it at this moment.
        self._let_loops_come_to_rest()
        return any(loop.may_act() for loop in self._free_loops())

    def _free_loops(self) -> list[EventLoop]:
        blocked = self._blocked_threads()
        return [loop for loop in list(self._loops) if loop.is_running() and loop.thread not in blocked]

    def _blocked_threads(self) -> set[int]:
        """The threads that do nothing until they get an answer."""
        calls = [*self._calls, *self._new]
        return {call.thread for call in calls if call.thread is not None and not (call.done or call.taken_back)}

    def _main(self) -> None:
        simulation = self._simulation
        self._set_up()
        simulation.move_to_this_thread(self)
        self._started.set()
        try:
            while self._last is None:
                if not simulation.callers:
                    self._wait_for_news()
                self._let_loops_come_to_rest()
                if not self._take_news() and simulation.callers:
                    simulation.serve()
            if not self._abandoned:
                self._last.run()
        except BaseException as error:
            self.give_up(error.error if isinstance(error, PassThrough) else error)
        simulation.leave_thread()

    def _take_news(self) -> bool:
        """Begin calls, up to the first that has got its answer at once: then the test is to do what it does with it."""
        while self._taken_back:
            call = self._taken_back.popleft()
            assert call.taken_back is not None
            if call in self._new:
                self._new.remove(call)
                call.fail(call.taken_back)
            elif call.fiber is not None and call.fiber in self._simulation.callers:
                self._simulation.end_call(call.fiber, call.taken_back)
        # Chance decides in which order threads come here: first the coroutines, then by what they wait for.
        loops = {loop.thread for loop in self._loops}
        new = sorted(self._new, key=lambda call: (call.thread is not None and call.thread not in loops, call.what))
        for call in new:
            self._new.remove(call)
            self._calls.append(call)
            call.fiber = self._simulation.begin_call(call.run, call.context)
            if call.done:
                break
        has_answered = any(call.done for call in self._calls)
        self._calls = [call for call in self._calls if not call.done]
        return has_answered

    def _wait_for_news(self) -> None:
        while not self.has_news():
            self._listen(None)

    def _listen(self, seconds: float | None) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if poll.poll(None if seconds is None else seconds * 1000):
            self.hear()

    def _let_loops_come_to_rest(self) -> None:
        """Wait until no coroutine of the test can run: those that were answered, and all others, had their turn.

        A loop is not at rest while a thread works for it, as in ``asyncio.to_thread(result.get)``, unless that waits
        for the simulation.
        """
        began = real_monotonic()
        while True:
            working = self._ask_loops(began)
            loops = {loop.thread for loop in self._loops}
            excess = working - len(self._blocked_threads() - loops)
            self._slow_threads = min(self._slow_threads, max(excess, 0))
            if excess <= self._slow_threads or self._last is not None:
                return
            if real_monotonic() - began > _PATIENCE:
                self._slow_threads = excess
                return
            self._listen(0.001)

    def _ask_loops(self, began: float) -> int:
        """Wait until all loops are at rest; how many threads work for them."""
        restless = dict.fromkeys(self._free_loops())
        working = sum(loop.working() for loop in self._loops if loop not in restless)

        def at_rest(loop: EventLoop, threads: int) -> None:
            nonlocal working
            restless.pop(loop, None)
            working += threads
            self.notify()

        for loop in list(restless):
            loop.when_at_rest(lambda threads, loop=loop: at_rest(loop, threads))  # type: ignore[misc]
        while True:
            free = self._free_loops()
            patience = self._simulation.patience if self._awaiting else _PATIENCE
            left = began + patience - real_monotonic()
            if self._last is not None or left <= 0 or not any(loop in free for loop in list(restless)):
                return working
            # A loop that is stopped meanwhile says nothing.
            self._listen(min(left, 0.05))
