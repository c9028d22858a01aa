"""What a test's report says of its Celery tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .comparisons import last_table
from .summary import ATTRIBUTE, numbers_of
from .timeline import FAULT_FIRED, Event

if TYPE_CHECKING:
    from .harness import Harness

SECTION = "celery faults timeline"
UNFIRED = "celery faults that never fired"


LOOKED_AT = "celery faults: what the test looked at last"

_NOTE = "celery faults: "
#: How many events of a task whose result was waited for are shown.
_LAST_EVENTS = 6


def add_note(error: Exception, harness: Harness) -> None:
    """What the failure's own text says: the last fault, what happened last, and last to a task that was waited for."""
    timeline = harness.timeline
    if not len(timeline):
        return
    faults = timeline.where(FAULT_FIRED)
    last_fault = f"last fault: {_short(faults[-1])}; " if faults else "no fault fired; "
    lines = [f"{_NOTE}{last_fault}last event: {_short(timeline[-1])}"]
    ids = _waited_for(error)
    told = [event for event in timeline if event.task_id in ids]
    if told:
        lines.append(f"{_NOTE}the last events of what was waited for:")
        lines += [f"    {_short(event)}" for event in told[-_LAST_EVENTS:]]
    # BaseException.add_note came with Python 3.11; pytest shows the notes of older ones too. An application's exception
    # may have anything for a `__notes__`, or no place for it: the error itself is what counts.
    try:
        before = vars(error).get("__notes__")
        # An exception that is raised in several tests has those of the tests before.
        kept = [note for note in before if not str(note).startswith(_NOTE)] if isinstance(before, list) else []
        vars(error)["__notes__"] = [*kept, "\n".join(lines)]
    except Exception:
        return


def _short(event: Event) -> str:
    return " ".join(str(event).split())


def _waited_for(error: BaseException) -> set[str]:
    """The ids of the results that somebody waited for when an error came out of Celery's waiting."""
    from celery import result

    from .views.base import ids_of

    found: set[str] = set()
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_filename == result.__file__ and isinstance(frame.f_locals.get("self"), result.ResultBase):
            found.update(ids_of(frame.f_locals["self"]))
        traceback = traceback.tb_next
    return found


def add_to_report(report: Any, harness: Harness, explained: bool) -> None:
    """The timeline as a section of a failure, and the numbers for the summary.

    Where pytest does not explain assertions, what the test looked at last is a section as well.
    """
    if report.when == "teardown":
        setattr(report, ATTRIBUTE, numbers_of(harness))
    if report.failed and len(harness.timeline):
        report.sections.append((SECTION, str(harness.timeline)))
    if report.failed and report.when == "call" and not explained:
        table = last_table(harness)
        if table is not None:
            report.sections.append((LOOKED_AT, str(table)))
    if report.failed and report.when == "call" and harness.injector.unfired():
        why = harness.why_not_fired()
        if why not in str(report.longrepr):
            # The test failed already, so this is no failure of its own; it may be the reason.
            report.sections.append((UNFIRED, why))
