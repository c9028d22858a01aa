"""Functions that a fault strikes at, by name or object: found, and replaced wherever they are bound."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from .errors import FaultTypeError, FaultValueError, hide_ours, nearest

__tracebackhide__ = hide_ours


@dataclass(frozen=True)
class Target:
    """A function of a module, or of a class in one. Two with one path are equal."""

    path: str
    owner: Any = field(compare=False, repr=False)
    name: str = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.path

    def is_in_place(self) -> bool:
        """Whether the function is still the one that ``replace`` put there."""
        current = inspect.getattr_static(self.owner, self.name, None)
        return getattr(getattr(current, "__func__", current), "_celery_faults_target", None) is not None

    def replace(self, on_call: Callable[[Target, bool], float]) -> ExitStack:
        """Call ``on_call`` before each call of the function, until the stack that is returned is closed.

        The call of a coroutine function is the first step of its coroutine; ``on_call`` is told so, and returns the
        seconds for which the coroutine is to sleep, while its event loop goes on.

        A function of a module is also replaced where other modules bound it by ``from module import name``.
        """
        stack = ExitStack()
        raw = inspect.getattr_static(self.owner, self.name)
        if self.name in vars(self.owner):
            stack.callback(setattr, self.owner, self.name, raw)
        else:  # inherited: the class gets one of its own for the while
            stack.callback(delattr, self.owner, self.name)
        kind = type(raw) if isinstance(raw, (staticmethod, classmethod)) else None
        original = raw.__func__ if kind is not None else raw
        active = [True]

        def call(*args: Any, **kwargs: Any) -> Any:
            if active:
                on_call(self, False)
            return original(*args, **kwargs)

        async def call_in_coroutine(*args: Any, **kwargs: Any) -> Any:
            if active:
                seconds = on_call(self, asyncio._get_running_loop() is not None)
                if seconds:
                    await asyncio.sleep(seconds)
            return await original(*args, **kwargs)

        is_async = inspect.iscoroutinefunction(original)
        call = functools.wraps(original)(call_in_coroutine if is_async else call)
        call._celery_faults_target = self  # type: ignore[attr-defined]
        # A module that was imported meanwhile may have bound it.
        stack.callback(_rebind, call, raw)
        stack.callback(active.clear)
        try:
            setattr(self.owner, self.name, kind(call) if kind is not None else call)
        except TypeError as error:
            stack.pop_all()
            raise FaultValueError(f"at={self.path!r}: it cannot be replaced: {error}") from None
        if not isinstance(self.owner, type):
            _rebind(raw, call)
        return stack


def _rebind(old: object, new: object) -> None:
    """Give modules the one function for the other, under whatever names they have it."""
    for module in list(sys.modules.values()):
        namespace = getattr(module, "__dict__", {})
        for name in [name for name, value in list(namespace.items()) if value is old]:
            namespace[name] = new


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
    if hasattr(value, "apply_async"):
        raise FaultValueError(f"at={value!r}: that is a task; name it by task=, and a point of its life by at=")
    # A shown time function stands for the real one of that name.
    value = getattr(value, "stands_for", value)
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not module or not name or "<" in name:
        raise FaultValueError(
            f"at={value!r}: it has no name to replace it by; give the dotted name of where it is used"
        )
    return _by_path(f"{module}.{name}")


def _by_path(path: str) -> Target:
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise FaultValueError(f"at={path!r}: that is no dotted name, such as 'shop.client.fetch'")
    for length in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:length])
        try:
            owner: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise FaultValueError(f"at={path!r}: the module {module_name} does not import: {error!r}") from None
            continue
        except Exception as error:
            raise FaultValueError(f"at={path!r}: the module {module_name} does not import: {error!r}") from None
        for name in parts[length:-1]:
            owner = _attribute(path, owner, name)
        function = _attribute(path, owner, parts[-1])
        if not callable(function):
            raise FaultValueError(f"at={path!r}: that is {function!r}, and cannot be called")
        if hasattr(function, "apply_async"):
            raise FaultValueError(f"at={path!r}: that is a task; name it by task=, and a point of its life by at=")
        if isinstance(owner, type) and owner.__module__ == "builtins":
            raise FaultValueError(f"at={path!r}: a method of a built-in class cannot be replaced")
        return Target(path, owner, parts[-1])
    raise FaultValueError(f"at={path!r}: there is no module {parts[0]!r}{nearest(parts[0], sys.modules)}")


def _attribute(path: str, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        where = getattr(owner, "__name__", owner)
        raise FaultValueError(f"at={path!r}: {where} has no {name!r}{nearest(name, dir(owner))}") from None
