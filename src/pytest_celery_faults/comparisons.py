"""What a comparison that fails shows beside its two sides: what they are from, in a table that marks the difference."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import safe_repr
from .views.table import Line, Table

if TYPE_CHECKING:
    from .harness import Harness

#: pytest cuts an explanation after eight lines unless it is verbose; the first is the comparison itself.
_ROOM = 7

#: What a view is called and what of its elements is shown, the attributes first by which a test lists them.
_Shown = tuple[str, Sequence[Any], tuple[str, ...], tuple[str, ...]]


def explain(harness: Harness, op: str, left: object, right: object, in_full: bool) -> list[str] | None:
    """The explanation of a comparison; ``None`` when neither side is known to be from this test's record."""
    for values, other in ((left, right), (right, left)):
        table = table_of(harness, values)
        if table is None:
            continue
        lines = table.against(values, other) if op == "==" else table.lines()
        sides = f"{safe_repr(left)} {op} {safe_repr(right)}"
        if in_full:
            return [sides, table.title, *(line.text for line in lines)]
        short = reprlib.Repr()
        short.maxlist = short.maxdict = 5
        return [f"{short.repr(left)} {op} {short.repr(right)}", table.title, *_fitting(lines, _ROOM - 1)]
    return None


def table_of(harness: Harness, values: object) -> Table | None:
    """What values are from that a test was given, or that it has listed itself."""
    for told, table in harness.recorder.told:
        if told is values:
            return table()
    if not isinstance(values, (list, tuple)) or not values or not all(isinstance(value, str) for value in values):
        return None
    for name, elements, listed, shown in _shown(harness):
        for attribute in listed:
            for some in _choices(elements):
                if [getattr(element, attribute) for element in some] == list(values):
                    return Table.of(name, some, (*listed, *shown), harness.timeline.readable)
    for record in harness.recorder.records.values():
        if [attempt.state for attempt in record.attempts] == list(values):
            return harness.retries.of(record.task_id).as_table(record.attempts, with_states=True)
    return None


def last_table(harness: Harness) -> Table | None:
    """What the values are from that a test was given last."""
    told = harness.recorder.told
    make: Callable[[], Table] | None = told[-1][1] if told else None
    return None if make is None else make()


def _shown(harness: Harness) -> Iterator[_Shown]:
    yield "celery_dlq", harness.dlq, ("reason", "task", "queue", "route"), ("args", "exception", "at")
    yield "celery_faults.callbacks", harness.callbacks, ("task", "kind"), ("parent_label", "at")
    yield "celery_faults.signals", harness.signals, ("name", "task"), ("process", "at")
    yield "celery_faults.sent", harness.sent, ("task", "queue"), ("args", "retries", "countdown", "at")


def _choices(elements: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """All of them, and those of each task: what a test lists."""
    yield list(elements)
    for task in dict.fromkeys(element.task for element in elements):
        yield [element for element in elements if element.task == task]


def _fitting(lines: list[Line], room: int) -> list[str]:
    """As many lines as there is room for: the head, those with differences, and what stands next to them."""
    if len(lines) <= room:
        return [line.text for line in lines]
    marked = [number for number, line in enumerate(lines) if line.marked]
    by_distance = sorted(range(1, len(lines)), key=lambda number: min((abs(number - m) for m in marked), default=0))
    kept = sorted({0, *by_distance[: room - 2]})
    return [*(lines[number].text for number in kept), f"... {len(lines) - len(kept)} more lines, -vv shows them"]
