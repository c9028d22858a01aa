"""What happens, on the terminal while it does: ``--celery-faults-live``.

The view stands below what pytest has written, and is taken away before pytest writes on. It is drawn anew when
something happens in a test, ten times a second at most: there is no thread.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from .clock import real_monotonic
from .fixtures import HARNESS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .harness import Harness

#: Real seconds between two drawings, and before the first of a test: nobody can read what is gone sooner.
_INTERVAL = 0.1


def check() -> None:
    """Refuse a run whose view nothing can draw.

    Raises:
        pytest.UsageError: rich, which draws it, is not installed.
    """
    if importlib.util.find_spec("rich") is None:
        raise pytest.UsageError(
            "--celery-faults-live: the view is drawn by rich, which is not installed: "
            'pip install "pytest-celery-faults[live]"'
        )


def register(config: pytest.Config) -> str | None:
    """Have the view in this run; returns why there is none."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    why = _why_not(config, reporter)
    if why is None:
        config.pluginmanager.register(Live(config), "celery_faults_live")
    return why


def _why_not(config: pytest.Config, reporter: Any) -> str | None:
    if reporter is None or not reporter.isatty or os.environ.get("TERM") == "dumb":
        return "this is no terminal"
    if config.option.verbose < 0:
        return "-q"
    if os.environ.get("CI"):
        return "the variable CI is set"
    if getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None):
        return "the tests run in the processes of pytest-xdist"
    if config.option.capture == "no":
        return "-s: what tests print is on the terminal"
    return None


class Live:
    """A plugin of a run on a terminal."""

    def __init__(self, config: pytest.Config) -> None:
        # All of it before a clock is up, which would look into its modules.
        from rich.console import Console
        from rich.control import Control
        from rich.live import Live as View
        from rich.table import Table
        from rich.text import Text

        self._control, self._view_class, self._table, self._text = Control, View, Table, Text
        self._config = config
        self._writer = config.get_terminal_writer()
        self._console = Console(file=self._writer._file, force_terminal=True)
        self._view: Any = None
        self._column = 0
        self._number = self._total = 0
        self._item: pytest.Item | None = None
        self._drawn_at = 0.0
        self._faults: Counter[str] = Counter()

    # -- when

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = len(session.items)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._item = item
        self._number += 1
        self._drawn_at = real_monotonic()
        try:
            return (yield)
        finally:
            self.hide()
            self._item = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        harness = item.stash.get(HARNESS, None)
        if harness is None:
            return (yield)
        harness.timeline.watcher = self._something_happened
        try:
            return (yield)
        finally:
            harness.timeline.watcher = None
            self.hide()
            self._faults.update(harness.recorder.faults_fired)

    @pytest.hookimpl(tryfirst=True)
    def pytest_enter_pdb(self) -> None:
        self.hide()

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure(self) -> None:
        self.hide()

    def _something_happened(self) -> None:
        # The worker of an async test has a thread of its own, and may not write while the test does.
        if real_monotonic() - self._drawn_at >= _INTERVAL and threading.current_thread() is threading.main_thread():
            self._drawn_at = real_monotonic()
            self._draw()

    # -- where

    def _draw(self) -> None:
        item = self._item
        harness = item.stash.get(HARNESS, None) if item is not None else None
        if item is None or harness is None:
            return
        with self._on_terminal():
            if self._view is None:
                self._show()
            self._view.update(self._overview(item, harness), refresh=True)

    def _show(self) -> None:
        self._column = self._writer.width_of_current_line
        self._console.file.write("\n")
        self._view = self._view_class(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._view.start()

    def hide(self) -> None:
        """Take the view away, and put the cursor back to where pytest has it."""
        view, self._view = self._view, None
        if view is None:
            return
        with self._on_terminal():
            view.stop()
            self._console.control(self._control.move(0, -1), self._control.move_to_column(self._column))
            self._console.file.flush()

    def _on_terminal(self) -> Any:
        return self._config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled()

    # -- what

    def _overview(self, item: pytest.Item, harness: Harness) -> RenderableType:
        monitor, running = harness.monitor, self._faults + harness.recorder.faults_fired
        workers = [f"{one.name} {one.status}, {one.active} active" for one in monitor.workers.values()]
        waiting = {name: count for name, count in monitor.queues.items() if count}
        table = self._table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for head, text in (
            (f"test {self._number} of {self._total}", item.nodeid),
            ("virtual time", str(timedelta(seconds=round(harness.clock.elapsed, 3)))),
            ("tasks", _listed(monitor.by_state)),
            ("faults fired", _listed(running)),
            ("queues", _listed(waiting) if waiting else "empty"),
            ("workers", "; ".join(workers) or "none yet"),
        ):
            table.add_row(head, self._text(_printable(text)))
        return table


def _listed(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _printable(text: str) -> str:
    """Without what would move the cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)
