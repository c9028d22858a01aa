"""The importable, typed `inject`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from .faults import Sleep


def inject(
    fault: BaseException | type[BaseException] | Sleep,
    *,
    task: Any | Iterable[Any] | None = None,
    times: int | None = 1,
    at: str | None = None,
    required: bool = True,
) -> pytest.MarkDecorator:
    """The mark ``pytest.mark.inject`` with these arguments, for type checkers and editors.

    Unlike ``@pytest.mark.inject(IOError)``, which pytest takes for a class decorator, ``@inject(IOError)`` marks the
    test. The arguments are checked at collection.
    """
    return pytest.mark.inject.with_args(fault, task=task, times=times, at=at, required=required)
