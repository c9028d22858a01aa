"""The two sides of a scenario: a real server with a real worker process, and the harness."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import scenario_app
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from fidelity_history import Raw
from fidelity_scenarios import Scenario
from fidelity_standstill import Standstill
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry
from scenario_app import app

from pytest_celery_faults import Crash, WorkerDiedError

HERE = Path(__file__).parent
_STARTS_WITHIN = 20.0
_SETTLES_WITHIN = 12.0
_POLL = 0.02


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(what: str, condition: Callable[[], bool], timeout: float) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"the real side: {what} did not happen within {timeout:g} s")
        time.sleep(_POLL)


class RedisServer:
    """A ``redis-server`` of our own, of which one database is used."""

    def __init__(self, program: str, folder: Path, database: int) -> None:
        folder.mkdir()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/{database}"
        self.client = redis.Redis(port=self.port, db=database, retry=Retry(NoBackoff(), 0))
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no"]
        self._log = folder / "redis.log"
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log)  # noqa: S603 - the command is ours
        try:
            wait_for("redis-server starting", self._answers, _STARTS_WITHIN)
        except AssertionError:
            process.kill()
            process.wait(10)
            raise
        return process

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    @property
    def version(self) -> str:
        return str(self.client.info("server")["redis_version"])

    @contextmanager
    def down(self) -> Iterator[None]:
        """Shut down, and started again with what it had."""
        self.client.shutdown(save=True)
        self._process.wait(10)
        try:
            yield
        finally:
            self._process = self._start()

    def stop(self) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(10)


class Worker:
    """A ``celery worker`` process with one child."""

    def __init__(self, side: RealSide, conf: dict[str, Any], name: str, log: Path) -> None:
        self.conf = conf
        self.name = f"{name}@real"
        self.log = log
        self.output = log.with_name(f"{name}.log")
        self.log.touch()
        self._log_begins_at = self.log.stat().st_size
        environment = {
            **os.environ,
            "FIDELITY_BROKER": side.broker.url,
            "FIDELITY_BACKEND": side.backend.url,
            "FIDELITY_CONF": json.dumps(conf),
            scenario_app.LOG_VARIABLE: str(self.log),
            "PYTHONPATH": str(HERE),
        }
        command = [sys.executable, "-m", "celery", "-A", "scenario_app", "worker", "-P", "prefork", "-c", "1"]
        # As the harness starts its own: what workers tell each other is not what is compared.
        command += ["-n", self.name, "-l", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - the command is ours
                command, env=environment, cwd=log.parent, stdout=output, stderr=output, start_new_session=True
            )
        try:
            wait_for("the worker starting", self._is_up, _STARTS_WITHIN)
        except AssertionError:
            self.kill()
            raise

    def _is_up(self) -> bool:
        said = self.log.read_bytes()[self._log_begins_at :].decode()
        return "worker_ready" in said and "worker_process_init" in said

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, signum: signal.Signals) -> None:
        if self.alive:
            self.process.send_signal(signum)
            self.process.wait(_STARTS_WITHIN)

    def stand_still(self) -> None:
        """The main process; what a child is at goes on."""
        if self.alive:
            self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        if self.alive:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Get rid of it, its children included."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_STARTS_WITHIN)


class RealSide:
    """Keeps a worker running, a new one when a scenario needs other settings or the last one left a mess."""

    def __init__(self, program: str, folder: Path) -> None:
        self.broker = RedisServer(program, folder / "broker", 0)
        self.backend = RedisServer(program, folder / "backend", 1)
        #: Those that were started last.
        self.workers: list[Worker] = []
        self._folder = folder
        self._started = 0

    def start_workers(self, conf: dict[str, Any], number: int) -> None:
        workers = self.workers
        if len(workers) != number or not all(worker.alive and worker.conf == conf for worker in workers):
            self.stop_workers()
            self.broker.client.flushdb()
            self._started += 1
            log = self._folder / f"worker{self._started}.jsonl"
            for n in range(number):
                workers.append(Worker(self, conf, f"fidelity{self._started}.{n}", log))

    def restart(self, worker: Worker) -> None:
        """Start another of that name; it writes on in the same file."""
        name = worker.name.partition("@")[0]
        self.workers[self.workers.index(worker)] = Worker(self, worker.conf, name, worker.log)

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    def stop(self) -> None:
        self.stop_workers()
        self.broker.stop()
        self.backend.stop()

    def run(self, scenario: Scenario) -> Raw:
        """Run it; again, at most twice, when the machine stood still meanwhile: its times are not Celery's then."""
        for _ in range(2):
            standstill = Standstill()
            try:
                with standstill:
                    raw = self._run(scenario)
            except Exception:
                if not standstill.was_seen:
                    raise
            else:
                if not standstill.was_seen:
                    return raw
        return self._run(scenario)

    def _run(self, scenario: Scenario) -> Raw:
        if scenario.fresh:
            self.stop_workers()
        self.backend.client.flushdb()
        self.start_workers(scenario.conf, scenario.workers)
        try:
            raw = RealDriver(self, scenario).run(scenario)
        except BaseException:
            # What it left undone is no business of the next one.
            self.stop_workers()
            raise
        if raw.unacked or any(raw.queues.values()) or scenario.fresh:
            self.stop_workers()
        return raw


class Driver:
    """What a scenario is given."""

    broker: Any
    results: Any

    def __init__(self, *hostnames: str) -> None:
        self.raw = Raw(hostnames)
        self.stopped = False
        self._waited_for: list[AsyncResult] = []

    # -- what scenarios call

    def track(self, result: AsyncResult) -> None:
        self.raw.tracked.append(result.id)

    def observe(self, value: Any) -> None:
        self.raw.seen.append((None, value))

    def get(self, result: Any, timeout: float = 10) -> None:
        """Wait for a result, as a caller does, and write down what it got."""
        self.raw.waits += 1
        if isinstance(result, AsyncResult):
            self.track(result)
            self._waited_for.append(result)
        else:
            self.raw.waits_for_groups += 1
        try:
            outcome = f"returned {scenario_app.safe_repr(result.get(timeout=timeout))}"
        except CeleryTimeoutError as exc:
            assert timeout != 10, f"no result within {timeout:g} s: {result!r}\n{self.state()}"
            outcome = f"gave up with {exc!r}"
        except Exception as exc:
            outcome = _raised(exc)
        self.raw.seen.append((result.id, outcome))
        scenario_app.record("got", result.id)

    def state(self) -> str:
        """What is worth to know when something does not happen."""
        return ""

    def publish(self, body: bytes, **options: Any) -> None:
        """Put something on the queue that no Celery client would."""
        queue = app.amqp.queues["celery"]
        with app.producer_pool.acquire(block=True) as producer:
            producer.publish(body, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue], **options)

    def queued(self) -> list[Any]:
        """Priorities of the messages in the queue, the next one first."""
        found = []
        for key in sorted(self._queue_keys()):
            found += [json.loads(one)["properties"]["priority"] for one in reversed(self.broker.lrange(key, 0, -1))]
        return found

    def start(self) -> None:
        """Have the worker started before anything is sent."""

    def settle(self) -> None:
        raise NotImplementedError

    def until(self, kind: str, result: AsyncResult) -> None:
        """Until something of this kind was written down for the task."""
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        raise NotImplementedError

    def stop(self, warm: bool) -> None:
        raise NotImplementedError

    def crash(self) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        """Start a worker again after it was stopped or has crashed."""
        raise NotImplementedError

    def broker_down(self) -> AbstractContextManager[None]:
        """The broker is shut down in this block, and then has what it had."""
        raise NotImplementedError

    def until_it_dies(self) -> None:
        """Until the worker has ended by itself."""
        raise NotImplementedError

    def backend_down(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    # -- around them

    def run(self, scenario: Scenario) -> Raw:
        scenario.function(self)
        if not self.stopped:
            self.settle()
        self._collect()
        return self.raw

    def _records(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _written(self, kind: str, result: AsyncResult) -> bool:
        return any(record["kind"] == kind and record["id"] == result.id for record in self._records())

    def _queue_keys(self) -> list[str]:
        keys = [key.decode() for key in self.broker.keys("*")]
        return [key for key in keys if self.broker.type(key) == b"list" and not key.endswith("celery.pidbox")]

    def _collect(self) -> None:
        raw = self.raw
        raw.records = self._records()
        for key in self._queue_keys():
            raw.queues[key] = [json.loads(one) for one in reversed(self.broker.lrange(key, 0, -1))]
        raw.unacked = [json.loads(one)[0] for one in self.broker.hvals("unacked")]
        for key in self.results.keys("*"):
            text = key.decode()
            raw.keys[text] = self.results.ttl(key)
            if text.startswith("celery-task-meta-"):
                raw.stored[text.removeprefix("celery-task-meta-")] = self.results.get(key)
        for result in self._waited_for:
            metas = [app.backend.decode_result(raw.stored[one]) for one in _ids_of(result) if raw.stored.get(one)]
            raw.failures[result.id] = sorted(
                {_raised(meta["result"]) for meta in metas if isinstance(meta["result"], BaseException)}
            )


def _ids_of(result: Any) -> Iterator[str]:
    """A result and all before it."""
    while result is not None:
        yield from (one.id for one in getattr(result, "results", [result]))
        result = result.parent


def _raised(error: BaseException) -> str:
    return f"raised {type(error).__module__}.{scenario_app.safe_repr(error)}"


def driven(method: Callable[..., Any]) -> Callable[..., Any]:
    """A call in which the worker goes on. Else it stands still, as the one here does: it has no part in the sending."""

    @functools.wraps(method)
    def call(self: RealDriver, *args: Any, **kwargs: Any) -> Any:
        with self.worker_going_on():
            return method(self, *args, **kwargs)

    return call


class RealDriver(Driver):
    def __init__(self, side: RealSide, scenario: Scenario) -> None:
        super().__init__(*(worker.name for worker in side.workers))
        self._loses_child = scenario.loses_child
        self._forgotten = scenario.forgotten
        self._side = side
        self._log = side.workers[0].log
        self._offset = 0 if scenario.fresh else self._log.stat().st_size
        self._calls = 0
        self.broker, self.results = side.broker.client, side.backend.client

    @property
    def _workers(self) -> list[Worker]:
        return self._side.workers

    @contextmanager
    def worker_going_on(self) -> Iterator[None]:
        if not self._calls:
            for worker in self._workers:
                worker.go_on()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                for worker in self._workers:
                    worker.stand_still()

    def run(self, scenario: Scenario) -> Raw:
        recording = scenario_app.recording
        before = recording.sink, recording.role
        recording.sink = lambda record: scenario_app.append(str(self._log), record)
        recording.role = lambda: "client"
        settings = {name: app.conf[name] for name in scenario.conf}
        app.conf.update(scenario.conf)
        for worker in self._workers:
            worker.stand_still()
        try:
            return super().run(scenario)
        finally:
            for worker in self._workers:
                worker.go_on()
            app.conf.update(settings)
            recording.sink, recording.role = before

    def _records(self) -> list[dict[str, Any]]:
        with self._log.open("rb") as log:
            log.seek(self._offset)
            whole_lines, _, _ = log.read().rpartition(b"\n")
        return [json.loads(line) for line in whole_lines.splitlines()]

    @driven
    def get(self, result: Any, timeout: float = 10) -> None:
        with self._looking_after_children() if self._loses_child else nullcontext():
            super().get(result, timeout)

    @contextmanager
    def _looking_after_children(self) -> Iterator[None]:
        """Asks the worker again and again, so that it replaces a lost child now and not within five seconds."""
        over = threading.Event()

        def ask() -> None:
            while not over.wait(0.1):
                app.control.broadcast("outstanding", destination=self._names)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @driven
    def until(self, kind: str, result: AsyncResult) -> None:
        wait_for(f"{kind!r} of {result.id}", lambda: self._written(kind, result), 5)

    @driven
    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)

    @driven
    def stop(self, warm: bool) -> None:
        for worker in self._workers:
            worker.stop(signal.SIGTERM if warm else signal.SIGQUIT)
        self.stopped = True

    @driven
    def crash(self) -> None:
        for worker in self._workers:
            worker.kill()
        self.stopped = True

    @driven
    def until_it_dies(self) -> None:
        wait_for("the end of the worker", lambda: not any(worker.alive for worker in self._workers), 15)
        self.stopped = True

    @driven
    def restart(self) -> None:
        for worker in list(self._workers):
            self._side.restart(worker)
        self.stopped = False

    def broker_down(self) -> AbstractContextManager[None]:
        return self._side.broker.down()

    def backend_down(self) -> AbstractContextManager[None]:
        return self._side.backend.down()

    @property
    def _names(self) -> list[str]:
        return [worker.name for worker in self._workers]

    def state(self) -> str:
        queues = {key: self.broker.llen(key) for key in self._queue_keys()}
        output = self._workers[0].output.read_text()[-3000:]
        return f"queues {queues}, unacked {self.broker.hkeys('unacked')}, the worker says:\n{output}"

    @driven
    def settle(self) -> None:
        """Until the worker has nothing to do and nothing changes any more.

        A message that stays unacked for ever is an observation, so it only makes the quiet that is asked for longer.
        """
        inspect = app.control.inspect(destination=self._names, timeout=2)
        idle = {key: {"requests": self._forgotten, "scheduled": 0, "children": 1} for key in self._names}
        end = time.monotonic() + _SETTLES_WITHIN
        now: Any = None
        last: Any = None
        quiet = 0
        while True:
            for worker in self._workers:
                assert worker.alive, f"the real worker is dead: {worker.output.read_text()[-3000:]}"
            if time.monotonic() > end:
                raise AssertionError(f"the real side does not settle: {now}\n{self.state()}")
            answers = self._outstanding(inspect)
            queued = sum(self.broker.llen(key) for key in self._queue_keys())
            now = (answers, queued, self.broker.hkeys("unacked"), self._log.stat().st_size)
            quiet = quiet + 1 if answers == idle and not queued and self._children_are_up() and now == last else 0
            last = now
            if quiet >= (10 if self.broker.exists("unacked") else 1):
                return
            time.sleep(_POLL)

    def _outstanding(self, inspect: Any) -> Any:
        try:
            return inspect._request("outstanding") or {}
        except (
            OperationalError,
            redis.ConnectionError,
        ):  # the connection that it has does not know yet that the broker was restarted
            return {}

    def _children_are_up(self) -> bool:
        """Those that left are replaced, and the new ones have started."""
        kinds = [record["kind"] for record in self._records()]
        before = 0 if self._offset == 0 else len(self._workers)
        begun, left = kinds.count("worker_process_init"), kinds.count("worker_process_shutdown")
        return kinds.count("worker_before_create_process") == begun and before + begun - left >= len(self._workers)


class HarnessDriver(Driver):
    def __init__(self, celery_faults: Any) -> None:
        super().__init__("celery@in-memory")
        self._celery_faults = celery_faults
        self._written_down: list[dict[str, Any]] = []
        self._start_is_told = False
        self.broker = celery_faults.broker.client
        self.results = app.backend.client

    def run(self, scenario: Scenario) -> Raw:
        self._start_is_told = scenario.fresh
        inject = self._celery_faults.inject
        inject(Crash(), at="scenario_app.die", times=None, required=False)
        for point in ("store", "stored"):
            inject(Crash(), at=point, times=None, required=False, when=lambda _, here=point: scenario_app.dies_at(here))
        return super().run(scenario)

    @contextmanager
    def recording(self) -> Iterator[None]:
        recording = scenario_app.recording
        level = logging.getLogger("celery").level
        recording.sink = lambda record: self._written_down.append(json.loads(json.dumps(record)))
        recording.role = self._role
        try:
            with scenario_app.messages_are_watched():
                yield
        finally:
            recording.sink = None
            assert logging.getLogger("celery").level == level

    def _role(self) -> str:
        """Where this would run: a child has fibers with data, the main process one of its own."""
        simulation = self._celery_faults.simulation
        if simulation.current is simulation.test:
            return "client"
        return "child" if simulation.current.data is not None else "main"

    def _records(self) -> list[dict[str, Any]]:
        """What was written down; the start of a worker that has served other scenarios on the real side is left out."""
        written = self._written_down
        if self._start_is_told:
            return written
        ready = next((n for n, record in enumerate(written) if record["kind"] == "worker_ready"), -1)
        return [record for n, record in enumerate(written) if n > ready or record["role"] == "client"]

    def until(self, kind: str, result: AsyncResult) -> None:
        while not self._written(kind, result):
            # A step that leads to no event of the timeline still ran what could run.
            if self._celery_faults.worker.step() is None:
                assert self._written(kind, result), f"here: {kind!r} of {result.id} did not happen"

    def pass_time(self, seconds: float) -> None:
        self._celery_faults.worker.advance(seconds)

    def start(self) -> None:
        self._celery_faults.worker.start()

    def settle(self) -> None:
        self._celery_faults.worker.drain()

    def stop(self, warm: bool) -> None:
        self.stopped = True
        self._celery_faults.worker.stop(warm=warm)

    def crash(self) -> None:
        self.stopped = True
        self._celery_faults.worker.crash()

    def until_it_dies(self) -> None:
        with pytest.raises(WorkerDiedError):
            self._celery_faults.worker.drain()
        self.stopped = True

    def restart(self) -> None:
        self._celery_faults.worker.start()
        self.stopped = False

    def broker_down(self) -> AbstractContextManager[None]:
        return self._celery_faults.broker.down(crashed=True)

    @contextmanager
    def backend_down(self) -> Iterator[None]:
        server = self._celery_faults.server
        server.take_down("backend", None)
        try:
            yield
        finally:
            server.bring_up("backend")
