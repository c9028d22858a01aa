"""What runs next.

Everything that can wait runs on a greenlet of its own, a *fiber*: the worker's event loop, each running task,
and the test. One scheduler greenlet switches between them. A fiber runs until it waits; when no fiber can
run, nothing can change before the earliest due time, so the clock jumps there. There is no polling and no real
sleep, but where something real is in flight, which is waited for.

At one instant the worker's loop goes first, then tasks in the order in which they began to wait, the test last:
``advance(3)`` and ``get(timeout=3)`` see all that falls due within three seconds, their end included.

A sync test is a fiber itself, in its own thread. For an async test the fibers have a thread of their own
(`thread.py`), and each of the test's calls is a fiber there, a *caller*: several can wait at once.
"""

from __future__ import annotations

import ctypes
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from typing import Any, ClassVar, Protocol, TypeVar

import greenlet

from .clock import TimeSource, real_monotonic
from .errors import StalledTaskError, WaitNeverEndsError, WrongThreadError, hide_ours

__tracebackhide__ = hide_ours

#: Who goes first at one instant; what is outside of the application (a broker that holds a message) before all.
OUTSIDE_RANK, WORKER_RANK, TASK_RANK, TEST_RANK = -1, 0, 1, 2

# A killed greenlet must neither be resumed nor collected: collecting it would run its `finally` blocks. See
# https://greenlet.readthedocs.io/en/latest/greenlet_gc.html. Hence a list that lives as long as the process.
_NEVER_COLLECTED: list[object] = []


def never_collect(thing: object) -> None:
    """Keep what a killed task has left behind, so that nothing in it is ever finalized, at exit neither."""
    if not _NEVER_COLLECTED:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_NEVER_COLLECTED))
    _NEVER_COLLECTED.append(thing)


Due = tuple["int | None", "int | None"]
"""When a wait has to end: what *must* happen keeps the simulation going, what *may* happens only when time passes it.

Celery's housekeeping timers fire for ever; if they counted as work, a test would never come to its end.
"""

Files = Mapping[int, int]
"""Real files, by number, and what of them to wait for, as in ``select.poll``."""

_NO_FILES: Files = {}

T = TypeVar("T")


class _Ended(BaseException):
    """Unwinds a fiber at the end of the test."""


class PassThrough(KeyboardInterrupt):
    """Carries an error past the ``except Exception`` of a task; the test sees the error inside.

    asyncio lets nothing out of a callback but `KeyboardInterrupt` and `SystemExit`.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
        self.told = False


class Wait:
    """What a fiber waits for, and until when."""

    __slots__ = ("due", "exception", "files", "ready", "until", "until_idle", "what", "woken")

    def __init__(
        self,
        what: str,
        ready: Callable[[], bool] | None = None,
        until: int | None = None,
        due: Callable[[], Due] | None = None,
        files: Files = _NO_FILES,
        until_idle: bool = False,
    ) -> None:
        self.what: str = what
        self.ready: Callable[[], bool] | None = ready
        self.until: int | None = until
        self.due: Callable[[], Due] | None = due
        #: What it waits for in real time: as long as it does, virtual time does not jump.
        self.files: Files = files
        #: Whether it ends when nothing is left to do.
        self.until_idle: bool = until_idle
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
    def killed(self, fiber: Fiber) -> None: ...


class _Nobody:
    def entering(self, fiber: Fiber) -> None:
        pass

    leaving = killed = entering


class Outside(Protocol):
    """What the simulation of an async test knows of the test, which runs in another thread."""

    def call(self, function: Callable[[], T], what: Callable[[], str] = str) -> T:
        """Run a function on a fiber, and block the calling thread meanwhile.

        ``what`` it waits for puts the calls that several threads make at once in an order.
        """
        ...

    async def acall(self, function: Callable[[], T]) -> T:
        """The same without blocking the calling thread's event loop."""
        ...

    def has_news(self) -> bool:
        """Whether the test has called something, or takes a call back."""
        ...

    def fileno(self) -> int:
        """A file that is readable when there is news, or when something has changed."""
        ...

    def notify(self) -> None:
        """Something has changed."""
        ...

    def hear(self) -> None:
        """Make that file unreadable again."""
        ...

    def may_act(self) -> bool:
        """Whether the test waits, in real time, for something else than the simulation."""
        ...

    def turn(self) -> object | None:
        """Something that is the same until the event loop of the calling thread makes its next turn."""
        ...

    def give_up(self, error: BaseException) -> None:
        """A task blocks for ever: the test gets this error, and goes on without the simulation."""
        ...


class Simulation:
    """Runs fibers on one thread, on the time of ``clock``."""

    #: After so many sleeps of the test in a row in which nothing else could happen, its loop will never end.
    idle_sleeps_allowed: ClassVar[int] = 1000

    def __init__(self, clock: TimeSource, watcher: Watcher, explain: Callable[[], list[str]]) -> None:
        self.clock = clock
        self.thread_id: int = threading.get_ident()
        self._home = self.thread_id
        #: The threads that see virtual time: the fibers' and the test's.
        self.threads: set[int] = {self.thread_id}
        self.test: Fiber = Fiber("the test", TEST_RANK)
        self.closing: bool = False
        #: How many real seconds something real may take.
        self.patience: float = 30.0
        #: The other side of a simulation in a thread of its own; started, where a test needs one, at the first wait.
        self.outside: Outside | None = None
        self.start_thread_if_needed: Callable[[bool], None] = lambda is_wait: None
        self._choosing = threading.RLock()
        self._current: Fiber = self.test
        self._watcher = watcher
        self._explain = explain
        self._ready: deque[Fiber] = deque()
        self._scheduler: greenlet.greenlet | None = None
        self._escaped: BaseException | None = None
        # Of a caller's wait: may it end between two switches?
        self._step_over: Callable[[], bool] | None = None
        self._idle_sleeps = 0
        self._waiting: dict[Fiber, Wait] = {}
        # Real seconds that something real took at this instant of the clock.
        self._real_spent = 0.0
        # The context of the latest call from another thread.
        self._context: Context | None = None

    @property
    def here(self) -> bool:
        """Whether the calling thread is the simulation's, so that it must not wait for real."""
        return threading.get_ident() == self.thread_id

    @property
    def can_wait(self) -> bool:
        """Whether a wait of the calling thread can be the simulation's."""
        self._choose_thread(is_wait=False)
        return self.outside is not None or self.here

    @property
    def current(self) -> Fiber:
        """The fiber that runs; to any thread but the simulation's: the test."""
        return self._current if threading.get_ident() == self.thread_id else self.test

    def run(self, function: Callable[[], T], what: Callable[[], str] = str) -> T:
        """Run a function where the fibers are: at once, or on a fiber in the simulation's own thread.

        Raises:
            WrongThreadError: the simulation is in the test's thread, and this is another one.
        """
        outside = self._beyond_this_thread()
        return function() if outside is None else outside.call(function, what)

    async def arun(self, function: Callable[[], T]) -> T:
        """The same without blocking the event loop, where the fibers are in a thread of their own.

        They are not if the worker was needed before the event loop was there: then its loop stands still meanwhile.
        """
        outside = self._beyond_this_thread()
        return function() if outside is None else await outside.acall(function)

    def _beyond_this_thread(self) -> Outside | None:
        """The way to the simulation's thread; ``None`` when that is the calling thread."""
        self._choose_thread(is_wait=True)
        if self.here:
            return None
        if self.outside is None:
            raise WrongThreadError(
                "the worker of this test is driven in the test's own thread, in which it was first needed, and cannot "
                f"be from {threading.current_thread().name!r}: wait for it in the test itself"
            )
        return self.outside

    def _choose_thread(self, is_wait: bool) -> None:
        # Greenlets stay in their thread: when the first of them is there, it is too late.
        if self._is_undecided():
            with self._choosing:
                if self._is_undecided():
                    self.start_thread_if_needed(is_wait)

    def _is_undecided(self) -> bool:
        return self.outside is None and self._scheduler is None and not self._ready and not self.closing

    # -- what a fiber calls

    def wait(
        self,
        what: str,
        *,
        ready: Callable[[], bool] | None = None,
        until: int | None = None,
        due: Callable[[], Due] | None = None,
        files: Files = _NO_FILES,
    ) -> bool:
        """Park the calling fiber until ``ready()`` (True) or until the clock reaches ``until`` (False).

        While any of the real ``files`` is waited for, virtual time does not jump; ``ready()`` has to look at them.

        Raises:
            WaitNeverEndsError: nothing that could still happen would end this wait.
        """
        return self._wait(Wait(what, ready, until, due, files))

    def _wait(self, wait: Wait) -> bool:
        if self._current is self.test or not self.here:
            return self.run(lambda: self._wait_here(wait))
        return self._wait_here(wait)

    def _wait_here(self, wait: Wait) -> bool:
        fiber = self._current
        if self.closing:
            if fiber is not self.test:
                raise _Ended
            raise WaitNeverEndsError(wait.what, "the test is over")
        if fiber is self.test:
            return self._wait_in_test(wait)
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
        if self.current.rank == TEST_RANK:
            self.run(lambda: self._sleep_in_test(seconds))
        else:
            self.wait(f"time.sleep({seconds:g})", until=self.clock.now_us + round(seconds * 1_000_000))

    def _sleep_in_test(self, seconds: float) -> None:
        idle = not self.busy()
        self.wait(f"time.sleep({seconds:g})", until=self.clock.now_us + round(seconds * 1_000_000))
        self._idle_sleeps = self._idle_sleeps + 1 if idle and not self.busy() else 0
        if self._idle_sleeps > self.idle_sleeps_allowed:
            self._idle_sleeps = 0
            times = self.idle_sleeps_allowed
            raise WaitNeverEndsError(f"what the test sleeps for, {times} times in a row,", self._reasons())

    # -- what drives it

    def run_until_idle(self, what: str) -> None:
        """Run until nothing is left to do, jumping from one due time to the next."""
        self._wait(Wait(what, until_idle=True))

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
            for fiber, wait in list(self._waiting.items())
            if fiber.rank != TEST_RANK
        )

    def waiting(self) -> list[Fiber]:
        """The application's parked fibers, in the order in which they began to wait."""
        return [fiber for fiber in self._waiting if fiber.rank in (WORKER_RANK, TASK_RANK)]

    # -- fibers

    def spawn(self, name: str, rank: int, function: Callable[[], None], data: Any = None) -> Fiber:
        """A new fiber, ready to run, in a copy of the test's context."""
        fiber = self._new_fiber(name, rank, function, self._copy_of_test_context(), data)
        self._ready.append(fiber)
        return fiber

    def _new_fiber(
        self, name: str, rank: int, function: Callable[[], None], context: Context, data: Any = None
    ) -> Fiber:
        fiber = Fiber(name, rank, data)

        def run() -> None:
            try:
                function()
            except _Ended:
                pass
            except BaseException as exc:
                self.abort(exc)

        fiber.greenlet = greenlet.greenlet(run)
        fiber.greenlet.gr_context = context
        return fiber

    def _copy_of_test_context(self) -> Context:
        if self._current.rank == TEST_RANK:
            return copy_context()
        context = self.test.greenlet.gr_context if self.outside is None else self._context
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
        if not isinstance(exception, PassThrough):
            self._escaped = exception
        elif not exception.told:
            exception.told = True
            self._escaped = exception.error

    def forget(self, error: BaseException) -> None:
        """The test has been told of it."""
        if self._escaped is error:
            self._escaped = None

    def raise_escaped(self) -> None:
        """Raise what `abort` was given, if the test has not waited since."""
        escaped, self._escaped = self._escaped, None
        if escaped is not None:
            raise escaped

    def pause_for_step(self) -> None:
        """Called where something has happened: when the test makes single steps, let it look."""
        if self._step_over is None or self.current.rank == TEST_RANK or not self._step_over():
            return
        assert self._scheduler is not None
        self._ready.appendleft(self._current)
        self._scheduler.switch()

    def later(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        """Something happens outside of the application, so many seconds from now."""
        until = self.clock.now_us + round(seconds * 1_000_000)

        def wait() -> None:
            self.wait(name, until=until)
            function()

        self.run(lambda: self.spawn(name, OUTSIDE_RANK, wait))

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
            never_collect(fiber.greenlet)
        self._watcher.killed(fiber)

    def close(self) -> None:
        """End of the test: tasks are killed, the worker's loop is unwound. Later waits are errors."""
        for fiber in [*self._ready, *self._waiting]:
            if fiber.rank == TASK_RANK:
                self.kill(fiber)
        others = [fiber for fiber in [*self._ready, *self._waiting] if fiber is not self.test]
        self.closing = True
        for fiber in others:
            if not fiber.greenlet:
                continue
            wait = self._waiting.pop(fiber, None)
            if wait is not None:
                wait.exception = _Ended()
            fiber.greenlet.parent = greenlet.getcurrent()
            self._enter(fiber)
        self._ready.clear()
        self._waiting.clear()
        if self._scheduler and not self._scheduler.dead and self._scheduler is not greenlet.getcurrent():
            # Let it come to its end: the stack of a killed fiber refers to it, so it would stay as well.
            self._scheduler.parent = greenlet.getcurrent()
            self._scheduler.switch()
        self._scheduler = None
        self._current = self.test

    def let_go(self) -> None:
        """Drop what leads to the rest of the test: the stack of a killed task refers to this object for ever."""
        self._explain = list
        self._watcher = _Nobody()
        self.start_thread_if_needed = lambda is_wait: None
        self._context = None

    # -- the scheduler of a simulation in a thread of its own

    def move_to_this_thread(self, outside: Outside) -> None:
        """Have the fibers in the calling thread, whose greenlet is the scheduler from now on."""
        self.threads |= {threading.get_ident()}
        self.outside = outside
        self._scheduler = self.test.greenlet = greenlet.getcurrent()
        self.thread_id = threading.get_ident()

    def leave_thread(self) -> None:
        """The thread ends: nothing can wait any more."""
        self.outside = None
        self.closing = True
        self.thread_id = self._home

    @property
    def callers(self) -> list[Fiber]:
        """The test's calls that wait, in the order in which they began to."""
        return [fiber for fiber in self._waiting if fiber.rank == TEST_RANK]

    def begin_call(self, function: Callable[[], None], context: Context) -> Fiber:
        """Run a function on a fiber of its own until it waits or ends. It must not raise."""
        self._context = context
        fiber = self._new_fiber("a call of the test", TEST_RANK, function, context)
        self._enter(fiber)
        self._current = self.test
        return fiber

    def end_call(self, fiber: Fiber, exception: BaseException) -> None:
        """Make the wait of a call raise, at once."""
        self._waiting[fiber].exception = exception
        self._go_on(fiber)

    def serve(self) -> None:
        """Run until a call has gone on, or until there is news from outside."""
        caller = self._run_until_caller_goes_on()
        if caller is not None:
            self._go_on(caller)

    def _go_on(self, fiber: Fiber) -> None:
        del self._waiting[fiber]
        self._enter(fiber)
        self._current = self.test

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
            self._current = self.test
            self._watcher.entering(self.test)
        if wait.exception is not None:
            raise wait.exception
        return wait.woken

    def _schedule(self) -> None:
        while not self.closing:
            self._run_until_caller_goes_on()
            self.test.greenlet.switch()

    def _run_until_caller_goes_on(self) -> Fiber | None:
        """Run fibers and move the clock until the wait of a caller is over; ``None`` when there is news before."""
        while self.outside is None or not self.outside.has_news():
            if self._escaped is not None:
                caller = self.callers[0]
                self._waiting[caller].exception, self._escaped = self._escaped, None
                return caller
            if self._ready:
                self._enter(self._ready.popleft())
                if self._step_is_over():
                    return self.callers[0]
            elif self._wake():
                continue
            else:
                now = self.clock.now_us
                over = next((caller for caller in self.callers if self._waiting[caller].is_over(now)), None)
                goes_on = over or self._move_on()
                if goes_on is not None:
                    return goes_on
        return None

    def _step_is_over(self) -> bool:
        return self._step_over is not None and self._escaped is None and self._step_over()

    def _enter(self, fiber: Fiber) -> None:
        self._current = fiber
        fiber.greenlet.parent = greenlet.getcurrent()
        self._watcher.entering(fiber)
        try:
            fiber.greenlet.switch()
        finally:
            self._watcher.leaving(fiber)

    def _wake(self) -> bool:
        """Make all fibers ready whose wait is over at this instant."""
        now = self.clock.now_us
        over = [fiber for fiber, wait in self._waiting.items() if fiber.rank != TEST_RANK and wait.is_over(now)]
        over.sort(key=lambda fiber: fiber.rank)
        for fiber in over:
            del self._waiting[fiber]
        self._ready.extend(over)
        return bool(over)

    def _move_on(self) -> Fiber | None:
        """Let time pass up to the next due time; or, where nothing can happen any more, the caller that goes on."""
        musts: list[int] = []
        mays: list[int] = []
        work = False
        files: dict[int, int] = {}
        for fiber, wait in self._waiting.items():
            must, may = wait.times()
            if must is not None:
                musts.append(must)
                work = work or fiber.rank != TEST_RANK
            if may is not None:
                mays.append(may)
            for number, events in wait.files.items():
                files[number] = files.get(number, 0) | events
        if not work and not self.waiting_tasks():
            idle = [caller for caller in self.callers if self._waiting[caller].until_idle]
            if idle:
                return idle[0]
        if musts or files:
            self._pass_time(min(musts + mays) if musts else None, files)
            return None
        if self.outside is not None:
            may_act = self.outside.may_act()
            now = self.clock.now_us
            over = any(self._waiting[caller].is_over(now) for caller in self.callers)
            if self.outside.has_news() or self._wake() or over or (may_act and self._poll({}, self.patience)):
                return None
        caller = self.callers[0]
        what = caller.purpose() if caller.purpose is not None else self._waiting[caller].what
        self._waiting[caller].exception = WaitNeverEndsError(what, self._reasons())
        return caller

    def _pass_time(self, until: int | None, files: Files) -> None:
        """Move the clock to ``until``; in real time where something real is in flight, which may come before."""
        seconds = None if until is None else max(0.0, (until - self.clock.now_us) / 1_000_000)
        if files and (seconds is None or seconds > self.patience):
            if not self._poll(files, self.patience):
                tasks = [fiber for fiber in self._waiting if self._waiting[fiber].files]
                self.abort(
                    StalledTaskError(
                        f"{tasks[0].name} has waited for more than {self.patience:g} real seconds (stall_timeout) for "
                        f"{self._waiting[tasks[0]].what}"
                    )
                )
            return
        is_real = bool(files) or (self.outside is not None and not self.clock.virtual)
        if is_real and self._poll(files, self._left_of(seconds)):
            return
        self._real_spent = 0.0
        if until is not None:
            self.clock.move_to(max(until, self.clock.now_us))

    def _left_of(self, seconds: float | None) -> float | None:
        """What is left of a span of which real time has passed while something real made progress."""
        return None if seconds is None else max(0.0, seconds - self._real_spent)

    def _poll(self, files: Files, seconds: float | None) -> bool:
        """Wait in real time for one of the files, or for news from outside."""
        poll = select.poll()
        for number, events in files.items():
            poll.register(number, events)
        if self.outside is not None:
            poll.register(self.outside.fileno(), select.POLLIN)
        began = real_monotonic()
        happened = bool(poll.poll(None if seconds is None else seconds * 1000))
        if files and self.clock.virtual:
            self._real_spent += real_monotonic() - began
        if self.outside is not None:
            self.outside.hear()
        return happened

    def waiting_tasks(self) -> list[Fiber]:
        return [fiber for fiber in self._waiting if fiber.rank == TASK_RANK]

    def _reasons(self) -> str:
        reasons = self._explain()
        for fiber in self.waiting_tasks():
            what = fiber.purpose() if fiber.purpose is not None else self._waiting[fiber].what
            reasons.append(f"{fiber.name} waits for {what}")
        return "; ".join(reasons) or "no message is in any queue, no timer is set and no task runs"
