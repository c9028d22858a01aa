"""The scenarios: each sends tasks and says what to wait for, on whichever side the driver stands.

A driver offers ``get`` (wait for a result and write down what the caller gets), ``settle`` (until nothing is left
to do), ``until`` (until something was written down for a task), ``pass_time`` and, after each scenario, collects
what is left behind.

``track`` names a task id that no record of the worker would mention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import scenario_app as tasks
from celery import chain, chord, group
from fidelity_expected import (
    IN_AUTORETRY,
    IN_BODY,
    IN_BODY_AND_ERRBACK,
    IN_BODY_FROM_5_7,
    IN_RETRY,
    IN_SLEEP,
    IN_STORE,
    IS_5_7,
    LEFT,
    Difference,
    Shows,
    killed,
    says,
)
from scenario_app import app

Function = Callable[[Any], None]

#: How long a task is busy that a scenario does something beside: a real side under load may need a second for it.
BUSY = 2
CHILD_REPLACED_WITHIN = 6.0
WORKER_RESTARTED_WITHIN = 6.0

_STORED = {"traceback": None, "children": []}


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    ``conf`` are settings of the worker, ``fresh`` asks for a worker of its own, ``loses_child`` says that a child
    is killed or leaves, ``alone`` that one task is there at a time, so that all that happens has one order. There
    are ``workers`` real workers, each with one child; here so many children of one. ``restarts``: a worker is
    stopped and started again, which takes real ones a while. ``jitter`` is how long the waits before the retries
    may be, in seconds. So many requests as ``forgotten`` says stay active for ever. ``stored_twice``: of two ends
    of a task which are stored one right after the other the caller gets the one or the other. ``expected`` is what
    differs on purpose, ``shows`` what can be learned of Celery.
    """

    function: Function
    conf: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    loses_child: bool = False
    alone: bool = False
    expected: Difference | None = None
    shows: Shows | None = None
    workers: int = 1
    restarts: bool = False
    jitter: tuple[float, ...] = ()
    forgotten: int = 0
    stored_twice: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def tolerance(self) -> float:
        """Seconds that the real run may take longer."""
        return self.loses_child * CHILD_REPLACED_WITHIN + self.restarts * WORKER_RESTARTED_WITHIN

    @property
    def difference(self) -> Difference | None:
        """The difference to be found with the Celery that is installed."""
        return self.expected if self.expected is not None and self.expected.applies else None


SCENARIOS: list[Scenario] = []

_OPTIONS = {one.name for one in fields(Scenario)} - {"function", "conf"}


def scenario(**options: Any) -> Callable[[Function], Function]:
    """Options are those of `Scenario`, and settings of Celery's."""
    own = {name: value for name, value in options.items() if name in _OPTIONS}
    conf = {name: value for name, value in options.items() if name not in _OPTIONS}

    def add(function: Function) -> Function:
        SCENARIOS.append(Scenario(function, conf, **own))
        return function

    return add


# -- results and exceptions


@scenario()
def success(driver: Any) -> None:
    driver.get(tasks.add.delay(2, 3))


@scenario(expected=IN_BODY)
def failure(driver: Any) -> None:
    driver.get(tasks.boom.delay())


@scenario(expected=IN_BODY)
def failure_with_arguments(driver: Any) -> None:
    driver.get(tasks.boom_order.delay())


@scenario(expected=IN_BODY)
def failure_with_cause(driver: Any) -> None:
    driver.get(tasks.boom_nested.delay())


@scenario(expected=IN_BODY)
def failure_that_is_expected(driver: Any) -> None:
    driver.get(tasks.boom_expected.delay())


@scenario(expected=IN_BODY)
def exception_that_cannot_be_unpickled(driver: Any) -> None:
    driver.get(tasks.raise_picky.delay())


@scenario(
    expected=IN_BODY,
    shows=Shows(
        "An exception that cannot be pickled reaches the caller as `UnpickleableExceptionWrapper`.",
        lambda real: "UnpickleableExceptionWrapper" in str(real.seen),
    ),
)
def exception_that_cannot_be_pickled(driver: Any) -> None:
    driver.get(tasks.raise_locked.delay())


@scenario(expected=IN_STORE)
def result_that_cannot_be_stored(driver: Any) -> None:
    driver.get(tasks.return_object.delay())


@scenario()
def result_changed_by_json(driver: Any) -> None:
    driver.get(tasks.return_set.delay())


@scenario(expected=IN_BODY)
def wrong_arguments(driver: Any) -> None:
    driver.get(app.send_task("scenario_app.add", (1, 2, 3)))


@scenario()
def what_a_task_sees_of_its_request(driver: Any) -> None:
    driver.get(tasks.who.apply_async(countdown=0.3, expires=60, time_limit=20, soft_time_limit=10, priority=3))


@scenario()
def arguments_are_copies(driver: Any) -> None:
    values = [1, 2]
    driver.get(tasks.mutate.delay(values))
    driver.observe(values)


@scenario()
def task_called_directly_inside_a_task(driver: Any) -> None:
    driver.get(tasks.stack_depth.delay())


@scenario()
def task_applied_eagerly_inside_a_task(driver: Any) -> None:
    driver.get(tasks.applied_inside.delay())


@scenario()
def state_while_running(driver: Any) -> None:
    result = tasks.tracked.delay(BUSY)
    driver.until("prerun", result)
    driver.pass_time(0.5)
    driver.observe(result.state)
    driver.get(result)


@scenario()
def result_ignored(driver: Any) -> None:
    for fail in (False, True):
        driver.track(tasks.silent.delay(fail))
    driver.track(tasks.add.apply_async((1, 2), ignore_result=True))


@scenario(expected=IN_BODY)
def result_ignored_but_errors_stored(driver: Any) -> None:
    driver.track(tasks.silent_but_errors.delay())


@scenario()
def caller_gives_up(driver: Any) -> None:
    result = tasks.sleeper.delay(2.5)
    driver.get(result, timeout=2)
    driver.get(result)


@scenario(
    expected=Difference(
        "A timeout is exact here. Celery looks at it once a second, so that a result that comes in meanwhile is "
        "returned, late as it is.",
        values={
            "seen": (
                [("sleeper#1", "returned 0.6")],
                [("sleeper#1", "gave up with TimeoutError('The operation timed out.')")],
            )
        },
    ),
    shows=Shows(
        "`get(timeout=0.3)` waits longer: the timeout is looked at once a second.",
        lambda real: real.seen == [("sleeper#1", "returned 0.6")],
    ),
)
def caller_gives_up_after_less_than_a_second(driver: Any) -> None:
    result = tasks.sleeper.delay(0.6)
    driver.get(result, timeout=0.3)


@scenario()
def result_forgotten(driver: Any) -> None:
    result = tasks.add.delay(1, 1)
    driver.get(result)
    result.forget()


# -- retries


@scenario()
def manual_retry_then_success(driver: Any) -> None:
    driver.get(tasks.retry_once.delay(0.3))


@scenario()
def manual_retry_acked_late(driver: Any) -> None:
    driver.get(tasks.late_retry_once.delay(0.3))


@scenario(expected=IN_RETRY)
def manual_retry_to_the_end(driver: Any) -> None:
    driver.get(tasks.retry_to_the_end.delay())


@scenario(expected=IN_RETRY)
def manual_retry_without_exception(driver: Any) -> None:
    driver.get(tasks.retry_without_exc.delay())


@scenario(
    expected=IN_RETRY,
    shows=Shows(
        "`self.retry()` without `exc` inside an `except` ends in `MaxRetriesExceededError`, not in the "
        "exception that was caught.",
        lambda real: "MaxRetriesExceededError" in str(real.seen),
    ),
)
def retry_refused_in_except(driver: Any) -> None:
    driver.get(tasks.retry_in_except.delay())


@scenario()
def retry_with_other_arguments(driver: Any) -> None:
    driver.get(tasks.retry_changed.delay(1))


@scenario(expected=IN_AUTORETRY)
def autoretry_with_backoff_to_the_end(driver: Any) -> None:
    driver.get(tasks.autoretry.delay())


@scenario(expected=IN_BODY)
def autoretry_not_for_this(driver: Any) -> None:
    driver.get(tasks.autoretry_not_for.delay())


@scenario()
def state_between_retries(driver: Any) -> None:
    result = tasks.retry_once.delay(BUSY)
    driver.until("postrun", result)
    driver.pass_time(0.5)
    driver.observe((result.state, repr(result.result)))
    driver.get(result)


@scenario()
def retry_with_links(driver: Any) -> None:
    driver.get(tasks.retry_once.apply_async((0.3,), link=tasks.linked.s(), link_error=tasks.errback.s()))


# -- ignore and reject


@scenario()
def ignore(driver: Any) -> None:
    driver.track(tasks.ignored.delay())


@scenario()
def ignore_with_own_state(driver: Any) -> None:
    driver.track(tasks.ignored_with_state.delay())


@scenario()
def reject_acked_early(driver: Any) -> None:
    driver.track(tasks.reject_early.delay(False))


@scenario()
def reject_acked_late(driver: Any) -> None:
    driver.track(tasks.reject_late.delay())


@scenario(
    shows=Shows(
        "`Reject(requeue=False)` stores `FAILURE`, sends `task_failure` and calls `link_error` from "
        "Celery 5.7, and does nothing of it in 5.6; `on_failure` is never called.",
        lambda real: (
            (real.stored["reject_late_hooked#1"] is not None, real.count("main: failure {"), real.count("errback of"))
            == ((True, 1, 1) if IS_5_7 else (False, 0, 0))
            and not real.count("on_failure")
        ),
    )
)
def reject_acked_late_with_errback(driver: Any) -> None:
    driver.track(tasks.reject_late_hooked.apply_async(link_error=tasks.errback.s()))


@scenario(
    shows=Shows(
        "`Reject(requeue=True)` of a message that was acknowledged before the body ran loses the task: it "
        "is not run again, and nothing is stored.",
        lambda real: real.count("prerun") == 1 and real.stored["reject_early#1"] is None,
    )
)
def requeue_acked_early(driver: Any) -> None:
    driver.track(tasks.reject_early.delay(True))


@scenario()
def requeue_acked_late_then_success(driver: Any) -> None:
    driver.get(tasks.requeue_once.delay())


@scenario(expected=IN_BODY)
def failure_acked_late(driver: Any) -> None:
    driver.get(tasks.late_boom.delay())


@scenario(
    expected=IN_BODY,
    shows=Shows(
        "A failed task with `acks_on_failure_or_timeout=False` is not run again: its message is rejected, "
        "not requeued.",
        lambda real: real.count("prerun") == 1 and not any(real.queues.values()) and not real.unacked,
    ),
)
def failure_acked_late_and_not_acked_on_failure(driver: Any) -> None:
    driver.get(tasks.late_boom_not_acked.delay())


# -- time limits


@scenario()
def soft_limit_caught(driver: Any) -> None:
    driver.get(tasks.soft_caught.delay())


@scenario(expected=IN_SLEEP)
def soft_limit_uncaught(driver: Any) -> None:
    driver.get(tasks.soft_uncaught.delay())


@scenario(loses_child=True, expected=killed("soft_then_hard#1", says("finally"), LEFT))
def soft_limit_then_hard_limit(driver: Any) -> None:
    driver.get(tasks.soft_then_hard.delay())


@scenario(
    loses_child=True,
    expected=killed("hard_limit#1", says("interrupted by SystemExit(-241)"), says("finally"), LEFT),
    shows=Shows(
        "A hard time limit sends `task_failure` twice from Celery 5.7, once in 5.6.",
        lambda real: real.count("main: failure {") == (2 if IS_5_7 else 1),
    ),
)
def hard_limit_acked_early(driver: Any) -> None:
    driver.get(tasks.hard_limit.delay())


@scenario(
    loses_child=True,
    expected=killed("late_hard_limit#1", LEFT),
    shows=Shows(
        "A task that ends in a hard time limit is acknowledged, `acks_late` or not: it is not run again.",
        lambda real: real.count("received") == 1 and not any(real.queues.values()),
    ),
)
def hard_limit_acked_late(driver: Any) -> None:
    driver.get(tasks.late_hard_limit.delay())


@scenario(
    loses_child=True,
    expected=killed("hard_limit#1", says("interrupted by SystemExit(-241)"), says("finally"), LEFT),
    shows=Shows(
        "A hard time limit calls `link_error` twice.", lambda real: real.count("note {'text': 'errback of") == 2
    ),
)
def hard_limit_with_errback(driver: Any) -> None:
    driver.get(tasks.hard_limit.apply_async(link_error=tasks.errback.s()))


@scenario(
    loses_child=True, expected=killed("hard_limit#1", says("interrupted by SystemExit(-241)"), says("finally"), LEFT)
)
def hard_limit_with_old_errback(driver: Any) -> None:
    driver.get(tasks.hard_limit.apply_async(link_error=tasks.old_errback.s()))


@scenario(loses_child=True, expected=killed("hard_limit_slow_to_leave#1", says("cleaning up"), leaves=False))
def hard_limit_of_a_task_slow_to_leave(driver: Any) -> None:
    driver.get(tasks.hard_limit_slow_to_leave.delay())


@scenario(
    loses_child=True,
    expected=killed(
        "hard_limit_swallowed#1",
        says("swallowed SystemExit(-241)"),
        "success {'result': \"'survived'\"}",
        "postrun {'state': 'SUCCESS', 'retval': \"'survived'\"}",
        what="a task that catches it returns, and its `SUCCESS` is stored over the `FAILURE`.",
        leaves=False,
        values={
            "stored hard_limit_swallowed#1": (
                {**_STORED, "status": "SUCCESS", "result": "survived", "task_id": "hard_limit_swallowed#1"},
                {
                    **_STORED,
                    "status": "FAILURE",
                    "result": {
                        "exc_type": "TimeLimitExceeded",
                        "exc_message": [0.3],
                        "exc_module": "billiard.exceptions",
                    },
                    "task_id": "hard_limit_swallowed#1",
                },
            )
        },
    ),
)
def hard_limit_swallowed(driver: Any) -> None:
    driver.track(tasks.hard_limit_swallowed.delay())


_CALL = {"name": "scenario_app.add", "args": "(8, 8)", "kwargs": "{}"}
_DUE = {"eta": False, "expires": False}
_FAMILY = {"root_id": "hard_limit_sends#1", "parent_id": "hard_limit_sends#1"}
_ROUTE = {"queue": "celery", "exchange": "", "routing_key": "celery"}
_SENT_BY_HARD_LIMIT_SENDS = {**_FAMILY, **_CALL, "retries": 0, **_ROUTE, **_DUE}
_RECEIVED_FROM_HARD_LIMIT_SENDS = {**_CALL, **_FAMILY, "retries": 0, **_DUE}


@scenario(
    loses_child=True,
    expected=killed(
        "hard_limit_sends#1",
        LEFT,
        what="the message that its `finally` sends is sent, and the other task runs.",
        real=(
            "child add#1 publishing {'retries': 0, 'eta': False}",
            "child add#1 sent {'retries': 0, 'eta': False}",
            "main add#1 received {'redelivered': False}",
            "child add#1 prerun {'retries': 0}",
            "child add#1 success {'result': '16'}",
            "child add#1 postrun {'state': 'SUCCESS', 'retval': '16'}",
        ),
        values={
            "stored add#1": (
                {**_STORED, "status": "SUCCESS", "result": 16, "parent_id": "hard_limit_sends#1", "task_id": "add#1"},
                None,
            ),
            "keys": (
                ["celery-task-meta-add#1 expires in 24 h", "celery-task-meta-hard_limit_sends#1 expires in 24 h"],
                ["celery-task-meta-hard_limit_sends#1 expires in 24 h"],
            ),
            "events add#1 in child": ([f"event {{'type': 'task-sent', 'fields': {_SENT_BY_HARD_LIMIT_SENDS}}}"], None),
            "events add#1 in main": (
                [
                    f"event {{'type': 'task-received', 'fields': {_RECEIVED_FROM_HARD_LIMIT_SENDS}}}",
                    "event {'type': 'task-started', 'fields': {}}",
                    "event {'type': 'task-succeeded', 'fields': {'result': '16'}}",
                ],
                None,
            ),
            "settled add#1": (["ack"], None),
            "order in main of add#1": (
                [
                    f"event {{'type': 'task-received', 'fields': {_RECEIVED_FROM_HARD_LIMIT_SENDS}}}",
                    "event {'type': 'task-started', 'fields': {}}",
                    "ack",
                    "event {'type': 'task-succeeded', 'fields': {'result': '16'}}",
                ],
                [],
            ),
        },
    ),
)
def hard_limit_of_a_task_that_sends_another(driver: Any) -> None:
    driver.track(tasks.hard_limit_sends.delay())


@scenario(loses_child=True, expected=killed("hooked_hard_limit#1", LEFT))
def hard_limit_with_hooks(driver: Any) -> None:
    driver.get(tasks.hooked_hard_limit.delay())


@scenario(loses_child=True, expected=killed("hard_limit_requeued#1", LEFT))
def hard_limit_requeued_then_success(driver: Any) -> None:
    driver.track(tasks.hard_limit_requeued.delay())


@scenario(loses_child=True, expected=killed("hard_limit_ignored#1", LEFT))
def hard_limit_ignored_result(driver: Any) -> None:
    driver.track(tasks.hard_limit_ignored.delay())


@scenario(loses_child=True, expected=killed("sleeper#1", says("interrupted by SystemExit"), says("finally"), LEFT))
def hard_limit_of_the_call(driver: Any) -> None:
    driver.get(tasks.sleeper.apply_async((10,), time_limit=0.3))


@scenario(
    loses_child=True, expected=killed("hard_limit#1", says("interrupted by SystemExit(-241)"), says("finally"), LEFT)
)
def hard_limit_then_the_next_task(driver: Any) -> None:
    first = tasks.hard_limit.delay()
    second = tasks.add.delay(1, 1)
    driver.get(first)
    driver.get(second)


@scenario(
    loses_child=True, expected=killed("hard_limit#1", says("interrupted by SystemExit(-241)"), says("finally"), LEFT)
)
def hard_limit_in_a_chain(driver: Any) -> None:
    result = chain(tasks.hard_limit.s(), tasks.linked.s())()
    driver.get(result)


@scenario(
    loses_child=True, expected=killed("hard_limit#1", says("interrupted by SystemExit(-241)"), says("finally"), LEFT)
)
def hard_limit_in_a_chord(driver: Any) -> None:
    body = tasks.total.s().on_error(tasks.errback.s())
    driver.get(chord([tasks.add.s(1, 1), tasks.hard_limit.s()])(body))


# -- revoked, expired, delayed, ordered


@scenario()
def expired_before_start(driver: Any) -> None:
    busy = tasks.sleeper.delay(BUSY)
    driver.until("prerun", busy)
    driver.get(tasks.add.apply_async((1, 2), expires=0.3))


@scenario()
def revoked_before_start(driver: Any) -> None:
    busy = tasks.sleeper.delay(BUSY)
    driver.until("prerun", busy)
    result = tasks.add.delay(1, 2)
    driver.until("received", result)
    result.revoke()
    driver.get(result)


@scenario()
def revoked_with_errback(driver: Any) -> None:
    busy = tasks.sleeper.delay(BUSY)
    driver.until("prerun", busy)
    result = tasks.add.apply_async((1, 2), link_error=tasks.errback.s())
    driver.until("received", result)
    result.revoke()
    driver.get(result)


@scenario()
def revoked_while_waiting_for_its_eta(driver: Any) -> None:
    result = tasks.add.apply_async((1, 2), countdown=BUSY)
    driver.until("received", result)
    result.revoke()
    driver.get(result)


@scenario(stored_twice=True, loses_child=True)
def terminated_while_running(driver: Any) -> None:
    result = tasks.sleeper.delay(10)
    driver.until("note", result)
    driver.pass_time(0.3)
    result.revoke(terminate=True)
    driver.get(result)


@scenario(stored_twice=True, loses_child=True)
def killed_while_running(driver: Any) -> None:
    result = tasks.sleeper.delay(10)
    driver.until("note", result)
    driver.pass_time(0.3)
    result.revoke(terminate=True, signal="SIGKILL")
    driver.get(result)


@scenario(stored_twice=True, loses_child=True)
def terminated_while_running_acked_late(driver: Any) -> None:
    result = tasks.late_sleeper.delay(10)
    driver.until("note", result)
    driver.pass_time(0.3)
    result.revoke(terminate=True)
    driver.get(result)


@scenario(loses_child=True)
def terminated_then_the_next_task(driver: Any) -> None:
    result = tasks.sleeper.delay(10)
    driver.until("note", result)
    driver.pass_time(0.3)
    result.revoke(terminate=True)
    driver.get(tasks.add.delay(1, 2))


@scenario()
def revoked_without_terminate_while_running(driver: Any) -> None:
    result = tasks.sleeper.delay(BUSY)
    driver.until("note", result)
    result.revoke()
    driver.get(result)


@scenario()
def countdown(driver: Any) -> None:
    driver.get(tasks.add.apply_async((1, 2), countdown=0.4))


@scenario()
def countdowns_out_of_order(driver: Any) -> None:
    second = tasks.linked.apply_async(("second",), countdown=0.6)
    first = tasks.linked.apply_async(("first",), countdown=0.3)
    driver.get(second)
    driver.get(first)


@scenario(worker_prefetch_multiplier=1)
def priorities_with_a_busy_worker(driver: Any) -> None:
    busy = tasks.sleeper.delay(BUSY)
    driver.until("prerun", busy)
    # Acked as it started, so the worker takes one more message, and holds it whatever comes later.
    held = tasks.linked.apply_async((9,), priority=9)
    driver.until("received", held)
    results = [tasks.linked.apply_async((n,), priority=n) for n in (6, 3, 0)]
    for result in [held, *results]:
        driver.get(result)


@scenario(worker_prefetch_multiplier=1)
def priorities_with_a_busy_worker_acked_late(driver: Any) -> None:
    busy = tasks.late_sleeper.delay(BUSY)
    driver.until("prerun", busy)
    results = [tasks.linked.apply_async((n,), priority=n) for n in (9, 6, 3, 0)]
    driver.pass_time(0.2)
    driver.observe(driver.queued())
    for result in results:
        driver.get(result)


@scenario()
def rate_limit(driver: Any) -> None:
    # kombu 5.6 counts the time in which the bucket was full: let it be enough for one more task on both sides.
    driver.pass_time(0.7)
    results = [tasks.limited.delay(n) for n in range(3)]
    for result in results:
        driver.get(result)


# -- callbacks


@scenario()
def link(driver: Any) -> None:
    result = tasks.add.apply_async((1, 2), link=[tasks.linked.s(), tasks.add.s(10)], link_error=tasks.errback.s())
    driver.get(result)


@scenario(expected=IN_BODY)
def link_error(driver: Any) -> None:
    driver.get(tasks.boom.apply_async(link=tasks.linked.s(), link_error=tasks.errback.s()))


@scenario(expected=IN_BODY)
def link_error_old_style(driver: Any) -> None:
    driver.get(tasks.boom.apply_async(link_error=tasks.old_errback.s()))


@scenario(expected=IN_BODY)
def link_error_immutable(driver: Any) -> None:
    driver.get(tasks.boom.apply_async(link_error=tasks.immutable_errback.si()))


@scenario(expected=IN_BODY)
def link_error_of_all_styles(driver: Any) -> None:
    errbacks = [tasks.errback.s(), tasks.old_errback.s(), tasks.immutable_errback.si()]
    driver.get(tasks.boom.apply_async(link_error=errbacks))


@scenario(expected=IN_BODY_FROM_5_7)
def link_error_that_fails(driver: Any) -> None:
    driver.get(tasks.boom.apply_async(link_error=[tasks.failing_errback.s(), tasks.errback.s()]))


@scenario(expected=IN_BODY_FROM_5_7)
def link_error_that_fails_between_others(driver: Any) -> None:
    errbacks = [tasks.errback.s(), tasks.failing_errback.s(), tasks.old_errback.s(), tasks.errback.s()]
    driver.get(tasks.boom.apply_async(link_error=errbacks))


@scenario()
def link_of_a_task_without_result(driver: Any) -> None:
    driver.track(tasks.silent.apply_async((False,), link=tasks.linked.s()))


@scenario()
def link_error_of_a_task_without_result(driver: Any) -> None:
    driver.track(tasks.silent.apply_async((True,), link_error=[tasks.errback.s(), tasks.old_errback.s()]))


@scenario()
def link_that_is_a_group(driver: Any) -> None:
    driver.get(tasks.add.apply_async((1, 2), link=group(tasks.add.s(10), tasks.add.s(20))))


@scenario()
def link_that_is_a_chain(driver: Any) -> None:
    driver.get(tasks.add.apply_async((1, 2), link=chain(tasks.add.s(10), tasks.linked.s())))


@scenario()
def link_that_is_a_chord(driver: Any) -> None:
    driver.get(tasks.add.apply_async((1, 2), link=chord([tasks.add.s(10), tasks.add.s(20)], tasks.total.s())))


@scenario(expected=IN_BODY)
def link_that_fails_with_an_errback_of_its_own(driver: Any) -> None:
    failing = tasks.boom_of_list.s().on_error(tasks.errback.s())
    driver.get(tasks.add.apply_async((1, 2), link=failing, link_error=tasks.old_errback.s()))


@scenario(expected=IN_BODY_FROM_5_7)
def link_error_that_is_a_chain(driver: Any) -> None:
    driver.get(tasks.boom.apply_async(link_error=chain(tasks.linked.s(), tasks.immutable_errback.si())))


def refused(driver: Any, call: Callable[[], Any]) -> None:
    try:
        call()
    except (TypeError, NotImplementedError) as exc:
        driver.observe(repr(exc))


@scenario()
def link_of_a_group(driver: Any) -> None:
    members = group(tasks.add.s(1, 1), tasks.add.s(2, 2))
    refused(driver, lambda: members.apply_async(link=tasks.linked.s()))
    refused(driver, lambda: members.apply_async(link_error=tasks.errback.s()))
    members.link(tasks.add.si(5, 5))
    driver.get(members())


@scenario(expected=IN_BODY)
def link_error_of_a_group(driver: Any) -> None:
    members = group(tasks.add.s(1, 1), tasks.boom.s("a"), tasks.boom.s("b"))
    members.link_error(tasks.errback.s())
    members.link_error(tasks.immutable_errback.si())
    result = members()
    driver.get(result)
    driver.settle()
    for member in result:
        driver.get(member)


@scenario()
def link_of_a_chain(driver: Any) -> None:
    steps = chain(tasks.add.s(1, 1), tasks.add.s(2))
    driver.get(steps.apply_async(link=tasks.linked.s(), link_error=tasks.errback.s()))


@scenario(expected=IN_BODY)
def link_error_of_a_chain(driver: Any) -> None:
    steps = chain(tasks.boom.s(), tasks.add.s(2), tasks.add.s(3))
    steps.link(tasks.linked.s())
    driver.get(steps.apply_async(link_error=[tasks.errback.s(), tasks.old_errback.s()]))


@scenario(expected=IN_BODY)
def link_error_of_one_step_of_a_chain(driver: Any) -> None:
    broken = tasks.boom_of_list.s().on_error(tasks.errback.s())
    driver.get(chain(tasks.add.s(1, 1), broken, tasks.add.s(3))())


@scenario(expected=IN_BODY)
def link_error_of_another_step_of_a_chain(driver: Any) -> None:
    first = tasks.add.s(1, 1).on_error(tasks.errback.s())
    last = tasks.add.s(3).on_error(tasks.errback.s())
    driver.get(chain(first, tasks.boom_of_list.s(), last)())


@scenario()
def link_to_an_unregistered_task(driver: Any) -> None:
    driver.get(tasks.add.apply_async((1, 2), link=app.signature("nowhere.task")))


# -- canvas


@scenario()
def group_of_three(driver: Any) -> None:
    driver.get(group(tasks.add.s(n, n) for n in (1, 2, 3))())


@scenario(expected=IN_BODY)
def group_with_a_failing_member(driver: Any) -> None:
    result = group(tasks.add.s(1, 1), tasks.boom.s(), tasks.add.s(2, 2))()
    driver.get(result)
    driver.settle()
    driver.observe((result.ready(), result.successful(), result.failed(), result.completed_count()))
    for member in result:
        driver.get(member)


@scenario(expected=IN_BODY)
def group_of_five_with_a_failing_member(driver: Any) -> None:
    members = [tasks.add.s(n, n) for n in range(4)]
    result = group(*members[:2], tasks.boom.s(), *members[2:])()
    driver.get(result)
    driver.settle()
    driver.observe((result.ready(), result.successful(), result.failed(), result.completed_count()))
    for member in result:
        driver.get(member)


@scenario()
def chord_of_two(driver: Any) -> None:
    driver.get(chord([tasks.add.s(1, 1), tasks.add.s(2, 2)])(tasks.total.s()))


@scenario(expected=IN_BODY)
def chord_with_a_failing_header(driver: Any) -> None:
    body = tasks.total.s().on_error(tasks.errback.s())
    driver.get(chord([tasks.add.s(1, 1), tasks.boom.s(), tasks.add.s(2, 2)])(body))


@scenario(expected=IN_BODY)
def chord_with_a_failing_body(driver: Any) -> None:
    driver.get(chord([tasks.add.s(1, 1), tasks.add.s(2, 2)])(tasks.boom_of_list.s()))


def _failing_header(driver: Any, *, body: Any = None, header: Any = None, both: Any = None) -> None:
    failing = tasks.boom.s()
    if header is not None:
        failing.link_error(header)
    whole = chord([tasks.add.s(1, 1), failing, tasks.add.s(2, 2)], tasks.total.s())
    if body is not None:
        whole.body.link_error(body)
    if both is not None:
        whole.link_error(both)
    driver.get(whole())


@scenario(expected=IN_BODY)
def chord_with_a_failing_header_and_an_old_errback(driver: Any) -> None:
    _failing_header(driver, body=tasks.old_errback.s())


@scenario(expected=IN_BODY)
def chord_with_a_failing_header_that_has_an_errback(driver: Any) -> None:
    _failing_header(driver, header=tasks.errback.s())


@scenario(expected=IN_BODY)
def chord_with_a_failing_header_that_has_an_old_errback(driver: Any) -> None:
    _failing_header(driver, header=tasks.old_errback.s())


@scenario(expected=IN_BODY)
def chord_with_errbacks_of_header_and_body(driver: Any) -> None:
    _failing_header(driver, header=tasks.errback.s(), body=tasks.old_errback.s())


@scenario(
    expected=IN_BODY,
    shows=Shows(
        "The `link_error` of a chord is that of its body, unless `task_allow_error_cb_on_chord_header` is set.",
        lambda real: real.count("errback of") == 1,
    ),
)
def chord_with_a_failing_header_and_an_errback_of_the_whole(driver: Any) -> None:
    _failing_header(driver, both=tasks.errback.s())


@scenario(
    expected=IN_BODY,
    task_allow_error_cb_on_chord_header=True,
)
def chord_with_an_errback_for_header_and_body(driver: Any) -> None:
    _failing_header(driver, both=tasks.errback.s())


@scenario(expected=IN_BODY, task_allow_error_cb_on_chord_header=True)
def chord_with_an_old_errback_for_header_and_body(driver: Any) -> None:
    _failing_header(driver, both=tasks.old_errback.s())


@scenario(expected=IN_BODY, task_allow_error_cb_on_chord_header=True)
def chord_with_an_immutable_errback_for_header_and_body(driver: Any) -> None:
    _failing_header(driver, both=tasks.immutable_errback.si())


@scenario(expected=IN_BODY, task_allow_error_cb_on_chord_header=True)
def chord_with_an_errback_of_the_body_only(driver: Any) -> None:
    _failing_header(driver, body=tasks.errback.s())


@scenario(expected=IN_BODY, task_allow_error_cb_on_chord_header=True)
def chord_of_two_failing_headers_with_an_errback_for_all(driver: Any) -> None:
    whole = chord([tasks.boom.s("a"), tasks.boom.s("b")], tasks.total.s())
    whole.link_error(tasks.errback.s())
    driver.get(whole())


@scenario(expected=IN_BODY)
def chord_with_a_failing_body_and_an_errback(driver: Any) -> None:
    body = tasks.boom_of_list.s().on_error(tasks.errback.s()).on_error(tasks.old_errback.s())
    driver.get(chord([tasks.add.s(1, 1), tasks.add.s(2, 2)])(body))


@scenario(expected=IN_BODY_AND_ERRBACK)
def chord_with_a_failing_errback(driver: Any) -> None:
    body = tasks.total.s().on_error(tasks.failing_errback.s()).on_error(tasks.errback.s())
    driver.get(chord([tasks.add.s(1, 1), tasks.boom.s()])(body))


@scenario()
def chord_with_a_link(driver: Any) -> None:
    whole = chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.total.s())
    whole.link(tasks.linked.s())
    driver.get(whole())


@scenario(
    shows=Shows(
        "`chord.apply_async(link=...)` is a link of the body from Celery 5.7; in 5.6 it raises `TypeError`.",
        lambda real: ("TypeError" in str(real.seen)) is not IS_5_7 and real.count("linked got") == IS_5_7,
    )
)
def chord_applied_with_a_link(driver: Any) -> None:
    whole = chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.total.s())
    refused(driver, lambda: driver.get(whole.apply_async(link=tasks.linked.s())))


@scenario()
def chord_of_one(driver: Any) -> None:
    driver.get(chord([tasks.add.s(1, 1)])(tasks.total.s()))


@scenario(expected=IN_BODY)
def chord_of_one_that_fails(driver: Any) -> None:
    driver.get(chord([tasks.boom.s()])(tasks.total.s().on_error(tasks.errback.s())))


@scenario()
def chord_with_a_chord_in_its_header(driver: Any) -> None:
    inner = chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.total.s())
    driver.get(chord([tasks.add.s(3, 3), inner])(tasks.total.s()))


@scenario(expected=IN_BODY)
def chord_with_a_chord_in_its_header_that_fails(driver: Any) -> None:
    inner = chord([tasks.add.s(1, 1), tasks.boom.s()], tasks.total.s())
    driver.get(chord([tasks.add.s(3, 3), inner])(tasks.total.s().on_error(tasks.errback.s())))


@scenario()
def chord_with_a_chord_for_a_body(driver: Any) -> None:
    body = chord([tasks.linked.s(), tasks.linked.s()], tasks.linked.s())
    driver.get(chord([tasks.add.s(1, 1), tasks.add.s(2, 2)])(body))


@scenario(expected=IN_BODY)
def chord_with_a_failing_header_and_a_chord_for_a_body(driver: Any) -> None:
    body = chord([tasks.linked.s(), tasks.linked.s()], tasks.linked.s().on_error(tasks.errback.s()))
    driver.get(chord([tasks.add.s(1, 1), tasks.boom.s()])(body))


@scenario()
def chord_with_a_group_for_a_body(driver: Any) -> None:
    driver.get(chord([tasks.add.s(1, 1), tasks.add.s(2, 2)])(group(tasks.total.s(), tasks.linked.s())))


@scenario(stored_twice=True, expected=IN_BODY)
def chord_with_a_failing_header_and_a_group_for_a_body(driver: Any) -> None:
    body = group(tasks.total.s().on_error(tasks.errback.s()), tasks.linked.s().on_error(tasks.old_errback.s()))
    driver.get(chord([tasks.add.s(1, 1), tasks.boom.s()])(body))


@scenario(expected=IN_BODY)
def chord_with_a_failing_header_and_a_chain_for_a_body(driver: Any) -> None:
    body = chain(tasks.total.s(), tasks.linked.s().on_error(tasks.errback.s()))
    driver.get(chord([tasks.add.s(1, 1), tasks.boom.s()])(body))


@scenario()
def chord_with_a_header_that_retries(driver: Any) -> None:
    driver.get(chord([tasks.add.s(1, 1), tasks.retry_once.s(0.3)])(tasks.linked.s()))


@scenario(
    shows=Shows(
        "A chord with a header task that raises `Ignore` never runs its body, and keeps its keys in the "
        "result backend.",
        lambda real: not real.count("linked got") and "celery-taskset-meta-" in str(real.keys),
    )
)
def chord_with_a_header_that_ignores(driver: Any) -> None:
    driver.track(chord([tasks.add.s(1, 1), tasks.ignored.s()])(tasks.linked.s()))


@scenario()
def chord_with_a_rejected_header(driver: Any) -> None:
    driver.track(chord([tasks.add.s(1, 1), tasks.reject_late.s()])(tasks.linked.s()))


@scenario()
def chain_of_three(driver: Any) -> None:
    result = chain(tasks.add.s(1, 1), tasks.add.s(2), tasks.add.s(3))()
    driver.get(result)
    driver.observe([result.parent.get(timeout=5), result.parent.parent.get(timeout=5)])


@scenario(expected=IN_BODY)
def chain_broken_in_the_middle(driver: Any) -> None:
    signature = chain(tasks.add.s(1, 1), tasks.boom_of_list.s(), tasks.add.s(3))
    driver.get(signature.apply_async(link_error=tasks.errback.s()))


@scenario()
def chain_with_a_group(driver: Any) -> None:
    driver.get(chain(tasks.add.s(1, 1), group(tasks.add.s(1), tasks.add.s(2)), tasks.total.s())())


@scenario()
def replace(driver: Any) -> None:
    driver.get(tasks.replaced.delay(1))


@scenario()
def replace_by_a_chain(driver: Any) -> None:
    driver.get(tasks.replaced_by_chain.delay(1))


@scenario()
def replace_by_a_group(driver: Any) -> None:
    driver.get(tasks.replaced_by_group.delay(1))


@scenario()
def replace_in_a_chain(driver: Any) -> None:
    driver.get(chain(tasks.replaced.s(1), tasks.add.s(10))())


@scenario()
def task_that_sends_another(driver: Any) -> None:
    driver.get(tasks.sends_another.delay())


@scenario(expected=IN_BODY)
def waiting_for_another_task_inside_a_task(driver: Any) -> None:
    driver.get(tasks.nested_get.delay())


# -- hooks


@scenario()
def hooks_of_a_success(driver: Any) -> None:
    driver.get(tasks.hooked_success.delay(1))


@scenario(expected=IN_BODY)
def hooks_of_a_failure(driver: Any) -> None:
    driver.get(tasks.hooked_failure.apply_async((1,), link_error=tasks.errback.s()))


@scenario()
def hooks_of_a_retry(driver: Any) -> None:
    driver.get(tasks.hooked_retry.delay())


@scenario()
def hooks_of_an_ignored_task(driver: Any) -> None:
    driver.track(tasks.hooked_ignore.delay())


@scenario()
def hook_before_start_raises(driver: Any) -> None:
    driver.get(tasks.bad_before_start.delay())


@scenario()
def hook_on_success_raises(driver: Any) -> None:
    driver.get(tasks.bad_on_success.delay())


@scenario(
    stored_twice=True,
    shows=Shows(
        "An `on_failure` that raises is called a second time, and its exception takes the place of the "
        "task's in `task_failure` and in the result.",
        lambda real: (
            real.count("child: on_failure") == 2
            and real.count("main: failure {'exception': \"RuntimeError('on_failure')\"") == 1
            and real.stored["bad_on_failure#1"]["result"]["exc_type"] == "RuntimeError"
        ),
    ),
)
def hook_on_failure_raises(driver: Any) -> None:
    driver.get(tasks.bad_on_failure.delay())


@scenario()
def hook_after_return_raises(driver: Any) -> None:
    driver.get(tasks.bad_after_return.delay())


# -- messages that are no good


@scenario()
def unregistered_task(driver: Any) -> None:
    driver.track(app.send_task("nowhere.task", (1,)))
    driver.get(tasks.add.delay(1, 2))


@scenario(
    shows=Shows(
        "The `link_error` of a task that no worker knows is not called.",
        lambda real: real.count("main: unknown") == 1 and not real.count("errback"),
    )
)
def unregistered_task_with_errback(driver: Any) -> None:
    driver.track(app.send_task("nowhere.task", (1,), link_error=tasks.errback.s()))
    driver.settle()
    driver.get(tasks.add.delay(1, 2))


@scenario()
def message_of_unknown_content_type(driver: Any) -> None:
    driver.publish(b"\x80\xff", content_type="application/x-unknown", content_encoding="binary")
    driver.settle()
    driver.get(tasks.add.delay(1, 2))


@scenario()
def message_of_refused_content_type(driver: Any) -> None:
    headers = {"id": "0" * 36, "task": "scenario_app.add", "eta": None}
    driver.publish(
        b"\x80\x02.", content_type="application/x-python-serialize", content_encoding="binary", headers=headers
    )
    driver.settle()
    driver.get(tasks.add.delay(1, 2))


@scenario(
    shows=Shows(
        "A message that cannot be decoded is acknowledged and gone: no result, no signal, a line in the log.",
        lambda real: not real.count("rejected") and not any(real.queues.values()),
    )
)
def message_that_is_broken_json(driver: Any) -> None:
    headers = {"id": "0" * 36, "task": "scenario_app.add", "eta": None, "lang": "py", "root_id": None}
    driver.publish(b"[[1, 2], {", content_type="application/json", content_encoding="utf-8", headers=headers)
    driver.settle()
    driver.get(tasks.add.delay(1, 2))


@scenario()
def message_that_is_no_task(driver: Any) -> None:
    driver.publish(b'{"hello": "world"}', content_type="application/json", content_encoding="utf-8")
    driver.settle()
    driver.get(tasks.add.delay(1, 2))


@scenario()
def message_with_an_invalid_eta(driver: Any) -> None:
    headers = {"id": "0" * 36, "task": "scenario_app.add", "eta": "tomorrow", "lang": "py", "root_id": None}
    driver.publish(b"[[1, 2], {}, {}]", content_type="application/json", content_encoding="utf-8", headers=headers)
    driver.settle()
    driver.get(tasks.add.delay(1, 2))


# -- tasks that leave


def _leaves(driver: Any, result: Any) -> None:
    # Not every version of Celery stores a result, so nobody waits for it.
    driver.track(result)
    driver.settle()
    driver.observe(result.state)
    driver.get(tasks.add.delay(1, 2))


@scenario(loses_child=True)
def system_exit(driver: Any) -> None:
    _leaves(driver, tasks.leave.delay(3))


@scenario(
    loses_child=True,
    expected=Difference(
        "`worker_process_shutdown` has the code that the task leaves with. billiard takes it from `sys.exit`, which it "
        "replaces, and does not know of one that the task raises by itself.",
        real=("child no task worker_process_shutdown {'exitcode': '0'}",),
        here=("child no task worker_process_shutdown {'exitcode': '3'}",),
    ),
)
def system_exit_raised_by_hand(driver: Any) -> None:
    _leaves(driver, tasks.raise_exit.delay(3))


@scenario(loses_child=True)
def system_exit_with_words_before_the_next_task(driver: Any) -> None:
    driver.track(tasks.exit_by_sys.delay())
    driver.get(tasks.add.delay(1, 2))


@scenario(loses_child=True)
def system_exit_acked_late_with_errback(driver: Any) -> None:
    _leaves(driver, tasks.late_leave.apply_async((0,), link_error=tasks.errback.s()))


# -- a child that is killed, by SIGKILL


def _killed(task: Any, point: str, shows: Shows | None = None) -> None:
    def run(driver: Any) -> None:
        _leaves(driver, task.apply_async(link=tasks.add.s("linked"), headers={"dies_at": point}))

    run.__name__ = f"killed_at_{point}_of_{task.name.rpartition('.')[2]}"
    scenario(loses_child=True, shows=shows)(run)


_LINK_OF_A_FAILURE = Shows(
    "Links are published before a success is stored: one runs although its parent has failed.",
    lambda real: "SUCCESS" in str(real.stored["add#1"]),
)
for _task in (tasks.dies, tasks.dies_late, tasks.dies_late_requeued):
    for _point in ("begin", "end", "store", "stored"):
        _killed(_task, _point, _LINK_OF_A_FAILURE if (_task, _point) == (tasks.dies, "store") else None)


# -- signals: all of them, in one order


@scenario(fresh=True, alone=True)
def signals_of_a_worker(driver: Any) -> None:
    driver.start()
    driver.get(tasks.add.delay(1, 2))
    driver.settle()
    driver.stop(warm=True)


@scenario(alone=True)
def signals_of_a_success(driver: Any) -> None:
    driver.get(tasks.add.delay(1, 2))


@scenario(alone=True, expected=IN_BODY)
def signals_of_a_failure(driver: Any) -> None:
    driver.get(tasks.boom.delay())


@scenario(
    alone=True,
    shows=Shows(
        "`task_retry` is sent after the message of the next attempt, by when the worker may have received it.",
        lambda real: real.place("child", "sent {'retries': 1") < real.place("child", "retry {"),
    ),
)
def signals_of_a_retry(driver: Any) -> None:
    driver.get(tasks.retry_once.delay(0.3))


@scenario(alone=True)
def signals_of_a_task_revoked_before_it_runs(driver: Any) -> None:
    busy = tasks.sleeper.delay(BUSY)
    driver.until("note", busy)
    result = tasks.add.delay(1, 2)
    driver.until("received", result)
    result.revoke()
    driver.get(result)


@scenario(
    stored_twice=True,
    alone=True,
    loses_child=True,
    shows=Shows(
        "`revoke(terminate=True)` sends `worker_process_shutdown`, with SIGKILL it does not.",
        lambda real: real.count("worker_process_shutdown") == real.count("worker_process_init") == 1,
    ),
)
def signals_of_a_task_terminated_while_it_runs(driver: Any) -> None:
    result = tasks.sleeper.delay(10)
    driver.until("note", result)
    result.revoke(terminate=True)
    driver.get(result)


@scenario(stored_twice=True, alone=True, loses_child=True)
def signals_of_a_task_killed_while_it_runs(driver: Any) -> None:
    result = tasks.sleeper.delay(10)
    driver.until("note", result)
    result.revoke(terminate=True, signal="SIGKILL")
    driver.get(result)


@scenario(stored_twice=True, alone=True, loses_child=True)
def signals_of_a_task_that_gets_sigquit(driver: Any) -> None:
    result = tasks.sleeper.delay(10)
    driver.until("note", result)
    result.revoke(terminate=True, signal="SIGQUIT")
    driver.get(result)


@scenario(
    fresh=True,
    alone=True,
    loses_child=True,
    shows=Shows(
        "A child whose task catches the `SystemExit` of SIGTERM lives on. The next SIGTERM kills it at once.",
        lambda real: real.count("finally") == 0 and real.count("worker_before_create_process") == 2,
    ),
)
def signals_of_a_child_that_survives_sigterm(driver: Any) -> None:
    driver.start()
    first = tasks.survivor.delay()
    driver.until("note", first)
    first.revoke(terminate=True)
    driver.settle()
    second = tasks.sleeper.delay(10)
    driver.until("note", second)
    second.revoke(terminate=True)
    driver.settle()
    driver.stop(warm=True)


@scenario(
    alone=True,
    loses_child=True,
    expected=killed("hard_limit#1", says("interrupted by SystemExit(-241)"), says("finally"), LEFT),
)
def signals_of_a_hard_limit(driver: Any) -> None:
    driver.get(tasks.hard_limit.delay())


@scenario(alone=True, loses_child=True)
def signals_of_a_task_that_leaves(driver: Any) -> None:
    driver.track(tasks.leave.delay(3))
    driver.settle()
    driver.pass_time(1.5)


@scenario(alone=True, loses_child=True)
def signals_of_a_child_that_dies(driver: Any) -> None:
    driver.track(tasks.dies.apply_async(headers={"dies_at": "begin"}))


@scenario(alone=True)
def signals_of_a_rejected_task(driver: Any) -> None:
    driver.track(tasks.reject_late.delay())


@scenario(alone=True)
def signals_of_a_requeued_task(driver: Any) -> None:
    driver.get(tasks.requeue_once.delay())


@scenario(alone=True)
def signals_of_an_ignored_task(driver: Any) -> None:
    driver.track(tasks.ignored.delay())


@scenario(
    alone=True,
    shows=Shows(
        "A link that cannot be published makes a failure of a success: `task_internal_error` and `task_failure` are "
        "sent after a `task_postrun` that says `SUCCESS`, and `FAILURE` is stored.",
        lambda real: (
            real.place("child", "postrun {'state': 'SUCCESS'")
            < real.place("child", "internal_error {")
            < real.place("child", "failure {")
            and real.stored["add#1"]["status"] == "FAILURE"
        ),
    ),
)
def signals_of_an_internal_error(driver: Any) -> None:
    driver.track(tasks.add.apply_async((1, 2), link=tasks.add.s(3).set(countdown="soon")))


@scenario(alone=True)
def signals_of_an_expired_task(driver: Any) -> None:
    driver.get(tasks.add.apply_async((1, 2), countdown=0.3, expires=0.1))


@scenario(alone=True)
def signals_of_an_unregistered_task(driver: Any) -> None:
    driver.track(app.send_task("nowhere.task"))


@scenario(alone=True)
def signals_of_a_message_that_cannot_be_decoded(driver: Any) -> None:
    headers = {"id": "0" * 36, "task": "scenario_app.add", "eta": None, "lang": "py", "root_id": None}
    driver.publish(b"[[1, 2], {", content_type="application/json", content_encoding="utf-8", headers=headers)


@scenario(alone=True)
def signals_of_a_message_that_is_no_task(driver: Any) -> None:
    driver.publish(b'{"hello": "world"}', content_type="application/json", content_encoding="utf-8")


@scenario(fresh=True, alone=True)
def signals_of_a_warm_shutdown(driver: Any) -> None:
    driver.start()
    running = tasks.sleeper.delay(BUSY)
    driver.until("note", running)
    driver.stop(warm=True)


@scenario(
    fresh=True,
    alone=True,
    shows=Shows(
        "A cold shutdown sends `worker_shutting_down` when the pool is gone already, and no `worker_shutdown`.",
        lambda real: "worker_shutting_down" in real.in_role["main"][-1] and real.count("worker_process_shutdown") == 1,
    ),
)
def signals_of_a_cold_shutdown(driver: Any) -> None:
    driver.start()
    running = tasks.sleeper.delay(5)
    driver.until("note", running)
    driver.stop(warm=False)


@scenario(fresh=True, alone=True)
def signals_of_a_cold_shutdown_of_a_task_slow_to_leave(driver: Any) -> None:
    driver.start()
    running = tasks.slow_to_leave.delay()
    driver.until("note", running)
    driver.stop(warm=False)


@scenario(fresh=True, alone=True)
def signals_of_a_cold_shutdown_with_nothing_to_do(driver: Any) -> None:
    driver.start()
    driver.stop(warm=False)


# -- the end of the worker


@scenario(
    fresh=True,
    shows=Shows(
        "A warm shutdown puts prefetched and delayed tasks back on the queue, the last one first.",
        lambda real: [one["headers"]["id"] for one in real.queues["celery"]] == ["add#2", "add#1"],
    ),
)
def warm_shutdown(driver: Any) -> None:
    running = tasks.sleeper.delay(BUSY)
    prefetched = tasks.add.delay(1, 1)
    delayed = tasks.add.apply_async((2, 2), countdown=30)
    driver.until("note", running)
    driver.until("received", delayed)
    driver.stop(warm=True)
    driver.observe((running.state, prefetched.state, delayed.state))


@scenario(fresh=True)
def cold_shutdown(driver: Any) -> None:
    running = tasks.sleeper.delay(10)
    prefetched = tasks.add.delay(1, 1)
    driver.until("note", running)
    driver.until("received", prefetched)
    driver.stop(warm=False)
    driver.observe((running.state, prefetched.state))


@scenario(fresh=True)
def cold_shutdown_acked_late(driver: Any) -> None:
    running = tasks.late_sleeper.delay(10)
    driver.until("note", running)
    driver.stop(warm=False)
    driver.observe(running.state)


@scenario(
    fresh=True,
    shows=Shows(
        "A worker that dies loses the tasks that it had acknowledged early; what it had only prefetched "
        "stays in `unacked` until the visibility timeout.",
        lambda real: real.stored["sleeper#1"] is None and len(real.unacked) == 1 and "add#1" in real.unacked[0],
    ),
)
def power_cut(driver: Any) -> None:
    running = tasks.sleeper.delay(5)
    held = tasks.add.delay(1, 1)
    driver.until("note", running)
    driver.until("received", held)
    driver.crash()
    driver.observe((running.state, held.state))
