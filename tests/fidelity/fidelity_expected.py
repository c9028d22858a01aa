"""Where the two sides are meant to differ, and why; and what the scenarios show of Celery itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from celery import __version__ as celery_version

# Where the versions that are supported differ.
_VERSION = tuple(map(int, celery_version.split(".")[:3]))
IS_5_7 = _VERSION >= (5, 7)
#: When the broker is lost, the pool forgets the jobs that run: their results are heard of by nobody.
FORGETS_JOBS = _VERSION < (5, 6, 3)


@dataclass(frozen=True)
class Difference:
    """What one scenario may differ in: exactly this, and it must. All else has to be equal.

    Lines are written as `History` writes them: role, task, what happened.
    """

    reason: str
    #: Lines of a child that is being killed, on the real side. It has a tenth of a second, so the last ones may be
    #: missing, never the first; and they come after the worker said that the hard limit struck.
    unwinding: tuple[str, ...] = ()
    #: Other lines that only the real side writes, and that are only written here.
    real: tuple[str, ...] = ()
    here: tuple[str, ...] = ()
    #: What is compared under this name, on the real side and here.
    values: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    #: Functions of the plugin in the stored tracebacks, and what stands there on the real side.
    frames: tuple[str, ...] = ()
    more_frames: tuple[str, ...] = ()
    real_frames: tuple[str, ...] = ()
    #: Whether it is there with the Celery that is installed.
    applies: bool = True


@dataclass(frozen=True)
class Shows:
    """A peculiarity of Celery that a scenario shows; ``holds`` looks for it in the history of the real worker."""

    text: str
    holds: Callable[[Any], bool]


# -- hard time limits

LEFT = "postrun {'state': None, 'retval': 'None'}"
_PROCESS_LEFT = "child no task worker_process_shutdown {'exitcode': '-241'}"


def says(text: str) -> str:
    return f"note {{'text': {text!r}}}"


_SIGTERM_FIRST = (
    "A hard time limit ends a task as SIGKILL would. billiard sends SIGTERM first, which raises `SystemExit` in the "
    "task, and SIGKILL a tenth of a second later: "
)


def killed(
    task: str, *lines: str, what: str = "what the task does in between happens.", leaves: bool = True, **more: Any
) -> Difference:
    """The difference of a task that a hard time limit ends: the real one unwinds for a tenth of a second.

    ``leaves``: it is done by then, so that its process has the time to send `worker_process_shutdown`.
    """
    unwinding = tuple(f"child {task} {line}" for line in lines) + ((_PROCESS_LEFT,) if leaves else ())
    return Difference(_SIGTERM_FIRST + what, unwinding=unwinding, **more)


# -- tracebacks

IN_BODY = Difference(
    "The stored traceback has a frame of the plugin before the task's body.", frames=("injection.run",)
)
IN_BODY_FROM_5_7 = replace(IN_BODY, reason=f"{IN_BODY.reason} (Celery 5.6 stores no traceback then.)", applies=IS_5_7)
IN_BODY_AND_ERRBACK = (
    IN_BODY if IS_5_7 else replace(IN_BODY, more_frames=("backend._call_task_errbacks", "harness.call"))
)
IN_STORE = Difference(
    "The stored traceback has two frames of the plugin around the storing of the result.",
    frames=("backend.mark_as_done", "backend.store_result"),
)
IN_RETRY = Difference(
    "The stored traceback has a frame of the plugin before the task's body, and one before `Task.retry`.",
    frames=("injection.run", "harness.retry"),
)
IN_AUTORETRY = Difference(
    "The stored traceback has a frame of the plugin before `Task.retry`, and one before the task's body.",
    frames=("harness.retry", "injection.run"),
)
IN_LOOP = Difference(
    "The stored traceback has a frame of the plugin before the task's body, and two in the event loop, which waits in "
    "the simulation; the real one waits in a selector, and ends in billiard's signal handler.",
    frames=(
        "injection.run",
        "task_loops.run_forever",
        "task_loops.select",
        "simulation.wait",
        "simulation._wait",
        "simulation._wait_here",
    ),
    real_frames=("select", "soft_timeout_sighandler"),
)
IN_SLEEP = Difference(
    "The stored traceback has a frame of the plugin before the task's body, and ends in the plugin's `sleep`, where "
    "the real one ends in billiard's signal handler.",
    frames=(
        "injection.run",
        "frozen.sleep",
        "simulation.sleep",
        "simulation.wait",
        "simulation._wait",
        "simulation._wait_here",
    ),
    real_frames=("soft_timeout_sighandler",),
)
