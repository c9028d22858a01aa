"""What runs next.

Everything that can wait runs on a greenlet of its own, a *fiber*: the worker's event loop, each running task,
and the test. One scheduler greenlet switches between them. A fiber runs until it waits; when no fiber can
run, nothing can change before the earliest due time, so the clock jumps there. There is no polling, no real
sleep and no other thread.

At one instant the worker's loop goes first, then tasks in the order in which they began to wait, the test last:
``advance(3)`` and ``get(timeout=3)`` see all that falls due within three seconds, their end included.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, ClassVar, Protocol

import greenlet

from .clock import TimeSource
from .errors import WaitNeverEndsError, hide_ours

__tracebackhide__ = hide_ours

#: Who goes first at one instant; what is outside of the application (a broker that holds a message) before all.
OUTSIDE_RANK, WORKER_RANK, TASK_RANK, TEST_RANK = -1, 0, 1, 2

# A killed greenlet must neither be resumed nor collected: collecting it would run its `finally` blocks. See
# https://greenlet.readthedocs.io/en/latest/greenlet_gc.html. Hence a list that lives as long as the process.
_NEVER_COLLECTED: list[greenlet.greenlet] = []

Due = tuple["int | None", "int | None"]
"""When a wait has to end: what *must* happen keeps the simulation going, what *may* happens only when time passes it.

Celery's housekeeping timers fire for ever; if they counted as work, a test would never come to its end.
"""


class _Ended(BaseException):
    """Unwinds a fiber at the end of the test."""


class PassThrough(BaseException):
    """Carries an error past the ``except Exception`` of a task; the test sees the error inside."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Wait:
    """What a fiber waits for, and until when."""

    __slots__ = ("due", "exception", "ready", "until", "what", "woken")

    def __init__(
        self,
        what: str,
        ready: Callable[[], bool] | None,
        until: int | None,
        due: Callable[[], Due] | None,
    ) -> None:
        self.what: str = what
        self.ready: Callable[[], bool] | None = ready
        self.until: int | None = until
        self.due: Callable[[], Due] | None = due
        self.woken: bool = False
        self.exception: BaseException | None = None

    def times(self) -> Due:
        return self.due() if self.due is not None else (self.until, None)

    def is_over(self, now: int) -> bool:
        if self.exception is not None:
            return True
        if self.ready is not None and self.ready():
            self.woken = True
            return True
        must, may = self.times()
        return (must is not None and must <= now) or (may is not None and may <= now)


class Fiber:
    """A greenlet that the simulation can park and resume."""

    __slots__ = ("__weakref__", "data", "greenlet", "join_blocks", "name", "purpose", "rank", "wait")

    def __init__(self, name: str, rank: int, data: Any = None) -> None:
        self.name: str = name
        self.rank: int = rank
        self.data: Any = data
        self.greenlet: greenlet.greenlet = greenlet.getcurrent()
        self.wait: Wait | None = None
        #: Says what it waits for in the end, where the wait itself is for a message on some connection.
        self.purpose: Callable[[], str] | None = None
        # Celery's `task_join_will_block`, which is true wherever a worker runs.
        self.join_blocks: bool = rank != TEST_RANK

    @property
    def alive(self) -> bool:
        return not self.greenlet.dead

    def __repr__(self) -> str:
        return f"<Fiber {self.name}>"


class Watcher(Protocol):
    """Told of each switch: keeps process-wide flags right for the fiber that runs, and its real time in view."""

    def entering(self, fiber: Fiber) -> None: ...
    def leaving(self, fiber: Fiber) -> None: ...


class _Nobody:
    def entering(self, fiber: Fiber) -> None:
        pass

    leaving = entering


class Simulation:
    """Runs fibers on one thread, on the time of ``clock``."""

    #: After so many sleeps of the test in a row in which nothing else could happen, its loop will never end.
    idle_sleeps_allowed: ClassVar[int] = 1000

    def __init__(self, clock: TimeSource, watcher: Watcher, explain: Callable[[], list[str]]) -> None:
        self.clock = clock
        self.thread_id: int = threading.get_ident()
        self.test: Fiber = Fiber("the test", TEST_RANK)
        self.current: Fiber = self.test
        self.closing: bool = False
        self._watcher = watcher
        self._explain = explain
        self._ready: deque[Fiber] = deque()
        self._scheduler: greenlet.greenlet | None = None
        self._escaped: BaseException | None = None
        # Of the test's own wait: may it end when nothing is left to do, and may it end between two switches?
        self._until_idle = False
        self._step_over: Callable[[], bool] | None = None
        self._idle_sleeps = 0
        self._waiting: dict[Fiber, Wait] = {}

    @property
    def here(self) -> bool:
        """Whether the calling thread is the simulation's, so that it must not wait for real."""
        return threading.get_ident() == self.thread_id

    # -- what a fiber calls

    def wait(
        self,
        what: str,
        *,
        ready: Callable[[], bool] | None = None,
        until: int | None = None,
        due: Callable[[], Due] | None = None,
    ) -> bool:
        """Park the calling fiber until ``ready()`` (True) or until the clock reaches ``until`` (False).

        Raises:
            WaitNeverEndsError: nothing that could still happen would end this wait.
        """
        if self.closing:
            if self.current is not self.test:
                raise _Ended
            raise WaitNeverEndsError(what, "the test is over")
        wait = Wait(what, ready, until, due)
        if self.current is self.test:
            return self._wait_in_test(wait)
        fiber = self.current
        fiber.wait = self._waiting[fiber] = wait
        assert self._scheduler is not None
        self._scheduler.switch()
        fiber.wait = None
        if wait.exception is not None:
            raise wait.exception
        return wait.woken

    def sleep(self, seconds: float) -> None:
        """``time.sleep`` on virtual time, for whichever fiber calls it."""
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        until = self.clock.now_us + round(seconds * 1_000_000)
        if self.current is not self.test:
            self.wait(f"time.sleep({seconds:g})", until=until)
            return
        idle = not self.busy()
        self.wait(f"time.sleep({seconds:g})", until=until)
        self._idle_sleeps = self._idle_sleeps + 1 if idle and not self.busy() else 0
        if self._idle_sleeps > self.idle_sleeps_allowed:
            self._idle_sleeps = 0
            times = self.idle_sleeps_allowed
            raise WaitNeverEndsError(f"what the test sleeps for, {times} times in a row,", self._reasons())

    # -- what drives it

    def run_until_idle(self, what: str) -> None:
        """Run until nothing is left to do, jumping from one due time to the next."""
        self._until_idle = True
        try:
            self.wait(what)
        finally:
            self._until_idle = False

    def run_for(self, what: str, span_us: int) -> None:
        """Run all that falls due in that span, its end included; the clock then stands exactly there."""
        self.wait(what, until=self.clock.now_us + span_us)

    def run_step(self, over: Callable[[], bool]) -> None:
        """Run what can run now until ``over()``, or until nothing can; time does not move."""
        self._step_over = over
        try:
            self.wait("a step", until=self.clock.now_us)
        finally:
            self._step_over = None

    def run_now(self, what: str, over: Callable[[], bool]) -> None:
        """Run until ``over()``, which has to come true without time passing."""
        self.wait(what, ready=over)

    def busy(self) -> bool:
        """Whether anything is left to do, now or later."""
        return bool(self._ready) or any(
            wait.times()[0] is not None or wait.is_over(self.clock.now_us)
            for fiber, wait in self._waiting.items()
            if fiber is not self.test
        )

    def waiting(self) -> list[Fiber]:
        """The application's parked fibers, in the order in which they began to wait."""
        return [fiber for fiber in self._waiting if fiber.rank in (WORKER_RANK, TASK_RANK)]

    # -- fibers

    def spawn(self, name: str, rank: int, function: Callable[[], None], data: Any = None) -> Fiber:
        """A new fiber, ready to run, in a copy of the test's context."""
        fiber = Fiber(name, rank, data)

        def run() -> None:
            try:
                function()
            except _Ended:
                pass
            except BaseException as exc:
                self.abort(exc)

        fiber.greenlet = greenlet.greenlet(run)
        fiber.greenlet.gr_context = self._copy_of_test_context()
        self._ready.append(fiber)
        return fiber

    def _copy_of_test_context(self) -> Context:
        if self.current is self.test:
            return copy_context()
        context = self.test.greenlet.gr_context
        return context.copy() if context is not None else Context()

    def throw(self, fiber: Fiber, exception: BaseException) -> None:
        """Make the wait of a parked fiber raise ``exception``."""
        self._waiting[fiber].exception = exception

    def is_about_to_raise(self, fiber: Fiber) -> bool:
        """Whether ``throw`` was called and the fiber has not run since."""
        wait = self._waiting.get(fiber)
        return fiber in self._ready or (wait is not None and wait.exception is not None)

    def abort(self, exception: BaseException) -> None:
        """Make the test's wait raise ``exception`` at the next switch."""
        self._escaped = exception.error if isinstance(exception, PassThrough) else exception

    def raise_escaped(self) -> None:
        """Raise what `abort` was given, if the test has not waited since."""
        escaped, self._escaped = self._escaped, None
        if escaped is not None:
            raise escaped

    def pause_for_step(self) -> None:
        """Called where something has happened: when the test makes single steps, let it look."""
        if self._step_over is None or self.current is self.test or not self._step_over():
            return
        assert self._scheduler is not None
        self._ready.appendleft(self.current)
        self._scheduler.switch()

    def later(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        """Something happens outside of the application, so many seconds from now."""
        until = self.clock.now_us + round(seconds * 1_000_000)

        def wait() -> None:
            self.wait(name, until=until)
            function()

        self.spawn(name, OUTSIDE_RANK, wait)

    def end(self) -> None:
        """Leave the fiber that calls this for ever, after it was killed."""
        assert self._scheduler is not None
        self._scheduler.switch()

    def kill(self, fiber: Fiber) -> None:
        """Never resume a fiber again, as SIGKILL would: none of its code runs any more."""
        wait = self._waiting.pop(fiber, None)
        if wait is not None:
            wait.ready = wait.due = None
        if fiber in self._ready:
            self._ready.remove(fiber)
        if fiber.greenlet:  # started and not dead
            fiber.greenlet.parent = self.test.greenlet
            _NEVER_COLLECTED.append(fiber.greenlet)

    def close(self) -> None:
        """End of the test: tasks are killed, the worker's loop is unwound. Later waits are errors."""
        for fiber in [*self._ready, *self._waiting]:
            if fiber.rank == TASK_RANK:
                self.kill(fiber)
        loops = [fiber for fiber in [*self._ready, *self._waiting] if fiber.rank in (WORKER_RANK, OUTSIDE_RANK)]
        self.closing = True
        for fiber in loops:
            if not fiber.greenlet:
                continue
            wait = self._waiting.pop(fiber, None)
            if wait is not None:
                wait.exception = _Ended()
            fiber.greenlet.parent = greenlet.getcurrent()
            self._enter(fiber)
        self._ready.clear()
        self._waiting.clear()
        if self._scheduler and not self._scheduler.dead:
            # Let it come to its end: the stack of a killed fiber refers to it, so it would stay as well.
            self._scheduler.parent = greenlet.getcurrent()
            self._scheduler.switch()
        self._scheduler = None
        self.current = self.test

    def let_go(self) -> None:
        """Drop what leads to the rest of the test: the stack of a killed task refers to this object for ever."""
        self._explain = list
        self._watcher = _Nobody()

    # -- the scheduler

    def _wait_in_test(self, wait: Wait) -> bool:
        self.test.greenlet = greenlet.getcurrent()
        if self._scheduler is None or self._scheduler.dead:
            self._scheduler = greenlet.greenlet(self._schedule)
        self._scheduler.parent = self.test.greenlet
        self._waiting[self.test] = wait
        self._watcher.leaving(self.test)
        try:
            self._scheduler.switch()
        finally:
            self._waiting.pop(self.test, None)
            self.current = self.test
            self._watcher.entering(self.test)
        if wait.exception is not None:
            raise wait.exception
        return wait.woken

    def _schedule(self) -> None:
        while not self.closing:
            self._run_until_test_goes_on()
            self.test.greenlet.switch()

    def _run_until_test_goes_on(self) -> None:
        test_wait = self._waiting[self.test]
        step_over = self._step_over
        while True:
            if self._ready:
                fiber = self._ready.popleft()
                self._enter(fiber)
                if self._escaped is not None:
                    test_wait.exception, self._escaped = self._escaped, None
                    return
                if step_over is not None and step_over():
                    return
            elif self._wake():
                continue
            elif test_wait.is_over(self.clock.now_us) or not self._move_on(test_wait):
                return

    def _enter(self, fiber: Fiber) -> None:
        self.current = fiber
        fiber.greenlet.parent = greenlet.getcurrent()
        self._watcher.entering(fiber)
        try:
            fiber.greenlet.switch()
        finally:
            self._watcher.leaving(fiber)

    def _wake(self) -> bool:
        """Make all fibers ready whose wait is over at this instant."""
        now = self.clock.now_us
        over = [fiber for fiber, wait in self._waiting.items() if fiber is not self.test and wait.is_over(now)]
        over.sort(key=lambda fiber: fiber.rank)
        for fiber in over:
            del self._waiting[fiber]
        self._ready.extend(over)
        return bool(over)

    def _move_on(self, test_wait: Wait) -> bool:
        """Jump to the next due time; False when the test is to go on instead."""
        musts: list[int] = []
        mays: list[int] = []
        for wait in self._waiting.values():
            must, may = wait.times()
            if must is not None:
                musts.append(must)
            if may is not None:
                mays.append(may)
        if musts:
            self.clock.move_to(max(min(musts + mays), self.clock.now_us))
            return True
        if self._until_idle and not self.waiting_tasks():
            return False
        what = self.test.purpose() if self.test.purpose is not None else test_wait.what
        test_wait.exception = WaitNeverEndsError(what, self._reasons())
        return False

    def waiting_tasks(self) -> list[Fiber]:
        return [fiber for fiber in self._waiting if fiber.rank == TASK_RANK]

    def _reasons(self) -> str:
        reasons = self._explain()
        for fiber in self.waiting_tasks():
            what = fiber.purpose() if fiber.purpose is not None else self._waiting[fiber].what
            reasons.append(f"{fiber.name} waits for {what}")
        return "; ".join(reasons) or "no message is in any queue, no timer is set and no task runs"
