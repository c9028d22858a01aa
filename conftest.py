"""What pytest is told of this checkout before it reads its settings."""

import pytest


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Without pytest-asyncio, `--strict-config` must not refuse its setting."""
    if not pluginmanager.has_plugin("asyncio"):
        parser.addini("asyncio_default_fixture_loop_scope", "of pytest-asyncio, which is not installed")
