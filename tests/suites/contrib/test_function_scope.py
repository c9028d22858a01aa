"""With ``celery_app`` and ``celery_worker``: an app and a worker for each test."""

import time

import pytest
from celery import signals
from celery.exceptions import MaxRetriesExceededError
from celery.exceptions import TimeoutError as CeleryTimeoutError


def test_create_task(celery_app, celery_worker):
    @celery_app.task
    def mul(x, y):
        return x * y

    celery_worker.reload()
    assert mul.delay(4, 4).get(timeout=10) == 16


@pytest.mark.celery(task_default_queue="important")
def test_marker(celery_app, celery_worker):
    @celery_app.task(bind=True)
    def where(self):
        return self.request.delivery_info["routing_key"]

    celery_worker.reload()
    assert celery_app.conf.task_default_queue == "important"
    assert where.delay().get(timeout=10) == "important"


def test_parameters(celery_app, celery_worker, celery_config):
    assert celery_app.main == "suite"
    assert celery_app.conf.broker_url == celery_config["broker_url"]
    assert celery_worker.app is celery_app


def test_argument_checking(celery_app, celery_worker):
    @celery_app.task
    def one(x):
        return x

    with pytest.raises(TypeError):
        one.delay(1, 2)


def test_failure_is_raised(celery_app, celery_worker):
    @celery_app.task
    def fails():
        raise LookupError("not there")

    celery_worker.reload()
    result = fails.delay()
    with pytest.raises(LookupError, match="not there"):
        result.get(timeout=10)
    assert result.failed()
    assert "LookupError" in result.traceback


def test_timeout_of_the_caller(celery_app, celery_worker):
    @celery_app.task
    def slow():
        time.sleep(2)
        return "slow"

    celery_worker.reload()
    result = slow.delay()
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.5)
    assert result.get(timeout=10) == "slow"


def test_manual_retries_to_the_end(celery_app, celery_worker):
    @celery_app.task(bind=True, max_retries=2, default_retry_delay=0.1)
    def never(self):
        raise self.retry()

    celery_worker.reload()
    with pytest.raises(MaxRetriesExceededError):
        never.delay().get(timeout=10)


def test_signals_are_heard(celery_app, celery_worker):
    heard = []

    @celery_app.task
    def quiet():
        return 1

    @signals.task_success.connect(sender=quiet)
    def hear(sender, result, **_):
        heard.append((sender.name, result))

    celery_worker.reload()
    quiet.delay().get(timeout=10)
    deadline = time.monotonic() + 5
    while not heard and time.monotonic() < deadline:
        time.sleep(0.05)
    assert heard == [(quiet.name, 1)]


def test_nobody_consumes_that_queue(celery_app, celery_worker):
    @celery_app.task
    def unheard():
        return 1

    celery_worker.reload()
    with pytest.raises(CeleryTimeoutError):
        unheard.apply_async(queue="nobody").get(timeout=1)


@pytest.mark.xfail(strict=True, reason="the answer is another one")
def test_a_wrong_assertion(celery_app, celery_worker):
    @celery_app.task
    def answer():
        return 42

    celery_worker.reload()
    assert answer.delay().get(timeout=10) == 43
