"""Whether the machine stood still while something was measured on it: others use it too, and so may stop it."""

from __future__ import annotations

import threading
import time
from types import TracebackType

_LOOKS_EVERY = 0.02
#: Seconds; a busy machine lets a thread wait for a twentieth of one.
_LONG = 0.25


class Standstill:
    """Looks at the time again and again; ``was_seen`` when it could not for long."""

    def __init__(self) -> None:
        self.was_seen = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(time.monotonic(),), name="standstill", daemon=True)

    def __enter__(self) -> Standstill:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self, before: float) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(_LOOKS_EVERY)
            now = time.monotonic()
            self.was_seen |= now - before > _LONG
            before = now
