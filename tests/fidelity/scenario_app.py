"""The application of both sides: run in process by the harness, and by a real ``celery worker -P prefork``.

It writes down what Celery does: signals, log records, hooks and what task bodies say. Where a record goes is a
sink: on the real side a file that the worker and each of its children append to, one write for each line; in
process a list of the test. Without a sink nothing is written, so the process that only sends tasks stays silent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import Celery, Task, chain, current_task, group, signals
from celery.app.events import Events
from celery.backends.redis import RedisBackend
from celery.events import EventDispatcher
from celery.events.event import Event
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.states import READY_STATES
from celery.worker import state as worker_state
from celery.worker.control import inspect_command
from kombu.message import Message

LOG_VARIABLE = "FIDELITY_LOG"

# Not the current app of the process: the other tests of the suite must not find it.
app = Celery(
    "fidelity",
    broker=os.environ.get("FIDELITY_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("FIDELITY_BACKEND", "redis://127.0.0.1:1/1"),
    set_as_current=False,
    events="scenario_app.RecordingEvents",
    include=["asyncio_tasks", "more_tasks"],
)
app.conf.update(worker_send_task_events=True, task_send_sent_event=True)
app.conf.update(json.loads(os.environ.get("FIDELITY_CONF", "{}")))

# -- what is written down

# Children are forked from the process that imports this.
_main_process = os.getpid()


def _role_of_process() -> str:
    return "main" if os.getpid() == _main_process else "child"


def _append_to_file(record: dict[str, Any]) -> None:
    append(os.environ[LOG_VARIABLE], record)


def append(path: str, record: dict[str, Any]) -> None:
    """One write of one line with O_APPEND: lines of several processes do not mix."""
    line = json.dumps(record) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@dataclass
class _Recording:
    sink: Callable[[dict[str, Any]], None] | None
    role: Callable[[], str] = _role_of_process


recording = _Recording(_append_to_file if LOG_VARIABLE in os.environ else None)


def record(kind: str, task_id: str | None, **fields: Any) -> None:
    if recording.sink is not None:
        recording.sink({"at": time.time(), "role": recording.role(), "kind": kind, "id": task_id, **fields})


def note(text: str, task_id: str | None = None) -> None:
    """What a task body has to say."""
    record("note", task_id or current_task.request.id, text=text)


Receiver = Callable[..., "tuple[str | None, dict[str, Any]] | None"]


def _writes_down(signal: Any, kind: str = "") -> Callable[[Receiver], Receiver]:
    """The receiver says whose signal it is, and what stands in the record; ``None``: nothing is written."""

    def connect(receiver: Receiver) -> Receiver:
        def write(signal: Any, sender: Any, **arguments: Any) -> None:
            told = receiver(sender=sender, **arguments)
            if told is not None:
                task_id, fields = told
                given = f"{signal.name} of {_describe(sender)}: {', '.join(sorted(arguments))}"
                record(kind or signal.name, task_id, signal=given, **fields)

        signal.connect(write, weak=False)
        return receiver

    return connect


def _describe(sender: Any) -> str:
    if sender is None or isinstance(sender, str):
        return repr(sender)
    if isinstance(sender, Task):
        return "a task"
    # A worker has a `Pool` here, and an `AsynPool` in a process of its own.
    return type(sender).__name__.removeprefix("Asyn")


def _of_worker(**_: Any) -> tuple[None, dict[str, Any]]:
    return None, {}


for _signal in (
    signals.import_modules,
    signals.celeryd_init,
    signals.worker_init,
    signals.celeryd_after_setup,
    signals.worker_before_create_process,
    signals.worker_process_init,
    signals.worker_ready,
    signals.worker_shutdown,
):
    _writes_down(_signal)(_of_worker)


_for_good = ExitStack()


@signals.worker_init.connect
def _on_worker_init(**_: Any) -> None:
    if recording.sink is _append_to_file:
        kill_around_store()
        _for_good.enter_context(messages_are_watched())


@_writes_down(signals.worker_shutting_down)
def _on_shutting_down(sig: str, how: str, exitcode: int, **_: Any) -> Any:
    return None, {"sig": sig, "how": how, "exitcode": safe_repr(exitcode)}


@_writes_down(signals.worker_process_shutdown)
def _on_process_shutdown(exitcode: Any, **_: Any) -> Any:
    return None, {"exitcode": safe_repr(exitcode)}


@_writes_down(signals.before_task_publish, "publishing")
@_writes_down(signals.after_task_publish, "sent")
def _on_publish(headers: Any, **_: Any) -> Any:
    # A message that is published again is one of the same task: its number of retries tells them apart.
    if not isinstance(headers, dict) or "id" not in headers:
        return None
    return headers["id"], {"task": headers["task"], "retries": headers.get("retries"), "eta": bool(headers["eta"])}


@_writes_down(signals.task_received, "received")
def _on_received(request: Any, **_: Any) -> Any:
    redelivered = (request.delivery_info or {}).get("redelivered")
    return request.id, {"task": request.name, "redelivered": bool(redelivered)}


@_writes_down(signals.task_prerun, "prerun")
def _on_prerun(task_id: str, task: Any, **_: Any) -> Any:
    return task_id, {"task": task.name, "retries": task.request.retries}


@_writes_down(signals.task_postrun, "postrun")
def _on_postrun(task_id: str, task: Any, retval: Any, state: Any, **_: Any) -> Any:
    return task_id, {"task": task.name, "state": state, "retval": safe_repr(retval)}


@_writes_down(signals.task_success, "success")
def _on_success(sender: Any, result: Any, **_: Any) -> Any:
    return sender.request.id, {"task": sender.name, "result": safe_repr(result)}


@_writes_down(signals.task_failure, "failure")
def _on_failure(sender: Any, task_id: str, exception: Any, args: Any, kwargs: Any, einfo: Any, **_: Any) -> Any:
    return task_id, {
        "task": sender.name,
        "exception": safe_repr(exception),
        "args": safe_repr((args, kwargs)),
        "einfo": type(einfo).__name__,
    }


@_writes_down(signals.task_retry, "retry")
def _on_retry(sender: Any, request: Any, reason: Any = None, **_: Any) -> Any:
    when = getattr(reason, "when", 0)
    if isinstance(when, datetime):
        # Of an ETA there is always a little less left; half a second less is within what is allowed.
        when = float(round((when - datetime.now(when.tzinfo)).total_seconds()))
    return request.id, {"task": sender.name, "reason": safe_repr(reason), "when": safe_repr(when)}


@_writes_down(signals.task_revoked, "revoked")
def _on_revoked(sender: Any, request: Any, terminated: Any, signum: Any, expired: Any, **_: Any) -> Any:
    return request.id, {
        "task": sender.name,
        "terminated": terminated,
        "signum": safe_repr(signum),
        "expired": bool(expired),
    }


@_writes_down(signals.task_rejected, "rejected")
def _on_rejected(message: Any, exc: Any, **_: Any) -> Any:
    return (message.headers or {}).get("id"), {"exception": safe_repr(exc)}


@_writes_down(signals.task_unknown, "unknown")
def _on_unknown(name: str, id: str, exc: Any, **_: Any) -> Any:
    return id, {"task": name, "exception": safe_repr(exc)}


@_writes_down(signals.task_internal_error, "internal_error")
def _on_internal_error(sender: Any, task_id: str, exception: Any, **_: Any) -> Any:
    return task_id, {"task": sender.name, "exception": safe_repr(exception)}


# What differs from run to run; of a few others it is told whether they are there.
_NOT_TOLD = ("hostname", "utcoffset", "pid", "clock", "timestamp", "runtime", "uuid", "freq", "sw_sys", "sw_ver")
_TOLD_IF_THERE = ("traceback", "eta", "expires")


def _recorded_event(type: str, **fields: Any) -> Any:
    told = {name: value for name, value in fields.items() if name not in (*_NOT_TOLD, *_TOLD_IF_THERE)}
    there = {name: bool(fields[name]) for name in _TOLD_IF_THERE if name in fields}
    record("event", fields.get("uuid"), type=type, fields=json.loads(json.dumps({**told, **there}, default=safe_repr)))
    return Event(type, **fields)


class RecordingDispatcher(EventDispatcher):
    """Celery's own; a monitor reads these events."""

    def send(self, type: str, *args: Any, **fields: Any) -> Any:
        return super().send(type, *args, Event=_recorded_event, **fields)

    def publish(self, *args: Any, **options: Any) -> Any:
        return super().publish(*args, Event=_recorded_event, **options)


class RecordingEvents(Events):
    dispatcher_cls = "scenario_app:RecordingDispatcher"


@contextmanager
def messages_are_watched() -> Iterator[None]:
    """Write down what becomes of each message: no signal and no event tells of it."""
    originals = {name: getattr(Message, name) for name in ("ack", "reject", "requeue")}

    def watched(name: str) -> Callable[..., Any]:
        def settle(self: Any, *args: Any, **options: Any) -> Any:
            settled = originals[name](self, *args, **options)
            # A reject with `requeue=True` is a requeue, whichever of the two was called.
            requeued = name == "requeue" or (name == "reject" and (options.get("requeue") or args[:1] == (True,)))
            record("requeue" if requeued else name, (self.headers or {}).get("id"))
            return settled

        return settle

    for name in originals:
        setattr(Message, name, watched(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Message, name, original)


class LogRecorder(logging.Handler):
    """Celery's warnings and errors; the template of a message, since its arguments hold ids, times and process ids."""

    names = ("celery.worker.request", "celery.worker.strategy", "celery.worker.consumer.consumer", "celery.app.trace")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, log: logging.LogRecord) -> None:
        template = str(log.msg).strip().splitlines()[0] if log.msg else ""
        description = log.args.get("description") if isinstance(log.args, dict) else None
        record("log", None, logger=log.name, level=log.levelname, text=template, description=description)


_log_recorder = LogRecorder()
for _name in LogRecorder.names:
    logging.getLogger(_name).addHandler(_log_recorder)


def safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as exc:
        return f"<{type(value).__name__}, whose repr raises {type(exc).__name__}>"


@inspect_command()
def outstanding(state: Any) -> dict[str, int]:
    """How many requests the worker has received and not finished; asked over the network, on the real side.

    A worker looks every five seconds whether a child is gone; asked, it looks at once.
    """
    pool = state.consumer.pool._pool
    pool.maintain_pool()
    return {
        "children": sum(child.exitcode is None for child in pool._pool),
        "requests": len(worker_state.reserved_requests) + len(worker_state.active_requests),
        "scheduled": len(_scheduled(state)),
    }


def _scheduled(state: Any) -> list[Any]:
    entries = [item.entry for item in state.consumer.timer.schedule.queue]
    return [entry for entry in entries if entry.args and hasattr(entry.args[0], "task_id") and not entry.canceled]


# -- tasks


class Hooked(Task):
    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        record("before_start", task_id, args=safe_repr((args, kwargs)))

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        record("on_success", task_id, retval=safe_repr(retval))

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("on_failure", task_id, exception=safe_repr(exc), einfo=type(einfo).__name__)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("on_retry", task_id, exception=safe_repr(exc), einfo=type(einfo).__name__)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("after_return", task_id, status=status, retval=safe_repr(retval), einfo=type(einfo).__name__)


class OrderError(Exception):
    """Carries arguments of several types."""


class PickyError(Exception):
    """Can be pickled, not unpickled: the classic mistake of an ``__init__`` of one's own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class LockedError(Exception):
    """Cannot be pickled at all."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def boom(text: str = "boom") -> None:
    raise ValueError(text)


@app.task
def boom_of_list(value: Any) -> None:
    raise ValueError(f"no use for {value!r}")


@app.task
def boom_order() -> None:
    raise OrderError("stuck", 7, None, {"a": [1]})


@app.task
def boom_nested() -> None:
    try:
        raise KeyError("inner")
    except KeyError as exc:
        raise RuntimeError("outer") from exc


@app.task(throws=(ValueError,))
def boom_expected() -> None:
    raise ValueError("expected")


@app.task
def sleeper(seconds: float) -> float:
    note("begins")
    try:
        time.sleep(seconds)
        note("slept")
    except BaseException as exc:
        note(f"interrupted by {type(exc).__name__}")
        raise
    finally:
        note("finally")
    return seconds


@app.task(acks_late=True)
def late_sleeper(seconds: float) -> float:
    note("begins")
    try:
        time.sleep(seconds)
        note("slept")
    finally:
        note("finally")
    return seconds


@app.task(bind=True)
def retry_once(self: Any, countdown: float) -> str:
    note(f"attempt {self.request.retries}")
    if not self.request.retries:
        raise self.retry(exc=ValueError("try again"), countdown=countdown)
    return "done"


@app.task(bind=True, acks_late=True)
def late_retry_once(self: Any, countdown: float) -> str:
    if not self.request.retries:
        raise self.retry(exc=ValueError("try again"), countdown=countdown)
    return "done"


@app.task(bind=True, max_retries=1, default_retry_delay=0.3)
def retry_to_the_end(self: Any) -> None:
    raise self.retry(exc=ValueError("never"))


@app.task(bind=True, max_retries=1)
def retry_without_exc(self: Any) -> None:
    raise self.retry(countdown=0.3)


@app.task(bind=True, max_retries=0)
def retry_in_except(self: Any) -> None:
    try:
        raise KeyError("caught")
    except KeyError:
        self.retry(countdown=0)


@app.task(bind=True)
def retry_changed(self: Any, n: int) -> int:
    if n < 3:
        raise self.retry(args=(n + 1,), countdown=0)
    return n


@app.task(autoretry_for=(OSError,), retry_backoff=True, retry_backoff_max=1, retry_jitter=False, max_retries=2)
def autoretry() -> None:
    raise OSError("backoff")


@app.task(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,), max_retries=2)
def autoretry_not_for() -> None:
    raise FileNotFoundError("not this one")


@app.task(bind=True, base=Hooked, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0)
def hooked_retry(self: Any) -> str:
    if not self.request.retries:
        raise OSError("once")
    return "done"


@app.task
def ignored() -> None:
    raise Ignore("of no interest")


@app.task(bind=True)
def ignored_with_state(self: Any) -> None:
    self.update_state(state="CUSTOM", meta={"progress": 50})
    raise Ignore


@app.task
def reject_early(requeue: bool) -> None:
    raise Reject(ValueError("bad letter"), requeue=requeue)


@app.task(acks_late=True)
def reject_late() -> None:
    raise Reject("bad letter", requeue=False)


@app.task(acks_late=True, base=Hooked)
def reject_late_hooked() -> None:
    raise Reject("bad letter", requeue=False)


@app.task(bind=True, acks_late=True)
def requeue_once(self: Any) -> str:
    if not self.request.delivery_info["redelivered"]:
        raise Reject("come again", requeue=True)
    return "done"


@app.task(soft_time_limit=0.3)
def soft_caught() -> str:
    try:
        time.sleep(10)
    except SoftTimeLimitExceeded as exc:
        note(f"caught {exc!r}")
        return "cleaned up"
    return "never"


@app.task(soft_time_limit=0.3, base=Hooked)
def soft_uncaught() -> None:
    try:
        time.sleep(10)
    finally:
        note("finally")


@app.task(soft_time_limit=0.3, time_limit=0.6, base=Hooked)
def soft_then_hard() -> None:
    try:
        time.sleep(10)
    except SoftTimeLimitExceeded:
        note("soft")
        time.sleep(10)
    finally:
        note("finally")


@app.task(time_limit=0.3)
def hard_limit() -> None:
    try:
        time.sleep(10)
    except BaseException as exc:
        note(f"interrupted by {exc!r}")
        raise
    finally:
        note("finally")


@app.task(time_limit=0.3)
def hard_limit_slow_to_leave() -> None:
    try:
        time.sleep(10)
    finally:
        note("cleaning up")
        time.sleep(3)
        note("cleaned up")


@app.task(time_limit=0.3)
def hard_limit_swallowed() -> str:
    try:
        time.sleep(10)
    except BaseException as exc:
        note(f"swallowed {exc!r}")
    return "survived"


@app.task(time_limit=0.3)
def hard_limit_sends() -> None:
    try:
        time.sleep(10)
    finally:
        add.delay(8, 8)


@app.task(time_limit=0.3, base=Hooked)
def hooked_hard_limit() -> None:
    time.sleep(10)


@app.task(time_limit=0.3, acks_late=True)
def late_hard_limit() -> None:
    time.sleep(10)


@app.task(time_limit=0.3, ignore_result=True)
def hard_limit_ignored() -> None:
    time.sleep(10)


@app.task(bind=True, time_limit=0.3, acks_late=True, acks_on_failure_or_timeout=False)
def hard_limit_requeued(self: Any) -> str:
    if not self.request.delivery_info["redelivered"]:
        time.sleep(10)
    return "done"


@app.task(acks_late=True, acks_on_failure_or_timeout=False)
def late_boom_not_acked() -> None:
    raise ValueError("stays")


@app.task(acks_late=True)
def late_boom() -> None:
    raise ValueError("acked all the same")


@app.task
def errback(request: Any, exc: Any, traceback: Any) -> None:
    note(f"errback of {request.task} with {safe_repr(exc)}, traceback {'given' if traceback else 'None'}", request.id)


@app.task
def failing_errback(request: Any, exc: Any, traceback: Any) -> None:
    note("errback that fails", request.id)
    raise RuntimeError("errback")


@app.task
def old_errback(task_id: str) -> None:
    note("old errback")


@app.task
def immutable_errback() -> None:
    note("immutable errback")


@app.task
def linked(value: Any) -> Any:
    note(f"linked got {value!r}")
    return value


@app.task(bind=True)
def replaced(self: Any, x: int) -> None:
    note("before replace")
    raise self.replace(add.s(x, 1))


@app.task(bind=True)
def replaced_by_chain(self: Any, x: int) -> None:
    raise self.replace(chain(add.s(x, 1), add.s(1)))


@app.task(bind=True)
def replaced_by_group(self: Any, x: int) -> None:
    raise self.replace(group(add.s(x, 1), add.s(x, 2)))


@app.task(ignore_result=True)
def silent(fail: bool) -> str:
    note("ran")
    if fail:
        raise ValueError("silent")
    return "said nothing"


@app.task(ignore_result=True, store_errors_even_if_ignored=True)
def silent_but_errors() -> None:
    raise ValueError("stored")


@app.task
def survivor() -> str:
    note("begins")
    try:
        time.sleep(10)
    except BaseException as exc:
        note(f"swallowed {exc!r}")
        time.sleep(0.3)  # by then the main process has stored what it knows
    return "survived"


@app.task
def slow_to_leave() -> None:
    note("begins")
    try:
        time.sleep(10)
    finally:
        note("cleaning up")
        time.sleep(0.5)
        note("cleaned up")


@app.task
def leave(code: Any) -> None:
    sys.exit(code)


@app.task(acks_late=True)
def late_leave(code: Any) -> None:
    sys.exit(code)


@app.task
def raise_exit(code: Any) -> None:
    raise SystemExit(code)


@app.task
def exit_by_sys() -> None:
    try:
        sys.exit("with words")
    finally:
        note("finally")


# -- a child that is killed


def die() -> None:
    """SIGKILL; in process a fault strikes here instead."""
    assert recording.sink is _append_to_file, "this would have killed pytest"
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(point: str) -> bool:
    """Whether the task that runs is to be killed there, when it runs for the first time."""
    request = current_task.request
    return getattr(request, "dies_at", None) == point and not request.delivery_info["redelivered"]


def _body_of_a_task_that_dies() -> str:
    note("begins")
    if dies_at("begin"):
        die()
    try:
        return "done"
    finally:
        note("ends")
        if dies_at("end"):
            die()


@app.task
def dies() -> str:
    return _body_of_a_task_that_dies()


@app.task(acks_late=True)
def dies_late() -> str:
    return _body_of_a_task_that_dies()


@app.task(acks_late=True, reject_on_worker_lost=True)
def dies_late_requeued() -> str:
    return _body_of_a_task_that_dies()


def kill_around_store() -> None:
    """In a real child: die before or after the final state is stored."""
    original = RedisBackend.store_result

    def store_result_or_die(self: Any, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        final = state in READY_STATES and current_task and current_task.request.id == task_id
        if final and dies_at("store"):
            die()
        stored = original(self, task_id, result, state, *args, **kwargs)
        if final and dies_at("stored"):
            die()
        return stored

    RedisBackend.store_result = store_result_or_die


@app.task
def raise_picky() -> None:
    raise PickyError(3, "no way back")


@app.task
def raise_locked() -> None:
    raise LockedError("no way out")


@app.task
def return_object() -> Any:
    return object()


@app.task
def return_set() -> Any:
    return {"a": (1, 2), "b": [{"c": None}]}


@app.task
def nested_get() -> int:
    return add.delay(1, 2).get(timeout=5)


@app.task
def sends_another() -> str:
    return add.delay(5, 6).id


@app.task(base=Hooked)
def hooked_success(x: int) -> int:
    note("body")
    return x


@app.task(base=Hooked)
def hooked_failure(x: int) -> None:
    note("body")
    raise ValueError(x)


@app.task(base=Hooked)
def hooked_ignore() -> None:
    raise Ignore("hooked")


class BadHooks(Task):
    abstract = True
    bad = ""

    def _maybe(self, name: str, task_id: str) -> None:
        record(name, task_id)
        if self.bad == name:
            raise RuntimeError(name)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self._maybe("before_start", task_id)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self._maybe("on_success", task_id)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._maybe("on_failure", task_id)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._maybe("after_return", task_id)


@app.task(base=BadHooks, bad="before_start")
def bad_before_start() -> str:
    return "done"


@app.task(base=BadHooks, bad="on_success")
def bad_on_success() -> str:
    return "done"


@app.task(base=BadHooks, bad="on_failure")
def bad_on_failure() -> None:
    raise ValueError("body")


@app.task(base=BadHooks, bad="after_return")
def bad_after_return() -> str:
    return "done"


@app.task(track_started=True)
def tracked(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@app.task(bind=True)
def who(self: Any) -> dict[str, Any]:
    request = self.request
    return {
        "is_eager": request.is_eager,
        "called_directly": request.called_directly,
        "retries": request.retries,
        "delivery_info": request.delivery_info,
        "origin is set": bool(request.origin),
        "hostname is set": bool(request.hostname),
        "root is me": request.root_id == request.id,
        "parent": request.parent_id,
        "timelimit": request.timelimit,
        "expires": bool(request.expires),
        "eta": bool(request.eta),
        "reply_to is set": bool(request.reply_to),
        "correlation id is mine": request.correlation_id == request.id,
        "argsrepr": request.argsrepr,
        "kwargsrepr": request.kwargsrepr,
        "ignore_result": request.ignore_result,
        "headers": request.headers,
        "stamps": request.stamps,
    }


@app.task(rate_limit="2/s")
def limited(n: int) -> int:
    return n


@app.task
def mutate(values: list[int]) -> list[int]:
    values.append(99)
    return values


@app.task(bind=True)
def stack_depth(self: Any) -> str:
    add(1, 2)
    return str(current_task.name)


@app.task
def applied_inside() -> Any:
    return boom.apply(("eager",)).state
