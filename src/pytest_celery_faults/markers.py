"""What the two markers of a test say, checked at collection."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from .errors import CeleryFaultsError, hide_ours
from .places import place_of

if TYPE_CHECKING:
    from .harness import Options
    from .injection import Plan

__tracebackhide__ = hide_ours

INJECT, SETTINGS = "inject", "celery_faults"

DESCRIPTIONS = (
    "inject(fault, *, task=None, times=1, skip=0, every=1, at=None, when=None, probability=1.0, then=None, "
    "required=True): inject a fault into the Celery tasks of this test; needs --celery-faults.",
    "celery_faults(*, conf={}, queues=None, broker=None, concurrency=1, clock='virtual', start=None, dlq='dlq', "
    "quarantine=False, delivery_limit=None, stall_timeout=30, max_executions=1000, apps=[], takeover=True): how the "
    "Celery worker of this test behaves.",
)


def carries_inject(node: pytest.Item) -> bool:
    return node.get_closest_marker(INJECT) is not None


def carries_settings(node: pytest.Item) -> bool:
    """Whether a test says something of its worker, and not only whose it is to be."""
    return any(mark.kwargs.keys() - {"takeover"} for mark in node.iter_markers(SETTINGS))


def check(marks: Iterable[tuple[pytest.Mark, object]], hook: Any) -> None:
    """Check the arguments of our marks, each given with the function, class or module that carries it.

    Raises:
        pytest.fail.Exception: they mean nothing. pytest shows the sentence alone, as an error of that file.
    """
    message = what_is_wrong(marks, hook)
    if message:
        raise pytest.fail.Exception(message, pytrace=False)


def what_is_wrong(marks: Iterable[tuple[pytest.Mark, object]], hook: Any) -> str:
    """What the first of our marks with wrong arguments says, and where it stands."""
    marks = [(mark, owner) for mark, owner in marks if mark.name in (INJECT, SETTINGS)]
    if not marks:
        return ""
    from .harness import make_options
    from .injection import plan

    for mark, owner in marks:
        try:
            if mark.name == INJECT:
                plan(mark.args, mark.kwargs, hook)
            else:
                if mark.args:
                    raise TypeError("celery_faults() takes keyword arguments only")
                make_options(dict(mark.kwargs))
        except (CeleryFaultsError, TypeError) as error:
            return f"@pytest.mark.{mark.name}: {error}\n{place_of(mark, owner)}".rstrip()
    return ""


def of_test(metafunc: pytest.Metafunc) -> Iterable[tuple[pytest.Mark, object]]:
    """The marks of a test, of its class and module, and of its single cases: ``pytest.param(..., marks=...)``."""
    definition = metafunc.definition
    for node, mark in definition.iter_markers_with_node():
        yield mark, getattr(node, "obj", None)
    for mark in definition.iter_markers("parametrize"):
        values = mark.args[1] if len(mark.args) > 1 else mark.kwargs.get("argvalues", ())
        if isinstance(values, (list, tuple)):
            for value in values:
                for found in getattr(value, "marks", ()):
                    yield getattr(found, "mark", found), definition.obj


def of_test_case(obj: object) -> Iterable[tuple[pytest.Mark, object]]:
    """The marks of a ``unittest.TestCase``, its methods and module, which pytest collects in a way of its own."""
    unittest = sys.modules.get("unittest")
    if unittest is None or not issubclass(type(obj), type):
        return
    assert isinstance(obj, type)
    if not issubclass(obj, unittest.TestCase):
        return
    owners = [sys.modules.get(obj.__module__), *obj.__mro__]
    for owner in owners:
        for carrier in [owner, *(vars(owner).values() if isinstance(owner, type) else ())]:
            marks: Any = getattr(carrier, "__dict__", {}).get("pytestmark", ())
            for mark in marks if isinstance(marks, (list, tuple)) else [marks]:
                yield mark.mark if isinstance(mark, pytest.MarkDecorator) else mark, carrier


def check_slip(name: str, obj: object) -> None:
    """Notice what became of ``@pytest.mark.inject(MyError)``: an instance of ``MyError`` where a test was written.

    Raises:
        pytest.fail.Exception: that happened.
    """
    if not issubclass(type(obj), BaseException):  # a lazy object would be woken by isinstance()
        return
    assert isinstance(obj, BaseException)
    marks = getattr(type(obj), "pytestmark", ())
    slipped = next((mark for mark in marks if mark.name == INJECT and not mark.args and not mark.kwargs), None)
    given = [*obj.args, *vars(obj).values()]
    lost = next((value for value in given if inspect.isroutine(value) or inspect.isclass(value)), None)
    if slipped is not None and lost is not None:
        place = place_of(slipped, lost)
        raise pytest.fail.Exception(f"{name}: {slip(type(obj).__name__)}\n{place}".rstrip(), pytrace=False)


def slip(exception: str) -> str:
    """The sentence for somebody who gave a marker nothing but a class."""
    return (
        f"pytest takes @pytest.mark.inject({exception}) for a class decorator, and the test is lost. Write "
        f"@pytest.mark.inject({exception}, times=1), @pytest.mark.inject({exception}()), or @inject({exception}) with "
        "`from pytest_celery_faults import inject`"
    )


def explain_slip(report: pytest.CollectReport) -> None:
    """Add that sentence where the class is a built-in one, which refuses to be decorated."""
    text = str(report.longrepr)
    found = re.search(r"cannot set '?pytestmark'? attribute of immutable type '(\w+)'", text)
    if found and "inject(" in text:
        report.longrepr = f"{text}\n{slip(found[1])}"


def of_item(item: pytest.Item) -> list[pytest.Mark]:
    """Our marks of a test, wherever they come from: a hook or the parameter of a fixture may have added them."""
    return [mark for mark in item.iter_markers() if mark.name in (INJECT, SETTINGS)]


def added_since(item: pytest.Item, known: list[pytest.Mark]) -> str:
    """What is wrong with a mark that came after the collection: nobody looked at it."""
    late = [mark for mark in of_item(item) if not any(mark is other for other in known)]
    if not late:
        return ""
    instead = "call celery_faults.inject()" if late[0].name == INJECT else "mark the test where it is defined"
    return f"@pytest.mark.{late[0].name} was added while the test ran, which is too late: {instead}"


def plans(item: pytest.Item) -> list[Plan]:
    """The faults to inject, in the order in which they are asked: nearest level first."""
    from .injection import plan

    return [plan(mark.args, mark.kwargs, item.config.hook) for mark in item.iter_markers(INJECT)]


def settings(item: pytest.Item | pytest.Collector) -> Options:
    """The settings of all levels merged, the nearest wins; `conf` key by key."""
    from .harness import make_options

    merged: dict[str, Any] = {}
    conf: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers(SETTINGS))):
        merged.update(mark.kwargs)
        conf.update(mark.kwargs.get("conf") or {})
    if conf:
        merged["conf"] = conf
    return make_options(merged)
