"""The importable, typed `inject`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from .errors import hide_ours
from .faults import Fault

if TYPE_CHECKING:
    from .injection import Execution

__tracebackhide__ = hide_ours


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
