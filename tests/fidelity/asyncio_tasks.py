"""Tasks of the application of both sides that run coroutines."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from celery import current_task
from celery.exceptions import SoftTimeLimitExceeded
from scenario_app import app, note

_variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


async def _nap(seconds: float) -> None:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError as exc:
        note(f"interrupted by {exc!r}")
        raise
    finally:
        note("finally")
        await asyncio.sleep(0.1)
        note("cleaned up")


@app.task(name="scenario_app.async_sleep")
def async_sleep() -> list[Any]:
    async def main() -> list[Any]:
        _variable.set("main")
        results = await asyncio.gather(asyncio.sleep(0.2, "a"), asyncio.sleep(0.1, "b"), return_exceptions=True)
        try:
            await asyncio.wait_for(asyncio.sleep(10), 0.1)
        except asyncio.TimeoutError:
            note("timeout")
        return [*results, _variable.get(), await asyncio.to_thread(_variable.get)]

    return [*asyncio.run(main()), _variable.get()]


@app.task(name="scenario_app.async_soft", soft_time_limit=0.3)
def async_soft() -> str:
    try:
        asyncio.run(_nap(10))
    except SoftTimeLimitExceeded as exc:
        note(f"caught {exc!r} from {exc.__context__!r}")
        return "cleaned up"
    return "never"


@app.task(name="scenario_app.async_soft_uncaught", soft_time_limit=0.3)
def async_soft_uncaught() -> None:
    asyncio.run(_nap(10))


@app.task(name="scenario_app.async_hard", time_limit=0.3)
def async_hard() -> None:
    asyncio.run(_nap(10))


@app.task(name="scenario_app.async_retry", bind=True)
def async_retry(self: Any) -> int:
    async def main() -> int:
        await asyncio.sleep(0)
        if self.request.retries < 2:
            try:
                raise LookupError("not yet")
            except LookupError as exc:
                raise self.retry(exc=exc, countdown=0.2) from exc
        return int(self.request.retries)

    return asyncio.run(main())


@app.task(name="scenario_app.async_loop")
def async_loop() -> list[Any]:
    """The event loop of a process, as asyncio gives it before and after it is used."""
    said: list[Any] = []
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    said.append(asyncio.get_event_loop() is loop)
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()
    asyncio.run(asyncio.sleep(0.1))
    try:
        asyncio.get_event_loop()
    except RuntimeError as exc:
        said.append(str(exc).rstrip("."))
    return said


async def _both(task_id: str) -> str:
    note("began", task_id)
    await sync_to_async(note)(f"the current task is {current_task and current_task.name}", task_id)
    await asyncio.sleep(0.6)
    note("went on", task_id)
    return "done"


@app.task(name="scenario_app.async_to_sync", bind=True)
def to_sync(self: Any) -> str:
    return str(async_to_sync(_both)(self.request.id))


@app.task(name="scenario_app.async_to_sync_soft", bind=True, soft_time_limit=0.3)
def to_sync_soft(self: Any) -> str:
    try:
        return str(async_to_sync(_both)(self.request.id))
    except SoftTimeLimitExceeded as exc:
        note(f"caught {exc!r}")
        return "left"
