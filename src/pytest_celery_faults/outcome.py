"""What a test's report says of its Celery tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .summary import ATTRIBUTE, numbers_of
from .timeline import FAULT_FIRED, Event

if TYPE_CHECKING:
    from .harness import Harness

SECTION = "celery faults timeline"
UNFIRED = "celery faults that never fired"


def add_note(error: Exception, harness: Harness) -> None:
    """One line in the failure's own text: the last fault, and what happened last."""
    timeline = harness.timeline
    if not len(timeline):
        return
    faults = timeline.where(FAULT_FIRED)
    last_fault = f"last fault: {_short(faults[-1])}; " if faults else "no fault fired; "
    note = f"celery faults: {last_fault}last event: {_short(timeline[-1])}"
    # BaseException.add_note came with Python 3.11; pytest shows the notes of older ones too.
    notes = getattr(error, "__notes__", [])
    vars(error)["__notes__"] = [*notes, note]


def _short(event: Event) -> str:
    return " ".join(str(event).split())


def explain_comparison(harness: Harness | None, op: str, left: object, right: object) -> list[str] | None:
    """For delays and waits that are not what a test says: the attempts they are from, in a table."""
    told = harness.recorder.told if harness is not None else ()
    history = next((whose for seconds, whose in told if seconds is left or seconds is right), None)
    return None if history is None else [f"{left!r} {op} {right!r}", *str(history).splitlines()]


def add_to_report(report: Any, harness: Harness) -> None:
    """The timeline as a section of a failure, and the numbers for the summary."""
    setattr(report, ATTRIBUTE, numbers_of(harness) if report.when == "teardown" else {})
    if report.failed and len(harness.timeline):
        report.sections.append((SECTION, str(harness.timeline)))
    if report.failed and report.when == "call" and harness.injector.unfired():
        why = harness.injector.why_not_fired(harness.injector.unfired())
        if why not in str(report.longrepr):
            # The test failed already, so this is no failure of its own; it may be the reason.
            report.sections.append((UNFIRED, why))
