"""What happened as a table, and what of it is not what a test expected."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import hide_ours, safe_repr

__tracebackhide__ = hide_ours


@dataclass(frozen=True)
class Line:
    """A line of a table; ``marked`` when it says of a difference."""

    text: str
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of words below a title and a head.

    ``of_values`` are the rows that the values are from of which the table is about, one for each.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    of_values: Sequence[int] = field(default=())

    @classmethod
    def of(
        cls, title: str, elements: Sequence[Any], attributes: Sequence[str], readable: Callable[[str], str]
    ) -> Table:
        """A row for each element, of these attributes of it."""
        rows = [[_cell(attribute, getattr(one, attribute), readable) for attribute in attributes] for one in elements]
        return cls(title, [_HEADS.get(attribute, attribute) for attribute in attributes], rows, range(len(rows)))

    def lines(self, remarks: Mapping[int, str] | None = None, missing: Iterable[tuple[int, str]] = ()) -> list[Line]:
        """The head and the rows with remarks at their ends, and what is missing before the row where it should be."""
        remarks = remarks or {}
        widths = [max(len(row[column]) for row in [self.head, *self.rows]) for column in range(len(self.head))]
        lines = [Line(_line(self.head, widths))]
        gaps: dict[int, list[str]] = {}
        for before, what in missing:
            gaps.setdefault(before, []).append(what)
        for number, row in enumerate(self.rows):
            lines += [Line(f"<- {what}", marked=True) for what in gaps.pop(number, ())]
            remark = remarks.get(number)
            lines.append(Line(_line(row, widths, f"<- {remark}" if remark else ""), marked=bool(remark)))
        lines += [Line(f"<- {what}", marked=True) for _, whats in sorted(gaps.items()) for what in whats]
        return lines

    def against(self, values: Any, expected: Any) -> list[Line]:
        """The lines, marked where the values are not what was expected."""
        if isinstance(values, Mapping) or isinstance(expected, Mapping):
            return [*self.lines(), *_other_counts(values, expected)]
        if not isinstance(expected, (list, tuple)):
            return self.lines()
        remarks: dict[int, str] = {}
        missing: list[tuple[int, str]] = []
        for kind, first, last, its_first, its_last in _edits(list(values), list(expected)):
            if kind == "equal":
                continue
            here, there = list(self.of_values[first:last]), list(expected[its_first:its_last])
            for row, value in zip(here, there, strict=False):
                remarks[row] = f"expected {safe_repr(value)}"
            for row in here[len(there) :]:
                remarks[row] = "not expected"
            end = self.of_values[last] if last < len(self.of_values) else len(self.rows)
            missing += [(end, f"missing: {safe_repr(value)}") for value in there[len(here) :]]
        return self.lines(remarks, missing)

    def __str__(self) -> str:
        return "\n".join([self.title, *(line.text for line in self.lines())])


_HEADS = {"label": "task", "parent_label": "parent", "said_args": "args"}


def _cell(attribute: str, value: object, readable: Callable[[str], str]) -> str:
    if value is None:
        return "-"
    if attribute in ("at", "countdown") and isinstance(value, (int, float)):
        return f"{value:g} s"
    text = readable(value if isinstance(value, str) else safe_repr(value))
    return text if len(text) <= 40 else f"{text[:37]}..."


def _line(cells: Sequence[str], widths: Sequence[int], remark: str = "") -> str:
    return "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), remark]).rstrip()


def _other_counts(values: Any, expected: Any) -> list[Line]:
    """The keys of two mappings that have not the same value in both."""
    if not (isinstance(values, Mapping) and isinstance(expected, Mapping)):
        return []
    return [
        Line(f"<- {safe_repr(key)}: {values.get(key, 0)}, expected {expected.get(key, 0)}", marked=True)
        for key in {**values, **expected}
        if not same(values.get(key, 0), expected.get(key, 0))
    ]


#: Beyond so many elements two lists are compared one by one: to find out what is missing takes long.
_MANY = 1000


def _edits(values: list[Any], expected: list[Any]) -> list[tuple[str, int, int, int, int]]:
    """How the one becomes the other; of two that are as long, or very long, element by element."""
    if len(values) == len(expected) or max(len(values), len(expected)) > _MANY:
        common = min(len(values), len(expected))
        pairs = enumerate(zip(values, expected, strict=False))
        edits = [("equal" if same(one, other) else "replace", n, n + 1, n, n + 1) for n, (one, other) in pairs]
        return [*edits, ("replace", common, len(values), common, len(expected))]
    # difflib wants what can be hashed: the place of the first element that is equal.
    pool: list[Any] = []
    mine, theirs = ([_key(value, pool) for value in side] for side in (values, expected))
    return list(difflib.SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes())


def same(one: Any, other: Any) -> bool:
    """Whether two values of an application are equal; their ``==`` may do anything."""
    try:
        return bool(one == other)
    except Exception:
        return one is other


def _key(value: Any, pool: list[Any]) -> int:
    for number, other in enumerate(pool):
        if same(value, other):
            return number
    pool.append(value)
    return len(pool) - 1
