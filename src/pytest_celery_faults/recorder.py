"""Writes down what happens: it hears Celery's signals and is told by the broker. Everything else is a view of it."""

from __future__ import annotations

import copy
import traceback as tracebacks
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.exceptions import Reject, Retry

from . import timeline as happened
from .callbacks import CallbackLog
from .errors import EndlessTaskError, FaultTypeError, FaultValueError, hide_ours, nearest, safe_repr
from .messages import decode_content, headers_of, identity_of, moment_of
from .secrets import Secrets, Shown
from .signal_log import SignalLog, connect_first
from .simulation import Simulation
from .timeline import Site, Timeline

__tracebackhide__ = hide_ours

T = TypeVar("T")

#: Of an execution that Celery did not come to a state of, since something failed after the body.
_NO_STATE = "UNKNOWN"


@dataclass(eq=False, slots=True)
class Delivery:
    """One delivery of a message to the worker, and what the worker said of it."""

    queue: str
    payload: dict[str, Any] = field(repr=False)
    task_id: str | None = None
    acked: bool = False
    rejected: bool = False
    requeued: bool = False
    #: The letter that it becomes, unless the message is requeued; and whether it has become one.
    letter: DeadLetter | None = field(default=None, repr=False)
    dead: bool = False
    #: Whether an execution of it has begun.
    begun: bool = False

    @property
    def settled(self) -> bool:
        return self.acked or self.rejected or self.requeued


@dataclass(eq=False, slots=True)
class Attempt:
    """One execution of a task.

    ``number`` counts from 1; a redelivery is an attempt as well. ``started`` and ``ended`` are virtual seconds
    since the start of the test, ``ended`` is ``None`` while it runs. ``state`` is Celery's, ``planned_delay`` the
    seconds that a retry asked for, ``None`` when it was not retried.
    """

    number: int
    retries: int
    started: float
    ended: float | None = None
    state: str = "STARTED"
    exception: BaseException | None = None
    planned_delay: float | None = None
    retry_refused: bool = False
    redelivered: bool = False
    #: The delivery that it works, and the fiber that it runs on.
    delivery: Delivery | None = field(default=None, repr=False)
    fiber: Any = field(default=None, repr=False)
    #: Its place in the timeline.
    index: int = field(default=0, repr=False)


@dataclass(eq=False, slots=True)
class Record:
    """All that is known of one task id."""

    task: str
    task_id: str
    attempts: list[Attempt] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    #: When messages were published, by their number of retries.
    published: dict[int, list[float]] = field(default_factory=dict)
    failed_attempts: set[int] = field(default_factory=set)

    @property
    def was_retried(self) -> bool:
        """Whether a retry was asked for, granted or not."""
        return any(attempt.planned_delay is not None or attempt.retry_refused for attempt in self.attempts)

    @property
    def is_under_way(self) -> bool:
        """Whether a message of it is in a queue or with the worker, or it runs."""
        return (
            sum(map(len, self.published.values())) > len(self.deliveries)
            or not all(delivery.settled for delivery in self.deliveries)
            or any(attempt.ended is None for attempt in self.attempts)
        )

    def shift(self, since: float) -> None:
        """Count its times from a test that began so many seconds later."""

        def shifted(at: float) -> float:
            return round(at - since, 6)

        self.published = {retries: [shifted(at) for at in times] for retries, times in self.published.items()}
        for attempt in self.attempts:
            attempt.started = shifted(attempt.started)
            attempt.ended = None if attempt.ended is None else shifted(attempt.ended)


@dataclass(frozen=True, eq=False, slots=True)
class DeadLetter:
    """The raw fact behind a letter of ``celery_dlq``; without task and id when the message has none."""

    task: str | None
    task_id: str | None
    reason: str
    at: float
    payload: Mapping[str, Any]
    queue: str
    exception: BaseException | None
    traceback: str | None
    delivery: Delivery | None
    #: Its place in the timeline.
    index: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class SentMessage:
    """A task message that was published.

    ``countdown`` is the seconds from its publishing to its ETA, ``None`` without one. ``parent`` is the id of the
    task that sent it, ``at`` the virtual seconds since the start of the test.
    """

    task: str
    task_id: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    queue: str
    countdown: float | None
    eta: datetime | None
    retries: int
    parent: str | None
    at: float
    headers: Mapping[str, Any]
    #: Its place in the timeline.
    index: int = field(default=0, compare=False)
    shown: Shown | None = field(default=None, compare=False)

    @property
    def said_args(self) -> str:
        """The positional arguments as they may be shown."""
        return f"[{', '.join(self._words(self.args, {}))}]"

    def _words(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        return self.shown.words(self.task, args, kwargs, self.headers) if self.shown is not None else []

    def __repr__(self) -> str:
        due = f", in {self.countdown:g} s" if self.countdown is not None else ""
        retry = f", retry {self.retries}" if self.retries else ""
        called = ", ".join(self._words(self.args, self.kwargs))
        return f"<SentMessage {self.task}({called}) to {self.queue!r} at {self.at:g} s{due}{retry}>"


class Recorder:
    """Fills the timeline and keeps what the views need."""

    def __init__(
        self,
        timeline: Timeline,
        simulation: Simulation,
        tasks: Callable[[], Mapping[str, Any]],
        dlq: str | None,
        max_executions: int,
        hook: Any = None,
        secrets: Secrets | None = None,
    ) -> None:
        self.timeline = timeline
        self.shown: Shown = Shown(secrets or Secrets(), tasks)
        self.records: dict[str, Record] = {}
        self.letters: list[DeadLetter] = []
        self.sent: list[SentMessage] = []
        self.faults_fired: Counter[str] = Counter()
        self.executions: int = 0
        #: How the broker lost a message, by its task id and number of retries.
        self.vanished: dict[tuple[str, int], str] = {}
        #: When the final state of a task id was last stored: a place in the timeline.
        self.stored: dict[str, int] = {}
        self.injected: list[BaseException] = []
        self.stop_at_failure = False
        self._simulation = simulation
        self.tasks = tasks
        self._dlq = dlq
        self._hook = hook
        self._max_executions = max_executions
        #: The deliveries of which the broker has not heard yet what becomes of them, by delivery tag.
        self.unsettled: dict[str, Delivery] = {}
        #: The attempts that run, and the ids of their tasks.
        self.running: dict[Attempt, str] = {}
        #: The last lists that a test was given, what was in them, and what they are from.
        self.told: deque[tuple[Any, Any, Any]] = deque(maxlen=100)
        #: The elements of a view that the test has looked into last, and what it is called.
        self.looked_at: tuple[str, list[Any]] = ("", [])
        self.signals: SignalLog = SignalLog(timeline, simulation, self.now)
        self.callbacks: CallbackLog = CallbackLog(simulation, lambda: (self.now(), len(timeline)))
        self._deliveries: dict[str, Delivery] = {}
        self._refusing = False

    def begin(self, since: float) -> None:
        """Another test begins with the same worker, so many seconds after the one before; what is under way goes on."""
        self.records = {task_id: record for task_id, record in self.records.items() if record.is_under_way}
        self._deliveries = dict(self.unsettled)
        for forgotten in (self.letters, self.sent, self.faults_fired, self.vanished, self.stored, self.injected):
            forgotten.clear()
        self.told.clear()
        self.looked_at = ("", [])
        self.executions = 0
        self.signals.sent.clear()
        self.callbacks.begin(self.records.keys())
        self.timeline.begin()
        for record in self.records.values():
            self.timeline.label(record.task, record.task_id)
            record.shift(since)

    def passed(self, point: str, task: str, task_id: str, retries: int) -> None:
        """A task comes to a point at which a fault can strike."""
        record = self.records.get(task_id)
        delivery = len(record.deliveries) if record is not None else 0
        if point == "receive":  # the delivery that is about to be
            delivery += 1
        self.timeline.sites.append(Site(point, self.timeline.label(task, task_id), retries, delivery))

    # -- told by the broker

    def published(self, queue: str, payload: dict[str, Any]) -> None:
        task, task_id = identity_of(payload)
        if task is None or task_id is None:  # the application put something of its own into its dead-letter queue
            self._dead_letter(None, None, "published", payload, queue)
            return
        headers = headers_of(payload)
        args, kwargs, embedded = decode_content(payload)
        eta = moment_of(headers, "eta")
        now = self._simulation.clock.utc()
        retries = headers.get("retries") or 0
        event = self.timeline.record(
            happened.SENT, task, task_id, detail=f"to {queue or 'no queue'}" + (f", retry {retries}" if retries else "")
        )
        message = SentMessage(
            task=task,
            task_id=task_id,
            args=args,
            kwargs=kwargs,
            queue=queue,
            countdown=(eta - now).total_seconds() if eta is not None else None,
            eta=eta,
            retries=retries,
            parent=headers.get("parent_id"),
            at=event.at,
            headers=headers,
            index=event.index,
            shown=self.shown,
        )
        self.sent.append(message)
        self.callbacks.published(message, embedded)
        record = self.record_of(task, task_id)
        record.published.setdefault(retries, []).append(event.at)
        # The retry of a task that is worked in the dead-letter queue stays there, and is no news.
        is_retry_there = retries and record.deliveries and record.deliveries[-1].queue == queue
        if queue == self._dlq and not is_retry_there:
            self._dead_letter(task, task_id, "published", payload, queue)

    def delivered(self, queue: str, payload: dict[str, Any]) -> None:
        properties = payload["properties"]
        task, task_id = identity_of(payload)
        delivery = self._deliveries[properties["delivery_tag"]] = Delivery(queue, payload, task_id)
        self.unsettled[properties["delivery_tag"]] = delivery
        if task is not None and task_id is not None:
            record = self.record_of(task, task_id)
            record.deliveries.append(delivery)
            if len(record.deliveries) > self._max_executions and not record.attempts:
                self._simulation.abort(
                    EndlessTaskError(
                        f"{self.timeline.label(task, task_id)} was delivered more than {self._max_executions} times "
                        "(max_executions) and never ran: the visibility timeout brings its message back again and "
                        "again before its ETA is reached"
                    )
                )
        # The header of the same name will not do: a retry's message has those of the message that was redelivered.
        if (properties.get("delivery_info") or {}).get("redelivered"):
            self.timeline.record(happened.REDELIVERED, task, task_id, detail=_unless_task(task, delivery))

    def acked(self, payload: dict[str, Any]) -> None:
        delivery = self._deliveries.get(payload["properties"]["delivery_tag"])
        if delivery is not None:
            delivery.acked = True
            task, task_id = identity_of(payload)
            self.timeline.record(happened.ACKED, task, task_id, detail=_unless_task(task, delivery))
            self._settled(payload, delivery)

    def rejected(self, payload: dict[str, Any], requeue: bool) -> None:
        delivery = self._deliveries.get(payload["properties"]["delivery_tag"])
        if delivery is None:
            return
        delivery.rejected, delivery.requeued = not requeue, requeue
        task, task_id = identity_of(payload)
        kind = happened.REQUEUED if requeue else happened.REJECTED
        self.timeline.record(kind, task, task_id, detail=_unless_task(task, delivery))
        if not (requeue or self._refusing or delivery.letter or delivery.dead):
            # Refused in the middle of receiving it, such as for an ETA beyond the end of time.
            self._dead_letter(task, task_id, "undecodable", payload, delivery.queue, None, None, delivery)
        self._settled(payload, delivery)

    def _settled(self, payload: Mapping[str, Any], delivery: Delivery) -> None:
        """The broker has heard what becomes of a delivery: now it is known whether the message is dead."""
        self.unsettled.pop(payload["properties"]["delivery_tag"], None)
        letter, delivery.letter = delivery.letter, None
        if letter is not None and not delivery.requeued:
            self._write(letter)

    def died_in_queue(self, queue: str, payload: dict[str, Any], reason: str) -> None:
        """RabbitMQ itself dead-letters a message."""
        task, task_id = identity_of(payload)
        delivery = Delivery(queue, payload, task_id, rejected=True)
        self._dead_letter(task, task_id, reason, payload, queue, None, None, delivery)

    def lost(self, payload: Mapping[str, Any], where: str) -> None:
        """The broker lost a task message."""
        headers = headers_of(payload)
        self.vanished[headers["id"], headers.get("retries") or 0] = where

    # -- told by the worker's consumer

    @contextmanager
    def refusing(self, message: Any, reason: str, exception: BaseException | None) -> Iterator[None]:
        """The consumer refuses a message that it cannot make a task of, one way or another."""
        self._refusing = True
        try:
            yield
        finally:
            self._refusing = False
        delivery = self._deliveries.get(message.delivery_tag)
        if delivery is None:
            return
        task, task_id = identity_of(delivery.payload)
        text = _format(exception) if exception is not None else None
        self._dead_letter(task, task_id, reason, delivery.payload, delivery.queue, exception, text, delivery)

    # -- told by Celery's signals

    def connect(self) -> None:
        """Listen to Celery's signals; the harness puts the receivers back afterwards."""
        for signal, receiver in (
            (signals.task_received, self._on_received),
            (signals.task_prerun, self._on_prerun),
            (signals.task_postrun, self._on_postrun),
            (signals.task_success, self._on_success),
            (signals.task_failure, self._on_failure),
            (signals.task_internal_error, self._on_internal_error),
            (signals.task_retry, self._on_retry),
            (signals.task_revoked, self._on_revoked),
        ):
            connect_first(signal, receiver, self._simulation)
        self.signals.connect()

    def _on_received(self, request: Any, **_: Any) -> None:
        detail = f"due in {(request.eta - self._simulation.clock.utc()).total_seconds():g} s" if request.eta else ""
        self.timeline.record(happened.RECEIVED, request.name, request.id, detail=detail)

    def _on_prerun(self, task_id: str, task: Any, **_: Any) -> None:
        if task.request.is_eager:
            return
        self.callbacks.begins()
        record = self.record_of(task.name, task_id)
        info = task.request.delivery_info or {}
        attempt = Attempt(
            number=len(record.attempts) + 1,
            retries=task.request.retries or 0,
            started=self.now(),
            redelivered=bool(info.get("redelivered")),
            delivery=next((delivery for delivery in record.deliveries if not delivery.begun), None),
            fiber=self._simulation.current,
            index=len(self.timeline),
        )
        if attempt.delivery is not None:
            attempt.delivery.begun = True
        record.attempts.append(attempt)
        self.running[attempt] = task_id
        self.executions += 1
        self.timeline.record(happened.STARTED, task.name, task_id, attempt=attempt.number)
        if attempt.number > self._max_executions:
            how = "it retries" if attempt.retries else "its message is delivered again and again"
            self._simulation.abort(
                EndlessTaskError(
                    f"{self.timeline.label(task.name, task_id)} was executed more than {self._max_executions} times "
                    f"(max_executions): {how} for ever. The last exception: {self._last_exception(record)}"
                )
            )

    def _on_postrun(self, task_id: str, task: Any, retval: Any, state: str | None, **_: Any) -> None:
        attempt = self._running(task_id)
        if attempt is None:
            return
        self.running.pop(attempt, None)
        attempt.ended = self.now()
        attempt.state = state or _NO_STATE
        if isinstance(retval, Reject):
            self._on_reject(task, task_id, attempt, retval)

    def _on_reject(self, task: Any, task_id: str, attempt: Attempt, reject: Reject) -> None:
        attempt.exception = reject
        record = self.records[task_id]
        delivery = attempt.delivery
        if reject.requeue and delivery is not None and not delivery.acked:
            return
        # Not requeued, or asked to be when it had been acked before the body ran: that changes nothing.
        self._dead_letter_of(record, delivery, "rejected", reject, _format(reject))

    def _on_success(self, sender: Any, **_: Any) -> None:
        if not sender.request.is_eager:
            self._of_running(happened.SUCCEEDED, sender.name, sender.request.id)

    def _on_retry(self, sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
        if isinstance(reason, Retry) and self.retry_asked(request.id, reason):
            self._of_running(happened.RETRIED, sender.name, request.id, f"in {self._delay_of(reason):g} s")

    def _delay_of(self, retry: Retry) -> float:
        when = retry.when
        if isinstance(when, datetime):
            aware = when if when.tzinfo is not None else when.replace(tzinfo=self._simulation.clock.utc().tzinfo)
            when = (aware - self._simulation.clock.utc()).total_seconds()
        return when or 0

    def _on_failure(
        self, sender: Any, task_id: str, exception: BaseException, traceback: Any, einfo: Any, **_: Any
    ) -> None:
        if sender.request.is_eager:
            return
        record = self.record_of(sender.name, task_id)
        attempt = self._running(task_id) or self._killed(record)
        number = attempt.number if attempt is not None else 0
        self.timeline.record(happened.FAILED, sender.name, task_id, attempt=number, detail=safe_repr(exception))
        if attempt is not None and attempt.exception is None:
            attempt.exception = exception
        if attempt is not None and isinstance(exception, (TimeLimitExceeded, WorkerLostError)):
            attempt.state = "FAILURE"
            attempt.ended = self.now() if attempt.ended is None else attempt.ended
        if isinstance(exception, Reject) or number in record.failed_attempts:
            return
        record.failed_attempts.add(number)
        if isinstance(exception, (TimeLimitExceeded, SoftTimeLimitExceeded)):
            reason = "time_limit"
        elif isinstance(exception, WorkerLostError):
            reason = "worker_lost"
        elif attempt is not None and attempt.retry_refused:
            reason = "max_retries"
        else:
            reason = "failed"
        text = getattr(einfo, "traceback", None)
        delivery = attempt.delivery if attempt is not None else record.deliveries[-1] if record.deliveries else None
        self._dead_letter_of(record, delivery, reason, exception, text if isinstance(text, str) else _format(exception))
        if self.stop_at_failure and not any(exception is injected for injected in self.injected):
            self._simulation.abort(exception)

    def _on_internal_error(self, sender: Any, task_id: str, exception: BaseException, einfo: Any, **_: Any) -> None:
        """Celery's own handling of a task's end was cut short, for example by an errback that raises on Celery 5.6."""
        attempts = self.record_of(sender.name, task_id).attempts
        if attempts and attempts[-1].state == _NO_STATE:
            attempts[-1].state = "FAILURE"
            self._on_failure(sender, task_id, exception, None, einfo)

    def _on_revoked(self, sender: Any, request: Any, terminated: bool, expired: bool, **_: Any) -> None:
        why = "terminated" if terminated else "expired" if expired else "revoked"
        task_id = request.id
        self.timeline.record(happened.REVOKED, sender.name, task_id, detail=why)
        attempts = self.records[task_id].attempts if task_id in self.records else []
        if attempts and terminated:
            attempts[-1].state = "REVOKED"
            attempts[-1].ended = self.now() if attempts[-1].ended is None else attempts[-1].ended
        if expired:
            record = self.record_of(sender.name, task_id)
            delivery = next((d for d in record.deliveries if not (d.begun or d.settled)), None)
            self._dead_letter_of(record, delivery, "expired", None, None)

    def quarantined(self, message: Any, exception: Exception) -> None:
        """The worker is about to reject a message that is equal to a dead one."""
        delivery = self._deliveries[message.delivery_tag]
        task, task_id = identity_of(delivery.payload)
        self._dead_letter(task, task_id, "quarantined", delivery.payload, delivery.queue, exception, None, delivery)

    # -- told by the pool

    def killed(self, task_id: str, why: str) -> None:
        """The process that runs a task is gone, and with it the attempt; its state is what Celery then makes of it."""
        attempt = self._running(task_id)
        if attempt is not None:
            attempt.ended = self.now()
            self.running.pop(attempt, None)
        self.timeline.record(happened.KILLED, task_id=task_id, detail=why)

    def worker_gone(self) -> None:
        """A power cut: all that runs is gone at once."""
        for attempt in self.running:
            attempt.ended = self.now()
        self.running.clear()

    # -- told by the harness

    def retry_asked(self, task_id: str, retry: Retry) -> bool:
        """A retry was granted; says whether an attempt of the task runs that it is a retry of."""
        attempt = self._running(task_id)
        if attempt is None:
            return False
        attempt.exception = retry.exc if isinstance(retry.exc, BaseException) else None
        attempt.planned_delay = self._delay_of(retry)
        return True

    def retry_refused(self, task_id: str) -> None:
        attempt = self._running(task_id)
        if attempt is not None:
            attempt.retry_refused = True

    def fault_fired(self, kind: str, task: str, task_id: str, detail: str) -> None:
        self.faults_fired[kind] += 1
        attempt = self._running(task_id)
        self.timeline.record(
            happened.FAULT_FIRED, task, task_id, attempt=attempt.number if attempt else 0, detail=detail, fault=kind
        )

    def tell(self, values: T, source: Any) -> T:
        """Remember what values that a test is given are from, so that a failing comparison can show more of it."""
        self.told.append((values, copy.copy(values), source))
        return values

    # -- helpers

    def is_busy_with(self, queue: str) -> bool:
        """Whether the worker has messages of a queue, or runs tasks from it."""
        return any(delivery.queue == queue for delivery in list(self.unsettled.values())) or any(
            attempt.delivery is not None and attempt.delivery.queue == queue for attempt in list(self.running)
        )

    def queue_of(self, task_id: str) -> str | None:
        """The queue that a task's last message was delivered from."""
        record = self.records.get(task_id)
        return record.deliveries[-1].queue if record is not None and record.deliveries else None

    def delivery_of(self, message: Any) -> Delivery | None:
        """The delivery in which the worker got a message."""
        return self._deliveries.get(message.delivery_tag)

    def about_to_die(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The reasons and messages of letters that are not written yet, since the broker has not heard of the end."""
        return [(d.letter.reason, d.payload) for d in list(self.unsettled.values()) if d.letter is not None]

    def was_worked(self, payload: Mapping[str, Any]) -> bool:
        """Whether the worker got that very message and did away with it."""
        delivery = self._deliveries.get(payload["properties"]["delivery_tag"])
        return delivery is not None and (delivery.acked or delivery.rejected)

    def now(self) -> float:
        clock = self._simulation.clock
        return clock.seconds_since_start(clock.now_us)

    def record_of(self, task: str, task_id: str) -> Record:
        record = self.records.get(task_id)
        if record is None:
            record = self.records[task_id] = Record(task, task_id)
            self.timeline.label(task, task_id)
        return record

    def name_of(self, task: Any) -> str:
        """The name of a task, given itself or its name.

        Raises:
            FaultValueError: no app has a task of that name, and none was sent.
        """
        name = getattr(task, "name", task)
        if not isinstance(name, str):
            raise FaultTypeError(f"{task!r} is neither a task nor the name of one")
        known = [*self.tasks(), *(record.task for record in list(self.records.values()))]
        if name not in known:
            users = sorted({known_name for known_name in known if not known_name.startswith("celery.")})
            raise FaultValueError(
                f"there is no task {name!r}{nearest(name, users)} The application's tasks: {', '.join(users) or 'none'}"
            )
        return name

    def _running(self, task_id: str) -> Attempt | None:
        """The attempt of a task that runs; of several that on the fiber which runs, or else the last."""
        running = [attempt for attempt, its_id in list(self.running.items()) if its_id == task_id]
        mine = [attempt for attempt in running if attempt.fiber is self._simulation.current]
        return (mine or running)[-1] if running else None

    def _killed(self, record: Record) -> Attempt | None:
        """The attempt of which the worker only now says that it has failed: its process is gone."""
        killed = [attempt for attempt in record.attempts if attempt.state == "STARTED" and attempt.ended is not None]
        if killed:
            return killed[0]
        return record.attempts[-1] if record.attempts else None

    def _of_running(self, kind: str, task: str, task_id: str, detail: str = "") -> None:
        attempt = self._running(task_id)
        self.timeline.record(kind, task, task_id, attempt=attempt.number if attempt else 0, detail=detail)

    def _last_exception(self, record: Record) -> str:
        for attempt in reversed(record.attempts):
            if attempt.exception is not None:
                return safe_repr(attempt.exception)
        return "none"

    def _dead_letter_of(
        self,
        record: Record,
        delivery: Delivery | None,
        reason: str,
        exception: BaseException | None,
        traceback: str | None,
    ) -> None:
        payload = delivery.payload if delivery is not None else {}
        queue = delivery.queue if delivery is not None else ""
        self._dead_letter(record.task, record.task_id, reason, payload, queue, exception, traceback, delivery)

    def _dead_letter(
        self,
        task: str | None,
        task_id: str | None,
        reason: str,
        payload: Mapping[str, Any],
        queue: str,
        exception: BaseException | None = None,
        traceback: str | None = None,
        delivery: Delivery | None = None,
    ) -> None:
        """Write a letter, once the broker has heard what becomes of the delivery: it may still be requeued."""
        letter = DeadLetter(task, task_id, reason, self.now(), payload, queue, exception, traceback, delivery)
        if delivery is not None and not delivery.settled:
            delivery.letter = letter
        else:
            self._write(letter)

    def _write(self, letter: DeadLetter) -> None:
        task, reason = letter.task, letter.reason
        if letter.delivery is not None:
            letter.delivery.dead = True
        if self._hook is not None:
            try:
                own = self._hook.pytest_celery_faults_letter_reason(
                    task=task, exception=letter.exception, reason=reason
                )
            except Exception as error:  # a receiver of a signal may not raise
                self._simulation.abort(error)
                own = None
            reason = own or reason
        detail = reason if task is not None else f"{reason}, a message of {letter.queue!r}"
        event = self.timeline.record(happened.DEAD_LETTERED, task, letter.task_id, detail=detail)
        self.letters.append(replace(letter, reason=reason, at=event.at, index=event.index))


def _unless_task(task: str | None, delivery: Delivery) -> str:
    return "" if task is not None else f"a message of {delivery.queue!r}"


def _format(exception: BaseException) -> str:
    return "".join(tracebacks.format_exception(type(exception), exception, exception.__traceback__))
