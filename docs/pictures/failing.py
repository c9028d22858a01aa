"""A test that fails on purpose, for the pictures: of a night at the back office of `examples/`."""

import pytest

from pytest_celery_faults import Crash, Sleep
from worker.app import app
from worker.celery_tasks import add, archive, book, import_rates, pay_out, write_report_or_nothing
from worker.client import Client, ServiceDownError


@pytest.fixture
def celery_faults_app():
    return app


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    monkeypatch.setattr(Client, "get", lambda client, path: (200, b'{"EUR": 1.0}'))


@pytest.mark.inject(ServiceDownError("maintenance"), at="worker.client.Client.fetch_rates")
@pytest.mark.inject(OSError("the drive is gone"), task=archive, times=2)
@pytest.mark.inject(Sleep(beyond="soft_time_limit"), task=write_report_or_nothing)
@pytest.mark.inject(Crash(), task=book)
def test_the_night_goes_well(celery_faults, retry_recorder, tmp_path):
    (tmp_path / "books").touch()
    import_rates.delay("2024-05-31")
    archive.delay(str(tmp_path / "books"), str(tmp_path / "archive"))
    write_report_or_nothing.delay(str(tmp_path / "report"))
    pay_out.delay(-20)
    book.delay({"id": 7, "price": 12, "count": 30})
    add.apply_async((2, 2), countdown=60)

    celery_faults.worker.drain()

    assert retry_recorder.of(archive).delays == [10, 20]
