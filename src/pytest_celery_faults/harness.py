"""All of it together for one test."""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from celery import Celery, _state
from celery.exceptions import Ignore, Reject, Retry
from celery.worker import state as worker_state
from kombu import Queue
from kombu.utils.url import parse_url
from redis import Redis

from . import django, eventloops, marks, replaced
from .app import Adoption
from .backend import Backend
from .broker import RABBITMQ, REDIS, Broker, Transport, transport_for
from .clients import UP
from .clock import Clock, RealTimeSource, TimeSource, real_monotonic
from .codes import copied_once
from .effects import Effects
from .errors import FaultNeverFiredError, FaultTypeError, FaultValueError, ForeignBrokerError, hide_ours, nearest
from .events import EventLog
from .freezes import Freezes
from .frozen import Freeze
from .hub import Hub, Timer
from .injection import Injection, Injector, Plan, plan
from .letterdesk import LetterDesk, Quarantine
from .marks import takes_what
from .memory import Server, client
from .pool import Pool, process_of, task_of
from .recorder import Recorder
from .secrets import Secrets
from .simulation import TEST_RANK, Fiber, Simulation
from .task_asgiref import Asgiref
from .task_loops import Loops
from .thread import SimulationThread
from .timeline import Timeline
from .views.callbacks import Callbacks
from .views.letters import DeadLetterQueue
from .views.lost import Snapshot, assert_nothing_lost
from .views.monitor import Monitor
from .views.outcome import Outcome, outcome_of
from .views.prospects import Prospects
from .views.retries import RetryRecorder
from .views.sent import Sent
from .views.signals import Signals
from .watchdog import Watchdog
from .worker import HOSTNAME, Worker, WorkerControl, consumer_class

__tracebackhide__ = hide_ours


@dataclass(frozen=True)
class Options:
    """What ``@pytest.mark.celery_faults(...)`` can set."""

    conf: dict[str, Any] = field(default_factory=dict)
    queues: tuple[str, ...] | None = None
    broker: str | None = None
    concurrency: int = 1
    clock: str = "virtual"
    start: datetime | None = None
    dlq: str | None = "dlq"
    quarantine: bool = False
    delivery_limit: int | None = None
    stall_timeout: float = 30
    max_executions: int = 1000
    apps: tuple[Celery, ...] = ()
    takeover: bool | None = None


OPTION_NAMES = tuple(Options.__dataclass_fields__)


def make_options(values: dict[str, Any]) -> Options:
    """Check what the markers say.

    Raises:
        FaultTypeError, FaultValueError: what is wrong, and what is possible.
    """
    for name in values:
        if name not in OPTION_NAMES:
            raise FaultTypeError(
                f"celery_faults() has no argument {name!r}{nearest(name, OPTION_NAMES)} "
                f"It takes: {', '.join(OPTION_NAMES)}"
            )
    checked = dict(values)
    _choice(checked, "broker", (REDIS, RABBITMQ))
    _choice(checked, "clock", ("virtual", "real"))
    for name in ("concurrency", "max_executions"):
        value = checked.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int):
            raise FaultTypeError(f"celery_faults({name}={value!r}): a whole number from 1 up")
        if value < 1:
            raise FaultValueError(f"celery_faults({name}={value!r}): a whole number from 1 up")
    stall = checked.get("stall_timeout", 30)
    if isinstance(stall, bool) or not isinstance(stall, (int, float)):
        raise FaultTypeError(f"celery_faults(stall_timeout={stall!r}): real seconds")
    if not stall > 0:
        raise FaultValueError(f"celery_faults(stall_timeout={stall!r}): real seconds above 0")
    if not isinstance(checked.get("conf", {}), dict):
        raise FaultTypeError(f"celery_faults(conf={checked['conf']!r}): a dict of Celery settings")
    start = checked.get("start")
    if start is not None and not isinstance(start, datetime):
        raise FaultTypeError(f"celery_faults(start={start!r}): a datetime; a naive one is UTC")
    for name in ("quarantine", "takeover"):
        if not isinstance(checked.get(name, False), bool):
            raise FaultTypeError(f"celery_faults({name}={checked[name]!r}): True or False")
    limit = checked.get("delivery_limit")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise FaultTypeError(f"celery_faults(delivery_limit={limit!r}): a whole number from 0 up, or None")
    if limit is not None and limit < 0:
        raise FaultValueError(f"celery_faults(delivery_limit={limit!r}): a whole number from 0 up, or None")
    dlq = checked.get("dlq", "dlq")
    if dlq is not None and not isinstance(dlq, str):
        raise FaultTypeError(f"celery_faults(dlq={dlq!r}): the name of a queue, or None")
    for name, kind in (("queues", str), ("apps", Celery)):
        if checked.get(name) is not None:
            value = checked[name]
            members = [value] if isinstance(value, (str, Celery)) else value
            if not isinstance(members, (list, tuple, set)) or not all(isinstance(member, kind) for member in members):
                what = "names" if kind is str else "Celery applications"
                raise FaultTypeError(f"celery_faults({name}={value!r}): a list of {what}")
            checked[name] = tuple(members)
    return Options(**checked)


def _choice(values: dict[str, Any], name: str, choices: tuple[str, ...]) -> None:
    value = values.get(name)
    if value is not None and value not in choices:
        raise FaultValueError(
            f"celery_faults({name}={value!r}): choose one of {', '.join(choices)}{nearest(str(value), choices)}"
        )


class _Switches:
    """Keeps Celery's and asyncio's state of the process and thread right for the fiber that runs; stops its time."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._blocks = django.Blocks()
        self.loops: Loops

    def entering(self, fiber: Fiber) -> None:
        _state._set_task_join_will_block(fiber.join_blocks)
        self.loops.entering(fiber)
        self._watchdog.entering(fiber)
        self._blocks.entering()

    def leaving(self, fiber: Fiber) -> None:
        fiber.join_blocks = _state.task_join_will_block()
        self._blocks.leaving(fiber)
        self._watchdog.leaving(fiber)
        self.loops.leaving(fiber)

    def killed(self, fiber: Fiber) -> None:
        self.loops.killed(fiber)
        self._blocks.killed(fiber)


class Harness:
    """One test's worker, broker, backend and clock: what the fixture ``celery_faults`` gives."""

    def __init__(
        self,
        app: Celery,
        options: Options,
        seed: int,
        name: str,
        watchdog: Watchdog,
        hook: Any = None,
        is_async: bool = False,
        secrets: Secrets | None = None,
    ) -> None:
        self._secrets = secrets
        self._began = real_monotonic()
        self._pending_callbacks = ""
        self.app = app
        self._hook = hook
        self._options = options
        # Whether the test is a coroutine function, whose worker needs a thread whoever calls it first.
        self._is_async = is_async
        self._thread: SimulationThread | None = None
        self._run_seed = seed
        self._watchdog = watchdog
        self._stack = ExitStack()
        # What is taken of the process.
        self._process = ExitStack()
        self.is_paused: bool = False
        self.is_closed: bool = False
        #: Whether it outlives a test.
        self.is_kept: bool = False
        try:
            self._set_up(name)
        except BaseException:
            self.close()
            raise

    def _set_up(self, name: str) -> None:
        options, stack, watchdog = self._options, self._stack, self._watchdog
        self._adoption = Adoption(self.app, options.conf)
        stack.callback(self._process.close)
        self._take_app()
        self._seed(name)
        source = RealTimeSource(options.start) if options.clock == "real" else TimeSource(options.start)
        switches = _Switches(watchdog)
        simulation = Simulation(source, switches, self._explain)
        simulation.patience = options.stall_timeout
        self.simulation: Simulation = simulation
        simulation.start_thread_if_needed = self._start_thread_if_needed
        self._loops = switches.loops = Loops(simulation)
        self._asgiref = Asgiref(self._loops)
        stack.callback(self._loops.close)
        self.timeline: Timeline = Timeline(
            lambda: source.seconds_since_start(source.now_us), lambda task: self.recorder.name_of(task)
        )
        self.timeline.on_record = simulation.pause_for_step
        self._freezes = Freezes(source, self._what_ran, lambda by: self.worker.advance(by), options.start is not None)
        self._freeze = Freeze(simulation, self._freezes)
        self.clock: Clock = Clock(source, self._freeze.paused)
        self.server: Server = Server(simulation)
        self.recorder: Recorder = Recorder(
            self.timeline, simulation, self._tasks, options.dlq, options.max_executions, self._hook, self._secrets
        )
        self.events: EventLog = EventLog(self.clock.time)
        conf = self.app.conf
        self._urls = set[_Location]().union(*(_brokers_of(one) for one in (self.app, *options.apps)))
        scheme, database = _scheme_and_database(conf.broker_read_url or conf.broker_url)
        manners = options.broker or (RABBITMQ if scheme in ("amqp", "amqps", "pyamqp", "librabbitmq") else REDIS)
        self.broker: Broker = Broker(self.server, manners, database, self.recorder, options.dlq, options.delivery_limit)
        self.broker._on_connection = self._on_connection
        self.broker._app_queues = lambda: filter(None, [*self._queues(), *self.app.amqp.queues, options.dlq])
        self._transport = transport_for(self.broker)
        self._backend_urls = {_backend_of(one) for one in (self.app, *options.apps)}
        self._backend_database = _scheme_and_database(conf.result_backend)[1]
        self._backends: dict[tuple[int, int], Backend] = {}
        effects = Effects(self.app, simulation, self.server, self.broker, lambda: self.consumer, self._hook)
        self.injector: Injector = Injector(
            self.recorder, simulation, lambda: (conf.task_time_limit, conf.task_soft_time_limit), effects
        )
        self.broker._striker = self.injector
        self.retries: RetryRecorder = RetryRecorder(self.recorder)
        self.dlq: DeadLetterQueue = DeadLetterQueue(self.recorder, LetterDesk(self, options.dlq))
        self.sent: Sent = Sent(self.recorder)
        self.signals: Signals = Signals(self.recorder)
        self.callbacks: Callbacks = Callbacks(self.recorder, self._snapshot)
        self.monitor: Monitor = Monitor(
            self.events,
            self.recorder,
            self.clock.time,
            lambda moment: round(self.clock.elapsed - (self.clock.time() - moment), 6),
            lambda: self.broker.queues,
        )
        self.recorder.callbacks.worked = lambda: task_of(simulation.current)
        self._jobs: itertools.count[int] = itertools.count()
        self._replace_names()
        self.worker: WorkerControl = WorkerControl(self)
        stack.callback(self._dispose)
        self.recorder.connect()
        watchdog.watch(simulation, options.stall_timeout, self.timeline)
        stack.callback(watchdog.unwatch)
        stack.callback(self._freeze.finish)
        self._freeze.start()
        stack.callback(self.injector.close)
        stack.callback(self.monitor.close)
        stack.callback(self._come_to_rest)

    # -- what it takes of the process, for the length of a test, and gives back

    def _take_app(self) -> None:
        self._process.callback(random.setstate, random.getstate())
        self._process.callback(self._adoption.give_back)
        self._adoption.take()
        UP.append(self)
        self._process.callback(UP.remove, self)

    def _seed(self, name: str) -> None:
        """Chance for a test of that name."""
        random.seed(zlib.crc32(f"{self._run_seed}:{name}".encode()))

    def pause(self) -> None:
        """Give the process and the application back until `go_on`; the worker, the data and the clock stand still."""
        if self.is_paused or self.is_closed:
            return
        self.is_paused = True
        self.injector.close()
        self._freeze.lend_back()
        self._watchdog.unwatch()
        self._adoption.lend_back()
        self._process.close()

    def go_on(self) -> None:
        """Take the process again, after `pause`."""
        if not self.is_paused:
            return
        self.is_paused = False
        self._take_app()
        self._replace_names()
        self._watchdog.watch(self.simulation, self._options.stall_timeout, self.timeline)
        self._freeze.start()

    def begin_test(self, name: str) -> None:
        """A test begins with a worker that others had before it: queues, results and clock go on, the record is new."""
        self._began = real_monotonic()
        self._freezes.begun = False
        self.go_on()
        self._seed(name)
        self.recorder.begin(self.simulation.clock.begin())
        self.events.begin()
        self.dlq.begin()
        self.callbacks.begin()
        self.injector.begin()

    def settle(self) -> None:
        """What can run now, of a worker that others have after the test, runs: it is a part of this test."""
        if self.is_kept and not (self.is_closed or self.is_paused) and self.worker.running:
            self.simulation.run(lambda: self.simulation.run_for("what can run now", 0))

    def end_test(self) -> None:
        """The test that has it is over."""
        if self.is_kept:
            self.pause()
        else:
            self.close()

    def _replace_names(self) -> None:
        harness, stack = self, self._process
        self._loops.replace_names(stack)
        self._asgiref.replace_names(stack)

        def get_transport_cls(original: Any) -> Any:
            def get_transport_cls(connection: Any) -> Any:
                harness._check_url(connection)
                return harness._transport

            return get_transport_cls

        def app_backend(original: Any) -> Any:
            return property(harness._backend_of)

        def task_backend(original: Any) -> Any:
            return property(lambda task: harness._backend_of(task.app), original.fset)

        def retry(original: Any) -> Any:
            # One function: each that a retry passes through is in the traceback that Celery stores of it.
            def retry(task: Any, *args: Any, **kwargs: Any) -> Any:
                request = task.request
                try:
                    retry = original(task, *args, **kwargs)
                except (Retry, Reject, Ignore):
                    raise
                except Exception:
                    if not request.called_directly and not request.is_eager:
                        harness.recorder.retry_refused(request.id)
                    raise
                # With throw=False it is returned, and Celery sends no signal of it.
                if isinstance(retry, Retry) and not request.is_eager:
                    harness.recorder.retry_asked(request.id, retry)
                return retry

            return retry

        def call(original: Any) -> Any:
            def call(signature: Any, *args: Any, **kwargs: Any) -> Any:
                with harness.recorder.callbacks.called(signature, args, kwargs):
                    return original(signature, *args, **kwargs)

            return call

        def join_blocks(original: Any) -> Any:
            def task_join_will_block() -> bool:
                return harness.simulation.here and original()

            return task_join_will_block

        attributes = {"server": self.server, "next_redelivery": staticmethod(self.broker.next_redelivery)}
        replaced.replace(stack, replaced.TRANSPORT, get_transport_cls)
        replaced.replace(stack, replaced.BACKEND, app_backend)
        replaced.replace(stack, replaced.TASK_BACKEND, task_backend)
        replaced.replace(stack, replaced.RETRY, retry)
        replaced.replace(stack, replaced.CALL, call)
        replaced.replace(stack, replaced.JOIN_BLOCKS, join_blocks)
        replaced.replace(stack, replaced.TIMER, lambda original: type("Timer", (Timer,), attributes))
        replaced.replace(stack, replaced.JOB_COUNTER, lambda original: self._jobs)
        replaced.replace(stack, replaced.COPY_OF_CODE, lambda original: staticmethod(copied_once(original)))
        replaced.replace(stack, replaced.HUB, lambda original: type("Hub", (Hub,), attributes))
        replaced.replace(stack, replaced.CLOSE_DATABASE, lambda original: lambda fixup: None)
        replaced.replace(stack, replaced.CLOSE_DATABASE_FILE, lambda original: lambda fixup, connection: None)

    def _what_ran(self) -> str:
        """What has happened on the clock already, so that it cannot begin at another moment any more."""
        if self.is_kept:
            return "the worker of this test is one that several tests have, whose clock goes on from each to the next"
        if self.clock.elapsed:
            return f"the clock has gone on for {self.clock.elapsed:g} s"
        if self.recorder.sent:
            return f"{self.recorder.sent[0].task} was sent"
        if self.timeline or self.worker._instance is not None or any(self.server.dbs.values()):
            return "the worker or the broker of celery_faults was used"
        return ""

    def body_is_over(self) -> None:
        """Look at what a tear-down before the end of the call takes away."""
        self._pending_callbacks = django.pending_callbacks()

    def set_up_is_over(self) -> None:
        """From now on a freeze comes too late to be where the clock starts."""
        self._freezes.begun = True

    # -- what a test calls

    @takes_what(marks.inject)
    def inject(self, *args: Any, **options: Any) -> Injection:
        """Inject a fault from now on, for the rest of the test or, as a context manager, for a block.

        The arguments are those of ``@pytest.mark.inject``; the flag ``--celery-faults`` is not needed.

        Raises:
            FaultTypeError, FaultValueError: the arguments mean nothing, or name a task that no app knows.
        """
        return self.add(plan(args, options, self._hook))

    def add(self, what: Plan) -> Injection:
        tasks = self._tasks()
        self.injector.check_tasks(what, tasks)
        self.injector.check_limits(what, tasks)
        return self.injector.add(what)

    def _tasks(self) -> dict[str, Any]:
        """The tasks of all applications of the test, by name."""
        return {name: task for app in (*self._options.apps, self.app) for name, task in app.tasks.items()}

    def verify(self) -> None:
        """Raise when a required fault never fired."""
        self.simulation.raise_escaped()
        unfired = self.injector.unfired()
        if unfired:
            raise FaultNeverFiredError(self.why_not_fired())

    def why_not_fired(self) -> str:
        """What is said of the faults that never fired."""
        why = self.injector.why_not_fired(self.injector.unfired())
        pending = self._pending_callbacks or django.pending_callbacks()
        return f"{why}\n{pending}" if pending else why

    def assert_nothing_lost(self) -> None:
        """Fail when a message sent in the test ended in no result, no retry, no letter and no queue.

        Raises:
            MessagesLostError: which messages, and where each vanished; or nothing was sent at all.
        """
        assert_nothing_lost(self.recorder, self._snapshot())

    def outcome(self, result: Any) -> Outcome:
        """What has become of a result: of a task, a group, a chord, a chain, or of any nesting of them.

        It tells what is so now, runs nothing, and does not change afterwards. What is still to come is ``PENDING``,
        what nothing can bring any more is ``LOST``.

        Raises:
            FaultTypeError, FaultValueError: it is no result, or one of a task that was not sent in this test.
        """
        return outcome_of(result, self.recorder, self._snapshot(), self._backend_of(self.app).stored_meta)

    @property
    def real_seconds(self) -> float:
        """How long the test has taken. pytest's durations are wrong where a freeze of freezegun's begins or ends."""
        return real_monotonic() - self._began

    def close(self) -> None:
        """Give everything back."""
        if not self.is_closed:
            self.go_on()  # what is undone is what was done
            self.is_closed = True
            self._stack.close()

    def __repr__(self) -> str:
        return f"<celery_faults of {self.app.main!r} at {self.clock.elapsed:g} s: {self.broker!r}, {self.worker!r}>"

    # -- the worker's life

    def _build_worker(self, kind: type[Worker], arguments: Mapping[str, Any]) -> Worker:
        """A worker; ``arguments`` are Celery's, and go before what the marker says."""
        app, options = self.app, self._options
        pool = type("Pool", (Pool,), {"server": self.server, "recorder": self.recorder})
        own = {
            "hostname": HOSTNAME,
            "concurrency": options.concurrency,
            "loglevel": "WARN",
            "without_heartbeat": True,
            **arguments,
        }
        if "queues" not in own:
            own["queues"] = self._queues()
        consumer = own.pop("consumer_cls", None) or app.conf.worker_consumer
        asked = own.pop("task_events", None)
        self.events.sends_about_tasks = app.conf.worker_send_task_events if asked is None else bool(asked)
        worker = kind(
            app=app,
            pool_cls=pool,
            pool=pool,
            consumer_cls=consumer_class(consumer, self.recorder, self.events, self.injector.wrap),
            use_eventloop=True,
            task_events=True,  # which it also makes for its heartbeats and for gossip; see events.py
            without_mingle=True,
            without_gossip=True,
            **own,
        )
        if options.quarantine:
            worker.quarantine = Quarantine(self.dlq, self.recorder, options.dlq)
        return worker

    def _queues(self) -> list[str]:
        """What to consume: all that the app declares or its tasks name, but for the dead-letter queue."""
        options, app = self._options, self.app
        if options.queues is not None:
            return list(options.queues)
        queues = app.amqp.queues
        named: list[Any] = [getattr(task, "queue", None) for task in app.tasks.values()]
        routes = app.conf.task_routes
        if isinstance(routes, dict):
            named += [route.get("queue") if isinstance(route, dict) else route for route in routes.values()]
        names = dict.fromkeys(self._adoption.declared_queues())
        for queue in named:
            if isinstance(queue, Queue):
                names[queues.add(queue).name] = None
            elif isinstance(queue, str) and (queue in queues or queues.create_missing):
                names[queues[queue].name] = None
        if options.dlq is not None:
            names.pop(options.dlq, None)
        return list(names)

    @property
    def consumer(self) -> Any:
        """The worker's consumer; ``None`` when no worker runs."""
        return getattr(self.worker._instance, "consumer", None)

    def _on_connection(self) -> None:
        """A worker is there before anybody talks to the broker: a revoke that nobody heard would be lost."""
        simulation = self.simulation
        if simulation.current.rank != TEST_RANK or simulation.closing:
            return
        # Another thread of a sync test may send, and leave the driving to the test.
        if simulation.here or simulation.outside is not None or self._is_asynchronous():
            self.worker.ensure_started()

    def _is_asynchronous(self) -> bool:
        return self._is_async or eventloops.is_running_here()

    def kill_worker(self, fiber: Fiber | None) -> None:
        """Take the worker and its tasks away, without a word to the broker."""
        simulation = self.simulation
        self.recorder.worker_gone()
        for other in simulation.waiting():
            simulation.kill(other)
        if fiber is not None:
            simulation.kill(fiber)
        theirs = [transport for transport in self.broker._transports if transport.of_worker]
        if self.broker.manners == RABBITMQ:
            for transport in theirs:
                transport.return_unacked()
        self._cut_connections(theirs)

    def _cut_connections(self, transports: list[Transport]) -> None:
        for transport in transports:
            transport.close_for_good()
            if transport in self.broker._transports:
                self.broker._transports.remove(transport)

    def forget_worker_state(self) -> None:
        """What Celery keeps in module globals for the worker of a process: the next worker is another process."""
        import kombu.asynchronous.hub

        kombu.asynchronous.hub.set_event_loop(None)
        worker_state.reset_state()
        worker_state.should_stop = worker_state.should_terminate = None

    def _start_thread_if_needed(self, is_wait: bool) -> None:
        """For an event loop; and for another thread that waits, while the test's own may be blocked by it."""
        is_async = self._is_asynchronous()
        if not is_async and (self.simulation.here or not is_wait):
            return
        current_app = _state._tls.current_app

        def set_up() -> None:
            _state._tls.current_app = current_app

        thread = SimulationThread(self.simulation, set_up, self._loops)
        thread.start()
        self._thread = thread
        if not is_async:  # it may have sent before
            self.worker.ensure_started()

    def _come_to_rest(self) -> None:
        """Before anything is given back."""
        if self._thread is not None:
            self._thread.come_to_rest()

    def _dispose(self) -> None:
        if self._thread is None:
            self._dispose_here()
        else:
            self._thread.stop(self._dispose_there, self._options.stall_timeout)

    def _dispose_there(self) -> None:
        try:
            self._dispose_here()
        finally:
            django.close_connections()

    def _dispose_here(self) -> None:
        self.simulation.close()
        self._cut_connections(list(self.broker._transports))
        self.server.end_outages()
        self.server.files.clear()
        self.simulation.let_go()
        self.worker.let_go()
        self.recorder.callbacks.let_go()
        vars(self.injector).clear()

    # -- connections

    def has_broker_of(self, connection: Any) -> bool:
        """Whether a connection leads to the broker that is in memory here."""
        return _leads_to(connection, self._urls)

    def has_backend_of(self, app: Celery) -> bool:
        """Whether the result backend of an app is in memory here."""
        if app is self.app or app in self._options.apps:
            return True
        shares_broker = bool(_brokers_of(app) & self._urls)
        return shares_broker or bool(app.conf.result_backend and _backend_of(app) in self._backend_urls)

    def _check_url(self, connection: Any) -> None:
        if self.has_broker_of(connection):
            return
        location = _location_of(connection)
        owners = [
            app.main or repr(app)
            for app in list(_state._get_active_apps())
            if app is not self.app and location in _brokers_of(app)
        ]
        whose = f" of the app {owners[0]!r}" if owners else ""
        raise ForeignBrokerError(
            f"this test would have reached the broker{whose} at {_readable(location)}, which is not the one of "
            f"{self.app.main!r}. To run that app in memory too: @pytest.mark.celery_faults(apps=[...])"
        )

    def redis_client(self, url: str | None = None, **options: Any) -> Redis:
        """A client of the in-memory server, of the database that a URL of the application's names.

        Raises:
            ForeignBrokerError: the URL is of another server than the application's broker and result backend.
        """
        if url is None:
            return client(self.server, self.broker._db, **options)
        scheme, database = _scheme_and_database(url)
        host = _location(url)[:3]
        servers = self._urls | {known for known in self._backend_urls if isinstance(known, tuple)}
        if scheme not in ("redis", "rediss") or host not in {known[:3] for known in servers}:
            known = ", ".join(sorted(_readable(server) for server in servers))
            raise ForeignBrokerError(
                f"redis_client({url!r}): that is no Redis of the application {self.app.main!r}, which has: {known}"
            )
        return client(self.server, database, **options)

    def _backend_of(self, app: Celery) -> Backend:
        app = getattr(app, "_get_current_object", lambda: app)()
        fiber_process = process_of(self.simulation.current)
        if not self.has_backend_of(app):
            raise ForeignBrokerError(
                f"this test would have reached the result backend of the app {app.main!r}. To run that app in "
                "memory too: @pytest.mark.celery_faults(apps=[...])"
            )
        mine = self._backends.get((id(app), fiber_process))
        if mine is None:
            first = next((backend for key, backend in self._backends.items() if key[0] == id(app)), None)
            if first is None:
                scheme, database = _scheme_and_database(app.conf.result_backend)
                if scheme not in ("redis", "rediss"):  # it keeps nothing of its own in memory
                    database = self._backend_database
                callbacks = self.recorder.callbacks
                mine = Backend(self.server, database, self._describe, callbacks, app, fiber_process)
                mine.strike = self.injector.strike_at_store
            else:
                mine = first.for_another_process(fiber_process)
            self._backends[id(app), fiber_process] = mine
        return mine

    # -- words

    def _describe(self, result: Any) -> str:
        task_id = getattr(result, "id", None)
        record = self.recorder.records.get(task_id) if task_id is not None else None
        if record is not None:
            return f"the result of {self.timeline.label(record.task, task_id)}"
        members = getattr(result, "results", None)
        if members:
            return "the results of " + ", ".join(self._describe(member)[14:] for member in members)
        name = self.recorder.callbacks.to_come().get(task_id) if task_id is not None else None
        return f"the result of {name or f'task {task_id}'}, which nobody sent"

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.recorder, self.broker)

    def _explain(self) -> list[str]:
        """Why nothing can happen any more."""
        reasons = []
        if not self.worker.running:
            reasons.append("the worker is stopped")
        consumed = set(self.consumed_queues())
        for queue, count in self.broker.queues.items():
            if count and queue not in consumed:
                messages = "1 message is" if count == 1 else f"{count} messages are"
                reasons.append(f"nothing consumes queue {queue!r}: {messages} in it")
        for (task_id, _retries), where in self.recorder.vanished.items():
            reasons.append(f"{self.timeline.label(None, task_id)}: {where}")
        for chord, why in Prospects(self.recorder, self._snapshot()).stuck_chords():
            reasons.append(f"the chord's body {chord.task} will not be sent: {why}")
        return reasons

    def consumed_queues(self) -> list[str]:
        """What the worker consumes at the moment."""
        task_consumer = getattr(self.consumer, "task_consumer", None)
        return [queue.name for queue in task_consumer.queues] if task_consumer is not None else []


_FAMILY = {"rediss": "redis", "pyamqp": "amqp", "librabbitmq": "amqp", "amqps": "amqp"}
_PORTS = {"redis": 6379, "amqp": 5672}

_Location = tuple[str, str, "int | None", str]


@functools.cache  # of what is in settings: few, and the same for each test
def _location(url: str) -> _Location:
    """Family, host, port and database of a broker URL, so that two spellings of one broker are equal."""
    parts = parse_url(url or "amqp://")
    return _normal(parts["transport"] or "amqp", parts["hostname"], parts["port"], parts["virtual_host"])


def _location_of(connection: Any) -> _Location:
    scheme = connection.transport_cls
    if not isinstance(scheme, str):
        scheme = getattr(scheme, "driver_type", "unknown")
    return _normal(scheme, connection.hostname, connection.port, connection.virtual_host)


def _normal(scheme: str, host: str | None, port: int | None, vhost: Any) -> _Location:
    family = _FAMILY.get(scheme, scheme)
    usual = _PORTS.get(family)
    return family, host or "localhost", (port or usual) if usual else None, str(vhost or "/").strip("/") or "0"


def _brokers_of(app: Celery) -> set[_Location]:
    conf = app.conf
    urls: list[str] = []
    for url in (conf.broker_read_url, conf.broker_write_url, conf.broker_url):
        for one in url if isinstance(url, (list, tuple)) else [url]:
            urls += (one or "").split(";")
    return {_location(url) for url in urls}


def _backend_of(app: Celery) -> Any:
    """Where results go, so that two spellings of one Redis are equal."""
    url = app.conf.result_backend
    return _location(url) if isinstance(url, str) and url.startswith(("redis://", "rediss://")) else url


def _leads_to(connection: Any, brokers: set[_Location]) -> bool:
    return _location_of(connection) in brokers or any(_location(url) in brokers for url in connection.alt or ())


def app_of(connection: Any, nearest: list[Celery]) -> Celery | None:
    """An application with the broker that a connection leads to: one of the nearest, or the current one, if it is."""
    current = _state._tls.current_app or _state.default_app
    others = sorted(_state._get_active_apps(), key=lambda app: (app is not current, str(app.main)))
    apps = [*nearest, *others]
    return next((app for app in apps if _leads_to(connection, _brokers_of(app))), None)


def _readable(location: _Location) -> str:
    scheme, host, port, vhost = location
    return f"{scheme}://{host}{f':{port}' if port else ''}/{vhost}"


def _scheme_and_database(url: Any) -> tuple[str, int]:
    if isinstance(url, (list, tuple)):
        url = url[0] if url else None
    if not isinstance(url, str) or "://" not in url:
        return (url if isinstance(url, str) else "", 0)
    scheme, _, rest = url.partition("://")
    database = rest.split("?")[0].rpartition("/")[2] if "/" in rest else ""
    return scheme.partition("+")[0], int(database) if database.isdigit() else 0
