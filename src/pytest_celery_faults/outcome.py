"""What a test's report says of its Celery tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .summary import ATTRIBUTE, numbers_of

if TYPE_CHECKING:
    from .harness import Harness

SECTION = "celery faults timeline"


def add_to_report(report: Any, harness: Harness) -> None:
    """The timeline as a section of a failure, and the numbers for the summary."""
    setattr(report, ATTRIBUTE, numbers_of(harness) if report.when == "teardown" else {})
    if report.failed and len(harness.timeline):
        report.sections.append((SECTION, str(harness.timeline)))
