"""``celery_faults.monitor``: the run as a monitor such as Flower sees it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from celery import states
from celery.events.state import State, Task

from ..errors import FaultTypeError, FaultValueError, hide_ours, nearest
from ..events import EventLog
from ..recorder import Recorder

__tracebackhide__ = hide_ours

_STATES = (
    states.PENDING, states.RECEIVED, states.STARTED, states.SUCCESS, states.FAILURE, states.RETRY, states.REVOKED,
    states.REJECTED,
)  # fmt: skip


@dataclass(frozen=True)
class WorkerStatus:
    """A worker, by its last heartbeat.

    ``active`` tasks run at this moment, ``processed`` is how many it has begun since its start, ``heard_at`` is
    virtual seconds since the start of the test.
    """

    name: str
    status: str
    active: int
    processed: int
    heard_at: float

    def __repr__(self) -> str:
        return f"<worker {self.name} {self.status}: {self.active} active, {self.processed} processed>"


@dataclass(frozen=True)
class Runtimes:
    """How long the successful executions of a task took, in virtual seconds."""

    count: int
    mean: float
    longest: float

    def __repr__(self) -> str:
        return f"<{self.count} x {self.mean:g} s, at most {self.longest:g} s>"


class Monitor:
    """What Celery's own events say, by ``celery.events.state.State``, at any moment of a test and after it.

    As in production it knows what workers tell: a message that no worker has received yet is in ``queues`` only, unless
    the application sets ``task_send_sent_event``. A worker that crashed is online until two of its heartbeats, one each
    2 s, were missed. See https://docs.celeryq.dev/en/stable/userguide/monitoring.html.
    """

    def __init__(
        self,
        log: EventLog,
        recorder: Recorder,
        now: Callable[[], float],
        since: Callable[[float], float],
        queues: Callable[[], dict[str, int]],
    ) -> None:
        self._log = log
        self._recorder = recorder
        self._now = now
        self._since = since
        self._queues = queues
        self._counts: Counter[str] = Counter()
        self._at_end: dict[str, int] | None = None
        self._begin()

    def _begin(self) -> None:
        self._state = State(max_workers_in_memory=sys.maxsize, max_tasks_in_memory=sys.maxsize)
        self._fed, self._begun = 0, self._log.begun
        self._counts.clear()

    def close(self) -> None:
        """Keep what can be seen no more once the test is over."""
        self._log.beat()
        self._at_end = dict(self._queues())

    @property
    def state(self) -> State:
        """Celery's own record of all events, as its monitors have it."""
        if self._begun != self._log.begun:
            self._begin()
        if self._at_end is None:
            self._log.beat()
        events = self._log.events
        for event in events[self._fed :]:
            self._state.event(dict(event))
            self._counts[event["type"]] += 1
        self._fed = len(events)
        return self._state

    def tasks(self, task: object = None, *, state: str | None = None) -> list[Task]:
        """The tasks that workers told of, in the order in which they did.

        Args:
            task: only those of a task, or of its name.
            state: only those in a state, such as ``"SUCCESS"``.

        Raises:
            FaultTypeError, FaultValueError: there is no such task or state.
        """
        if state is not None and not isinstance(state, str):
            raise FaultTypeError(f"monitor.tasks(state={state!r}): the name of a state, such as 'SUCCESS'")
        if state is not None and state not in _STATES:
            raise FaultValueError(
                f"monitor.tasks(state={state!r}): choose one of {', '.join(_STATES)}{nearest(state, _STATES)}"
            )
        name = None if task is None else self._recorder.name_of(task)
        found = self.state.tasks.values()
        return [one for one in found if (name is None or one.name == name) and (state is None or one.state == state)]

    @property
    def by_state(self) -> Counter[str]:
        """How many tasks are in each state."""
        return Counter(str(task.state) for task in self.state.tasks.values())

    @property
    def workers(self) -> Mapping[str, WorkerStatus]:
        """Each worker by its name, with ``status`` ``"online"`` or ``"offline"``."""
        now = self._now()
        found = {}
        for name, worker in self.state.workers.items():
            online = bool(worker.heartbeats) and now < worker.heartbeat_expires
            heard = worker.heartbeats[-1] if worker.heartbeats else worker.timestamp or now
            found[name] = WorkerStatus(
                name, "online" if online else "offline", worker.active or 0, worker.processed or 0, self._since(heard)
            )
        return found

    @property
    def counters(self) -> Counter[str]:
        """How many events about tasks there were of each kind: ``received``, ``started``, ``succeeded``, ``failed``,
        ``retried``, ``rejected``, ``revoked``; ``sent`` with the setting ``task_send_sent_event``.
        """
        self.state  # noqa: B018  brings the counts up to date
        counts = {kind.partition("-")[2]: count for kind, count in self._counts.items() if kind.startswith("task-")}
        return Counter(counts)

    @property
    def runtimes(self) -> Mapping[str, Runtimes]:
        """By task, how long its successful executions took."""
        times: dict[str, list[float]] = {}
        for task in self.state.tasks.values():
            if task.runtime is not None and task.name is not None:
                times.setdefault(task.name, []).append(task.runtime)
        return {name: Runtimes(len(all_), sum(all_) / len(all_), max(all_)) for name, all_ in times.items()}

    @property
    def queues(self) -> Mapping[str, int]:
        """How many messages wait in each queue."""
        return dict(self._queues()) if self._at_end is None else dict(self._at_end)

    def __repr__(self) -> str:
        return f"<Monitor {', '.join(self._summary())}>"

    def _summary(self) -> Iterator[str]:
        workers = self.workers.values()
        yield f"{sum(one.status == 'online' for one in workers)} of {len(workers)} workers online"
        yield from (f"{state} {count}" for state, count in sorted(self.by_state.items()))
        yield from (f"{count} in {queue!r}" for queue, count in sorted(self.queues.items()) if count)

    def __str__(self) -> str:
        """A table of workers, tasks by state, runtimes and queues."""
        lines = [f"worker {one.name}  {one.status}, {one.active} active, {one.processed} processed"
                 for one in self.workers.values()]  # fmt: skip
        lines += [f"tasks  {state} {count}" for state, count in sorted(self.by_state.items())]
        lines += [f"runtime of {name}  {times!r}" for name, times in sorted(self.runtimes.items())]
        lines += [f"queue {name}  {count}" for name, count in sorted(self.queues.items())]
        return "\n".join(lines)
