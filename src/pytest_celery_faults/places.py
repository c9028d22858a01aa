"""Where in the user's files a mark was written: pytest's marks do not remember it."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import pytest


def place_of(mark: pytest.Mark, owner: Any) -> str:
    """``file:line: in name`` of the mark of a function, class or module; ``""`` where its source is not at hand.

    It is the line of the mark itself when it is written as a decorator or in a module's ``pytestmark``. One under
    another name, or of a single case of a parametrized test, has the line at which the decorated definition begins.
    """
    is_module = isinstance(owner, ModuleType)
    if not is_module:
        owner = inspect.unwrap(owner)
    try:
        path = inspect.getsourcefile(owner) or ""
        lines, first = inspect.getsourcelines(owner)
        indented = lines[0][:1] in (" ", "\t")
        body = ast.parse("".join(["if 1:\n", *lines] if indented else lines)).body
    except (OSError, TypeError, SyntaxError):
        return ""
    if indented:
        assert isinstance(body[0], ast.If)
        body = body[0].body
    written = list(_written(body, mark.name, is_module))
    carried = [other for other in _marks_of(owner) if other.name == mark.name]
    line = first = max(first, 1)
    position = next((n for n, other in enumerate(carried) if other is mark), None)
    if position is not None and len(written) == len(carried):
        line = first + written[position].lineno - (2 if indented else 1)
    elif is_module:
        return f"{os.path.relpath(path)}: in <module>"
    name = "<module>" if is_module else owner.__qualname__
    return f"{os.path.relpath(path)}:{line}: in {name}"


def _marks_of(owner: Any) -> list[pytest.Mark]:
    marks: Any = vars(owner).get("pytestmark", [])
    marks = marks if isinstance(marks, (list, tuple)) else [marks]
    return [mark.mark if isinstance(mark, pytest.MarkDecorator) else mark for mark in marks]


def _written(body: list[ast.stmt], name: str, is_module: bool) -> Iterator[ast.expr]:
    """The expressions that made the marks of that name, in the order in which pytest keeps them."""
    if is_module:
        for value in filter(None, map(_assigned, body)):
            yield from _named(value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value], name)
    elif body and isinstance(body[0], (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield from _named(reversed(body[0].decorator_list), name)


def _assigned(node: ast.stmt) -> ast.expr | None:
    """What a statement gives, or adds, to ``pytestmark``."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        targets = [node.target]
    else:
        return None
    return node.value if any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in targets) else None


def _named(expressions: Iterable[ast.expr], name: str) -> Iterator[ast.expr]:
    for expression in expressions:
        called = expression.func if isinstance(expression, ast.Call) else expression
        if getattr(called, "attr", getattr(called, "id", None)) == name:
            yield expression
