"""The scenarios of tasks that run coroutines."""

from __future__ import annotations

from typing import Any

import asyncio_tasks as tasks
from fidelity_expected import IN_LOOP, LEFT, Shows, killed, says
from fidelity_scenarios import scenario


@scenario()
def asyncio_run(driver: Any) -> None:
    driver.get(tasks.async_sleep.delay())


@scenario(
    shows=Shows(
        "A soft time limit comes out of the event loop: `asyncio.run` cancels the coroutine, waits until it has "
        "cleaned up, and raises `SoftTimeLimitExceeded`.",
        lambda real: "cleaned up" in str(real.seen) and real.count("interrupted by CancelledError()") == 1,
    ),
)
def asyncio_soft_limit_caught(driver: Any) -> None:
    driver.get(tasks.async_soft.delay())


@scenario(expected=IN_LOOP)
def asyncio_soft_limit_uncaught(driver: Any) -> None:
    driver.get(tasks.async_soft_uncaught.delay())


@scenario(
    loses_child=True,
    expected=killed("async_hard#1", says("interrupted by CancelledError()"), says("finally"), says("cleaned up"), LEFT),
)
def asyncio_hard_limit(driver: Any) -> None:
    driver.get(tasks.async_hard.delay())


@scenario()
def asyncio_retry(driver: Any) -> None:
    driver.get(tasks.async_retry.delay())


@scenario()
def asyncio_loop_of_a_process(driver: Any) -> None:
    driver.get(tasks.async_loop.delay())


@scenario()
def async_to_sync(driver: Any) -> None:
    driver.get(tasks.to_sync.delay())


@scenario(
    shows=Shows(
        "A soft time limit is raised in the task that waits in `async_to_sync`; the coroutine, in another thread, "
        "goes on.",
        lambda real: real.count("went on") == 1 and "left" in str(real.seen),
    ),
)
def async_to_sync_soft_limit(driver: Any) -> None:
    driver.get(tasks.to_sync_soft.delay())
    driver.pass_time(1.5)
