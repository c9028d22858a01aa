"""Where the data of a test is gathered, and how all of it comes to the page: two plugins of pytest's.

``Gatherer`` runs where tests run: in the process itself, or in each of xdist's workers. What it has of a test goes with
that test's reports, so that a worker that crashes takes nothing along. ``Report`` hears of all reports, and writes.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .. import markers, options
from ..errors import safe_repr
from ..fixtures import HARNESS
from ..timeline import KINDS
from . import collect

if TYPE_CHECKING:
    from ..summary import Summary

#: The attribute of a report that carries all tries of its test so far, as JSON: execnet cannot send every text.
ATTRIBUTE = "celery_faults_tries"

_TRIES: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()

#: From the best to the worst: the worst phase is the outcome of a test.
_OUTCOMES = ("passed", "xfailed", "skipped", "xpassed", "rerun", "interrupted", "error", "failed")


def _outcome(report: Any) -> str:
    if hasattr(report, "wasxfail") and report.outcome in ("passed", "skipped"):
        return "xfailed" if report.outcome == "skipped" else "xpassed"
    if report.outcome == "failed" and report.when != "call":
        return "error"
    return str(report.outcome)


def _worse(one: str, other: str) -> str:
    return max(one, other, key=lambda outcome: _OUTCOMES.index(outcome) if outcome in _OUTCOMES else 0)


def _text(report: Any) -> str:
    """What pytest says of a phase that did not pass."""
    if report.outcome == "passed":
        return ""
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) and len(longrepr) == 3 else report.longreprtext
    reason = getattr(report, "wasxfail", "")
    return collect.clean(f"{reason}\n{text}".strip() if reason else str(text))


def register(config: pytest.Config, path: Path, summary: Summary) -> None:
    """Have a page written about the run."""
    report = None
    if not hasattr(config, "workerinput"):
        report = Report(config, path, summary)
        config.pluginmanager.register(report, "celery_faults_report")
    config.pluginmanager.register(Gatherer(report.interrupted if report else None), "celery_faults_report_of_tests")


def _gist(report: Any) -> str:
    """One line of it: the message of the exception, or the reason."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else _text(report)
    lines = [line for line in str(text).splitlines() if line.strip()]
    return collect.clean(lines[0] if crash is not None else lines[-1], 200) if lines else ""


class Gatherer:
    """Puts what is known of a test into its reports."""

    def __init__(self, on_interrupt: Callable[[str, str], None] | None) -> None:
        self._on_interrupt = on_interrupt

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except (KeyboardInterrupt, pytest.exit.Exception):
            # pytest makes no report of what was interrupted.
            if self._on_interrupt is not None and _is_ours(item):
                tries = item.stash.get(_TRIES, None) or [_new_try()]
                tries[-1]["outcome"] = "interrupted"
                _look_at(item.stash.get(HARNESS, None), tries[-1])
                self._on_interrupt(item.nodeid, _json(tries))
            raise
        finally:
            if _TRIES in item.stash:
                del item.stash[_TRIES]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        harness = item.stash.get(HARNESS, None)
        report = yield
        if not _is_ours(item):
            return report
        tries = item.stash.setdefault(_TRIES, [])
        if not tries or report.when == "setup":
            tries.append(_new_try())
        this = tries[-1]
        outcome = _outcome(report)
        this["outcome"] = _worse(this["outcome"], outcome)
        if outcome != "passed":
            this["phases"].append([report.when, outcome, _text(report), _gist(report)])
        if report.failed or report.when == "teardown":
            # After a failure there may be no other report that anybody sees: pytest-rerunfailures keeps it back.
            _look_at(harness, this)
            setattr(report, ATTRIBUTE, _json(tries))
        return report


def _json(tries: list[dict[str, Any]]) -> str:
    return json.dumps(tries, separators=(",", ":"))


def _new_try() -> dict[str, Any]:
    return {"outcome": "passed", "phases": [], "record": None}


def _look_at(harness: Any, this: dict[str, Any]) -> None:
    if harness is None:
        return
    try:
        this["record"] = collect.record_of(harness)
    except Exception as error:  # an error in a hook would end the run, and what is shown of a test is not worth that
        this["phases"].append(["", "error", f"What is known of its tasks cannot be shown: {safe_repr(error)}", ""])


def _is_ours(item: pytest.Item) -> bool:
    """Whether a test uses the plugin, or would if faults were on."""
    fixtures = getattr(item, "fixturenames", ())
    return HARNESS in item.stash or _TRIES in item.stash or "celery_faults" in fixtures or markers.carries_inject(item)


@dataclass
class _Entry:
    nodeid: str
    outcome: str = "passed"
    #: JSON; ``None``: not a test of ours, as far as is known.
    tries: str | None = None
    #: The tries before those: a worker that has crashed leaves the test to another one, which knows nothing of them.
    before: list[dict[str, Any]] = field(default_factory=list)

    def ended_without_a_word(self, outcome: str, text: str) -> None:
        """All that is known of a try is what pytest or xdist says of it."""
        gist = text.strip().rpartition("\n")[2][:200]
        last = {"outcome": outcome, "phases": [["", outcome, text, gist]], "record": None}
        self.before = [*self.all_tries(), last]
        self.outcome, self.tries = outcome, None

    def all_tries(self) -> list[dict[str, Any]]:
        return [*self.before, *json.loads(self.tries or "[]")]

    def as_json(self) -> str:
        return self.tries if self.tries is not None and not self.before else _json(self.all_tries())


class Report:
    """Hears of all tests of the run, and writes the page at its end."""

    def __init__(self, config: pytest.Config, path: Path, summary: Summary) -> None:
        self._config = config
        self._path = path
        self._summary = summary
        self._began = time.time()
        # With `--dist=each` a test is run by each of xdist's workers.
        self._by_worker = getattr(config.option, "dist", "") == "each"
        self._entries: dict[str, _Entry] = {}

    def interrupted(self, nodeid: str, tries: str) -> None:
        self._entries[nodeid] = _Entry(nodeid, "interrupted", tries)

    def _entry(self, report: Any) -> _Entry:
        nodeid = report.nodeid
        worker = getattr(report, "worker_id", None)
        if self._by_worker and worker:
            nodeid = f"{nodeid} [{worker}]"
        return self._entries.setdefault(nodeid, _Entry(nodeid))

    def pytest_runtest_logreport(self, report: Any) -> None:
        entry = self._entry(report)
        outcome = _outcome(report)
        entry.outcome = outcome if report.when == "setup" else _worse(entry.outcome, outcome)
        entry.tries = getattr(report, ATTRIBUTE, entry.tries)
        if report.when not in ("setup", "call", "teardown"):  # what xdist says of a worker that has crashed
            entry.ended_without_a_word(outcome, _text(report))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._entry(report).ended_without_a_word("error", _text(report))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        from .page import write

        try:
            write(self._path, *self._data(int(exitstatus)))
        except OSError as error:
            self._summary.notes.append(f"report: {self._path} could not be written: {error}")
        else:
            self._summary.notes.append(f"report: {self._path}")

    def _data(self, exitstatus: int) -> tuple[dict[str, Any], Iterator[str]]:
        """The index of the run, and the tries of each test in it."""
        others: Counter[str] = Counter()
        listed: list[_Entry] = []
        for entry in self._entries.values():
            if entry.tries is None and not entry.before:
                others[entry.outcome] += 1
            else:
                listed.append(entry)
        # Those that somebody has to look at, the others in the order in which they ran.
        listed.sort(key=lambda entry: -_OUTCOMES.index(_worse(entry.outcome, "skipped")))
        index = {
            "began": self._began,
            "took": round(time.time() - self._began, 2),
            "exit": exitstatus,
            "seed": self._config.stash[options.STASH_KEY].seed,
            "versions": _versions(),
            "kinds": KINDS,
            "others": others,
            "tests": [_index(entry) for entry in listed],
        }
        return index, (entry.as_json() for entry in listed)


def _index(entry: _Entry) -> dict[str, Any]:
    """What the page needs to know of a test before it is opened."""
    tries = entry.all_tries()
    last = tries[-1]
    record = last["record"] or {}
    tasks = record.get("tasks", ())
    found = {"id": collect.clean(entry.nodeid, 500), "outcome": entry.outcome, "tries": len(tries)}
    found |= {key: record.get(key, 0) for key in ("elapsed", "real", "executions")}
    found |= {key: record.get(key, {}) for key in ("states", "faults", "letters")}
    found["events"] = len(record.get("events", ())) + record.get("omitted", (0,))[0]
    found["tasks"] = sorted({task["name"] for task in tasks})
    found["says"] = [gist for _, _, _, gist in last["phases"] if gist]
    return found


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for name in ("pytest", "celery", "pytest-celery-faults"):
        versions[name] = metadata.version(name)
    return versions
