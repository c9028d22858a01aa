"""The application that is measured: the same tasks for every contender."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from celery import Celery

REDIS = os.environ.get("BENCHMARK_REDIS", "redis://localhost:6379")
RETRIES = 10

app = Celery("workload", broker=f"{REDIS}/0", backend=f"{REDIS}/1")
app.conf.broker_connection_retry_on_startup = True

#: How often each body ran. The proof that something was measured: results alone could come from anywhere.
executed: Counter[str] = Counter()


@app.task
def add(x: int, y: int) -> int:
    executed["add"] += 1
    return x + y


@app.task
def total(parts: list[int]) -> int:
    executed["total"] += 1
    return sum(parts)


@app.task(
    bind=True,
    autoretry_for=(OSError,),
    retry_backoff=True,
    retry_backoff_max=100_000,  # the default would cut the delays at 600 seconds
    retry_jitter=False,
    max_retries=RETRIES,
)
def flaky(self: Any) -> str:
    executed["flaky"] += 1
    if self.request.retries < RETRIES:
        raise OSError("not yet")
    return "done"
