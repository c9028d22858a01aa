"""The hooks of this plugin, for other plugins and a project's ``conftest.py``.

See https://docs.pytest.org/en/stable/how-to/writing_hook_functions.html.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .faults import Fault
    from .injection import Execution


@pytest.hookspec(firstresult=True)
def pytest_celery_faults_as_fault(value: object) -> Fault | None:
    """What somebody wrote as a fault, ``inject(value)``: the `Fault` that it stands for, or ``None`` to leave it."""


@pytest.hookspec
def pytest_celery_faults_before_fault(fault: Fault, execution: Execution) -> None:
    """A fault is about to strike."""


@pytest.hookspec
def pytest_celery_faults_after_fault(fault: Fault, execution: Execution) -> None:
    """A fault has struck. An exception, or a crash, is about to leave the task."""


@pytest.hookspec(firstresult=True)
def pytest_celery_faults_letter_reason(task: str | None, exception: BaseException | None, reason: str) -> str | None:
    """The reason of a new dead letter, given the one that it has otherwise; ``None`` leaves it."""
