"""Every error the plugin raises on purpose.

``CeleryFaultsError`` is their base. A wrong value is also a ``ValueError``, a wrong type also a ``TypeError``,
and what a test found to be wrong about the application is also an ``AssertionError``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class CeleryFaultsError(Exception):
    """Base class of all errors of this plugin."""


class FaultValueError(CeleryFaultsError, ValueError):
    """An argument has a value that means nothing here."""


class FaultTypeError(CeleryFaultsError, TypeError):
    """An argument is of a type that means nothing here."""


class AppError(CeleryFaultsError):
    """There is no Celery application to test, or not the one that was named."""


class InternalsError(CeleryFaultsError, RuntimeError):
    """A library has changed what the plugin builds on."""


class ForeignBrokerError(CeleryFaultsError):
    """Something tried to reach a broker or result backend that the test does not own."""


class TakeoverError(CeleryFaultsError):
    """What Celery's own test tools ask for, the in-process worker cannot be in this test."""


class OtherClockError(CeleryFaultsError, RuntimeError):
    """Another library would set the time of a test whose clock is ``celery_faults.clock``."""


class WaitNeverEndsError(CeleryFaultsError, AssertionError):
    """A wait that nothing can end: no message, no timer and no running task would change what is waited for."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why

    def __str__(self) -> str:
        return f"waiting for {self.what} can never end: {self.why}"


class EndlessTaskError(CeleryFaultsError, AssertionError):
    """One task id was executed more often than ``max_executions`` allows: it retries or is requeued for ever."""


class StalledTaskError(CeleryFaultsError, AssertionError):
    """A task blocked in real time for longer than ``stall_timeout`` seconds."""


class WrongThreadError(CeleryFaultsError, RuntimeError):
    """Another thread than the one in which the worker is driven would have to drive it."""


class WorkerDiedError(CeleryFaultsError, AssertionError):
    """Celery's worker ended by itself, with an error that nobody handled."""


class FaultNeverFiredError(CeleryFaultsError, AssertionError):
    """A required fault found no execution to strike."""


class NotThereError(CeleryFaultsError, IndexError):
    """A view has no element of that number."""


class AmbiguousHistoryError(CeleryFaultsError, LookupError):
    """More than one task, or none, could be meant."""


class PolicyNotFollowedError(CeleryFaultsError, AssertionError):
    """The retries of a task are not those that its own settings promise."""


class MessagesLostError(CeleryFaultsError, AssertionError):
    """A message that was sent ended in no result, no retry, no letter and no queue."""


class QuarantinedError(CeleryFaultsError):
    """The result of a message that was not run, since one equal to it is a dead letter already."""


def element(sequence: Any, index: Any, has: str, what: str) -> Any:
    """``sequence[index]``, or an error that says how many there are."""
    try:
        return sequence[index]
    except IndexError:
        raise NotThereError(f"there is no number {index}: {has} {len(sequence)} {what}") from None


def safe_repr(value: object) -> str:
    """``repr()``, also of what an application made so that it raises."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr() raises {type(error).__name__}>"


def nearest(word: str, choices: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the most similar choice, or ``"."``."""
    import difflib

    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f", did you mean {found[0]!r}?" if found else "."


def hide_ours(excinfo: Any) -> bool:
    """Whether pytest leaves our frames out of a traceback: always, but for an error in this plugin itself.

    The value of ``__tracebackhide__`` in our modules, see
    https://docs.pytest.org/en/stable/example/simple.html#writing-well-integrated-assertion-helpers.
    """
    # What we raise as a server or a library would is no error of ours either.
    if type(excinfo.value).__module__ != "builtins" or isinstance(excinfo.value, TimeoutError):
        return True
    traceback = excinfo.value.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    package = __name__.rpartition(".")[0]
    return traceback is None or not traceback.tb_frame.f_globals.get("__name__", "").startswith(f"{package}.")


__tracebackhide__ = hide_ours
