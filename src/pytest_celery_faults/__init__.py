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
    WrongThreadError,
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
    from .signal_log import SentSignal
    from .timeline import Event, Site, Timeline
    from .views.callbacks import Callback, Callbacks
    from .views.letters import DeadLetterQueue, Letter
    from .views.outcome import Outcome
    from .views.policy import RetryPolicy
    from .views.retries import RetryHistory, RetryRecorder
    from .views.sent import Sent
    from .views.signals import Signals
    from .worker import WorkerControl

__all__ = [
    "AmbiguousHistoryError",
    "AppError",
    "Attempt",
    "BackendDown",
    "Broker",
    "BrokerDown",
    "Callback",
    "Callbacks",
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
    "Outcome",
    "PolicyNotFollowedError",
    "QuarantinedError",
    "RetryHistory",
    "RetryPolicy",
    "RetryRecorder",
    "Revoke",
    "Sent",
    "SentMessage",
    "SentSignal",
    "Signals",
    "Site",
    "Sleep",
    "StalledTaskError",
    "Timeline",
    "WaitNeverEndsError",
    "WorkerControl",
    "WorkerDiedError",
    "WrongThreadError",
    "inject",
]

_HOMES = {
    "Attempt": "recorder",
    "Broker": "broker",
    "Callback": "views.callbacks",
    "Callbacks": "views.callbacks",
    "Clock": "clock",
    "DeadLetterQueue": "views.letters",
    "Event": "timeline",
    "Execution": "injection",
    "Harness": "harness",
    "Injection": "injection",
    "Letter": "views.letters",
    "Message": "messages",
    "Outcome": "views.outcome",
    "RetryHistory": "views.retries",
    "RetryPolicy": "views.policy",
    "RetryRecorder": "views.retries",
    "Sent": "views.sent",
    "SentMessage": "recorder",
    "SentSignal": "signal_log",
    "Signals": "views.signals",
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
