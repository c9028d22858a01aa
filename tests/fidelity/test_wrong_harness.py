"""The comparison is itself tested: what a harness that is wrong on purpose does differently is told."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from celery.app import trace
from celery.app.task import Task
from celery.utils.dispatch import Signal
from celery.worker.request import Request
from fidelity_all import SCENARIOS
from fidelity_drivers import HarnessDriver
from fidelity_expected import Difference
from fidelity_history import History, Raw, differences
from fidelity_scenarios import Scenario
from kombu.transport import virtual

from pytest_celery_faults.backend import Backend, Drainer
from pytest_celery_faults.broker import Channel, QoS, Transport
from pytest_celery_faults.hub import Timer
from pytest_celery_faults.memory import Pipeline
from pytest_celery_faults.pool import Pool

pytestmark = [pytest.mark.fidelity, pytest.mark.filterwarnings("default")]


class Told(NamedTuple):
    """The entry that has to be among the differences: what it is about, and what its two sides differ in."""

    what: str
    text: str = ""

    def is_in(self, entry: str) -> bool:
        head, _, sides = entry.partition("\n")
        if not self.text:
            return head.startswith(self.what)
        real, _, here = sides.partition("\n    here ")
        return head == f"{self.what}:" and real.count(self.text) != here.count(self.text)


class Sabotage(NamedTuple):
    scenario: str
    told: Told
    owner: Any
    name: str
    #: Makes the broken thing of the original.
    broken: Callable[[Any], Any]


def nothing(original: Any) -> Any:
    return lambda *_args, **_options: None


def twice(original: Any) -> Any:
    def call_twice(*args: Any, **options: Any) -> None:
        original(*args, **options)
        original(*args, **options)

    return call_twice


def gives_up_after(seconds: float) -> Callable[[Any], Any]:
    def broken(original: Any) -> Any:
        def drain_events_until(self: Any, p: Any, timeout: float, **options: Any) -> Any:
            return original(self, p, min(timeout, seconds) if timeout < 10 else timeout, **options)

        return drain_events_until

    return broken


def never_requeued(original: Any) -> Any:
    return lambda self, delivery_tag, requeue=False: original(self, delivery_tag)


def without_after_return(original: Any) -> Any:
    return lambda task, name: name != "after_return" and original(task, name)


def without_task_failure(original: Any) -> Any:
    def send(self: Any, *args: Any, **named: Any) -> Any:
        return [] if self.name == "task_failure" else original(self, *args, **named)

    return send


def later_by(seconds: float) -> Callable[[Any], Any]:
    return lambda original: lambda self, eta, *args, **options: original(self, eta + seconds, *args, **options)


def a_second_more(original: Any) -> Any:
    def retry(task: Any, *args: Any, **kwargs: Any) -> Any:
        return original(task, *args, **{**kwargs, "countdown": kwargs["countdown"] + 1})

    return retry


def soft_limit_later_by(seconds: float) -> Callable[[Any], Any]:
    return lambda original: lambda self, job, soft, hard: original(self, job, soft + seconds, hard)


def hard_limit_of(seconds: float) -> Callable[[Any], Any]:
    return lambda original: lambda self, job, soft, hard: original(self, job, soft, seconds)


def is_of(task: str, headers: Any) -> bool:
    return (headers or {}).get("task") == f"scenario_app.{task}"


def loses_linked(original: Any) -> Any:
    def put(self: Any, queue: str, message: Any, **options: Any) -> None:
        if not is_of("linked", message.get("headers")):
            original(self, queue, message, **options)

    return put


def duplicates_linked(original: Any) -> Any:
    def put(self: Any, queue: str, message: Any, **options: Any) -> None:
        for _ in range(2 if is_of("linked", message.get("headers")) else 1):
            original(self, queue, message, **options)

    return put


def does_not_store_linked(original: Any) -> Any:
    def store_result(self: Any, task_id: str, result: Any, state: str, **options: Any) -> Any:
        if options["request"].task == "scenario_app.linked":
            return result
        return original(self, task_id, result, state, **options)

    return store_result


def set_for_ever(original: Any) -> Any:
    return lambda self, name, time, value: self.set(name, value)


def set_for_five_seconds(original: Any) -> Any:
    return lambda self, name, time, value: original(self, name, 5, value)


def restored_with_other_arguments(original: Any) -> Any:
    def restore(self: Any, payload: Any, *args: Any, **options: Any) -> None:
        body = b64encode(json.dumps([[7, 7], {}, {}]).encode()).decode()
        original(self, {**payload, "body": body}, *args, **options)

    return restore


def forgets_that_it_expires(original: Any) -> Any:
    def deliver(self: Any, message: Any, queue: str) -> None:
        message["headers"]["expires"] = None
        original(self, message, queue)

    return deliver


def leaves_in_silence(original: Any) -> Any:
    def leave(self: Any, child: Any) -> None:
        child.fiber = None
        self.lose(child, child.signal or 0, "left")

    return leave


def starts_in_the_main_process(original: Any) -> Any:
    def run(self: Any, child: Any, what: str, function: Callable[[], None]) -> None:
        if what == "the start of a pool process":
            function()
        else:
            original(self, child, what, function)

    return run


def of_somebody_else(original: Any) -> Any:
    def on_start(self: Any) -> None:
        original(self)
        self._hostname = "somebody else"

    return on_start


def one_queue_for_all(original: Any) -> Any:
    return lambda self, queue, priority: queue


def acks_as_it_starts(original: Any) -> Any:
    def on_apply(self: Any, *args: Any, accept_callback: Any, **options: Any) -> Any:
        def accepted(*of_child: Any) -> None:
            accept_callback(*of_child)
            accept_callback.__self__.acknowledge()

        return original(self, *args, accept_callback=accepted, **options)

    return on_apply


def acks_later(original: Any) -> Any:
    def ack(self: Any, delivery_tag: str) -> None:
        simulation = self.channel.broker._server.simulation
        simulation.later("an ack that is late", 0.2, lambda: original(self, delivery_tag))

    return ack


def acknowledges_later(original: Any) -> Any:
    def acknowledge(self: Any) -> None:
        simulation = self._message.channel.broker._server.simulation
        simulation.later("an ack that is late", 1.2, lambda: original(self))

    return acknowledge


def without_flag(original: Any) -> Any:
    def restore(self: Any, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool = False) -> None:
        payload["headers"] = _Unflagged(payload["headers"])
        original(self, payload, exchange, routing_key, pipe, leftmost)

    return restore


class _Unflagged(dict[str, Any]):
    def __setitem__(self, name: str, value: Any) -> None:
        if name != "redelivered":
            super().__setitem__(name, value)


#: What is wrong, in which scenario it shows, and the difference that has to be told. Scenarios of one setting stand
#: together.
SABOTAGE = {
    "an errback that is lost": Sabotage(
        "hooks_of_a_failure", Told("by_role hooked_failure#1 in child", "errback of"),
        Backend, "_call_task_errbacks", nothing,
    ),
    "an errback that is called twice": Sabotage(
        "hooks_of_a_failure", Told("by_role hooked_failure#1 in child", "errback of"),
        Backend, "_call_task_errbacks", twice,
    ),
    "a hook that is not called": Sabotage(
        "hooks_of_a_failure", Told("by_role hooked_failure#1 in child", "after_return"),
        trace, "task_has_custom", without_after_return,
    ),
    "a log record that is missing": Sabotage(
        "hooks_of_a_failure", Told("logs child", "celery.app.trace"),
        logging.getLogger("celery.app.trace"), "disabled", lambda _: True,
    ),
    "a signal of a task that is not sent": Sabotage(
        "hooks_of_a_failure", Told("signals", "task_failure"),
        Signal, "send", without_task_failure,
    ),
    "a retry that comes a second late": Sabotage(
        "manual_retry_then_success", Told("waits of retry_once#1, here"), Timer, "_enter", later_by(1),
    ),
    "a retry that comes a millisecond late": Sabotage(
        "manual_retry_then_success", Told("waits of retry_once#1, here"), Timer, "_enter", later_by(0.001),
    ),
    "a retry that comes a millisecond early": Sabotage(
        "manual_retry_then_success", Told("waits of retry_once#1, here"), Timer, "_enter", later_by(-0.001),
    ),
    "a retry with a second more than asked for": Sabotage(
        "manual_retry_then_success", Told("by_role retry_once#1 in child", "1.3"),
        Task, "retry", a_second_more,
    ),
    "an early ack that is late": Sabotage(
        "success_of_a_slow_task_acked_early", Told("times of settling of nap#1"),
        Request, "acknowledge", acknowledges_later,
    ),
    "a late ack that is early": Sabotage(
        "success_of_a_slow_task_acked_late", Told("times of settling of late_nap#1"),
        Pool, "on_apply", acks_as_it_starts,
    ),
    "a late ack of a failed task that is early": Sabotage(
        "failure_acked_late", Told("order in main of "), Pool, "on_apply", acks_as_it_starts,
    ),
    "a late ack of a killed task that is early": Sabotage(
        "killed_at_begin_of_dies_late", Told("order in main of "), Pool, "on_apply", acks_as_it_starts,
    ),
    "a hard limit that is early": Sabotage(
        "hard_limit_of_a_second_and_a_half", Told("times of nap#1 in main"),
        Pool, "_set_time_limits", hard_limit_of(0.1),
    ),
    "a hard limit that is late": Sabotage(
        "hard_limit_of_a_second_and_a_half", Told("times of nap#1 in main"),
        Pool, "_set_time_limits", hard_limit_of(1.9),
    ),
    "a link that is lost": Sabotage(
        "link", Told("by_role linked#1 in main", "received"), Channel, "_put", loses_linked,
    ),
    "a link that comes twice": Sabotage(
        "link", Told("by_role linked#1 in main", "received"), Channel, "_put", duplicates_linked,
    ),
    "a result that is not stored": Sabotage(
        "link", Told("stored linked#1", "SUCCESS"), Backend, "store_result", does_not_store_linked,
    ),
    "results that do not expire": Sabotage(
        "link", Told("keys", "expires"), Pipeline, "setex", set_for_ever,
    ),
    "a result that is kept for another time": Sabotage(
        "link", Told("keys", "24 h"), Pipeline, "setex", set_for_five_seconds,
    ),
    "a message that comes back with other arguments": Sabotage(
        "warm_shutdown", Told("queues celery"), Channel, "_do_restore_message", restored_with_other_arguments,
    ),
    "messages left in unacked": Sabotage(
        "link", Told("unacked", "linked#1"), QoS, "ack", lambda _: virtual.QoS.ack,
    ),
    "a key left in the backend": Sabotage(
        "result_forgotten", Told("keys", "add#1"), Backend, "delete", nothing,
    ),
    "a soft limit that comes a second late": Sabotage(
        "soft_limit_caught", Told("times of soft_caught#1 in child"),
        Pool, "_set_time_limits", soft_limit_later_by(1),
    ),
    "a soft limit that comes too soon": Sabotage(
        "soft_limit_of_more_than_a_second", Told("times of naps_until_the_limit#1 in child"),
        Pool, "_set_time_limits", soft_limit_later_by(-1.2),
    ),
    "a caller that gives up too soon": Sabotage(
        "caller_gives_up", Told("times of sleeper#1 in client"), Drainer, "drain_events_until", gives_up_after(0.1),
    ),
    "a countdown that is not waited for": Sabotage(
        "countdown_of_more_than_a_second", Told("times of nap#1 in child"), Timer, "_enter", later_by(-1.3),
    ),
    "an expiry that is ignored": Sabotage(
        "signals_of_an_expired_task", Told("by_role add#1 in main", "revoked"),
        Transport, "_deliver", forgets_that_it_expires,
    ),
    "a signal of a child that is not sent": Sabotage(
        "signals_of_a_task_terminated_while_it_runs", Told("by_role no task in child", "worker_process_shutdown"),
        Pool, "_leave", leaves_in_silence,
    ),
    "a signal of a child sent by the main process": Sabotage(
        "signals_of_a_task_terminated_while_it_runs", Told("by_role no task in main", "worker_process_init"),
        Pool, "_run", starts_in_the_main_process,
    ),
    "a signal with another sender": Sabotage(
        "signals_of_a_task_terminated_while_it_runs", Told("signals", "somebody else"),
        Pool, "on_start", of_somebody_else,
    ),
    "a redelivery that does not happen": Sabotage(
        "killed_at_begin_of_dies_late_requeued",
        Told("by_role dies_late_requeued#1 in main", "received {'redelivered': True}"),
        QoS, "reject", never_requeued,
    ),
    "priorities that are ignored": Sabotage(
        "priorities_with_a_busy_worker_acked_late", Told("order in child"), Channel, "_q_for_pri", one_queue_for_all,
    ),
    "a late ack that lets the worker take another message": Sabotage(
        "priorities_with_a_busy_worker_acked_late", Told("seen", "[0, 3, 6, 9]"),
        Pool, "on_apply", acks_as_it_starts,
    ),
    "an early ack that is too late for the task to be gone": Sabotage(
        "cold_shutdown", Told("queues celery", "sleeper#1"), QoS, "ack", acks_later,
    ),
    "a message that does not come back": Sabotage(
        "cold_shutdown", Told("queues celery", "add#1"), QoS, "restore_by_tag", nothing,
    ),
    "a message that comes back without the flag": Sabotage(
        "cold_shutdown", Told("queues celery", "'redelivered': True"), Channel, "_do_restore_message", without_flag,
    ),
}  # fmt: skip

_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.fixture(scope="module")
def runs() -> dict[str, Raw]:
    """What the scenarios left on the real side: one run of each serves all that is done to it here."""
    return {}


@pytest.fixture(scope="module")
def scenario(request: pytest.FixtureRequest, real_side: Any, runs: dict[str, Raw]) -> Scenario:
    """The scenario; what it does on the real side is over before the harness of the test is set up."""
    wanted: Scenario = request.param
    if wanted.name not in runs:
        runs[wanted.name] = real_side.run(wanted)
    return wanted


def in_scenario(name: str, *more: Any) -> Any:
    scenario = _BY_NAME[name]
    return pytest.param(
        scenario, *more, id=more[0] if more else name, marks=pytest.mark.celery_faults(conf=scenario.conf)
    )


def compared(scenario: Scenario, real: Raw, celery_faults: Any) -> list[str]:
    driver = HarnessDriver(celery_faults)
    with driver.recording():
        driver.run(scenario)
    here = History(driver.raw, Difference("", real=scenario.difference.here) if scenario.difference else None)
    return differences(History(real, scenario.difference), here, scenario)


@pytest.mark.parametrize(
    "scenario",
    [in_scenario(name) for name in dict.fromkeys(one.scenario for one in SABOTAGE.values())],
    indirect=True,
    scope="module",
)
def test_unbroken_it_does_the_same(scenario: Scenario, runs: dict[str, Raw], celery_faults: Any) -> None:
    assert compared(scenario, runs[scenario.name], celery_faults) == []


@pytest.mark.parametrize(
    ("scenario", "how"),
    [in_scenario(one.scenario, how) for how, one in SABOTAGE.items()],
    indirect=["scenario"],
    scope="module",
)
def test_broken_on_purpose_it_is_told(
    scenario: Scenario, how: str, runs: dict[str, Raw], celery_faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, told, owner, name, broken = SABOTAGE[how]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken(getattr(owner, name)))
        found = compared(scenario, runs[scenario.name], celery_faults)
    assert found, "no difference is told"
    if not any(told.is_in(entry) for entry in found):
        pytest.fail("\n".join([f"not told: {told}", *found]))


@pytest.mark.parametrize(
    ("got", "failures", "is_alike"),
    [
        ("raised Header", ["raised Body", "raised Header"], True),
        ("raised Other", ["raised Body", "raised Header"], False),
        ("raised Header", ["raised Header"], False),
    ],
)
def test_of_two_failures_the_caller_gets_either(got: str, failures: list[str], is_alike: bool) -> None:
    """A chord's body and its header have both failed, and it looks for both by turns."""
    scenario = _BY_NAME["chord_with_a_failing_header"]
    both = ["raised Body", "raised Header"]
    real = History(Raw((), seen=[("body", "raised Body")], failures={"body": both}))
    here = History(Raw((), seen=[("body", got)], failures={"body": failures}))
    assert any(entry.startswith("seen") for entry in differences(real, here, scenario)) is not is_alike
