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
    InternalsError,
    MessagesLostError,
    OtherClockError,
    PolicyNotFollowedError,
    QuarantinedError,
    StalledTaskError,
    TakeoverError,
    WaitNeverEndsError,
    WorkerDiedError,
    WrongThreadError,
)

if TYPE_CHECKING:
    from .broker import Broker
    from .clients import redis_client
    from .clock import Clock
    from .faults import BackendDown, BrokerDown, Crash, Delay, Drop, Duplicate, Fault, Revoke, Sleep
    from .harness import Harness
    from .injection import Execution, Injection
    from .marks import inject
    from .messages import Message
    from .recorder import Attempt, SentMessage
    from .signal_log import SentSignal
    from .timeline import Event, Site, Timeline
    from .views.callbacks import Callback, Callbacks
    from .views.letters import DeadLetterQueue, Letter
    from .views.monitor import Monitor, Runtimes, WorkerStatus
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
    "InternalsError",
    "Letter",
    "Message",
    "MessagesLostError",
    "Monitor",
    "OtherClockError",
    "Outcome",
    "PolicyNotFollowedError",
    "QuarantinedError",
    "RetryHistory",
    "RetryPolicy",
    "RetryRecorder",
    "Revoke",
    "Runtimes",
    "Sent",
    "SentMessage",
    "SentSignal",
    "Signals",
    "Site",
    "Sleep",
    "StalledTaskError",
    "TakeoverError",
    "Timeline",
    "WaitNeverEndsError",
    "WorkerControl",
    "WorkerDiedError",
    "WorkerStatus",
    "WrongThreadError",
    "inject",
    "redis_client",
]

_HOMES = {
    "Attempt": "recorder",
    "BackendDown": "faults",
    "Broker": "broker",
    "BrokerDown": "faults",
    "Callback": "views.callbacks",
    "Callbacks": "views.callbacks",
    "Clock": "clock",
    "Crash": "faults",
    "DeadLetterQueue": "views.letters",
    "Delay": "faults",
    "Drop": "faults",
    "Duplicate": "faults",
    "Event": "timeline",
    "Execution": "injection",
    "Fault": "faults",
    "Harness": "harness",
    "inject": "marks",
    "Injection": "injection",
    "Letter": "views.letters",
    "Message": "messages",
    "Monitor": "views.monitor",
    "Outcome": "views.outcome",
    "redis_client": "clients",
    "RetryHistory": "views.retries",
    "RetryPolicy": "views.policy",
    "RetryRecorder": "views.retries",
    "Revoke": "faults",
    "Runtimes": "views.monitor",
    "Sent": "views.sent",
    "SentMessage": "recorder",
    "SentSignal": "signal_log",
    "Signals": "views.signals",
    "Site": "timeline",
    "Sleep": "faults",
    "Timeline": "timeline",
    "WorkerControl": "worker",
    "WorkerStatus": "views.monitor",
}


def __getattr__(name: str) -> Any:
    """All but the errors is imported when asked for: pytest loads this plugin in each run, and some import Celery."""
    if name in _HOMES:
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
