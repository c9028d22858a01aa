"""What a task message says: its name, arguments and headers, in both of Celery's protocols.

See https://docs.celeryq.dev/en/stable/internals/protocol.html.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from celery.utils.time import maybe_iso8601
from kombu.compression import decompress
from kombu.serialization import loads

from .errors import hide_ours

__tracebackhide__ = hide_ours


@dataclass(frozen=True)
class Message:
    """A message as it lies in a queue or is held by a consumer.

    ``priority`` is the sender's.
    """

    queue: str
    task: str | None
    task_id: str | None
    args: Sequence[Any] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, Any] = field(repr=False)
    priority: int | None
    redelivered: bool
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def eta(self) -> datetime | None:
        """The time before which it is not executed; aware."""
        return moment_of(self.headers, "eta")

    @property
    def expires(self) -> datetime | None:
        """The time after which it is not executed any more; aware."""
        return moment_of(self.headers, "expires")

    @property
    def retries(self) -> int:
        """How often the task was retried before."""
        return self.headers.get("retries") or 0

    @property
    def parent(self) -> str | None:
        """The id of the task that sent it."""
        return self.headers.get("parent_id")


def moment_of(headers: Mapping[str, Any], name: str) -> datetime | None:
    """A time that is given in headers; none where it cannot be read: the worker will refuse such a message."""
    try:
        moment = maybe_iso8601(headers.get(name))
    except (TypeError, ValueError):
        return None
    return moment if moment is None or moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def as_message(payload: Mapping[str, Any], queue: str) -> Message:
    """A message as a test sees it."""
    args, kwargs = decode_arguments(payload)
    headers = headers_of(payload)
    properties = payload.get("properties") or {}
    return Message(
        queue=queue,
        task=headers.get("task"),
        task_id=headers.get("id"),
        args=args,
        kwargs=kwargs,
        headers=headers,
        priority=properties.get("priority"),
        redelivered=bool((properties.get("delivery_info") or {}).get("redelivered")),
        raw=payload,
    )


def decode_arguments(payload: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The positional and keyword arguments of a task message; none where it cannot be decoded."""
    return decode_content(payload)[:2]


def decode_content(payload: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
    """The arguments, and what stands beside them: callbacks, errbacks, chain and chord."""
    body = decoded_body(payload)
    args: Any = None
    kwargs: Any = None
    embedded: Any = None
    if isinstance(body, dict):  # protocol 1
        args, kwargs = body.get("args"), body.get("kwargs")
        embedded = {name: body.get(name) for name in ("callbacks", "errbacks", "chain", "chord")}
    elif isinstance(body, (list, tuple)) and len(body) == 3:
        args, kwargs, embedded = body
    return (
        args if isinstance(args, (list, tuple)) else (),
        kwargs if isinstance(kwargs, dict) else {},
        embedded if isinstance(embedded, dict) else {},
    )


def decoded_body(payload: Mapping[str, Any]) -> Any:
    """The body of a message; ``None`` where it cannot be decoded."""
    properties = payload.get("properties") or {}
    body: Any = payload.get("body")
    try:
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body)
        compression = (payload.get("headers") or {}).get("compression")
        if compression:
            body = decompress(body, compression)
        accept = [payload["content-type"]]
        return loads(body, payload["content-type"], payload["content-encoding"], accept=accept)
    except Exception:  # A message that cannot be decoded still is one, and is looked at by people.
        return None


def headers_of(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """What Celery says of a task beside its arguments: the message's headers, in its first protocol part of the body.

    See https://docs.celeryq.dev/en/stable/internals/protocol.html.
    """
    headers = payload.get("headers") or {}
    if "task" in headers:
        return headers
    body = decoded_body(payload)
    return body if isinstance(body, dict) and "task" in body else headers


def identity_of(payload: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The task's name and id in a task message; ``None`` for each where it is none."""
    headers = headers_of(payload)
    task, task_id = headers.get("task"), headers.get("id")
    return (task, task_id) if isinstance(task, str) and isinstance(task_id, str) else (None, None)
