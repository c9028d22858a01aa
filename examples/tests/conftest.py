"""Which application is tested, and what stands outside of it."""

import pytest

from worker import client
from worker.app import app

# `test_retry_delays.py` runs pytest itself, to compare two runs with one seed.
pytest_plugins = ["pytester"]


@pytest.fixture
def celery_faults_app():
    """The application under test.

    A project with one suite says it in its configuration, ``celery_faults_app = worker.app:app``. A fixture holds for
    this folder whichever configuration pytest reads, so these tests can run together with those of another folder.
    """
    return app


class Rates:
    """In place of the rates service: gives its answers in order, an exception by raising it. The last one stays."""

    def __init__(self):
        self.answers = []
        self.asked = []

    def fetch(self, day):
        self.asked.append(day)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def rates(monkeypatch):
    service = Rates()
    monkeypatch.setattr(client, "fetch_rates", service.fetch)
    return service
