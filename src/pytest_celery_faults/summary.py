"""What the run says at its end, and what crosses from xdist's workers to the controller."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .harness import Harness

TITLE = "celery faults"
SKIP_REASON = "celery faults are off: --celery-faults or celery_faults = true turns them on"

#: The attribute of a report that carries a test's numbers; xdist sends all attributes that are plain data.
ATTRIBUTE = "celery_faults_numbers"


def numbers_of(harness: Harness) -> dict[str, Any]:
    """The numbers of one test, as plain data."""
    recorder = harness.recorder
    return {
        "tasks": len({message.task_id for message in recorder.sent}),
        "executions": recorder.executions,
        "faults": dict(recorder.faults_fired),
        "letters": dict(Counter(letter.reason for letter in recorder.letters)),
        "elapsed": harness.clock.elapsed,
        "real": harness.real_seconds,
    }


class Summary:
    """Adds up the numbers of all tests; a plugin of the controller, which hears of the tests of all workers."""

    def __init__(self) -> None:
        self.tests: int = 0
        self.tasks: int = 0
        self.executions: int = 0
        self.elapsed: float = 0.0
        self.real: float = 0.0
        self.faults: Counter[str] = Counter()
        self.letters: Counter[str] = Counter()
        self.skipped: int = 0
        #: What else is to be said.
        self.notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple) and SKIP_REASON in report.longrepr[2]:
            self.skipped += 1
        numbers = getattr(report, ATTRIBUTE, None)
        if numbers is None:
            return
        self.tests += 1
        self.real += numbers["real"]
        self.tasks += numbers["tasks"]
        self.executions += numbers["executions"]
        self.elapsed += numbers["elapsed"]
        self.faults.update(numbers["faults"])
        self.letters.update(numbers["letters"])

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        lines = self.lines()
        if lines:
            terminalreporter.section(TITLE)
            for line in lines:
                terminalreporter.line(line)

    def lines(self) -> list[str]:
        lines = []
        if self.tests:
            lines.append(
                f"{_count(self.tests, 'test')}, {_count(self.tasks, 'task')} in "
                f"{_count(self.executions, 'execution')}, {_length(self.elapsed)} of virtual time in {self.real:.2f} s"
            )
            lines.append(f"faults fired: {_listed(self.faults)}")
            lines.append(f"dead letters: {_listed(self.letters)}")
        if self.skipped:
            tests = _count(self.skipped, "test")
            lines.append(f"{TITLE}: {tests} skipped, faults are off: --celery-faults or celery_faults = true")
        return lines + self.notes


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
