"""Which application is tested, and what stands outside of it."""

import json

import pytest

from worker.app import app
from worker.client import Client

# `test_retry_delays.py` runs pytest itself, to compare two runs with one seed.
pytest_plugins = ["pytester"]


def pytest_addoption(parser, pluginmanager):
    """Without pytest-asyncio, `test_async_caller.py` is skipped, and `--strict-config` must not refuse its setting."""
    if not pluginmanager.has_plugin("asyncio"):
        parser.addini("asyncio_default_fixture_loop_scope", "of pytest-asyncio, which is not installed")


@pytest.fixture
def celery_faults_app():
    """The application under test.

    A project with one suite says it in its configuration, ``celery_faults_app = worker.app:app``. A fixture holds for
    this folder whichever configuration pytest reads, so these tests can run together with those of another folder.
    """
    return app


@pytest.fixture(autouse=True)
def scratch(monkeypatch, tmp_path):
    """Where tasks keep what they need only while they run: `clean_up` deletes there, and in a test nowhere else."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("WORKER_SCRATCH", str(folder))
    return folder


class RatesService:
    """At the other end of the HTTP exchange: answers with its statuses in order. The last one stays."""

    def __init__(self):
        self.rates = {"EUR": 1.0, "CHF": 0.98}
        self.statuses = [200]
        self.asked = []

    def get(self, path):
        self.asked.append(path)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return status, json.dumps(self.rates).encode()


@pytest.fixture
def rates_service(monkeypatch):
    service = RatesService()
    monkeypatch.setattr(Client, "get", lambda client, path: service.get(path))
    return service
