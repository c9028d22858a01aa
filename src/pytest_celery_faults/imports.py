"""Doing something to a module as soon as somebody imports it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any


class WhenImported(AbstractContextManager["WhenImported"]):
    """Calls a function with a module: at once if it is there already, else when it is imported within the block."""

    def __init__(self, name: str, call: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._call = call

    def __enter__(self) -> WhenImported:
        if self._name in sys.modules:
            self._call(sys.modules[self._name])
        else:
            sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        self.__exit__()
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)  # when that fails somebody may try again
                self.__exit__()
                self._call(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
