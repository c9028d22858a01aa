"""Runs of pytest beside other plugins: those that a test names, and none that happens to be installed."""

from __future__ import annotations

import importlib.util

import pytest

from plugin_helpers import Shop


def needs(module: str, distribution: str) -> pytest.MarkDecorator:
    """Skip where a plugin is not installed; it is not imported here."""
    reason = f"{distribution} is not installed: tox -e company"
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=reason)


class Company:
    """pytest in a process of its own, with the plugins that are named."""

    def __init__(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shop = shop
        self.pytester = shop.pytester
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        # That of the run around this one would be for plugins that this one does not have.
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(self, *args: str, plugins: tuple[str, ...] = (), first: bool = False) -> pytest.RunResult:
        """Ours is loaded last, or first; the run is armed, and warnings are errors."""
        names = ("celery_faults", *plugins) if first else (*plugins, "celery_faults")
        loaded = [word for name in names for word in ("-p", name)]
        return self.pytester.runpytest_subprocess(*loaded, "-W", "error", "--celery-faults", *args, timeout=90)
