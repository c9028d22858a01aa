"""The code objects in the tracebacks that a child sends to the worker.

billiard makes a traceback that can be pickled of each exception that comes out of a task: for each frame a copy of its
code object, with the position of every instruction. Celery's own frames have thousands of them. Made, pickled, read
and collected as garbage for every retry, that would be most of what a retry takes. A code object never changes, and
neither does its copy: one of each will do, in all tracebacks and on both sides of the pipe.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import CodeType
from typing import Any
from weakref import ref

from billiard.einfo import _Code

from .errors import hide_ours

__tracebackhide__ = hide_ours

# By identity: equal code objects may be of two files. What is gone is forgotten, since another may get its address.
_copies: dict[int, tuple[ref[CodeType], Any]] = {}


def copied_once(copy: Callable[[CodeType], Any]) -> Callable[[CodeType], Any]:
    """Like ``copy``, which copies a code object, but with one copy of each."""

    def copy_once(code: CodeType) -> Any:
        key = id(code)
        known = _copies.get(key)
        if known is None:
            known = _copies[key] = (ref(code, lambda _: _copies.pop(key, None)), copy(code))
        return known[1]

    return copy_once


class _Sender(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.codes: list[Any] = []

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not _Code:
            return None
        self.codes.append(obj)
        return len(self.codes) - 1


class _Receiver(pickle.Unpickler):
    codes: list[Any]

    def persistent_load(self, pid: int) -> Any:
        return self.codes[pid]


def send(what: Any) -> Callable[[], Any]:
    """Pickle something; what comes back reads it again."""
    file = io.BytesIO()
    sender = _Sender(file)
    sender.dump(what)
    written, codes = file.getvalue(), sender.codes

    def receive() -> Any:
        receiver = _Receiver(io.BytesIO(written))
        receiver.codes = codes
        return receiver.load()

    return receive
