"""Tasks of the application of both sides: further ways to retry, classes of one's own, stamps, what lasts."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Task
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker.request import Request
from scenario_app import Hooked, app, note, record, safe_repr


@app.task(name="scenario_app.jittery", autoretry_for=(OSError,), retry_backoff=True, retry_backoff_max=2, max_retries=2)
def jittery() -> None:
    raise OSError("jitter")


@app.task(name="scenario_app.backoff_factor", autoretry_for=(OSError,), retry_backoff=0.3, retry_jitter=False)
def backoff_factor() -> None:
    raise OSError("no backoff is shorter than a second")


@app.task(name="scenario_app.growing", autoretry_for=(OSError,), max_retries=2, retry_backoff=True, retry_jitter=False)
def growing() -> None:
    raise OSError("growing")


@app.task(name="scenario_app.retries_two_types", bind=True, max_retries=2, default_retry_delay=60)
def retries_two_types(self: Any) -> None:
    """Retried, sooner than it is the rule, for two types of error, of which each is met once, and not for a third."""
    try:
        raise (ConnectionError, TimeoutError, LookupError)[self.request.retries]
    except (ConnectionError, TimeoutError) as exc:
        raise self.retry(exc=exc, countdown=0.2 if self.request.retries else 0.4) from exc


@app.task(name="scenario_app.late_soft_limit", acks_late=True, soft_time_limit=0.3)
def late_soft_limit() -> None:
    time.sleep(10)


@app.task(name="scenario_app.kept_on_soft_limit", acks_late=True, soft_time_limit=0.3, acks_on_failure_or_timeout=False)
def kept_on_soft_limit() -> None:
    time.sleep(10)


@app.task(name="scenario_app.fixed_delay", autoretry_for=(OSError,), retry_kwargs={"max_retries": 2, "countdown": 0.3})
def fixed_delay() -> None:
    raise OSError("fixed")


class RetriesTypeErrors(Task):
    abstract = True
    autoretry_for = (TypeError,)
    max_retries = 1
    default_retry_delay = 0.3


@app.task(name="scenario_app.retries_by_base", base=RetriesTypeErrors)
def retries_by_base() -> None:
    raise TypeError("by base class")


@app.task(name="scenario_app.retry_at", bind=True)
def retry_at(self: Any) -> str:
    if not self.request.retries:
        raise self.retry(eta=datetime.now(timezone.utc) + timedelta(seconds=1))
    return "done"


@app.task(name="scenario_app.retry_elsewhere", bind=True)
def retry_elsewhere(self: Any) -> str:
    if not self.request.retries:
        self.retry(countdown=0.2, queue="celery", priority=5, throw=False)
        note("goes on")
    return f"priority {self.request.delivery_info['priority']}"


@app.task(name="scenario_app.retry_expires", bind=True)
def retry_expires(self: Any) -> str:
    if not self.request.retries:
        raise self.retry(countdown=0.5, expires=0.1)
    return "done"


@app.task(name="scenario_app.retry_for_ever", bind=True, max_retries=None, default_retry_delay=0)
def retry_for_ever(self: Any) -> int:
    if self.request.retries < 5:
        raise self.retry()
    return int(self.request.retries)


class RecordingRequest(Request):
    """What the worker's main process knows of a task."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        record("on_accepted", self.id)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        record("on_timeout", self.id, soft=soft, timeout=timeout)

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        failed, value, _ = failed__retval__runtime
        record("on_success", self.id, failed=bool(failed), value=type(value).__name__)
        return super().on_success(failed__retval__runtime, **kwargs)

    def on_retry(self, exc_info: Any) -> None:
        record("on_retry of the request", self.id, exception=safe_repr(exc_info.exception))
        super().on_retry(exc_info)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        record("on_failure of the request", self.id, exception=safe_repr(exc_info.exception))
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)


class WithRequest(Hooked):
    abstract = True
    Request = RecordingRequest


@app.task(name="scenario_app.requested", base=WithRequest, bind=True)
def requested(self: Any, what: str) -> str:
    if what == "fails":
        raise ValueError(what)
    if what == "retries" and not self.request.retries:
        raise self.retry(countdown=0.2)
    if what == "sleeps":
        time.sleep(10)
    return what


class CountsCalls(Task):
    """State of a task class lasts as long as its process."""

    abstract = True
    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        type(self).calls += 1
        note(f"call {self.calls}")
        return super().__call__(*args, **kwargs)


@app.task(name="scenario_app.counted", base=CountsCalls)
def counted(x: int) -> int:
    return x


@app.task(name="scenario_app.stamped", bind=True)
def stamped(self: Any, *_: Any) -> Any:
    return {"stamps": self.request.stamps, "stamped_headers": self.request.stamped_headers}


@app.task(name="scenario_app.nap")
def nap(seconds: float) -> float:
    note("begins")
    time.sleep(seconds)
    note("ends")
    return seconds


@app.task(name="scenario_app.naps_until_the_limit")
def naps_until_the_limit() -> str:
    try:
        time.sleep(10)
    except SoftTimeLimitExceeded:
        return "in time"
    return "too late"


@app.task(name="scenario_app.late_nap", acks_late=True)
def late_nap(seconds: float) -> float:
    note("begins")
    time.sleep(seconds)
    note("ends")
    return seconds


@app.task(name="scenario_app.long_at_first", bind=True, acks_late=True)
def long_at_first(self: Any, seconds: float) -> str:
    """As long as the visibility timeout and longer, but for the time that it is redelivered."""
    note("begins")
    if self.request.delivery_info["redelivered"]:
        return "redelivered"
    time.sleep(seconds)
    note("ends")
    return "first"


@app.task(name="scenario_app.progressing", bind=True)
def progressing(self: Any) -> str:
    for step in range(3):
        self.update_state(state="PROGRESS", meta={"step": step})
        time.sleep(1)
    return "done"
