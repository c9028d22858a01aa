"""Fixtures of the suite: a small application under test.

The suite itself runs with the plugin not armed; runs inside `pytester` opt in with ``--celery-faults``.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator

import pytest

from plugin_helpers import Shop

# `pytester` forgets the modules that a run in this process imported. Celery and kombu keep state in theirs, so all that
# a worker imports has to be here before the first run.
for _module in (
    "pytest_celery_faults.harness",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.contrib.testing.app",
    "celery.contrib.testing.manager",
    "celery.contrib.testing.tasks",
    "celery.contrib.testing.worker",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery.worker.control",
    "celery.worker.loops",
    "celery.worker.strategy",
    "kombu.utils.limits",
):
    importlib.import_module(_module)

pytest_plugins = ["pytester"]

# Suites as users have them, which tests run in processes of their own.
collect_ignore = ["suites"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Not in the folder of the comparisons: where xdist runs them, its own process does not load what is in there.
    reports = terminalreporter.getreports("skipped")
    count = sum("redis-server is not installed" in str(report.longrepr) for report in reports)
    if count:
        terminalreporter.line(
            f"fidelity: redis-server is not installed; {count} comparisons with a real worker were skipped"
        )


@pytest.fixture(scope="session")
def closed_port() -> Iterator[int]:
    """A port of this machine that refuses connections: bound, so that nobody else takes it, and not listening."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def shop(pytester: pytest.Pytester, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The application under test."""
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return Shop(pytester, closed_port)


@pytest.fixture
def unmeasured(monkeypatch):
    """For a process that is itself looked at: coverage would load modules and keep objects in it."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)
