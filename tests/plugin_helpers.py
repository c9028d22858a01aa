"""What the tests of the plugin share by name: a small application, runs of pytest on it, and what they print."""

from __future__ import annotations

import re

import pytest
from celery import _state

SHOP = """\
import time

from celery import Celery

# Nothing listens there: whatever tried to reach this broker would fail.
URL = "redis://127.0.0.1:{port}/0"
app = Celery("shop", broker=URL, backend=URL)

@app.task
def add(x, y):
    return x + y

@app.task(autoretry_for=(OSError,), retry_backoff=True, retry_jitter=False, max_retries=5)
def download(url):
    return "done"

@app.task(autoretry_for=(OSError,), retry_backoff=60, retry_jitter=True, max_retries=5)
def jittery():
    return "done"

@app.task
def boom():
    raise ValueError("boom")

@app.task
def slow(seconds):
    time.sleep(seconds)
    return seconds
"""


class Shop:
    """The application ``shop`` in a directory of its own, and pytest's runs on it."""

    def __init__(self, pytester: pytest.Pytester, port: int) -> None:
        self.pytester = pytester
        self.port = port
        #: The app's broker, at which nobody listens.
        self.url = f"redis://127.0.0.1:{port}/0"
        pytester.makepyfile(shop=SHOP.replace("{port}", str(port)))
        self.ini("celery_faults_app = shop:app")

    def ini(self, *lines: str) -> None:
        self.pytester.makeini("\n".join(["[pytest]", *lines]))

    def test(self, source: str, **more: str) -> None:
        """Write ``test_shop.py`` (and other test modules)."""
        self.pytester.makepyfile(**{"test_shop": source, **more})

    def run(self, *args: str, subprocess: bool = False, asyncio: str = "", anyio: bool = False) -> pytest.RunResult:
        """Run pytest on it, with warnings as errors; with pytest-asyncio in that mode, and anyio, or without them.

        Where pytest-asyncio is installed it warns of an option that the run does not set, and anyio imports trio.
        """
        mode = ("-o", "asyncio_default_fixture_loop_scope=function", "--asyncio-mode", asyncio)
        without = (*(() if asyncio else ("-p", "no:asyncio")), *(() if anyio else ("-p", "no:anyio")))
        args = (*(mode if asyncio else ()), *without, "-W", "error", *args)
        if subprocess:
            return self.pytester.runpytest_subprocess(*args, timeout=60)
        self.pytester.syspathinsert()
        # To Celery each task belongs to every app of the process. The next run imports `shop` anew.
        finalizers, default, current = set(_state._on_app_finalizers), _state.default_app, _state._tls.current_app
        try:
            return self.pytester.runpytest_inprocess(*args)
        finally:
            _state._on_app_finalizers.intersection_update(finalizers)
            _state.default_app, _state._tls.current_app = default, current

    def armed(self, *args: str, subprocess: bool = False, asyncio: str = "") -> pytest.RunResult:
        return self.run("--celery-faults", *args, subprocess=subprocess, asyncio=asyncio)


def section(result: pytest.RunResult, title: str) -> list[str]:
    """The lines, blank ones excepted, of a section of pytest's terminal output, from its title to the next title."""
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if re.fullmatch(rf"[=\-_ ]*\b{title}\b[=\-_ ]*", line))
    end = next((i for i in range(start + 1, len(lines)) if re.match(r"[=\-_]{3,}", lines[i])), len(lines))
    return [line for line in lines[start + 1 : end] if line]
