"""Scenarios: further ways to retry, acks of slow tasks, classes of one's own, stamps, several workers, restarts."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import more_tasks as tasks
from celery import chain, chord, group
from celery.canvas import StampingVisitor
from fidelity_expected import IN_AUTORETRY, IN_BODY, IN_BODY_FROM_5_7, IN_SLEEP, LEFT, Shows, killed
from fidelity_scenarios import BUSY, refused, scenario
from scenario_app import add, app, boom, dies_late_requeued, errback, retry_once, total

# -- retries


@scenario(expected=IN_AUTORETRY, jitter=(1, 2))
def autoretry_with_jitter(driver: Any) -> None:
    driver.get(tasks.jittery.delay())


@scenario(expected=IN_AUTORETRY)
def autoretry_with_growing_backoff(driver: Any) -> None:
    driver.get(tasks.growing.delay())


@scenario(expected=IN_AUTORETRY)
def autoretry_with_a_factor(driver: Any) -> None:
    result = tasks.backoff_factor.apply_async(retries=2)
    driver.get(result)


@scenario(expected=IN_BODY)
def manual_retry_for_two_types(driver: Any) -> None:
    driver.get(tasks.retries_two_types.delay())


@scenario(expected=IN_AUTORETRY)
def autoretry_with_retry_kwargs(driver: Any) -> None:
    driver.get(tasks.fixed_delay.delay())


@scenario(expected=IN_AUTORETRY)
def autoretry_by_base_class(driver: Any) -> None:
    driver.get(tasks.retries_by_base.delay())


@scenario()
def retry_at_an_eta(driver: Any) -> None:
    driver.get(tasks.retry_at.delay())


@scenario()
def retry_that_goes_on(driver: Any) -> None:
    result = tasks.retry_elsewhere.delay()
    driver.track(result)
    driver.settle()
    driver.get(result)


@scenario()
def retry_that_expires(driver: Any) -> None:
    result = tasks.retry_expires.delay()
    driver.track(result)
    driver.settle()
    driver.observe(result.state)


@scenario()
def retry_without_limit(driver: Any) -> None:
    driver.get(tasks.retry_for_ever.delay())


# -- acks: with a body that takes so long that early is told from late


@scenario()
def success_of_a_slow_task_acked_early(driver: Any) -> None:
    driver.get(tasks.nap.delay(1.3))


@scenario()
def success_of_a_slow_task_acked_late(driver: Any) -> None:
    driver.get(tasks.late_nap.delay(1.3))


@scenario(task_acks_late=True)
def success_acked_late_by_setting(driver: Any) -> None:
    driver.get(tasks.nap.delay(1.3))


# -- times: longer than the tolerance, so that too soon is told from late


@scenario()
def countdown_of_more_than_a_second(driver: Any) -> None:
    driver.get(tasks.nap.apply_async((0,), countdown=1.4))


@scenario()
def soft_limit_of_more_than_a_second(driver: Any) -> None:
    driver.get(tasks.naps_until_the_limit.apply_async(soft_time_limit=1.4))


@scenario()
def eta_of_another_time_zone(driver: Any) -> None:
    eta = datetime.now(timezone(timedelta(hours=5, minutes=30))) + timedelta(seconds=0.5)
    driver.get(tasks.nap.apply_async((0,), eta=eta))


@scenario()
def eta_in_the_past(driver: Any) -> None:
    driver.get(tasks.nap.apply_async((0,), eta=datetime.now(timezone.utc) - timedelta(hours=1)))


@scenario()
def expires_at_a_date_after_it_ran(driver: Any) -> None:
    driver.get(tasks.nap.apply_async((0,), expires=datetime.now(timezone.utc) + timedelta(hours=1)))


# -- classes of one's own


@scenario()
def request_class_of_a_success(driver: Any) -> None:
    driver.get(tasks.requested.delay("succeeds"))


@scenario(expected=IN_BODY)
def request_class_of_a_failure(driver: Any) -> None:
    driver.get(tasks.requested.delay("fails"))


@scenario()
def request_class_of_a_retry(driver: Any) -> None:
    driver.get(tasks.requested.delay("retries"))


@scenario()
def task_class_with_a_call_of_its_own(driver: Any) -> None:
    for n in range(3):
        driver.get(tasks.counted.delay(n))


@scenario()
def progress(driver: Any) -> None:
    result = tasks.progressing.delay()
    driver.until("prerun", result)
    driver.pass_time(0.5)
    driver.observe((result.state, result.info))
    driver.pass_time(1)
    driver.observe((result.state, result.info))
    driver.get(result)


# -- stamps


class _Stamps(StampingVisitor):
    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"trace": "a stamp", "stamped_headers": ["trace"]}


@scenario()
def stamped_task(driver: Any) -> None:
    signature = tasks.stamped.s()
    signature.stamp(batch="7")
    driver.get(signature.apply_async())


@scenario()
def stamped_by_a_visitor(driver: Any) -> None:
    signature = chain(tasks.stamped.s(), tasks.stamped.s())
    signature.stamp(visitor=_Stamps())
    driver.get(signature.apply_async())


@scenario()
def stamped_group(driver: Any) -> None:
    members = group(tasks.stamped.s(n) for n in range(2))
    members.stamp(batch="7")
    driver.get(members.apply_async())


@scenario()
def stamps_of_links(driver: Any) -> None:
    signature = add.s(1, 2)
    signature.link(tasks.stamped.s())
    signature.stamp(batch="7")
    driver.get(signature.apply_async())


@scenario()
def stamps_of_a_retry(driver: Any) -> None:
    signature = retry_once.s(0.2)
    signature.stamp(batch="7")
    driver.get(signature.apply_async())


@scenario()
def revoked_by_a_stamp(driver: Any) -> None:
    busy = tasks.nap.delay(BUSY)
    driver.until("note", busy)
    signature = tasks.stamped.s()
    signature.stamp(batch="7")
    result = signature.apply_async()
    driver.until("received", result)
    app.control.revoke_by_stamped_headers({"batch": "7"})
    driver.track(result)
    driver.settle()
    driver.observe(result.state)


# -- canvases


@scenario()
def chord_in_the_order_of_its_header(driver: Any) -> None:
    """The first member is the last to be done."""
    driver.get(chord([retry_once.si(0.4), add.si(1, 1), add.si(2, 2)])(tasks.stamped.s()))


@scenario(expected=IN_BODY)
def chord_of_a_group_in_a_chain(driver: Any) -> None:
    driver.get(chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), boom.si("end")).apply_async())


@scenario(expected=IN_BODY_FROM_5_7)
def chain_of_a_group_with_a_failing_member(driver: Any) -> None:
    failing = group(add.si(1, 1), boom.si("member"))
    refused(driver, lambda: driver.get(chain(failing, total.s()).apply_async(link_error=errback.s())))


@scenario()
def map_and_chunks(driver: Any) -> None:
    driver.get(add.starmap([(1, 1), (2, 2)]).delay())
    driver.get(add.chunks([(1, 1), (2, 2), (3, 3)], 2).apply_async())


# -- time limits and acks


@scenario(expected=IN_SLEEP)
def soft_limit_acked_late(driver: Any) -> None:
    driver.get(tasks.late_soft_limit.delay())


@scenario(expected=IN_SLEEP)
def soft_limit_without_ack(driver: Any) -> None:
    driver.get(tasks.kept_on_soft_limit.delay())


@scenario(loses_child=True, expected=killed("nap#1", LEFT))
def hard_limit_of_a_second_and_a_half(driver: Any) -> None:
    driver.get(tasks.nap.apply_async((10,), time_limit=1.5))


@scenario(expected=IN_SLEEP)
def requests_class_at_a_soft_limit(driver: Any) -> None:
    driver.get(tasks.requested.apply_async(("sleeps",), soft_time_limit=0.3))


@scenario(
    broker_transport_options={"visibility_timeout": 1},
    shows=Shows(
        "A task that takes longer than the visibility timeout is not delivered again while its worker lives, before "
        "kombu looks, which is at its start and each hundred seconds.",
        lambda real: real.count("received") == 1,
    ),
)
def longer_than_the_visibility_timeout(driver: Any) -> None:
    driver.get(tasks.late_nap.delay(2.5))


# -- a task that is delivered twice


@scenario(
    loses_child=True,
    worker_deduplicate_successful_tasks=True,
    shows=Shows(
        "With `worker_deduplicate_successful_tasks` a task that was killed after its success was stored is not run "
        "again: its message is acknowledged when it comes back.",
        lambda real: real.count("note {'text': 'begins'}") == 1 and real.stored["dies_late_requeued#1"] is not None,
    ),
)
def deduplicated_after_it_was_killed(driver: Any) -> None:
    result = dies_late_requeued.apply_async(headers={"dies_at": "stored"})
    driver.track(result)
    driver.settle()
    driver.observe(result.state)


# -- several workers, and workers that come back


# With one message for each worker that is not acknowledged yet, a busy one takes no other.
@scenario(workers=2, worker_prefetch_multiplier=1)
def several_workers(driver: Any) -> None:
    first = tasks.late_nap.delay(BUSY)
    driver.until("note", first)
    second = tasks.late_nap.delay(BUSY + 1)
    driver.get(first)
    driver.get(second)


@scenario(workers=2, worker_prefetch_multiplier=1)
def chord_of_several_workers(driver: Any) -> None:
    driver.get(chord([tasks.late_nap.si(0.8), add.si(1, 1).set(countdown=0.3)])(total.s()))


@scenario(
    fresh=True,
    restarts=True,
    shows=Shows(
        "After a warm shutdown what was prefetched and delayed is there for the next worker.",
        lambda real: "SUCCESS" in str(real.stored["nap#2"]) and "SUCCESS" in str(real.stored["nap#3"]),
    ),
)
def warm_shutdown_and_restart(driver: Any) -> None:
    driver.start()
    running = tasks.nap.delay(1)
    driver.until("note", running)
    prefetched, delayed = tasks.nap.delay(0), tasks.nap.apply_async((0,), countdown=8)
    driver.until("received", delayed)
    driver.stop(warm=True)
    driver.restart()
    driver.get(prefetched)
    driver.get(delayed)


@scenario(
    fresh=True,
    restarts=True,
    broker_transport_options={"visibility_timeout": 2},
    shows=Shows(
        "A worker that starts again gives out at once what was unacked for longer than the visibility timeout; what "
        "was acknowledged early is lost.",
        lambda real: real.stored["nap#1"] is None and "SUCCESS" in str(real.stored["late_nap#1"]),
    ),
)
def power_cut_and_restart(driver: Any) -> None:
    driver.start()
    early = tasks.nap.delay(9)
    driver.until("note", early)
    late = tasks.late_nap.delay(0)
    driver.until("received", late)
    driver.crash()
    driver.track(early)
    driver.pass_time(3)
    driver.restart()
    driver.get(late)
