"""What a user writes, under mypy and pyright, both strict: this file is type-checked, never run."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from pytest_celery_faults import (
    Attempt,
    BackendDown,
    Broker,
    BrokerDown,
    Callback,
    Callbacks,
    CeleryFaultsError,
    Clock,
    Crash,
    DeadLetterQueue,
    Delay,
    Drop,
    Duplicate,
    Event,
    Execution,
    Fault,
    Harness,
    Injection,
    Letter,
    Message,
    Outcome,
    RetryHistory,
    RetryPolicy,
    RetryRecorder,
    Revoke,
    Sent,
    SentMessage,
    SentSignal,
    Signals,
    Site,
    Sleep,
    Timeline,
    WaitNeverEndsError,
    WorkerControl,
    inject,
)


class Mine(Fault):
    points = ("start", "function")

    def strike(self, execution: object) -> None:
        raise LookupError(execution)


@inject(Crash(), at="stored", then=lambda execution: execution.retries)
@inject(Duplicate(copies=2, delay=1.5), at="publish")
@inject(BrokerDown(30), when=lambda execution: execution.queue == "celery")
@inject(Mine(), required=False)
@inject(OSError, times=3)
@inject(Sleep(beyond="time_limit"), task="shop.tasks.resize", required=False)
@inject(ValueError("no"), task=["shop.*"], times=None, at="return")
def test_marked(celery_faults: Harness, retry_recorder: RetryRecorder, celery_dlq: DeadLetterQueue) -> None:
    celery_faults.worker.drain(fail_fast=True)
    celery_faults.worker.advance(1.5)
    celery_faults.worker.advance(timedelta(hours=1))
    event: Event | None = celery_faults.worker.step()
    assert event is None or event.kind == "received"
    sites: list[Site] = celery_faults.timeline.sites
    assert [f"{site.task} {site.point} {site.retry} {site.delivery}" for site in sites] != [str(site) for site in sites]
    celery_faults.assert_nothing_lost()
    with celery_faults.broker.down():
        celery_faults.inject(Drop(), at="receive")
    celery_faults.worker.crash()
    celery_faults.worker.start()
    celery_faults.worker.stop(warm=False)
    now: datetime = celery_faults.clock.now()
    elapsed: float = celery_faults.clock.elapsed
    assert now.tzinfo is not None
    assert elapsed == 0
    with celery_faults.clock.real():
        pass
    with celery_faults.inject(Sleep(3)) as injection:
        fault: Injection = injection
    assert fault.fired == 1
    history: RetryHistory = retry_recorder.of("shop.tasks.resize")
    attempts: list[Attempt] = list(history.attempts)
    delays: list[float] = retry_recorder.delays
    assert len(attempts) == len(delays) + 1
    letters: list[Letter] = celery_dlq.of("shop.tasks.resize")
    reasons: Counter[str] = celery_dlq.reasons
    assert len(letters) == reasons["time_limit"]
    sent_back: list[Letter] = celery_dlq.redrive(letters[0]) + celery_dlq.redrive()
    worked: list[Letter] = celery_dlq.consume()
    assert [letter.task for letter in sent_back] != [letter.task_id for letter in worked]
    celery_dlq.clear()
    policy: RetryPolicy = retry_recorder.policy
    limit: int | None = policy.max_retries
    assert limit is None or policy.of_retry(1).high == policy[0].low
    history.assert_follows_policy()
    messages: list[Message] = celery_faults.broker.messages("celery")
    sent: list[SentMessage] = celery_faults.sent.of("shop.tasks.resize")
    assert [message.task for message in messages] == [message.task for message in sent]
    with contextlib.suppress(CeleryFaultsError):
        celery_faults.inject(OSError, task="nonsense")


def first_try(execution: Execution) -> bool:
    return execution.retries == 0 and not execution.redelivered and execution.task_id in execution.headers


@inject(Delay(2.5), at="receive", when=first_try)
@inject(BackendDown(10), every=2, skip=1, probability=0.5)
@inject(Revoke(terminate=True), task="shop.tasks.resize")
def test_views(celery_faults: Harness) -> None:
    clock: Clock = celery_faults.clock
    broker: Broker = celery_faults.broker
    worker: WorkerControl = celery_faults.worker
    assert worker.running == (clock.time() > 0)
    assert broker.queues["celery"] == len(broker.unacked)
    timeline: Timeline = celery_faults.timeline
    first: Event = timeline[0]
    rest: list[Event] = timeline[1:]
    retried: list[Event] = timeline.where("retry", task="shop.tasks.resize", attempt=2)
    assert [first, *rest] != [event for event in retried if event.data]
    outcome: Outcome = celery_faults.outcome(None)
    failed: list[str | None] = [task.task for task in outcome.tasks if task.state == "FAILURE"]
    members: Sequence[Outcome] = outcome
    assert len(failed) < len(members)
    error: BaseException | None = outcome.header[0].error
    assert error is None or outcome.body.why
    callbacks: Callbacks = celery_faults.callbacks
    missing: list[Callback] = callbacks.missing
    assert [callback.parent for callback in callbacks] != [callback.task for callback in missing]
    assert callbacks.links + callbacks.errbacks + callbacks.bodies == callbacks.of("shop.tasks.resize")
    signals: Signals = celery_faults.signals
    told: list[SentSignal] = signals.where("task_failure", task="shop.tasks.resize")
    names: list[str] = signals.names()
    assert [signal.name for signal in told] == names
    sent: Sent = celery_faults.sent
    message: SentMessage = sent[-1]
    assert message.task
    injection: Injection = celery_faults.inject(Crash())
    left: int | None = injection.remaining
    assert left is None or left > injection.fired
    injection.cancel()
    with contextlib.suppress(WaitNeverEndsError):
        celery_faults.verify()


async def test_awaited(celery_faults: Harness, result: object) -> None:
    worker: WorkerControl = celery_faults.worker
    await worker.adrain()
    await worker.adrain(fail_fast=True)
    await worker.aadvance(1.5)
    await worker.aadvance(timedelta(hours=1))
    value: str = await worker.aget(result)
    values: list[int] = await worker.aget(result, timeout=30)
    drained, advanced, number = await asyncio.gather(worker.adrain(), worker.aadvance(60), worker.aget(result, 2.5))
    assert drained is advanced is None
    assert value != number != values
