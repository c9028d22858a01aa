"""The page that a run writes: which scenarios are equal, which differ on purpose, and what they show of Celery."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from fidelity_all import SCENARIOS
from fidelity_scenarios import Scenario

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"

_INTRODUCTION = """\
# Fidelity

Each scenario runs twice: in process, and on a real `redis-server` with a real `celery worker --pool=prefork`. Both
sides write down signals, events, acks, hooks, log records, what task bodies say, what is stored, what is left in the
queues, and what the caller gets, and when; then the two histories are compared. `fidelity_history.py` lists what cannot
be compared. This page is written by a run in which every scenario ended as the table says:

    python -m pytest tests/fidelity --fidelity-page=docs/fidelity.md

pytest knows the option when the folder is named on the command line.

So that a real run has one history, too, its worker runs without gossip, mingle and heartbeat, stands still while a
scenario sends, as the one here does, and is asked ten times a second for what it is at, which makes it replace a lost
child now and not within five seconds. Delays with jitter are compared by their bounds. In scenarios of several workers
there are as many here as children of one worker: which one took a task is not compared. The broker's outages are those
of a server that ends and comes back; a network that breaks is not compared. A real run during which the machine stood
still for a quarter of a second is made again, at most twice, whatever came of it.
"""

_EQUAL = "equal"
_DIFFERS = "expected difference"


def body() -> str:
    """The page without the versions; what a scenario declares is what its test has verified."""
    equal = sum(one.expected is None for one in SCENARIOS)
    frames = sum(one.expected is not None and bool(one.expected.frames) for one in SCENARIOS)
    lines = [
        "## Scenarios",
        f"{len(SCENARIOS)} scenarios: {equal} are equal, {frames} are equal but for frames in a stored traceback, "
        f"{len(SCENARIOS) - equal - frames} differ in behaviour, on purpose. An expected difference is exact: the test "
        "fails when anything else differs, and when the difference is gone.",
        "",
        "| scenario | histories | why |",
        "| --- | --- | --- |",
        *(_row(one) for one in SCENARIOS),
        "",
        "## What real Celery does",
        "Shown by the scenario in brackets, verified in the real worker's history, and the same here unless the table "
        "says otherwise.",
        "",
        *(f"- {one.shows.text} (`{one.name}`)" for one in SCENARIOS if one.shows),
    ]
    return "\n".join(lines) + "\n"


def _row(one: Scenario) -> str:
    if one.expected is None:
        return f"| `{one.name}` | {_EQUAL} | |"
    return f"| `{one.name}` | {_DIFFERS} | {one.expected.reason} |"


def versions(redis_server: str) -> str:
    compared = [(name.capitalize() if name == "celery" else name, version(name)) for name in _PACKAGES]
    compared += [("redis-server", redis_server), ("Python", platform.python_version())]
    rows = [f"| {name} | {number} |" for name, number in compared]
    return "\n".join(["## Versions compared", "| | |", "| --- | --- |", *rows]) + "\n"


_PACKAGES = ("celery", "kombu", "billiard")


def write(path: Path, redis_server: str) -> None:
    path.write_text("\n".join([_INTRODUCTION, versions(redis_server), body()]), encoding="utf-8")


def read(path: Path = PAGE) -> tuple[str, str]:
    """The versions and the rest, as they stand on the page."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith(_INTRODUCTION), "the page has another introduction"
    found = re.fullmatch(r"\n(## Versions compared\n.*?\n)\n(## Scenarios\n.*)", text[len(_INTRODUCTION) :], re.S)
    assert found, "the page has not the sections that are written"
    return found[1], found[2]


class PageWriter:
    """Writes the page when every scenario has run and was as declared."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = ""
        #: Set by the test of each scenario when it has passed.
        self.as_declared: set[str] = set()
        self.redis_server = ""

    def pytest_sessionfinish(self) -> None:
        absent: Sequence[str] = [one.name for one in SCENARIOS if one.name not in self.as_declared]
        if absent:
            self._said = f"{self._path} is not written; not as declared, or not run: {', '.join(absent)}"
        else:
            write(self._path, self.redis_server)
            self._said = f"{self._path} is written"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.line(self._said)
