"""Scenarios: the broker is restarted, the result backend is gone for a while.

A worker that has lost its broker tries again at once, and then after 2, 4, 6 seconds; outages end between two of these
instants, well away from both.
"""

from __future__ import annotations

from typing import Any

import more_tasks as tasks
from fidelity_expected import FORGETS_JOBS, IS_5_7, Shows
from fidelity_scenarios import BUSY, scenario
from scenario_app import add


@scenario(fresh=True)
def broker_restarted_while_idle(driver: Any) -> None:
    driver.start()
    driver.get(add.delay(1, 1))
    with driver.broker_down():
        driver.pass_time(1)
    driver.get(add.delay(2, 2))


@scenario(fresh=True, forgotten=FORGETS_JOBS)
def broker_restarted_while_a_task_acked_early_runs(driver: Any) -> None:
    driver.start()
    result = tasks.nap.delay(2.5)
    driver.until("note", result)
    with driver.broker_down():
        driver.pass_time(1)
    driver.get(result)
    driver.get(add.delay(1, 1))


def _comes_back(driver: Any) -> None:
    """With messages that are not acknowledged, the worker of Celery 5.7 dies of the broker's end."""
    if IS_5_7:
        driver.until_it_dies()
        driver.restart()


@scenario(
    fresh=True,
    restarts=True,
    broker_transport_options={"visibility_timeout": 1},
    shows=Shows(
        "A worker of Celery 5.7 that holds a message which is not acknowledged dies when its Redis ends: kombu closes "
        "the channel too late, `AttributeError: 'NoneType' object has no attribute 'hostname'`. One of 5.6 goes on.",
        lambda real: real.count("worker_shutdown") == IS_5_7,
    ),
)
def broker_restarted_while_a_task_acked_late_runs(driver: Any) -> None:
    driver.start()
    result = tasks.long_at_first.delay(2.5)
    driver.track(result)
    driver.until("note", result)
    driver.pass_time(0.5)
    with driver.broker_down():
        driver.pass_time(1)
    _comes_back(driver)
    driver.pass_time(2)
    driver.settle()
    driver.observe(result.result)


@scenario(
    fresh=True,
    restarts=True,
    loses_child=True,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_transport_options={"visibility_timeout": 1},
)
def broker_restarted_with_tasks_cancelled(driver: Any) -> None:
    driver.start()
    result = tasks.long_at_first.delay(3)
    driver.track(result)
    driver.until("note", result)
    driver.pass_time(0.5)
    with driver.broker_down():
        driver.pass_time(1)
    _comes_back(driver)
    driver.pass_time(2)
    driver.settle()
    driver.observe(result.result)


@scenario(fresh=True, forgotten=FORGETS_JOBS, restarts=True, broker_transport_options={"visibility_timeout": 1})
def broker_restarted_with_messages_that_wait(driver: Any) -> None:
    driver.start()
    busy = tasks.nap.delay(2.5)
    driver.until("note", busy)
    prefetched = add.delay(1, 1)
    driver.until("received", prefetched)
    driver.pass_time(0.5)
    with driver.broker_down():
        driver.pass_time(1)
    _comes_back(driver)
    driver.get(busy)
    driver.get(prefetched)


@scenario(fresh=True)
def broker_down_for_longer(driver: Any) -> None:
    driver.start()
    driver.get(add.delay(1, 1))
    with driver.broker_down():
        driver.pass_time(4)
    driver.pass_time(3)
    driver.get(add.delay(2, 2))


@scenario(fresh=True)
def sent_while_the_broker_is_down(driver: Any) -> None:
    driver.start()
    driver.get(add.delay(1, 1))
    with driver.broker_down():
        driver.pass_time(0.5)
        try:
            add.apply_async((2, 2), retry=False)
        except Exception as exc:
            driver.observe(f"{type(exc).__module__}.{type(exc).__name__}")
    driver.get(add.delay(3, 3))


@scenario(fresh=True)
def backend_gone_while_a_result_is_stored(driver: Any) -> None:
    driver.start()
    driver.get(add.delay(1, 1))
    result = tasks.nap.delay(BUSY)
    driver.track(result)
    driver.until("note", result)
    with driver.backend_down():
        driver.pass_time(BUSY + 1.7)
    driver.settle()
    driver.observe(result.state)


@scenario(fresh=True)
def backend_gone_while_the_caller_waits(driver: Any) -> None:
    driver.start()
    result = tasks.nap.delay(2.5)
    driver.until("note", result)
    with driver.backend_down():
        driver.pass_time(1)
    driver.get(result)
