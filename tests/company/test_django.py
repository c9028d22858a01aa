"""pytest-django: the test's transaction is that of its tasks."""

from __future__ import annotations

import pytest

from company import needs

pytestmark = [needs("django", "Django"), needs("pytest_django", "pytest-django")]

SETTINGS = """
import os
import sqlite3
from pathlib import Path

class Connection(sqlite3.Connection):
    # Those of databases in another process have one, and Celery closes it in a pool process.
    def fileno(self):
        return DESCRIPTOR

DESCRIPTOR = os.open(__file__, os.O_RDONLY)
SECRET_KEY = "x"
INSTALLED_APPS = ["orders"]
USE_TZ = True
HERE = Path(__file__).parent
# A file: Django closes no connection to ":memory:", whatever it is told.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": HERE / "db.sqlite3",
        "TEST": {"NAME": HERE / "test.sqlite3"},
        "OPTIONS": {"factory": Connection},
    }
}
"""

CELERY = """
from celery import Celery

app = Celery("project", broker="{url}", backend="{url}")
app.autodiscover_tasks()
"""

MODELS = """
from django.db import models

class Order(models.Model):
    name = models.CharField(max_length=20)
    paid = models.BooleanField(default=False)
"""

TASKS = """
import time

from celery import shared_task
from django.db import connections, transaction

from orders.models import Order

CONNECTIONS = []

@shared_task(autoretry_for=(OSError,), retry_backoff=True)
def pay(order_id):
    CONNECTIONS.append(connections["default"])
    Order.objects.filter(pk=order_id).update(paid=True)

@shared_task
def count():
    return Order.objects.count()

@shared_task
def create_slowly(name):
    time.sleep(5)
    Order.objects.create(name=name)
    time.sleep(5)
    return Order.objects.count()

@shared_task(time_limit=5)
def hang_in_transaction():
    with transaction.atomic(), transaction.atomic():
        Order.objects.create(name="killed")
        time.sleep(60)
"""

IMPORTS = """
import os
import pytest
from django.conf import settings
from django.db import connection, transaction
from orders.models import Order
from orders.tasks import CONNECTIONS, count, create_slowly, hang_in_transaction, pay

"""


@pytest.fixture
def project(company, monkeypatch):
    """A Django project with one application."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "settings")
    company.pytester.makepyfile(settings=SETTINGS, celeryapp=CELERY.replace("{url}", company.shop.url))
    package = company.pytester.mkpydir("orders")
    package.joinpath("models.py").write_text(MODELS)
    package.joinpath("tasks.py").write_text(TASKS)
    company.shop.ini("celery_faults_app = celeryapp:app", "pythonpath = .")

    def run(source, *args, **options):
        company.pytester.makepyfile(test_orders=IMPORTS + source)
        return company.run(*args, plugins=("django", *options.pop("plugins", ())), **options)

    return run


def test_tasks_see_the_tests_transaction_and_it_sees_what_they_did(project):
    result = project("""
@pytest.mark.inject(OSError, times=2)
@pytest.mark.django_db
def test_pay(celery_faults, retry_recorder):
    before = connection.connection
    order = Order.objects.create(name="book")
    pay.delay(order.pk).get()
    order.refresh_from_db()
    assert order.paid
    assert retry_recorder.count == 2
    assert connection.connection is before
    assert connection.in_atomic_block

@pytest.mark.django_db
def test_nothing_is_left_of_it(celery_faults):
    assert count.delay().get() == 0
""")
    result.assert_outcomes(passed=2)


def test_the_connection_stays_open_without_a_transaction(project):
    result = project("""
@pytest.mark.celery_faults(concurrency=2)
@pytest.mark.django_db(transaction=True)
def test_two_at_once(celery_faults):
    Order.objects.create(name="book")
    before = connection.connection
    orders = Order.objects.iterator()
    results = [create_slowly.delay("first"), create_slowly.delay("second")]
    assert sorted(result.get() for result in results) == [3, 3]
    assert next(orders).name == "book"
    assert connection.connection is before
    os.fstat(settings.DESCRIPTOR)
""")
    result.assert_outcomes(passed=1)


def test_a_worker_that_starts_again_leaves_the_connection_alone(project):
    result = project("""
@pytest.mark.django_db
def test_restart(celery_faults):
    Order.objects.create(name="book")
    assert count.delay().get() == 1
    celery_faults.worker.stop()
    celery_faults.worker.start()
    assert count.delay().get() == 1
    celery_faults.worker.crash()
    celery_faults.worker.start()
    assert count.delay().get() == 1
""")
    result.assert_outcomes(passed=1)


def test_on_commit_fires_where_something_commits(project):
    result = project("""
@pytest.mark.inject(OSError, times=1)
@pytest.mark.django_db(transaction=True)
def test_with_a_real_commit(celery_faults):
    with transaction.atomic():
        order = Order.objects.create(name="book")
        pay.delay_on_commit(order.pk)
        assert not celery_faults.sent.of(pay)
    celery_faults.worker.drain()
    order.refresh_from_db()
    assert order.paid

@pytest.mark.inject(OSError, times=1)
@pytest.mark.django_db
def test_with_captured_callbacks(celery_faults, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        order = Order.objects.create(name="book")
        pay.delay_on_commit(order.pk)
    celery_faults.worker.drain()
    order.refresh_from_db()
    assert order.paid
""")
    result.assert_outcomes(passed=2)


def test_a_fault_that_waits_for_a_commit_says_so(project):
    result = project("""
@pytest.mark.inject(OSError, times=1)
@pytest.mark.django_db
def test_pay(celery_faults):
    order = Order.objects.create(name="book")
    pay.delay_on_commit(order.pk)
    celery_faults.worker.drain()

@pytest.mark.inject(OSError, times=1)
@pytest.mark.django_db
def test_nothing_pending(celery_faults):
    celery_faults.worker.drain()
""")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*1 callback of transaction.on_commit waits *django_db(transaction=True)*"])
    assert str(result.stdout).count("on_commit waits") == 1


def test_what_a_killed_task_did_in_a_transaction_is_rolled_back(project):
    result = project("""
@pytest.mark.django_db
def test_in_the_tests_transaction(celery_faults):
    Order.objects.create(name="mine")
    hang_in_transaction.delay()
    celery_faults.worker.drain()
    assert Order.objects.get().name == "mine"
    assert len(connection.atomic_blocks) == 1

@pytest.mark.django_db(transaction=True)
def test_in_its_own(celery_faults):
    hang_in_transaction.delay()
    celery_faults.worker.advance(1)
    celery_faults.worker.crash()
    assert Order.objects.count() == 0
    assert not connection.in_atomic_block

@pytest.mark.django_db
def test_nothing_is_left_of_them(celery_faults):
    assert count.delay().get() == 0
""")
    result.assert_outcomes(passed=3)


def test_a_test_case_of_djangos(project):
    result = project("""
from django.test import TestCase, TransactionTestCase

@pytest.mark.usefixtures("celery_faults")
class PayTest(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.order = Order.objects.create(name="book")

    @pytest.mark.inject(OSError, times=1)
    def test_pay(self):
        pay.delay(self.order.pk).get()
        self.order.refresh_from_db()
        self.assertTrue(self.order.paid)

    def test_count(self):
        self.assertEqual(count.delay().get(), 1)

    @pytest.mark.inject(OSError, times=1)
    def test_captured(self):
        with self.captureOnCommitCallbacks(execute=True):
            pay.delay_on_commit(self.order.pk)
        self.faults.worker.drain()
        self.order.refresh_from_db()
        self.assertTrue(self.order.paid)

    @pytest.mark.inject(OSError, times=1)
    def test_never_committed(self):
        pay.delay_on_commit(self.order.pk)
        self.faults.worker.drain()

    @pytest.fixture(autouse=True)
    def _faults(self, celery_faults):
        self.faults = celery_faults

@pytest.mark.usefixtures("celery_faults")
class PayInTransactionTest(TransactionTestCase):
    @pytest.mark.inject(OSError, times=1)
    def test_committed(self):
        with transaction.atomic():
            order = Order.objects.create(name="book")
            result = pay.delay_on_commit(order.pk)
        self.faults.worker.drain()
        order.refresh_from_db()
        self.assertTrue(order.paid)
        self.assertEqual(connection.connection.fileno(), settings.DESCRIPTOR)

    @pytest.fixture(autouse=True)
    def _faults(self, celery_faults):
        self.faults = celery_faults

    def test_is_empty_again(self):
        self.assertEqual(count.delay().get(), 0)
""")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*never fired*", "*1 callback of transaction.on_commit waits*captureOnCommit*"])


@needs("pytest_asyncio", "pytest-asyncio")
def test_an_async_test_has_another_connection_than_its_tasks(project):
    result = project(
        """
@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
async def test_pay(celery_faults):
    order = await Order.objects.acreate(name="book")
    await celery_faults.worker.aget(pay.delay(order.pk))
    await order.arefresh_from_db()
    assert order.paid
    assert CONNECTIONS[0].connection is not None

def test_that_is_closed_with_their_thread():
    assert CONNECTIONS[0].connection is None
""",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        plugins=("asyncio",),
    )
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("fixture", ["celery_session_worker", "worker"])
def test_a_worker_of_several_tests(project, fixture):
    """Of Celery's test tools: it starts before a test's transaction, and lives longer."""
    result = project(f"""
from celery.contrib.testing import tasks
from celery.contrib.testing.worker import start_worker
from celeryapp import app

pytest_plugins = ("celery.contrib.pytest",)

@pytest.fixture(scope="session")
def celery_session_app():
    return app

@pytest.fixture(scope="session")
def worker():
    with start_worker(app, perform_ping_check=False) as worker:
        yield worker

@pytest.mark.inject(OSError, times=2)
@pytest.mark.django_db
def test_pay(retry_recorder, {fixture}):
    order = Order.objects.create(name="book")
    before = connection.connection
    pay.delay(order.pk).get()
    order.refresh_from_db()
    assert order.paid
    assert retry_recorder.count == 2
    assert connection.connection is before and connection.in_atomic_block
    create_slowly.delay("left")

@pytest.mark.django_db
def test_what_was_under_way_goes_on_in_the_transaction_of_the_next_test({fixture}):
    assert Order.objects.count() == 0
    assert count.delay().get() == 1
    assert [order.name for order in Order.objects.all()] == ["left"]

@pytest.mark.django_db
def test_a_killed_task({fixture}):
    Order.objects.create(name="mine")
    result = hang_in_transaction.delay()
    with pytest.raises(Exception):
        result.get()
    assert Order.objects.count() == 1
    assert connection.in_atomic_block

def test_without_the_database({fixture}):
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        count.delay().get()
""")
    result.assert_outcomes(passed=4)
