"""The pool: what Celery's prefork pool does, with a fiber where it has a child process.

Jobs, their callbacks and the order in which they are called are billiard's (``billiard.pool.ApplyResult``). The
messages between the worker and its children (accepted, done, gone) go through a file that the worker's event
loop reads, as in ``celery.concurrency.asynpool``.
"""

from __future__ import annotations

import itertools
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

from billiard.common import human_status
from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from billiard.pool import CLOSE, RUN, TERMINATE, ApplyResult, MaybeEncodingError
from celery import signals
from celery.concurrency import asynpool, prefork
from celery.concurrency.base import BasePool

from . import timeline as happened
from .codes import send
from .errors import hide_ours
from .memory import Readable, Server
from .recorder import Recorder
from .simulation import TASK_RANK, WORKER_RANK, Fiber, Simulation

__tracebackhide__ = hide_ours

_file_numbers = itertools.count(-2, -1)
_FIRST_PID = 10_001
_SOFT_TIMEOUT = getattr(signal, "SIGUSR1", -1)
# Signals on which a child unwinds and leaves: see billiard.common.reset_signals.
_LEAVES_ON = {signal.SIGTERM, *(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name))}


def _sent(result: tuple[bool, Any]) -> Callable[[], Any]:
    """What a child sends of what became of a job, as in ``billiard.pool.Worker.workloop``, to be read in the worker."""
    try:
        return send(result)
    except Exception as error:
        wrapped = MaybeEncodingError(error, result[1])
        return send((False, ExceptionInfo((MaybeEncodingError, wrapped, error.__traceback__))))


class Child:
    """A pool process: at most one job at a time, on a fiber of its own, as are its start and its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.job: Any = None
        self.fiber: Fiber | None = None
        #: The signal that it was sent to end it, and what `sys.exit` was last called with in it.
        self.signal: int | None = None
        self.exitcode: Any = 0
        self.gone = False
        #: The fibers that stand for other threads of the process, each with the fiber of the task that began it.
        self.helpers: dict[Fiber, Fiber] = {}
        self._killed: list[Any] = []

    @property
    def idle(self) -> bool:
        return self.job is None and self.fiber is None and not self.gone

    #: Ends the process from inside, as SIGKILL would.
    die: Callable[[str], None]

    def kill(self, simulation: Simulation) -> None:
        """SIGKILL: none of its code runs any more."""
        assert self.fiber is not None
        self.kill_helpers(simulation)
        simulation.kill(self.fiber)
        _purge_stacks(self.fiber)
        self._killed.append(self.job)
        self.fiber = None

    def kill_helpers(self, simulation: Simulation) -> None:
        for helper in self.helpers:
            simulation.kill(helper)
            _purge_stacks(helper)
        self.helpers.clear()

    def let_go(self) -> None:
        """Drop what leads from the stack of a killed task, which stays, to the worker, which need not."""
        vars(self).pop("die", None)
        for job in [*self._killed, self.job]:
            if job is not None:
                job.__dict__.clear()


def process_of(fiber: Fiber) -> int:
    """Which process a fiber stands for: a child's pid, or -1 for the worker's own and 0 for the test's."""
    if isinstance(fiber.data, Child):
        return fiber.data.pid
    return -1 if fiber.rank == WORKER_RANK else 0


def task_of(fiber: Fiber) -> str | None:
    """The id of the task that a fiber works as a process of the pool."""
    return fiber.data.job.correlation_id if isinstance(fiber.data, Child) and fiber.data.job is not None else None


class _Messages(Readable):
    """The pipe from the children to the worker."""

    def __init__(self) -> None:
        self.number = next(_file_numbers)
        self.queue: deque[Callable[[], None]] = deque()

    def readable(self) -> bool:
        return bool(self.queue)


class Pool(BasePool):
    """Runs each job on a fiber, in the test's thread."""

    uses_semaphore = True
    server: Server
    recorder: Recorder

    # What Celery's pool does when the broker is lost is done here too, by its own code. The names that it uses are
    # these; a job is written to its child at once, so no writer is ever active.
    flush: Callable[[Pool], None] = asynpool.AsynPool.flush
    RUN: int = RUN
    CLOSE: int = CLOSE
    TERMINATE: int = TERMINATE
    synack = False

    def on_start(self) -> None:
        self._simulation: Simulation = self.server.simulation
        self._cache: dict[int, Any] = {}
        self._messages = _Messages()
        self.server.files[self._messages.number] = self._messages
        self._pids = itertools.count(_FIRST_PID)
        self._children: list[Child] = []
        self._replaced: list[Child] = []
        self._timers: dict[int, Any] = {}
        self.outbound_buffer: deque[tuple[Any, Any, Any, Any]] = deque()
        self._active_writers: set[Any] = set()
        self._active_writes: set[Any] = set()
        self._busy_workers: set[Any] = set()
        self._semaphore = self.options.get("semaphore")
        self._hub: Any = None
        self._stopping = False
        # Celery 5.6 does not name the worker to which a child belongs.
        self._hostname = self.options["initargs"][1] if hasattr(prefork, "_process_hostname") else None
        self._size: int = self.limit
        for _ in range(self._size):
            self._new_child()
        self._simulation.wait("the pool's processes to start", until=self._simulation.clock.now_us)

    def _new_child(self) -> None:
        signals.worker_before_create_process.send(sender=self)
        child = Child(next(self._pids))
        child.die = lambda why: self.lose(child, -signal.SIGKILL, why)
        self._children.append(child)
        self._run(child, "the start of a pool process", lambda: self._begin(child))

    def _run(self, child: Child, what: str, function: Callable[[], None]) -> None:
        child.fiber = self._simulation.spawn(what, TASK_RANK, function, data=child)

    # -- the worker's side

    def on_apply(
        self,
        target: Any,
        args: Any,
        kwargs: Any,
        *,
        callback: Any = None,
        error_callback: Any = None,
        accept_callback: Any = None,
        timeout_callback: Any = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        callbacks_propagate: Any = (),
        correlation_id: str | None = None,
        **_: Any,
    ) -> Any:
        job = ApplyResult(
            self._cache,
            callback,
            accept_callback,
            timeout_callback,
            error_callback,
            soft_timeout or self.options.get("soft_timeout"),
            timeout or self.options.get("timeout"),
            on_timeout_set=self._set_time_limits,
            on_timeout_cancel=self._cancel_time_limits,
            callbacks_propagate=callbacks_propagate,
            correlation_id=correlation_id,
        )
        self.outbound_buffer.append((job, target, args, kwargs))
        self._give_out_jobs()
        return job

    def _give_out_jobs(self) -> None:
        for child in self._children:
            if not child.idle:
                continue
            if self.outbound_buffer:
                job, target, args, kwargs = self.outbound_buffer.popleft()
                child.job = job
                self._run(
                    child,
                    self.recorder.timeline.label(None, job.correlation_id),
                    lambda child=child, target=target, args=args, kwargs=kwargs: self._work(  # type: ignore[misc]
                        child, target, args, kwargs
                    ),
                )
            elif self._stopping:
                self._dismiss(child)

    def _is_forgotten(self, job: Any) -> bool:
        """`flush` of Celery before 5.6.3 forgets the running jobs: nothing that is said of them is heard any more."""
        return job._job not in self._cache

    def maintain_pool(self) -> None:
        """A child is replaced as soon as it is gone."""

    def _dismiss(self, child: Child) -> None:
        self._run(child, "the end of a pool process", lambda: self._leave(child))

    def register_with_event_loop(self, hub: Any) -> None:
        self._hub = hub
        hub.add_reader(self._messages.number, self._read_messages)

    def _read_messages(self) -> None:
        while self._messages.queue:
            self._messages.queue.popleft()()

    def _set_time_limits(self, job: Any, soft: float | None, hard: float | None) -> None:
        # Not `get_event_loop()`: a lost connection makes the worker forget its loop for a while.
        hub = self._hub
        if soft:
            self._timers[job._job] = hub.call_later(soft, self._on_soft_time_limit, job, soft, hard)
        elif hard:
            self._timers[job._job] = hub.call_later(hard, self._on_hard_time_limit, job)

    def _cancel_time_limits(self, job: Any) -> None:
        timer = self._timers.pop(job._job, None)
        if timer is not None:
            timer.cancel()

    def _child_of(self, job: Any) -> Child | None:
        return next((child for child in self._children if child.job is job), None)

    def _on_soft_time_limit(self, job: Any, soft: float, hard: float | None) -> None:
        self._timers.pop(job._job, None)
        if hard:
            self._timers[job._job] = self._hub.call_later(hard - soft, self._on_hard_time_limit, job)
        child = self._child_of(job)
        if job.ready() or self._is_forgotten(job) or child is None:
            return
        job.handle_timeout(soft=True)
        # The child gets SIGUSR1, whose handler raises this in the middle of the task.
        assert child.fiber is not None
        self.recorder.timeline.record(happened.SOFT_TIME_LIMIT, task_id=job.correlation_id, detail=f"{soft:g} s")
        self._simulation.throw(child.fiber, SoftTimeLimitExceeded())

    def _on_hard_time_limit(self, job: Any) -> None:
        self._timers.pop(job._job, None)
        if job.ready() or self._is_forgotten(job):
            return
        child = self._child_of(job)
        # The order of billiard.pool.TimeoutHandler.on_hard_timeout: the error callback, then the timeout callback,
        # then SIGKILL. Since both callbacks report the failure, `link_error` is called twice.
        try:
            raise TimeLimitExceeded(job._timeout)
        except TimeLimitExceeded:
            job._set(job._job, (False, ExceptionInfo()))
        if child is not None:
            self._kill(child, f"time limit of {job._timeout:g} s")
        job.handle_timeout(soft=False)
        if child is not None:
            self._replace(child)

    # -- the child's side

    def _begin(self, child: Child) -> None:
        signals.worker_process_init.send(sender=self._hostname)
        child.fiber = None
        self._give_out_jobs()

    def _leave(self, child: Child) -> None:
        signals.worker_process_shutdown.send(sender=self._hostname, pid=child.pid, exitcode=child.exitcode)
        child.fiber = None
        self.lose(child, child.signal or 0, "left")

    def _work(self, child: Child, target: Any, args: Any, kwargs: Any) -> None:
        job = child.job
        clock = self._simulation.clock
        accepted_at = clock.monotonic()
        taken = [False]

        def accept() -> None:
            if not self._is_forgotten(job):
                job._ack(None, accepted_at, child.pid, None)
            taken[0] = True

        self._messages.queue.append(accept)
        # The worker hears of it and acks an early-acked message before the task goes on.
        self._simulation.wait("the worker to take notice of the start", ready=lambda: taken[0])
        exit_: SystemExit | None = None
        try:
            result = (True, target(*args, **kwargs))
        except (Exception, SystemExit) as exc:
            if child.signal is not None:
                # billiard's child says nothing of a job whose end a signal began, whatever exception came out.
                self._leave(child)
                return
            result = (False, ExceptionInfo())
            exit_ = exc if isinstance(exc, SystemExit) else None
        except BaseException as exc:
            # Ctrl-C, pytest.fail(), pytest-timeout: they are about the test, which they end. The child is lost.
            self._simulation.abort(exc)
            child.fiber = None
            self.lose(child, -signal.SIGINT, "interrupted")
            return

        receive = _sent(result)

        def done() -> None:
            child.job = None
            if exit_ is None:
                child.fiber = None
            # What cannot be read ends the worker's loop.
            reported = receive()
            if not self._is_forgotten(job):
                if not job.ready() and self._semaphore is not None:
                    self._semaphore.release()
                job._set(None, reported)
            self._give_out_jobs()

        self._messages.queue.append(done)
        if exit_ is not None:
            # billiard's child leaves when the worker has read what it said.
            self._simulation.wait("the worker to take notice of the end", ready=lambda: child.job is None)
            child.exitcode = exit_.code or 0
            self._leave(child)

    def _kill(self, child: Child, why: str) -> None:
        """SIGKILL: none of the child's code runs any more."""
        if child.fiber is not None:
            child.kill(self._simulation)
            if child.job is not None:
                self.recorder.killed(child.job.correlation_id, why)

    def _replace(self, child: Child) -> None:
        child.job = None
        self._children.remove(child)
        if child._killed:
            self._replaced.append(child)
        if len(self._children) < self._size and not self._stopping:
            self._new_child()
        if self._semaphore is not None:
            self._semaphore.release()
        self._give_out_jobs()

    def lose(self, child: Child, exitcode: int, why: str) -> None:
        """The child's process is gone; the worker finds out in its loop."""
        job = child.job
        child.gone = True
        child.kill_helpers(self._simulation)
        self._kill(child, why)

        def gone() -> None:
            if job is not None and not job.ready() and not self._is_forgotten(job):
                if child.signal is not None:
                    job._set_terminated(exitcode)
                else:
                    try:
                        raise WorkerLostError(f"Worker exited prematurely: {human_status(exitcode)} Job: {job._job}.")
                    except WorkerLostError:
                        job._set(None, (False, ExceptionInfo()))
            self._replace(child)

        self._messages.queue.append(gone)

    def terminate_job(self, pid: int, signum: Any = None) -> None:
        """Send the child a signal: what it does is what billiard's handler in the child does."""
        child = next((child for child in self._children if child.pid == pid), None)
        if child is None:
            return
        number = int(signum or signal.SIGTERM)
        parked = child.fiber is not None and child.fiber in self._simulation.waiting()
        if number == _SOFT_TIMEOUT and parked:
            assert child.fiber is not None
            self._simulation.throw(child.fiber, SoftTimeLimitExceeded())
            return
        # The first one calls billiard's handler, which resets it; see billiard.common._shutdown_cleanup.
        is_handled = number in _LEAVES_ON and number != child.signal
        child.signal = number
        if is_handled:
            child.exitcode = -(256 - number)
        if is_handled and parked and child.job is not None:
            # The task is unwound: its `finally` runs, and whatever it does there takes effect.
            assert child.fiber is not None
            self._simulation.throw(child.fiber, SystemExit(child.exitcode))
        elif is_handled and child.idle:
            self._dismiss(child)
        else:
            self.lose(child, -number, f"killed by signal {number}")

    # -- size and end

    @property
    def num_processes(self) -> int:
        return self._size

    def grow(self, n: int = 1) -> None:
        for _ in range(n):
            self._size += 1
            self._new_child()
            if self._semaphore is not None:
                self._semaphore.grow()

    def shrink(self, n: int = 1) -> None:
        for _ in range(n):
            idle = next((child for child in self._children if child.idle), None)
            if idle is None:
                raise ValueError("Can't shrink pool. All processes busy!")
            self._size -= 1
            if self._semaphore is not None:
                self._semaphore.shrink()
            self.terminate_job(idle.pid)

    def on_stop(self) -> None:
        """Warm shutdown: what runs is finished, while timers and acks go on."""
        hub = self._hub
        self._stopping = True
        self._give_out_jobs()
        while self._children:
            self._simulation.wait(
                "the running tasks to finish", ready=self._messages.readable, due=hub.timer.due if hub else None
            )
            if hub is not None:
                hub.fire_timers()
            self._read_messages()
        self._close_file()

    def on_terminate(self) -> None:
        """The children get SIGTERM, and SIGKILL if that was not enough."""
        self._stopping = True
        for child in self._children:
            if child.signal is None:
                self.terminate_job(child.pid)
        fibers = [child.fiber for child in self._children if child.fiber is not None]
        self._simulation.wait(
            "the children to take notice of SIGTERM",
            ready=lambda: not any(self._simulation.is_about_to_raise(fiber) for fiber in fibers),
        )
        for child in self._children:
            if child.fiber is not None:
                self._kill(child, "cold shutdown")
        self._close_file()

    def let_go(self) -> None:
        """Drop all that the pool leads to, for the same reason as `Child.let_go`."""
        for child in {*self._children, *self._replaced}:
            child.let_go()
        self.__dict__.clear()
        for name in ("server", "recorder"):
            delattr(type(self), name)

    def _close_file(self) -> None:
        self.server.files.pop(self._messages.number, None)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update({"max-concurrency": self.limit, "processes": [child.pid for child in self._children]})
        return info


def _purge_stacks(fiber: Fiber) -> None:
    """Celery keeps its stacks of tasks and requests by greenlet: forget those of one that never comes back."""
    from celery._state import _task_stack

    local = getattr(_task_stack, "_local", None)
    storage = getattr(local, "__storage__", None)
    entries = storage.pop(fiber.greenlet, None) if storage is not None else None
    for task in (entries or {}).get("stack", ()):
        task.request_stack._local.__storage__.pop(fiber.greenlet, None)
