"""kombu's event loop, on virtual time and in-memory sockets.

The loop itself, its timers and its callbacks are kombu's. What is ours: what it means to wait for a file
descriptor, and that a timer fires exactly at its microsecond.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from kombu.asynchronous import Hub as KombuHub
from kombu.asynchronous import timer as kombu_timer
from kombu.utils.eventio import READ

from .errors import hide_ours
from .memory import Readable, Server, Socket
from .simulation import Due, Simulation

__tracebackhide__ = hide_ours


class OrderedSet(dict[Any, None]):
    """What kombu keeps in sets whose order would differ from run to run."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        super().pop(item, None)

    def remove(self, item: Any) -> None:
        del self[item]

    def pop(self) -> Any:  # type: ignore[override]
        return self.popitem()[0]

    def copy(self) -> OrderedSet:
        return OrderedSet(self)


class Poller:
    """Waits until an in-memory socket is readable or virtual time is over."""

    def __init__(self, server: Server, hub: Hub | None = None) -> None:
        self._server = server
        self._simulation: Simulation = server.simulation
        self._hub = hub
        self._registered: dict[int, None] = {}
        # How often each had been read from when kombu was told the last time that it is readable.
        self._told: dict[int, int | None] = {}

    def register(self, fd: Any, flags: int) -> None:
        self._registered[fd if isinstance(fd, int) else fd.fileno()] = None

    def unregister(self, fd: Any) -> None:
        self._registered.pop(fd if isinstance(fd, int) else fd.fileno(), None)

    def close(self) -> None:
        self._registered.clear()

    def _readable(self) -> list[tuple[int, int]]:
        files: dict[int, Readable] = self._server.files
        found = [fd for fd in self._registered if fd in files and files[fd].readable()]
        # A task's message and a command to the worker: what came first is read first.
        sockets = [fd for fd in found if isinstance(files[fd], Socket)]
        if len(sockets) > 1 and not any(files[fd].broken for fd in sockets):
            in_order = iter(sorted(sockets, key=lambda fd: files[fd].came_at))
            found = [next(in_order) if fd in sockets else fd for fd in found]
        if self._server.crashed:
            # Linux closes what a process had open beginning with what was opened last, and so it is heard of.
            found.sort(key=lambda fd: -fd if files[fd].broken else 0)
        return [(fd, READ) for fd in found]

    def _is_news(self, fd: int) -> bool:
        """Whether something is readable that kombu was not told of, or has read since.

        Before 5.7 its loop leaves a message unread while it may have no more of them, and asks again and again until
        a task has ended. Here tasks go on when it has nothing else to do.
        """
        file = self._server.files.get(fd)
        if file is None or not file.readable():
            return False
        return file.broken or file.reads is None or self._told.get(fd) != file.reads

    def _has_news(self) -> bool:
        if self._hub is not None and self._hub.has_work():
            return True
        return any(self._is_news(fd) for fd in self._registered)

    def _tell(self) -> list[tuple[int, int]]:
        events = self._readable()
        self._told = {fd: self._server.files[fd].reads for fd, _ in events}
        return events

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """``[(file number, READ)]``; the worker's own loop waits until its next timer, whatever ``timeout`` says."""
        if any(self._is_news(fd) for fd in self._registered):
            return self._tell()
        if self._hub is not None:
            if not self._hub.has_work():
                self._simulation.wait(
                    "something to do in the worker's loop", ready=self._has_news, due=self._hub.timer.due
                )
            # Before kombu's next turn, which does not look at timers at all while their queue is empty.
            self._hub.timer.release_housekeeping()
        else:
            until = None
            if timeout is not None:
                until = self._simulation.clock.now_us + round(timeout * 1_000_000)
            self._simulation.wait("a message from the broker", ready=self._has_news, until=until)
        return self._tell()


class Entry(kombu_timer.Entry):
    """A timer entry that knows whether it repeats for ever: then `interval` is set, in microseconds.

    An entry whose runs would do nothing for a while can say so: `needed_from` gives the time from which it is needed
    (``None``: not at all for now), and `left_out` is told how many of its runs were left out.
    """

    __slots__ = ("interval", "left_out", "needed_from")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interval: int | None = None
        self.needed_from: Callable[[], int | None] | None = None
        self.left_out: Callable[[int], None] | None = None


class Timer(kombu_timer.Timer):
    """kombu's timer, to the microsecond. Repeating entries wait apart: they are housekeeping, not work."""

    Entry = Entry
    server: Server
    #: When a message that nobody acknowledged will be due for redelivery, if there is one.
    next_redelivery: Callable[[], int | None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._housekeeping: list[tuple[int, int, Any]] = []
        self._clock = self.server.simulation.clock
        self._repeating: int | None = None
        self._sequence = 0

    def call_repeatedly(self, secs: float, *args: Any, **kwargs: Any) -> Any:
        self._repeating = max(1, round(secs * 1_000_000))
        try:
            return super().call_repeatedly(secs, *args, **kwargs)
        finally:
            self._repeating = None

    def enter_after(self, secs: float, entry: Any, priority: int = 0, **_: Any) -> Any:
        wait = float(secs)
        # Less than a microsecond still is a wait: the clock has to move, or the caller would ask again for ever.
        span = max(1, round(wait * 1_000_000)) if wait > 0 else 0
        return self._enter_at_us(entry, self._clock.now_us + span, priority)

    def _enter(self, eta: float, priority: int, entry: Any, **_: Any) -> Any:
        return self._enter_at_us(entry, self._clock.from_monotonic(eta), priority)

    def _enter_at_us(self, entry: Any, due: int, priority: int) -> Any:
        if self._repeating is not None:
            entry.interval = self._repeating
        self._sequence += 1
        if getattr(entry, "interval", None) is not None:
            heapq.heappush(self._housekeeping, (due, self._sequence, entry))
        else:
            self._push(due, entry)
        return entry

    def _push(self, due: int, entry: Any) -> None:
        # kombu sorts by (eta, priority): the sequence number as priority keeps ties in the order of their entry.
        heapq.heappush(self._queue, kombu_timer.scheduled(self._clock.monotonic_at(due), self._sequence, entry))

    def due(self) -> Due:
        """When the next entry must fire, and when the next housekeeping may."""
        queue = self._queue
        while queue and queue[0].entry.canceled:
            heapq.heappop(queue)
        keeping = self._housekeeping
        while keeping and keeping[0][2].canceled:
            heapq.heappop(keeping)
        must = self._clock.from_monotonic(queue[0].eta) if queue else None
        mays = [due for due in map(self._next_run, keeping) if due is not None]
        may = min(mays) if mays else None
        redelivery = self.next_redelivery() if must is None and may is not None else None
        if redelivery is not None and may is not None:
            # The sweep that brings it back is housekeeping, which is to be done then: it is all that is left to do.
            must = max(redelivery, may)
        return must, may

    @staticmethod
    def _next_run(kept: tuple[int, int, Any]) -> int | None:
        """When a repeating entry has to run next: its first turn at which it is needed."""
        due, _, entry = kept
        if entry.canceled:
            return None
        if entry.needed_from is None:
            return due
        needed = entry.needed_from()
        if needed is None:
            return None
        turns = max(0, -((due - needed) // entry.interval))
        return int(due + turns * entry.interval)

    def release_housekeeping(self) -> None:
        """Hand the repeating entries that are due now to kombu's own queue."""
        now = self._clock.now_us
        while self._housekeeping and self._housekeeping[0][0] <= now:
            due, sequence, entry = heapq.heappop(self._housekeeping)
            if entry.canceled:
                continue
            if entry.needed_from is None:
                self._push(due, entry)
                continue
            run = self._next_run((due, sequence, entry))
            is_now = run is not None and run <= now
            # Of the turns up to now all are left out, but for the one that is needed now.
            turns = (now - due) // entry.interval + (0 if is_now else 1)
            if turns and entry.left_out is not None:
                entry.left_out(turns)
            if is_now:
                self._push(due + turns * entry.interval, entry)
            else:
                heapq.heappush(self._housekeeping, (due + turns * entry.interval, sequence, entry))

    @property
    def queue(self) -> list[Any]:
        """All entries by time, for ``inspect scheduled`` and the consumer's bookkeeping."""
        keeping = [
            kombu_timer.scheduled(self._clock.monotonic_at(due), sequence, entry)
            for due, sequence, entry in self._housekeeping
        ]
        return sorted([*self._queue, *keeping], key=lambda item: (item.eta, item.priority))

    def clear(self) -> None:
        super().clear()
        self._housekeeping.clear()

    def __len__(self) -> int:
        return len(self._queue) + len(self._housekeeping)

    def __bool__(self) -> bool:
        return True


class _Waker:
    """kombu wakes its poller from other threads through a pair of sockets; here there is no other thread."""

    pid = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def fileno(self) -> int:
        return -1

    def wake(self) -> None:
        pass

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class Hub(KombuHub):
    """kombu's event loop with the poller above; what was called soon is called in order."""

    server: Server
    timer: Timer

    def __init__(self, timer: Any = None) -> None:
        super().__init__(timer)
        self._ready = OrderedSet()
        self.on_tick: OrderedSet = OrderedSet()

    def _create_poller(self) -> None:
        self._poller = Poller(self.server, self)
        self._register_fd = self._poller.register
        self._unregister_fd = self._poller.unregister

    def _create_waker(self) -> Any:
        import os

        self._waker = _Waker(os.getpid())
        return self._waker

    def _pop_ready(self) -> Any:
        ready, self._ready = self._ready, OrderedSet()
        return ready

    def fire_timers(self, *args: Any, **kwargs: Any) -> Any:
        self.timer.release_housekeeping()
        return super().fire_timers(*args, **kwargs)

    def has_work(self) -> bool:
        """Whether something was called soon; kombu's loop would see it within a second, this one at once."""
        return bool(self._ready)
