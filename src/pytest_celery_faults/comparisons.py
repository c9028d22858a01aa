"""What a comparison that fails shows beside its two sides: what they are from, in a table that marks the difference."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

from .errors import safe_repr
from .views.table import Line, Table, same

if TYPE_CHECKING:
    from .harness import Harness

#: pytest cuts an explanation after eight lines unless it is verbose; the first is the comparison itself.
_ROOM = 7

#: Of each view the attributes by which a test lists it, and what else is shown.
_SHOWN = {
    "celery_dlq": (("reason", "task", "queue", "route"), ("said_args", "exception", "at")),
    "celery_faults.callbacks": (("task", "kind"), ("parent_label", "at")),
    "celery_faults.signals": (("name", "task"), ("process", "at")),
    "celery_faults.sent": (("task", "queue"), ("said_args", "retries", "countdown", "at")),
}


def explain(harness: Harness, op: str, left: object, right: object, in_full: bool) -> list[str] | None:
    """The explanation of a comparison; ``None`` when neither side is known to be from this test's record."""
    for values, other, is_left in ((left, right, True), (right, left, False)):
        table = _told(harness, values) or (_listed(harness, values) if is_left else None)
        if table is None:
            continue
        lines = table.against(values, other) if op == "==" else table.lines()
        if op == "==" and not any(line.marked for line in lines):
            return None  # pytest knows better: an approximation, or something that is no list
        if in_full:
            return [f"{safe_repr(left)} {op} {safe_repr(right)}", table.title, *(line.text for line in lines)]
        short = reprlib.Repr()
        short.maxlist = short.maxdict = 5
        return [f"{short.repr(left)} {op} {short.repr(right)}", table.title, *_fitting(lines, _ROOM - 1)]
    return None


def _told(harness: Harness, values: object) -> Any:
    """What values are from that a test was given, and has not changed since."""
    for told, then, table in reversed(harness.recorder.told):
        if told is values and same(told, then):
            return table()
    return None


def _listed(harness: Harness, values: object) -> Table | None:
    """What a test has looked at last and made this list of words of, such as the reasons of all letters."""
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        return None
    if harness.recorder.told:
        told, _, table = harness.recorder.told[-1]
        if isinstance(told, list) and values == [getattr(one, "state", None) for one in told]:
            return table(with_states=True)
    name, elements = harness.recorder.looked_at
    listed, shown = _SHOWN.get(name, ((), ()))
    for attribute in listed:
        if values == [getattr(element, attribute) for element in elements]:
            return Table.of(name, elements, (*listed, *shown), harness.timeline.readable)
    return None


def last_table(harness: Harness) -> Any:
    """What the values are from that a test was given last."""
    return harness.recorder.told[-1][2]() if harness.recorder.told else None


def _fitting(lines: list[Line], room: int) -> list[str]:
    """As many lines as there is room for: the head, those with differences, and what stands next to them."""
    if len(lines) <= room:
        return [line.text for line in lines]
    marked = [number for number, line in enumerate(lines) if line.marked]
    by_distance = sorted(range(1, len(lines)), key=lambda number: min((abs(number - m) for m in marked), default=0))
    kept = sorted({0, *by_distance[: room - 2]})
    return [*(lines[number].text for number in kept), f"... {len(lines) - len(kept)} more lines, -vv shows them"]
