"""Fault injection for Celery applications under pytest: in process, on virtual time, with Celery's real worker code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    AmbiguousHistoryError,
    AppError,
    CeleryFaultsError,
    EndlessTaskError,
    FaultNeverFiredError,
    FaultTypeError,
    FaultValueError,
    ForeignBrokerError,
    MessagesLostError,
    PolicyNotFollowedError,
    QuarantinedError,
    StalledTaskError,
    WaitNeverEndsError,
    WorkerDiedError,
)
from .faults import (
    BackendDown,
    BrokerDown,
    Crash,
    Delay,
    Drop,
    Duplicate,
    Fault,
    Revoke,
    Sleep,
)
from .marks import inject

if TYPE_CHECKING:
    from .broker import Broker
    from .clock import Clock
    from .harness import Harness
    from .injection import Execution, Injection
    from .messages import Message
    from .recorder import Attempt, SentMessage
    from .timeline import Event, Site, Timeline
    from .views.letters import DeadLetterQueue, Letter
    from .views.policy import RetryPolicy
    from .views.retries import RetryHistory, RetryRecorder
    from .views.sent import Sent
    from .worker import WorkerControl

__all__ = [
    "AmbiguousHistoryError",
    "AppError",
    "Attempt",
    "BackendDown",
    "Broker",
    "BrokerDown",
    "CeleryFaultsError",
    "Clock",
    "Crash",
    "DeadLetterQueue",
    "Delay",
    "Drop",
    "Duplicate",
    "EndlessTaskError",
    "Event",
    "Execution",
    "Fault",
    "FaultNeverFiredError",
    "FaultTypeError",
    "FaultValueError",
    "ForeignBrokerError",
    "Harness",
    "Injection",
    "Letter",
    "Message",
    "MessagesLostError",
    "PolicyNotFollowedError",
    "QuarantinedError",
    "RetryHistory",
    "RetryPolicy",
    "RetryRecorder",
    "Revoke",
    "Sent",
    "SentMessage",
    "Site",
    "Sleep",
    "StalledTaskError",
    "Timeline",
    "WaitNeverEndsError",
    "WorkerControl",
    "WorkerDiedError",
    "inject",
]

_HOMES = {
    "Attempt": "recorder",
    "Broker": "broker",
    "Clock": "clock",
    "DeadLetterQueue": "views.letters",
    "Event": "timeline",
    "Execution": "injection",
    "Harness": "harness",
    "Injection": "injection",
    "Letter": "views.letters",
    "Message": "messages",
    "RetryHistory": "views.retries",
    "RetryPolicy": "views.policy",
    "RetryRecorder": "views.retries",
    "Sent": "views.sent",
    "SentMessage": "recorder",
    "Site": "timeline",
    "Timeline": "timeline",
    "WorkerControl": "worker",
}


def __getattr__(name: str) -> Any:
    """The types of what the fixtures return; imported when asked for, since some import Celery."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
