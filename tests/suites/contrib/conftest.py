"""Set up as Celery's documentation shows: https://docs.celeryq.dev/en/stable/userguide/testing.html."""

import os

import pytest

pytest_plugins = ("celery.contrib.pytest",)


@pytest.fixture(scope="session")
def celery_config():
    url = os.environ.get("SUITE_REDIS_URL", "redis://127.0.0.1:6379/0")
    return {"broker_url": url, "result_backend": url, "task_create_missing_queues": True}


@pytest.fixture(scope="session")
def celery_includes():
    return ["suite_tasks"]


@pytest.fixture(scope="session")
def celery_parameters():
    return {"name": "suite", "strict_typing": True}


@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {"queues": ("celery", "important")}
