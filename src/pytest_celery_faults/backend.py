"""The result backend: Celery's own Redis backend on the in-memory server; waiting for a result drives the worker."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

from celery.backends import redis as celery_redis
from celery.backends.asynchronous import Drainer as CeleryDrainer
from celery.backends.base import MESSAGE_BUFFER_MAX, pending_results_t
from celery.states import READY_STATES
from celery.utils.collections import BufferMap
from vine import promise

from .callbacks import CallbackLog
from .errors import hide_ours
from .memory import Client, ConnectionPool, Server, client, pool_options
from .pool import process_of
from .simulation import TEST_RANK

__tracebackhide__ = hide_ours


#: What a generator of Celery's gives when it is at its end.
_END = object()


class Drainer(CeleryDrainer):
    """Waits for results, to the microsecond: Celery's wakes once a second to see whether the timeout is over."""

    def drain_events_until(
        self, p: Any, timeout: float | None = None, interval: float = 1, on_interval: Any = None, wait: Any = None
    ) -> Iterator[None]:
        wait = wait or self.result_consumer.drain_events
        simulation = self.result_consumer.backend.server.simulation
        clock = simulation.clock
        deadline = None if timeout is None else clock.now_us + round(timeout * 1_000_000)
        has_interval = _does_something(on_interval)
        while not p.ready:
            if deadline is not None and clock.now_us >= deadline:
                raise TimeoutError()
            remaining = None if deadline is None else (deadline - clock.now_us) / 1_000_000
            # What is called at intervals may end the wait (a parent's failure does), as long as anything happens.
            if has_interval and simulation.busy():
                remaining = interval if remaining is None else min(interval, remaining)
            self.result_consumer.wait_for_message(p, remaining)
            yield None if p.ready else wait(timeout=0)
            if has_interval:
                on_interval()


def _does_something(callback: Any) -> bool:
    """``AsyncResult.get`` always passes a promise, most often an empty one."""
    if callback is None:
        return False
    if isinstance(callback, promise):
        return any(part is not None for part in (callback.fun, callback._svpending, callback._lvpending))
    return True


class ResultConsumer(celery_redis.ResultConsumer):
    """Celery's consumer of result messages; says for which result somebody waits."""

    backend: Backend

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drainer: Drainer = Drainer(self)
        #: Ids of results whose messages nobody wants any more, said by other code than this process's.
        self._given_up: list[str] = []

    def consume_from(self, task_id: str) -> Any:
        self._give_up()
        return super().consume_from(task_id)

    def cancel_for(self, task_id: str) -> None:
        """A garbage collection calls this, in whatever code runs just then; a real one stays in its process."""
        simulation = self.backend.server.simulation
        if simulation.here and process_of(simulation.current) == self.backend.process:
            super().cancel_for(task_id)
        else:
            self._given_up.append(task_id)

    def _give_up(self) -> None:
        while self._given_up:
            super().cancel_for(self._given_up.pop())

    def _wait_for_pending(self, result: Any, **kwargs: Any) -> Iterator[None]:
        steps = super()._wait_for_pending(result, **kwargs)
        simulation = self.backend.server.simulation

        def step() -> object:
            fiber = simulation.current
            outer, fiber.purpose = fiber.purpose, lambda: self.backend.describe(result)
            try:
                return next(steps, _END)
            finally:
                fiber.purpose = outer

        # One step of a wait reads the messages that it waited for: all in the simulation's thread.
        while simulation.run(step, lambda: self.backend.describe(result)) is not _END:
            yield

    def drain_events(self, timeout: float | None = None) -> None:
        self._give_up()
        with self.reconnect_on_error():
            pubsub = self._pubsub
            if pubsub is not None and pubsub.subscribed:
                message = pubsub.get_message(timeout=timeout)
                while message is None and self._message_is_there():  # it was the confirmation of a subscription
                    message = pubsub.get_message(timeout=0)
                if message and message["type"] == "message":
                    self.on_state_change(self._decode_result(message["data"]), message)

    def wait_for_message(self, p: Any, timeout: float | None) -> None:
        """Wait for a message, or until ``p`` is ready: somebody else may have read the message that it is about."""
        if self._message_is_there():
            return
        simulation = self.backend.server.simulation
        until = None if timeout is None else simulation.clock.now_us + round(timeout * 1_000_000)
        simulation.wait("a result message", ready=lambda: p.ready or self._message_is_there(), until=until)

    def _message_is_there(self) -> bool:
        """Whether there is something to read; not before somebody has subscribed."""
        pubsub = self._pubsub
        if pubsub is None or not pubsub.subscribed:
            return False
        sock = getattr(pubsub.connection, "_sock", None)
        return sock is None or sock.readable()


class _Poll:
    """The reads of one task's state by coroutines, each in another turn of the event loop."""

    def __init__(self, turn: object, stored: Any) -> None:
        self.turn = turn
        self.stored = stored
        #: How many in a row found the same.
        self.reads = 1

    @property
    def is_polled(self) -> bool:
        return self.reads >= Backend.polls_before_driving


class Backend(celery_redis.RedisBackend):
    """Celery's Redis backend. An ``AsyncResult`` that outlives its test still finds this one, never a real Redis."""

    ResultConsumer = ResultConsumer
    #: Reads of one task's state in a row, in which nothing else happened, after which reading drives the worker.
    reads_before_driving = 50
    #: The same for a coroutine that sleeps in between.
    polls_before_driving = 3
    callbacks: CallbackLog
    #: Called before and after the final state of a task is stored, with the name of the point and the task's id.
    strike: Callable[[str, str], None] | None = None

    def __init__(
        self, server: Server, db: int, describe: Callable[[Any], str], callbacks: CallbackLog, app: Any, process: int
    ) -> None:
        self.server = server
        self.process = process
        self.db = db
        self.callbacks = callbacks
        self.describe = describe
        self._reads = 0
        self._read_at = -1
        self._polls: dict[str, _Poll] = {}
        super().__init__(app=app)

    def for_another_process(self, process: int) -> Backend:
        """The same backend as another process would make it: with waiters and subscriptions of its own."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.process = process
        other._pending_results = pending_results_t({}, WeakValueDictionary())
        other._pending_messages = BufferMap(MESSAGE_BUFFER_MAX)
        other._cache = copy.copy(self._cache)
        other._cache.clear()
        other.result_consumer = self.ResultConsumer(
            other, other.app, other.accept, other._pending_results, other._pending_messages
        )
        return other

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        return defaults

    def _add_driver_info(self) -> None:
        """Nobody to introduce oneself to."""

    def _get_pool(self, **_: Any) -> Any:
        return ConnectionPool(**pool_options(self.server, self.db, "backend"))

    def _get_client(self) -> Any:
        return Client

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        strike = self.strike if state in READY_STATES else None
        if strike is not None:
            strike("store", task_id)
        stored = super().store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        if strike is not None:
            strike("stored", task_id)
        return stored

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        self.callbacks.sizes[group_id] = chord_size
        super().set_chord_size(group_id, chord_size)

    def add_to_chord(self, chord_id: str, result: Any) -> Any:
        self.callbacks.add_part(chord_id)
        return super().add_to_chord(chord_id, result)

    def mark_as_done(self, *args: Any, **kwargs: Any) -> Any:
        self.callbacks.ends()
        return super().mark_as_done(*args, **kwargs)

    def mark_as_failure(self, *args: Any, **kwargs: Any) -> Any:
        self.callbacks.ends()
        return super().mark_as_failure(*args, **kwargs)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> Any:
        with self.callbacks.returning_part(request):
            return super().on_chord_part_return(request, state, result, **kwargs)

    def chord_error_from_stack(self, callback: Any, exc: Any = None) -> Any:
        self.callbacks.chord_failed()
        return super().chord_error_from_stack(callback, exc)

    def _call_task_errbacks(self, request: Any, exc: Any, traceback: Any) -> None:
        with self.callbacks.calling_errbacks(request):
            super()._call_task_errbacks(request, exc, traceback)

    def stored_meta(self, task_id: str) -> dict[str, Any] | None:
        """What is stored of a task, read from outside of the application: during an outage as well."""
        key = self.get_key_for_task(task_id)
        stored = self._outside.get(key)
        return None if stored is None else self.decode_result(stored)

    @cached_property
    def _outside(self) -> Client:
        return client(self.server, self.db)

    def _get_task_meta_for(self, task_id: str) -> Any:
        meta = super()._get_task_meta_for(task_id)
        # Nobody waits for what is there, however many results are looked at.
        if meta["status"] not in READY_STATES and self._has_waited_as_a_busy_loop(task_id):
            meta = super()._get_task_meta_for(task_id)
        return meta

    def _has_waited_as_a_busy_loop(self, task_id: str) -> bool:
        """``while not result.ready(): pass`` reads and reads, and waits for nothing: then reading is the wait."""
        simulation = self.server.simulation
        if not simulation.can_wait or simulation.current.rank != TEST_RANK:
            return False
        turn = None if simulation.outside is None else simulation.outside.turn()
        if turn is not None:
            return self._has_waited_as_a_coroutine(task_id, turn)
        self._reads = self._reads + 1 if self._read_at == self.server.changes else 0
        self._read_at = changes = self.server.changes
        if self._reads <= self.reads_before_driving:
            return False
        self._wait_while_reading(task_id, lambda: self.server.changes != changes)
        return True

    def _has_waited_as_a_coroutine(self, task_id: str, turn: object) -> bool:
        """One that reads, sleeps, and reads again sleeps in real time: few reads tell, and then each is a wait."""
        stored = self._outside.get(self.get_key_for_task(task_id))
        poll = self._polls.setdefault(task_id, _Poll(turn, stored))
        if poll.turn is turn:
            return False
        poll.turn = turn
        poll.reads = poll.reads + 1 if poll.stored == stored or poll.is_polled else 0
        waits = poll.is_polled and poll.stored == stored
        if waits:
            self._wait_while_reading(task_id, lambda: self._outside.get(self.get_key_for_task(task_id)) != stored)
        poll.stored = stored
        return waits

    def _wait_while_reading(self, task_id: str, over: Callable[[], bool]) -> None:
        self.server.simulation.wait(self.describe(self.app.AsyncResult(task_id)), ready=over)

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        raise TypeError("the in-memory result backend of a test cannot be pickled")
