"""With ``start_worker`` itself: in a block, and for a ``unittest.TestCase``.

The module comes before the one that has a worker for the session: two real ones in a process share kombu's event loop,
and now and then one of them waits for ever at a connection of the other.
"""

import os
import unittest

import pytest
from celery import Celery
from celery.contrib.testing import tasks  # noqa: F401 - it has the task that start_worker pings
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TimeoutError as CeleryTimeoutError

URL = os.environ.get("SUITE_REDIS_URL", "redis://127.0.0.1:6379/0")
app = Celery("own", broker=URL, backend=URL, set_as_current=False)
app.conf.task_default_queue = "own"


@app.task
def double(x):
    return 2 * x


def test_in_a_block():
    with start_worker(app) as worker:
        assert worker.app is app
        assert double.delay(21).get(timeout=10) == 42


def test_without_it_nothing_happens():
    with start_worker(app, perform_ping_check=False):
        assert double.delay(1).get(timeout=10) == 2
    left = double.delay(2)
    with pytest.raises(CeleryTimeoutError):
        left.get(timeout=0.5)
    with start_worker(app, perform_ping_check=False):
        assert left.get(timeout=10) == 4


def test_an_error_in_the_block():
    with pytest.raises(LookupError), start_worker(app, perform_ping_check=False):
        raise LookupError


class TestDouble(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.worker = start_worker(app, perform_ping_check=False)
        cls.worker.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.worker.__exit__(None, None, None)
        super().tearDownClass()

    def test_one(self):
        type(self).result = double.delay(3)
        assert self.result.get(timeout=10) == 6

    def test_two(self):
        assert self.result.state == "SUCCESS"
        assert double.delay(4).get(timeout=10) == 8
