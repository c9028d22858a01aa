"""Celery's monitoring events, as the worker makes them for a monitor such as Flower.

A worker in production makes them all the time, and sends those about itself; those about tasks it sends from when a
monitor, or the option ``-E``, asks for them. So it does here, but for its heartbeats: one every two seconds would keep
the clock from jumping. Each event is also kept here, sent or not, and a heartbeat is made when somebody looks.

See https://docs.celeryq.dev/en/stable/userguide/monitoring.html#events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.heartbeat import Heart

from .errors import hide_ours

__tracebackhide__ = hide_ours

#: Arguments of a dispatcher's ``send`` that are not about what happened.
_NOT_FIELDS = ("blind", "utcoffset", "retry", "retry_policy", "Event")


class EventLog:
    """All events of a test in order, those of the worker and of its tasks."""

    def __init__(self, now: Callable[[], float]) -> None:
        #: What ``celery.events.state.State.event`` takes.
        self.events: list[dict[str, Any]] = []
        #: How many events were dropped from the front, when a test began with a worker of the one before.
        self.begun: int = 0
        #: Whether the worker sends events about tasks before anybody asks for them, as with ``-E``.
        self.sends_about_tasks: bool = False
        self._now = now
        self._dispatcher: Any = None
        self._heart: Heart | None = None
        self._online_since = 0.0

    def listen(self, dispatcher: Any) -> None:
        """Hear what a worker's new dispatcher is given; ``None``: the worker has none any more."""
        if self._heart is not None:
            self._heart._send("worker-offline")
        self._heart = None
        self._dispatcher = dispatcher
        if dispatcher is None:
            return
        if not dispatcher.groups and not self.sends_about_tasks:
            dispatcher.groups = {"worker"}  # what control.enable_events() adds to
        send = dispatcher.send

        def heard(type: str, *args: Any, **fields: Any) -> Any:
            self._keep(type, **fields)
            return send(type, *args, **fields)

        dispatcher.send = heard
        self._heart = Heart(None, _Ear(self._keep))
        self._heart._send_sent_signal = None
        self._online_since = self._now()
        self._heart._send("worker-online")

    def beat(self) -> None:
        """Make the heartbeat that a worker in production would have sent within the last two seconds."""
        if self._heart is not None:
            self._heart._send("worker-heartbeat")

    def lose(self) -> None:
        """The worker is gone at once: its last heartbeat is the last thing that was heard of it."""
        if self._heart is None:
            return
        heart, self._heart = self._heart, None
        since = (self._now() - self._online_since) % heart.interval
        heart._send("worker-heartbeat")
        last = self.events[-1]
        last["timestamp"] = last["local_received"] = last["timestamp"] - since

    def begin(self) -> None:
        """Another test begins, with a worker that goes on."""
        self.begun += len(self.events)
        self.events.clear()
        if self._heart is not None:
            self._heart._send("worker-online")

    def _keep(self, type: str, **fields: Any) -> None:
        dispatcher, now = self._dispatcher, self._now()
        told = {name: value for name, value in fields.items() if name not in _NOT_FIELDS}
        self.events.append(
            {
                "hostname": dispatcher.hostname,
                "pid": dispatcher.pid,
                "clock": dispatcher.clock.value,
                "utcoffset": 0,
                **told,
                "type": type,
                "timestamp": now,
                "local_received": now,
            }
        )


class _Ear:
    """What Celery's heart takes for a dispatcher."""

    enabled = True

    def __init__(self, send: Callable[..., None]) -> None:
        self.send = send
        self.on_enabled: set[Any] = set()
        self.on_disabled: set[Any] = set()
