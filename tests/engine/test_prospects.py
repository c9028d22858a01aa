"""What is called lost never comes, and what never comes is called lost: each fault in each sort of workflow."""

from __future__ import annotations

import pytest
from celery import chain, chord, group

from pytest_celery_faults import BackendDown, BrokerDown, Crash, Delay, Drop, Duplicate, Revoke, Sleep

SHAPES = {
    "chord": lambda part, total: chord([part.s(1), part.s(2)])(total.s()),
    "chain": lambda part, total: chain(part.s(1), part.s(), group(part.s(), part.s()), total.s(), part.s())(),
    "nested": lambda part, total: chord(
        [chord([part.s(1), part.s(2)], total.s()), chain(part.s(1), part.s()), group(part.s(1), part.s(2))]
    )(chain(total.s(), part.s())),
}
FAULTS = {
    "an exception": (LookupError("no"), None),
    "a crash at start": (Crash(), "start"),
    "a crash at return": (Crash(), "return"),
    "a crash at store": (Crash(), "store"),
    "a crash at stored": (Crash(), "stored"),
    "a lost message": (Drop(), None),
    "a doubled message": (Duplicate(delay=4), None),
    "a late message": (Delay(5), None),
    "an outage at receive": (BrokerDown(3), "receive"),
    "an outage at ack": (BrokerDown(3), "ack"),
    "an outage of the backend": (BackendDown(3), "store"),
    "a revocation": (Revoke(), None),
    "a termination": (Revoke(terminate=True), "start"),
    "a long sleep": (Sleep(7), None),
}
#: What may still come says where it is.
WAITS = ("it waits", "it is unacknowledged", "the broker holds it back", "the worker has it")
READY = ("SUCCESS", "FAILURE", "REVOKED", "LOST")


# A result of Celery's that is collected in an outage of the backend cannot unsubscribe.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("late", [False, True], ids=["acked early", "acked late"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_lost_stays_lost_and_nothing_else_waits_for_ever(celery_faults, app, total, shape, fault, late):
    @app.task(name="shop.part", acks_late=late, reject_on_worker_lost=late)
    def part(value):
        return 1

    what, at = FAULTS[fault]
    injection = celery_faults.inject(what, task=part, at=at, skip=1)
    result = SHAPES[shape](part, total)
    lost, missing = set(), set()
    for _ in range(20):
        celery_faults.worker.advance(1)
        now = {task.task_id for task in celery_faults.outcome(result).tasks if task.state == "LOST"}
        assert lost <= now, "what was lost came after all"
        never = {
            (callback.kind, callback.task, callback.parent_label)
            for callback in celery_faults.callbacks.missing
            if not callback.why.startswith(WAITS)
        }
        assert missing <= never, "what could not run any more did"
        lost, missing = now, never
    celery_faults.worker.drain()
    assert injection.fired
    assert {task.state for task in celery_faults.outcome(result).tasks} <= set(READY)
    assert not [callback for callback in celery_faults.callbacks.missing if callback.why.startswith(WAITS)]
