"""``celery_dlq``: every message that ended badly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, overload

from ..broker import decode_arguments
from ..errors import hide_ours
from ..recorder import DeadLetter, Recorder

__tracebackhide__ = hide_ours

REASONS = (
    "rejected", "failed", "max_retries", "time_limit", "worker_lost", "expired", "unregistered", "undecodable",
    "delivery_limit", "quarantined", "published",
)  # fmt: skip


class Letter:
    """A message that ended badly, why, and who would have it in production.

    ``at`` is virtual seconds since the start of the test. ``route`` is ``"app"`` when the application itself sent it to
    its dead-letter queue, ``"broker"`` when a RabbitMQ with a dead-letter exchange would keep it
    (https://www.rabbitmq.com/docs/dlx), ``"harness"`` when nobody would: it had been acknowledged.
    """

    def __init__(self, fact: DeadLetter) -> None:
        self._fact = fact
        self.task = fact.task
        self.task_id = fact.task_id
        self.reason = fact.reason
        self.queue = fact.queue
        self.exception = fact.exception
        self.traceback = fact.traceback
        self.at = fact.at
        self.args, self.kwargs = decode_arguments(fact.payload)

    @property
    def headers(self) -> Mapping[str, Any]:
        headers: Mapping[str, Any] = self._fact.payload.get("headers") or {}
        return headers

    @property
    def retries(self) -> int:
        return int(self.headers.get("retries") or 0)

    @property
    def route(self) -> str:
        if self.reason == "published":
            return "app"
        delivery = self._fact.delivery
        return "broker" if delivery is not None and delivery.rejected else "harness"

    def __repr__(self) -> str:
        lost = "" if self.route == "app" else (
            ", LOST in production: it had been acknowledged" if self.route == "harness"
            else ", kept by a RabbitMQ with a dead-letter exchange, LOST on Redis"
        )  # fmt: skip
        exception = f" {self.exception!r}" if self.exception is not None else ""
        return f"<Letter {self.task}{tuple(self.args)!r} from {self.queue!r}: {self.reason}{exception}{lost}>"


class DeadLetterQueue(Sequence[Letter]):
    """All letters of a test, oldest first: the fixture ``celery_dlq``."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._letters: list[Letter] = []

    def _all(self) -> list[Letter]:
        self._letters += [Letter(fact) for fact in self._recorder.letters[len(self._letters) :]]
        return self._letters

    def of(self, task: Any) -> list[Letter]:
        """The letters of a task, given itself or its name."""
        name = self._recorder.name_of(task)
        return [letter for letter in self._all() if letter.task == name]

    @property
    def reasons(self) -> Counter[str]:
        """How many letters there are for each reason."""
        return Counter(letter.reason for letter in self._all())

    @overload
    def __getitem__(self, index: int) -> Letter: ...
    @overload
    def __getitem__(self, index: slice) -> list[Letter]: ...
    def __getitem__(self, index: int | slice) -> Letter | list[Letter]:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"<DeadLetterQueue {self._all()!r}>"
