"""The tasks."""

import asyncio
import os
import shutil
import tempfile
import time
import traceback
from pathlib import Path

from celery import shared_task
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from . import branches, money
from .app import app
from .client import Client, ServiceDownError, TooManyRequestsError
from .tasks_base import AutoRetryTask, JitteredAutoRetryTask, LoggedTask, PatientAutoRetryTask

logger = get_task_logger(__name__)


@app.task
def add(x, y):
    return x + y


@app.task
def multiply(x, y):
    return x * y


# -- retries


@app.task(bind=True, default_retry_delay=30 * 60)
def import_rates(self, day):
    """Fetch the rates of a day; again in half an hour when the service is down, in a minute when it is only busy."""
    try:
        return Client().fetch_rates(day)
    except ServiceDownError as exc:
        raise self.retry(exc=exc)  # noqa: B904 - Celery keeps the cause: it is the `exc` of the retry
    except TooManyRequestsError as exc:
        raise self.retry(exc=exc, countdown=60)  # noqa: B904


@app.task(base=AutoRetryTask)
def total(prices):
    return sum(prices)


@app.task(base=PatientAutoRetryTask)
def total_of_year(prices):
    return sum(prices)


@app.task(base=JitteredAutoRetryTask)
def total_of_branch(prices):
    return sum(prices)


# Its queue is "celery", which the setting `task_routes` says.
@app.task(autoretry_for=(IOError,), max_retries=3, default_retry_delay=10)
def archive(source, target):
    """Copy a file to the archive, a network drive that comes and goes."""
    return shutil.copyfile(source, target)


# A branch that does not answer in time is asked again with all others: telling it twice changes nothing.
@app.task(autoretry_for=(asyncio.TimeoutError,), max_retries=3, default_retry_delay=10)
def tell_branches(names, day):
    """Tell all branches at once that there are rates for a day; the task takes as long as the slowest of them."""
    return asyncio.run(branches.tell_all(names, day))


# -- what is done about a failure: by a base class, by a callback, by a signal (`signals.py`)


@app.task(base=LoggedTask)
def share(costs, heads):
    return costs / heads


# A retry is no failure: the base class logs only what is final.
@app.task(base=LoggedTask, autoretry_for=(IOError,), max_retries=3, default_retry_delay=10, time_limit=5)
def share_file(path, heads):
    """Share the costs that a file lists, one a line; it lies on the drive that comes and goes."""
    return sum(map(float, Path(path).read_text().split())) / heads


@app.task
def error_handler(request, exc, traceback):
    """For `link_error`: logs what is known of a task that failed."""
    logger.error("Task %s failed: %r\n%s", request.id, exc, traceback)


def scratch_of(task_id):
    """The folder in which a task keeps what it needs only while it runs."""
    return Path(os.environ.get("WORKER_SCRATCH") or Path(tempfile.gettempdir(), "worker"), task_id)


# Of no application in particular: whichever runs in this process has it.
@shared_task
def clean_up(task_id):
    shutil.rmtree(scratch_of(task_id), ignore_errors=True)


# -- messages that cannot be worked


@app.task(acks_late=True, time_limit=5)
def book(order):
    """Book an order. One without an id is nobody's: it is rejected, since no retry would make it better."""
    if "id" not in order:
        raise Reject("an order without an id", requeue=False)
    return money.amount_of(order)


@app.task(bind=True)
def pay_out(self, amount):
    """Pay an amount out. When that fails, as for a negative one, what is known is handed on for somebody to look at."""
    try:
        return money.pay(amount)
    except ValueError as exc:
        handle_error.delay(self.request.id, str(exc), traceback.format_exc())
        raise


# Its queue is "dlq", which the setting `task_routes` says: it waits there until a worker is started for that queue.
@app.task
def handle_error(task_id, exception_text, traceback_text):
    logger.error("Task %s failed: %s\n%s", task_id, exception_text, traceback_text)


# -- tasks that take long; `sleep` stands for the work


@app.task(time_limit=5)
def write_report(path):
    """Write a report; it takes ten seconds, which is too long."""
    report = Path(path)
    report.write_text("half a report")
    try:
        time.sleep(10)
    except BaseException:
        # The time limit kills the process, so this does not see it.
        report.unlink()
        raise
    report.write_text("a report")


@app.task(soft_time_limit=4, time_limit=5)
def write_report_or_nothing(path):
    """The same, but what is half done is removed before the time limit strikes."""
    report = Path(path)
    report.write_text("half a report")
    try:
        time.sleep(10)
    except SoftTimeLimitExceeded:
        report.unlink()
        raise
    report.write_text("a report")


@app.task
def close_books(day):
    time.sleep(10)
    return f"{day} is closed"
