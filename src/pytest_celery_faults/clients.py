"""Clients of the in-memory Redis for an application's own code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CeleryFaultsError, hide_ours

if TYPE_CHECKING:
    from redis import Redis

    from .harness import Harness

__tracebackhide__ = hide_ours

#: The harnesses that are up, the innermost last.
UP: list[Harness] = []


def redis_client(url: str | None = None, **options: Any) -> Redis:
    """A client of the in-memory Redis of the test that runs, for code that opens one by itself.

    It can take the place of ``redis.Redis.from_url``: one line, ``monkeypatch.setattr("redis.Redis.from_url",
    redis_client)``, sends all that an application opens so to the Redis that its tasks are on. A blocking command waits
    on virtual time and lets the worker run meanwhile.

    Args:
        url: of the server that the application has for a broker or result backend, with any database; without it the
            broker's database.
        options: redis-py's, such as ``decode_responses=True``. See
            https://redis.readthedocs.io/en/stable/connections.html#redis.Redis.from_url.

    Raises:
        CeleryFaultsError: no worker of this plugin is up.
        ForeignBrokerError: the URL is of another server.
    """
    if not UP:
        raise CeleryFaultsError(
            "redis_client(): there is no in-memory Redis, since no worker of this plugin is up. A test has one by the "
            "fixture celery_faults, or in an armed run when Celery's test tools have started a worker"
        )
    return UP[-1].redis_client(url, **options)
