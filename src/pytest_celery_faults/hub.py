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

from .memory import Readable, Server
from .simulation import Due, Simulation


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

    def register(self, fd: Any, flags: int) -> None:
        self._registered[fd if isinstance(fd, int) else fd.fileno()] = None

    def unregister(self, fd: Any) -> None:
        self._registered.pop(fd if isinstance(fd, int) else fd.fileno(), None)

    def close(self) -> None:
        self._registered.clear()

    def _readable(self) -> list[tuple[int, int]]:
        files: dict[int, Readable] = self._server.files
        return [(fd, READ) for fd in self._registered if fd in files and files[fd].readable()]

    def _any_readable(self) -> bool:
        if self._hub is not None and self._hub.has_work():
            return True
        files: dict[int, Readable] = self._server.files
        return any(fd in files and files[fd].readable() for fd in self._registered)

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """``[(file number, READ)]``; the worker's own loop waits until its next timer, whatever ``timeout`` says."""
        events = self._readable()
        if events:
            return events
        if self._hub is not None:
            if not self._hub.has_work():
                self._simulation.wait(
                    "something to do in the worker's loop", ready=self._any_readable, due=self._hub.timer.due
                )
            # Before kombu's next turn, which does not look at timers at all while their queue is empty.
            self._hub.timer.release_housekeeping()
        else:
            until = None
            if timeout is not None:
                until = self._simulation.clock.now_us + round(timeout * 1_000_000)
            self._simulation.wait("a message from the broker", ready=self._any_readable, until=until)
        return self._readable()


class Entry(kombu_timer.Entry):
    """A timer entry that knows whether it repeats for ever."""

    __slots__ = ("repeats",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.repeats = False


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
        self._repeating = False
        self._sequence = 0

    def call_repeatedly(self, *args: Any, **kwargs: Any) -> Any:
        self._repeating = True
        try:
            return super().call_repeatedly(*args, **kwargs)
        finally:
            self._repeating = False

    def enter_after(self, secs: float, entry: Any, priority: int = 0, **_: Any) -> Any:
        wait = float(secs)
        # Less than a microsecond still is a wait: the clock has to move, or the caller would ask again for ever.
        span = max(1, round(wait * 1_000_000)) if wait > 0 else 0
        return self._enter_at_us(entry, self._clock.now_us + span, priority)

    def _enter(self, eta: float, priority: int, entry: Any, **_: Any) -> Any:
        return self._enter_at_us(entry, self._clock.from_monotonic(eta), priority)

    def _enter_at_us(self, entry: Any, due: int, priority: int) -> Any:
        if self._repeating:
            entry.repeats = True
        self._sequence += 1
        if getattr(entry, "repeats", False):
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
        may = keeping[0][0] if keeping else None
        redelivery = self.next_redelivery() if must is None and may is not None else None
        if redelivery is not None and may is not None:
            # The sweep that brings it back is housekeeping, which is to be done then: it is all that is left to do.
            must = max(redelivery, may)
        return must, may

    def release_housekeeping(self) -> None:
        """Hand the repeating entries that are due now to kombu's own queue."""
        now = self._clock.now_us
        while self._housekeeping and self._housekeeping[0][0] <= now:
            due, _, entry = heapq.heappop(self._housekeeping)
            if not entry.canceled:
                self._push(due, entry)

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
        self.on_tick = OrderedSet()

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
