"""The importable, typed `inject`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import pytest

from .errors import hide_ours
from .faults import Fault

if TYPE_CHECKING:
    from .injection import Execution

__tracebackhide__ = hide_ours


_P = ParamSpec("_P")
_R = TypeVar("_R")


def inject(
    fault: BaseException | type[BaseException] | Fault,
    *,
    task: Any | Iterable[Any] | None = None,
    times: int | None = 1,
    skip: int = 0,
    every: int = 1,
    at: str | Callable[..., Any] | None = None,
    when: Callable[[Execution], object] | None = None,
    probability: float = 1.0,
    then: Callable[[Execution], object] | None = None,
    required: bool | None = None,
) -> pytest.MarkDecorator:
    """The mark ``pytest.mark.inject`` with these arguments, for type checkers and editors.

    Unlike ``@pytest.mark.inject(IOError)``, which pytest takes for a class decorator, ``@inject(IOError)`` marks the
    test. The arguments are checked at collection.
    """
    options: dict[str, Any] = {
        "task": task, "times": times, "skip": skip, "every": every, "at": at,
        "when": when, "probability": probability, "then": then,
    }  # fmt: skip
    if required is not None:
        options["required"] = required
    return pytest.mark.inject.with_args(fault, **options)


def takes_what(_other: Callable[_P, object]) -> Callable[[Callable[..., _R]], Callable[Concatenate[Any, _P], _R]]:
    """To type checkers and editors the method takes the arguments of another function; it checks them itself."""
    return lambda method: method
