"""Ends a task that really blocks: on a socket, a lock, an endless loop.

One thread for the whole run looks once in a while, in real time, whether the same fiber has been running for
longer than ``stall_timeout``. It interrupts the main thread with a signal that nobody else uses (SIGURG, which
the system ignores by default; SIGALRM is pytest-timeout's); the handler raises where the task stands.

A thread of its own, which the tasks of an async test have, no signal reaches. Python can raise in it, but not
while it waits in the system: then the test is told, and goes on without it.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any

from .clock import real_monotonic, real_sleep
from .errors import StalledTaskError
from .simulation import TASK_RANK, Fiber, PassThrough, Simulation
from .timeline import Timeline

_SIGNAL = getattr(signal, "SIGURG", None)
#: Real seconds after which a thread in which an error was raised is taken not to notice.
_TIME_TO_NOTICE = 1.0
#: Real seconds between two looks, at most.
_LOOKS_EVERY = 0.5


class Watchdog:
    """Watches one simulation at a time."""

    def __init__(self) -> None:
        self._simulation: Simulation | None = None
        self._timeline: Timeline | None = None
        self._timeout = 30.0
        self._fiber: Fiber | None = None
        self._since = 0.0
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._previous: Any = None
        self._stalled: Fiber | None = None
        # The fiber in whose thread an error was raised, which it may not notice.
        self._struck: Fiber | None = None
        self._error = StalledTaskError()
        self._was_noticed = False

    def watch(self, simulation: Simulation, timeout: float, timeline: Timeline) -> None:
        if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return
        self._simulation, self._timeout, self._timeline = simulation, timeout, timeline
        self._stalled = None
        self._previous = signal.signal(_SIGNAL, self._interrupt)
        self._wake.set()

    def unwatch(self) -> None:
        if self._simulation is None or _SIGNAL is None:
            return
        self._simulation = self._fiber = self._struck = self._timeline = None
        self._wake.clear()
        signal.signal(_SIGNAL, self._previous if self._previous is not None else signal.SIG_DFL)

    def stop(self) -> None:
        """End the thread, at the end of the run."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._simulation = None
            self._stopped.set()
            self._wake.set()
            thread.join()

    def entering(self, fiber: Fiber) -> None:
        if fiber.rank == TASK_RANK:
            self._since = real_monotonic()
            self._fiber = fiber
            if self._thread is None and self._simulation is not None:
                self._start()

    def leaving(self, fiber: Fiber) -> None:
        self._fiber = None

    def _start(self) -> None:
        self._stopped.clear()
        self._thread = threading.Thread(target=self._look, name="celery-faults watchdog", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stopped.is_set():
            self._wake.wait()
            fiber, since, timeout, simulation = self._fiber, self._since, self._timeout, self._simulation
            if simulation is not None and fiber is not None and fiber is self._fiber:
                if self._struck is fiber and simulation.outside is not None:
                    if real_monotonic() - since > _TIME_TO_NOTICE:
                        simulation.outside.give_up(self._error)
                    elif not (_STAYS_RAISED or self._was_noticed):
                        self._raise_in(simulation.thread_id)
                elif real_monotonic() - since > timeout:
                    self._since = real_monotonic()
                    if not self._is_debugging(simulation.thread_id):
                        self._strike(simulation, fiber)
            self._stopped.wait(min(timeout / 4, _LOOKS_EVERY))

    def _strike(self, simulation: Simulation, fiber: Fiber) -> None:
        thread_id = simulation.thread_id
        if thread_id == threading.main_thread().ident:
            self._stalled = fiber
            signal.pthread_kill(thread_id, _SIGNAL or 0)
            return
        self._struck, self._was_noticed = fiber, False
        self._error = self._what_stalled(fiber, sys._current_frames().get(thread_id))
        simulation.abort(self._error)
        self._raise_in(thread_id)

    def _raise_in(self, thread_id: int) -> None:
        def told(exception: PassThrough) -> None:
            PassThrough.__init__(exception, self._error)
            exception.told = self._was_noticed = True

        # It takes a class, and calls it without arguments.
        stalled = type("Stalled", (PassThrough,), {"__init__": told})
        if _STAYS_RAISED:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(stalled))
        else:
            _raise_for_a_moment(thread_id, stalled)

    @staticmethod
    def _is_debugging(thread_id: int) -> bool:
        frame = sys._current_frames().get(thread_id)
        while frame is not None:
            if frame.f_globals.get("__name__") in ("bdb", "pdb", "IPython.core.debugger"):
                return True
            frame = frame.f_back
        return False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        fiber, self._stalled = self._stalled, None
        if fiber is None or fiber is not self._fiber or self._simulation is None:
            return
        stalled = PassThrough(self._what_stalled(fiber, frame))
        # At once: on its way out it may come to code that waits, such as the end of `asyncio.run`.
        self._simulation.abort(stalled)
        raise stalled

    def _what_stalled(self, fiber: Fiber, frame: FrameType | None) -> StalledTaskError:
        stack = "".join(traceback.format_stack(frame)[-6:])
        return StalledTaskError(
            f"{fiber.name} blocked for more than {self._timeout:g} real seconds (stall_timeout). "
            f"It stands here:\n{stack}"
        )


#: While an exception waits for a thread that waits in C, CPython 3.11 does not get past the first instruction of any
#: function of a thread with a trace function, such as coverage's: it looks for it there again and again.
_STAYS_RAISED = sys.version_info[:2] != (3, 11)


class _Noticed(BaseException):
    """Makes the interpreter stop looking for an exception that was taken back."""


def _raise_for_a_moment(thread_id: int, exception: type[BaseException]) -> None:
    """Raise in a thread, and take it back if the thread does not notice: no function is called meanwhile but C's."""
    set_exception, waits = ctypes.pythonapi.PyThreadState_SetAsyncExc, real_sleep
    there, here = ctypes.c_ulong(thread_id), ctypes.c_ulong(threading.get_ident())
    raised, noticed = ctypes.py_object(exception), ctypes.py_object(_Noticed)
    set_exception(there, raised)
    waits(0.02)
    try:
        set_exception(there, None)
        set_exception(here, noticed)
        while True:
            pass
    except _Noticed:
        pass
