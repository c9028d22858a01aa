"""Functions that a fault strikes at, by name or object: found, and replaced wherever they are bound."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from .errors import FaultTypeError, FaultValueError, nearest


@dataclass(frozen=True)
class Target:
    """A function of a module, or of a class in one. Two with one path are equal."""

    path: str
    owner: Any = field(compare=False, repr=False)
    name: str = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.path

    def replace(self, on_call: Callable[[Target], None]) -> ExitStack:
        """Call ``on_call`` before each call of the function, until the stack that is returned is closed.

        A function of a module is also replaced where other modules bound it by ``from module import name``.
        """
        stack = ExitStack()
        raw = vars(self.owner).get(self.name)
        if raw is None:  # inherited: the class gets one of its own for the while
            raw = getattr(self.owner, self.name)
            stack.callback(delattr, self.owner, self.name)
        else:
            stack.callback(setattr, self.owner, self.name, raw)
        kind = type(raw) if isinstance(raw, (staticmethod, classmethod)) else None
        original = raw.__func__ if kind is not None else raw

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            on_call(self)
            return original(*args, **kwargs)

        setattr(self.owner, self.name, kind(call) if kind is not None else call)
        if not isinstance(self.owner, type):
            for module in list(sys.modules.values()):
                namespace = getattr(module, "__dict__", {})
                for name in [name for name, value in list(namespace.items()) if value is raw]:
                    stack.callback(namespace.__setitem__, name, raw)
                    namespace[name] = call
        return stack


def find_target(value: object) -> Target:
    """The function that ``at=`` names.

    Raises:
        FaultTypeError, FaultValueError: there is no such function, or it cannot be replaced.
    """
    if isinstance(value, str):
        return _by_path(value)
    if not callable(value):
        raise FaultTypeError(
            f"at={value!r}: a point such as 'start', or a function, as an object or by its dotted name"
        )
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not module or not name or "<" in name:
        raise FaultValueError(
            f"at={value!r}: it has no name to replace it by; give the dotted name of where it is used"
        )
    return _by_path(f"{module}.{name}")


def _by_path(path: str) -> Target:
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            owner: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise
            continue
        for name in parts[length:-1]:
            owner = _attribute(path, owner, name)
        function = _attribute(path, owner, parts[-1])
        if not callable(function):
            raise FaultValueError(f"at={path!r}: that is {function!r}, and cannot be called")
        return Target(path, owner, parts[-1])
    raise FaultValueError(f"at={path!r}: there is no module {parts[0]!r}{nearest(parts[0], sys.modules)}")


def _attribute(path: str, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        where = getattr(owner, "__name__", owner)
        raise FaultValueError(f"at={path!r}: {where} has no {name!r}{nearest(name, dir(owner))}") from None
