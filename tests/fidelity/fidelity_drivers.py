"""The two sides of a scenario: a real server with a real worker process, and the harness."""

from __future__ import annotations

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
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import redis
import scenario_app
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from fidelity_history import Raw
from fidelity_scenarios import Scenario
from scenario_app import app

from pytest_celery_faults import Crash

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
    """A ``redis-server`` of our own: broker in database 0, results in database 1."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "no"]
        with (folder / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - the command is ours
        self.broker = redis.Redis(port=self.port, db=0)
        self.results = redis.Redis(port=self.port, db=1)
        try:
            wait_for("redis-server starting", self._answers, _STARTS_WITHIN)
        except AssertionError:
            self.stop()
            raise

    def _answers(self) -> bool:
        try:
            return bool(self.broker.ping())
        except redis.ConnectionError:
            return False

    @property
    def broker_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def backend_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/1"

    @property
    def version(self) -> str:
        return str(self.broker.info("server")["redis_version"])

    def stop(self) -> None:
        self.broker.close()
        self.results.close()
        self._process.terminate()
        self._process.wait(10)


class Worker:
    """A ``celery worker`` process with one child."""

    def __init__(self, server: RedisServer, conf: dict[str, Any], folder: Path, number: int) -> None:
        self.conf = conf
        self.name = f"fidelity{number}@real"
        self.log = folder / f"worker{number}.jsonl"
        self.output = folder / f"worker{number}.log"
        self.log.touch()
        environment = {
            **os.environ,
            "FIDELITY_BROKER": server.broker_url,
            "FIDELITY_BACKEND": server.backend_url,
            "FIDELITY_CONF": json.dumps(conf),
            scenario_app.LOG_VARIABLE: str(self.log),
            "PYTHONPATH": str(HERE),
        }
        command = [sys.executable, "-m", "celery", "-A", "scenario_app", "worker", "-P", "prefork", "-c", "1"]
        # As the harness starts its own: what workers tell each other is not what is compared.
        command += ["-n", self.name, "-l", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 - the command is ours
                command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
            )
        try:
            wait_for("the worker starting", self._is_up, _STARTS_WITHIN)
        except AssertionError:
            self.kill()
            raise

    def _is_up(self) -> bool:
        said = self.log.read_text()
        return "worker_ready" in said and "worker_process_init" in said

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, signum: signal.Signals) -> None:
        if self.alive:
            self.process.send_signal(signum)
            self.process.wait(_STARTS_WITHIN)

    def kill(self) -> None:
        """Get rid of it, its children included."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_STARTS_WITHIN)


class RealSide:
    """Keeps one worker running, a new one when a scenario needs other settings or the last one left a mess."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self._worker: Worker | None = None
        self._started = 0

    def worker(self, conf: dict[str, Any]) -> Worker:
        worker = self._worker
        if worker is not None and (not worker.alive or worker.conf != conf):
            self.stop()
            worker = None
        if worker is None:
            self.server.broker.flushdb()
            self._started += 1
            worker = self._worker = Worker(self.server, conf, self._folder, self._started)
        return worker

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def run(self, scenario: Scenario) -> Raw:
        if scenario.fresh:
            self.stop()
        self.server.results.flushdb()
        raw = RealDriver(self, self.worker(scenario.conf), scenario).run(scenario)
        if raw.unacked or any(raw.queues.values()) or scenario.fresh:
            self.stop()
        return raw


class Driver:
    """What a scenario is given."""

    broker: Any
    results: Any

    def __init__(self, hostname: str) -> None:
        self.raw = Raw(hostname)
        self.stopped = False

    # -- what scenarios call

    def track(self, result: AsyncResult) -> None:
        self.raw.tracked.append(result.id)

    def observe(self, value: Any) -> None:
        self.raw.seen.append((None, value))

    def get(self, result: Any, timeout: float = 10) -> None:
        """Wait for a result, as a caller does, and write down what it got."""
        if isinstance(result, AsyncResult):
            self.track(result)
        try:
            outcome = f"returned {scenario_app.safe_repr(result.get(timeout=timeout))}"
        except CeleryTimeoutError as exc:
            assert timeout != 10, f"no result within {timeout:g} s: {result!r}"
            outcome = f"gave up with {exc!r}"
        except Exception as exc:
            outcome = f"raised {type(exc).__module__}.{scenario_app.safe_repr(exc)}"
        self.raw.seen.append((result.id, outcome))

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
            raw.keys[text] = self.results.ttl(key) > 0
            if text.startswith("celery-task-meta-"):
                raw.stored[text.removeprefix("celery-task-meta-")] = self.results.get(key)


class RealDriver(Driver):
    def __init__(self, side: RealSide, worker: Worker, scenario: Scenario) -> None:
        super().__init__(worker.name)
        self._loses_child = scenario.loses_child
        self._side = side
        self._worker = worker
        self._offset = 0 if scenario.fresh else worker.log.stat().st_size
        self.broker, self.results = side.server.broker, side.server.results

    def run(self, scenario: Scenario) -> Raw:
        recording = scenario_app.recording
        before = recording.sink, recording.role
        recording.sink = lambda record: scenario_app.append(str(self._worker.log), record)
        recording.role = lambda: "client"
        settings = {name: app.conf[name] for name in scenario.conf}
        app.conf.update(scenario.conf)
        try:
            return super().run(scenario)
        finally:
            app.conf.update(settings)
            recording.sink, recording.role = before

    def _records(self) -> list[dict[str, Any]]:
        with self._worker.log.open("rb") as log:
            log.seek(self._offset)
            return [json.loads(line) for line in log.read().splitlines()]

    def get(self, result: Any, timeout: float = 10) -> None:
        with self._looking_after_children() if self._loses_child else nullcontext():
            super().get(result, timeout)

    @contextmanager
    def _looking_after_children(self) -> Iterator[None]:
        """Asks the worker again and again, so that it replaces a lost child now and not within five seconds."""
        over = threading.Event()

        def ask() -> None:
            while not over.wait(0.1):
                app.control.broadcast("outstanding", destination=[self._worker.name])

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def until(self, kind: str, result: AsyncResult) -> None:
        wait_for(f"{kind!r} of {result.id}", lambda: self._written(kind, result), 5)

    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)

    def stop(self, warm: bool) -> None:
        self._worker.stop(signal.SIGTERM if warm else signal.SIGQUIT)
        self.stopped = True

    def crash(self) -> None:
        self._worker.stop(signal.SIGKILL)
        self.stopped = True

    def settle(self) -> None:
        """Until the worker has nothing to do and nothing changes any more.

        A message that stays unacked for ever is an observation, so it only makes the quiet that is asked for longer.
        """
        inspect = app.control.inspect(destination=[self._worker.name], timeout=2)
        end = time.monotonic() + _SETTLES_WITHIN
        now: Any = None
        last: Any = None
        quiet = 0
        while True:
            assert self._worker.alive, f"the real worker is dead: {self._worker.output.read_text()[-3000:]}"
            if time.monotonic() > end:
                raise AssertionError(f"the real side does not settle: {now}\n{self._worker.output.read_text()[-3000:]}")
            answer = (inspect._request("outstanding") or {}).get(self._worker.name)
            queued = sum(self.broker.llen(key) for key in self._queue_keys())
            now = (answer, queued, self.broker.hkeys("unacked"), self._worker.log.stat().st_size)
            idle = answer == {"requests": 0, "scheduled": 0, "children": 1} and not queued and self._children_are_up()
            quiet = quiet + 1 if idle and now == last else 0
            last = now
            if quiet >= (10 if self.broker.exists("unacked") else 1):
                return
            time.sleep(_POLL)

    def _children_are_up(self) -> bool:
        kinds = [record["kind"] for record in self._records()]
        return kinds.count("worker_before_create_process") == kinds.count("worker_process_init")


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
