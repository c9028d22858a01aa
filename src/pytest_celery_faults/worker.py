"""Celery's worker program, on fibers: `Worker` starts it, `WorkerControl` is what a test holds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app import trace
from celery.apps.worker import Worker as CeleryWorker
from celery.exceptions import CPendingDeprecationWarning, WorkerShutdown, WorkerTerminate
from celery.platforms import EX_FAILURE, EX_OK
from celery.result import ResultBase
from celery.utils.imports import symbol_by_name
from celery.worker import state
from kombu.common import ignore_errors
from kombu.utils import limits

from . import timeline as happened
from .clock import microseconds
from .errors import FaultTypeError, FaultValueError, TakeoverError, WorkerDiedError, hide_ours, safe_repr
from .pool import Pool
from .simulation import WORKER_RANK, Fiber
from .timeline import Event

if TYPE_CHECKING:
    from .events import EventLog
    from .harness import Harness
    from .letterdesk import Quarantine
    from .recorder import Recorder

__tracebackhide__ = hide_ours

HOSTNAME = "celery@in-memory"


class _Strategies(dict[str, Any]):
    """Celery's table of how to receive each task, filled at the first message of each.

    So a task that the test defines is known at once, and an application of hundreds of tasks costs nothing.
    """

    consumer: Any
    on_build: Callable[[Any], None]

    def __missing__(self, name: str) -> Any:
        consumer = self.consumer
        tasks = consumer.app.tasks
        if name not in tasks:  # a registry raises an error of its own for unknown names
            raise KeyError(name)
        task = tasks[name]
        self.on_build(task)
        if name not in consumer.task_buckets:
            bucket = consumer.task_buckets[name] = consumer.bucket_for_task(task)
            if bucket is not None:
                bucket.timestamp = consumer.limits_set_at
        self[name] = task.start_strategy(consumer.app, consumer)
        task.__trace__ = trace.build_tracer(name, task, consumer.app.loader, consumer.hostname, app=consumer.app)
        return self[name]


class _ConsumerMixin:
    """On top of Celery's consumer, or the one that the application configured."""

    Strategies = _Strategies
    on_build: Callable[[Any], None]
    recorder: Recorder
    events: EventLog
    _event_dispatcher: Any = None

    @property
    def event_dispatcher(self) -> Any:
        return self._event_dispatcher

    @event_dispatcher.setter
    def event_dispatcher(self, dispatcher: Any) -> None:
        if dispatcher is not self._event_dispatcher:
            self.events.listen(dispatcher)
        self._event_dispatcher = dispatcher

    def on_unknown_message(self, body: Any, message: Any) -> None:
        with self.recorder.refusing(message, "undecodable", None):
            super().on_unknown_message(body, message)  # type: ignore[misc]

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        with self.recorder.refusing(message, "unregistered", exc):
            super().on_unknown_task(body, message, exc)  # type: ignore[misc]

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        with self.recorder.refusing(message, "undecodable", exc):
            super().on_invalid_task(body, message, exc)  # type: ignore[misc]

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        with self.recorder.refusing(message, "undecodable", exc):
            super().on_decode_error(message, exc)  # type: ignore[misc]

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Celery warns here of a setting. Where pytest makes errors of warnings, that would end the worker."""
        with warnings.catch_warnings():
            warnings.simplefilter("default", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)  # type: ignore[misc]

    def update_strategies(self) -> None:
        strategies: _Strategies = self.strategies  # type: ignore[attr-defined]
        strategies.consumer = self
        strategies.on_build = self.on_build
        strategies.clear()

    def reset_rate_limits(self) -> None:
        # Buckets fill from now on, also those that are made at the first message of their task.
        self.limits_set_at = limits.monotonic()
        self.task_buckets.update(  # type: ignore[attr-defined]
            (name, self.bucket_for_task(self.app.tasks[name]))  # type: ignore[attr-defined]
            for name in self.task_buckets  # type: ignore[attr-defined]
        )


class Worker(CeleryWorker):
    """``celery worker``, without what belongs to a process of its own: signals, logging set-up, banner, title."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        # Each worker stands for a process of its own, which imports its modules.
        app.loader.worker_initialized = False
        super().__init__(app, **kwargs)

    def on_before_init(self, quiet: bool = False, **kwargs: Any) -> None:
        self.quiet = True
        trace.setup_worker_optimizations(self.app, self.hostname)
        signals.celeryd_init.send(sender=self.hostname, instance=self, conf=self.app.conf, options=kwargs)

    def setup_logging(self, colorize: bool | None = None) -> bool:
        return True

    def install_platform_tweaks(self, worker: Any) -> None:
        pass

    def set_process_status(self, info: Any) -> None:
        pass

    def _process_task(self, req: Any) -> None:
        if self.quarantine is not None and self.quarantine.refuses(req):
            state.task_ready(req)
            self._quick_release()
        else:
            super()._process_task(req)

    def _on_signal(self) -> None:
        """What Celery's handlers of SIGTERM and SIGQUIT do: see celery.apps.worker._shutdown_handler."""
        warm = self.told_to_stop == "warm"
        if not warm:
            self._cancel_before_cold_shutdown()
        exitcode = EX_OK if warm else EX_FAILURE
        signals.worker_shutting_down.send(
            sender=self.hostname,
            sig="SIGTERM" if warm else "SIGQUIT",
            how="Warm" if warm else "Cold",
            exitcode=exitcode,
        )
        if warm:
            state.should_stop = exitcode
        else:
            state.should_terminate = exitcode

    def _cancel_before_cold_shutdown(self) -> None:
        """See celery.apps.worker.on_cold_shutdown."""
        self.wait_for_soft_shutdown()
        consumer = self.consumer
        if consumer.task_consumer is not None:
            ignore_errors(consumer, consumer.task_consumer.cancel)
        consumer.cancel_active_requests()
        state.should_terminate = True
        if consumer.pool is not None:
            consumer.pool.stop()

    def terminate(self, in_sighandler: bool = False) -> None:
        if self.told_to_stop:
            self._on_signal()
        super().terminate(in_sighandler=in_sighandler)

    def stop(self, in_sighandler: bool = False, exitcode: Any = None) -> None:
        # Celery takes Ctrl-C in its own process for a shutdown; here it is the test that is interrupted.
        import sys

        interrupt = sys.exc_info()[1]
        if isinstance(interrupt, KeyboardInterrupt):
            raise interrupt
        if isinstance(interrupt, Exception):
            self.failure = interrupt
        if self.told_to_stop:
            self._on_signal()
        super().stop(in_sighandler=in_sighandler, exitcode=exitcode)

    failure: BaseException | None = None
    #: "warm" or "cold" when the test has sent SIGTERM or SIGQUIT. The handler runs when the worker has left its loop.
    told_to_stop = ""
    #: Looks at each task that is about to be given to the pool.
    quarantine: Quarantine | None = None


class WorkerControl:
    """Drives the worker of a test: ``celery_faults.worker``."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._simulation = harness.simulation
        self._fiber: Fiber | None = None
        self._instance: Worker | None = None
        self._stopped = False
        self._has_started: Callable[[], bool]
        self._past: list[Worker] = []
        self._crashed: list[Worker] = []
        # Of the worker that somebody serves: its class, and Celery's arguments.
        self._kind: type[Worker] = Worker
        self._arguments: Mapping[str, Any] = {}
        self._serves = False

    # -- driving

    def drain(self, fail_fast: bool = False) -> None:
        """Run until nothing is left to do, jumping the clock from one due time to the next.

        Args:
            fail_fast: raise the first exception of a task that no injected fault caused.

        Raises:
            WaitNeverEndsError: a task waits for something that nothing can bring about any more.
            EndlessTaskError: one task id was executed more than ``max_executions`` times.
        """
        self._simulation.run(lambda: self._drain(fail_fast))

    async def adrain(self, fail_fast: bool = False) -> None:
        """`drain`, without blocking the event loop of an async test."""
        await self._simulation.arun(lambda: self._drain(fail_fast))

    def _drain(self, fail_fast: bool) -> None:
        self._ensure_started()
        recorder = self._harness.recorder
        recorder.stop_at_failure = fail_fast
        try:
            self._simulation.run_until_idle("the worker to finish its work")
        finally:
            recorder.stop_at_failure = False

    def advance(self, span: float | timedelta) -> None:
        """Run all that falls due in that span (seconds or a ``timedelta``), its end included.

        The clock then stands exactly there.
        """
        span_us = _checked_span("advance", span)
        self._simulation.run(lambda: self._advance(span_us))

    async def aadvance(self, span: float | timedelta) -> None:
        """`advance`, without blocking the event loop of an async test."""
        span_us = _checked_span("aadvance", span)
        await self._simulation.arun(lambda: self._advance(span_us))

    def _advance(self, span_us: int) -> None:
        self._ensure_started()
        self._simulation.run_for(f"{span_us / 1_000_000:g} s to pass", span_us)

    async def aget(self, result: Any, timeout: float | None = None) -> Any:
        """``result.get(timeout=timeout)``, without blocking the event loop of an async test.

        Args:
            result: of a task, a chain, a chord or a group.
            timeout: virtual seconds.

        Raises:
            FaultTypeError, FaultValueError: that is no result, or no timeout.
            celery.exceptions.TimeoutError: the result is not there in time. The task goes on.
            WaitNeverEndsError: nothing can bring the result any more.
            Exception: whatever the task failed with.

        See https://docs.celeryq.dev/en/stable/reference/celery.result.html#celery.result.AsyncResult.get.
        """
        if not isinstance(result, ResultBase):
            raise FaultTypeError(f"aget({safe_repr(result)}): a result, as delay() and apply_async() return")
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
            raise FaultTypeError(f"aget(timeout={timeout!r}): virtual seconds, or None")
        if timeout is not None and not timeout >= 0:
            raise FaultValueError(f"aget(timeout={timeout!r}): virtual seconds from 0 up, or None")
        return await self._simulation.arun(lambda: result.get(timeout=timeout))

    def step(self) -> Event | None:
        """The smallest step: run until the next event of the timeline, without moving the clock.

        Returns the event, or ``None`` when nothing can run now.
        """
        return self._simulation.run(self._step)

    def _step(self) -> Event | None:
        self._ensure_started()
        timeline = self._harness.timeline
        count = len(timeline)
        self._simulation.run_step(lambda: len(timeline) > count)
        return timeline[-1] if len(timeline) > count else None

    # -- life and death

    @property
    def running(self) -> bool:
        """Whether the worker consumes; it starts by itself when it is first needed."""
        return self._fiber is not None and self._fiber.alive and not self._stopped

    def start(self) -> None:
        """Start a new worker after ``stop()`` or ``crash()``."""
        if self.running:
            return
        self._stopped = False
        self.ensure_started()

    def stop(self, warm: bool = True) -> None:
        """Shut the worker down: warm, it finishes what runs; cold, it returns what it has not acknowledged.

        See https://docs.celeryq.dev/en/stable/userguide/workers.html#stopping-the-worker.
        """
        self._simulation.run(lambda: self._stop(warm))

    def _stop_within(self, seconds: float) -> bool:
        """Stop warmly; whether it took no longer than that."""
        return self._stop(warm=True, until=self._simulation.clock.now_us + microseconds(seconds))

    def _stop(self, warm: bool, until: int | None = None) -> bool:
        if not self.running:
            self._stopped = True
            return True
        self._harness.timeline.record(happened.WORKER, detail="warm shutdown" if warm else "cold shutdown")
        fiber, instance = self._fiber, self._instance
        assert fiber is not None
        assert instance is not None
        instance.told_to_stop = "warm" if warm else "cold"
        self._simulation.throw(fiber, WorkerShutdown(EX_OK) if warm else WorkerTerminate(EX_FAILURE))
        return self._simulation.wait("the worker to shut down", ready=lambda: not fiber.alive, until=until)

    def crash(self) -> None:
        """Power cut: the worker and all its tasks are gone at once, and it says goodbye to nobody.

        Messages acknowledged early are lost. The others come back: with the manners of Redis after the visibility
        timeout, with those of RabbitMQ at once.
        """
        self._simulation.run(self._crash)

    def _crash(self) -> None:
        if not self.running:
            self._stopped = True
            return
        self._harness.timeline.record(happened.WORKER, detail="crash")
        self._harness.events.lose()
        self._harness.kill_worker(self._fiber)
        if self._instance is not None:
            self._crashed.append(self._instance)
        self._ended()

    def wait_to_be_asked(self) -> None:
        """Have no worker until somebody calls `serve`."""
        self._stopped = True

    @contextmanager
    def serve(self, kind: type[Worker], arguments: Mapping[str, Any], patience: float) -> Iterator[Worker]:
        """Have a worker of that class, made with these arguments of Celery's, for the length of a block.

        It takes the place of the worker that runs, if one does. At the end of the block what can run now runs, then it
        shuts down warmly, for at most ``patience`` virtual seconds.
        """
        if self._serves:
            raise TakeoverError(
                "start_worker(): another worker of this test runs already, and a test has one. In Celery's own tool "
                "the end of one would end them both"
            )
        was_stopped = self._stopped
        self.stop()
        self._serves, self._kind, self._arguments = True, kind, arguments
        try:
            self.start()
            self._simulation.raise_escaped()
            if self._instance is None:
                raise WorkerDiedError("the worker ended while it started")
            try:
                yield self._instance
            except Exception:
                self._simulation.run(lambda: self._end_serving(patience))
                raise
            self._simulation.run(lambda: self._end_serving(patience))
        finally:
            self._serves, self._kind, self._arguments = False, Worker, {}
        if not was_stopped:
            self.start()

    def _end_serving(self, patience: float) -> None:
        simulation = self._simulation
        if not self.running:
            return
        simulation.run_for("what can run now", 0)
        if not self._stop_within(patience):
            self._crash()
            raise RuntimeError(
                f"the worker had not finished its tasks {patience:g} virtual seconds (shutdown_timeout) after it was "
                "told to stop"
            )

    def let_go(self) -> None:
        """Drop what the stacks of killed fibers lead to; at the end of the test."""
        for instance in [*self._past, self._instance]:
            pool = getattr(instance, "pool", None)
            if isinstance(pool, Pool):
                pool.let_go()
        for instance in self._crashed:
            for part in (instance.consumer, instance.hub, instance.timer, instance):
                part.__dict__.clear()
        self._past.clear()
        self._crashed.clear()
        self._instance = None

    def _ended(self) -> None:
        if self._instance is not None:
            self._past.append(self._instance)
        self._fiber = self._instance = None
        self._stopped = True
        self._harness.forget_worker_state()

    def ensure_started(self) -> None:
        """Start the worker, unless it runs or was stopped by the test."""
        if self._fiber is None and not self._stopped:
            self._simulation.run(self._ensure_started)

    def _ensure_started(self) -> None:
        if self._stopped:
            return
        if self._fiber is None:
            self._begin_to_start()
        if not self._has_started():
            self._simulation.run_now("the worker to start", self._has_started)

    def _begin_to_start(self) -> None:
        ready: list[Any] = []
        server = self._harness.server

        def on_ready(sender: Any, **_: Any) -> None:
            ready.append(sender)
            signals.worker_ready.disconnect(on_ready)
            self._harness.timeline.record(happened.WORKER, detail="ready")

        def has_started() -> bool:
            # It cannot be ready while the broker is unreachable: then it waits to try again.
            return bool(ready) or not fiber.alive or (server.is_down("broker") and fiber in self._simulation.waiting())

        self._fiber = fiber = self._simulation.spawn("the worker", WORKER_RANK, self._run)
        self._has_started = has_started
        signals.worker_ready.connect(on_ready, weak=False)

    def _run(self) -> None:
        # Built here, on its own fiber: what Celery sets for a worker's process must not stick to the test.
        self._instance = instance = self._harness._build_worker(self._kind, self._arguments)
        instance.start()
        self._ended()
        if instance.failure is not None:
            raise WorkerDiedError(f"the worker died: {instance.failure!r}") from instance.failure

    def __repr__(self) -> str:
        return f"<WorkerControl {'running' if self.running else 'stopped' if self._stopped else 'not started yet'}>"


def _checked_span(name: str, span: float | timedelta) -> int:
    """A span of time in microseconds."""
    if isinstance(span, bool) or not isinstance(span, (int, float, timedelta)):
        raise FaultTypeError(f"{name}() takes seconds or a timedelta, not {span!r}")
    if isinstance(span, float) and not math.isfinite(span):
        raise FaultValueError(f"{name}({span!r}): that is no length of time")
    span_us = microseconds(span)
    if span_us < 0:
        raise FaultValueError(f"{name}({span!r}): time can't go backwards")
    return span_us


def consumer_class(
    configured: str | type, recorder: Recorder, events: EventLog, on_build: Callable[[Any], None]
) -> type:
    """The application's consumer class (setting ``worker_consumer``) with a table of strategies that fills itself."""
    base = symbol_by_name(configured)
    attributes = {"recorder": recorder, "events": events, "on_build": staticmethod(on_build)}
    return type(base.__name__, (_ConsumerMixin, base), attributes)
