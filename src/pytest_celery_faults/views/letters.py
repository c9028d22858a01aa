"""``celery_dlq``: every message that ended badly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from ..broker import decode_arguments, headers_of
from ..errors import FaultTypeError, FaultValueError, hide_ours
from ..recorder import DeadLetter, Recorder

if TYPE_CHECKING:
    from ..letterdesk import LetterDesk

__tracebackhide__ = hide_ours

REASONS = (
    "rejected", "failed", "max_retries", "time_limit", "worker_lost", "expired", "unregistered", "undecodable",
    "delivery_limit", "quarantined", "published",
)  # fmt: skip


_FATES = {
    "app": "",
    "broker": ", kept by a RabbitMQ with a dead-letter exchange, LOST in production on Redis",
    "harness": ", LOST in production: it had been acknowledged",
}


class Letter:
    """A message that ended badly, why, and who would have it in production.

    ``task`` and ``task_id`` are ``None`` where the message has none. ``at`` is virtual seconds since the start of the
    test. ``route`` is ``"app"`` when the application itself sent it to its dead-letter queue, ``"broker"`` when a
    RabbitMQ with a dead-letter exchange would keep it (https://www.rabbitmq.com/docs/dlx), ``"harness"`` when nobody
    would: it had been acknowledged.
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
        headers = headers_of(self._fact.payload)
        return {**headers, **self._death()} if self.route == "broker" else headers

    def _death(self) -> dict[str, Any]:
        """What RabbitMQ adds to a message that it dead-letters: https://www.rabbitmq.com/docs/dlx#effects."""
        reason = self.reason if self.reason in ("expired", "delivery_limit") else "rejected"
        info = (self._fact.payload.get("properties") or {}).get("delivery_info") or {}
        exchange, key = info.get("exchange") or "", info.get("routing_key") or self.queue
        death = {"queue": self.queue, "reason": reason, "count": 1, "exchange": exchange, "routing-keys": [key]}
        return {
            "x-death": [death],
            "x-first-death-reason": reason,
            "x-first-death-queue": self.queue,
            "x-first-death-exchange": exchange,
        }

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
        exception = f" {self.exception!r}" if self.exception is not None else ""
        arguments = ", ".join([*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())])
        what = f"{self.task}({arguments})" if self.task is not None else "no task"
        return f"<Letter {what} from {self.queue!r}: {self.reason}{exception}{_FATES[self.route]}>"


class DeadLetterQueue(Sequence[Letter]):
    """All letters of a test, oldest first: the fixture ``celery_dlq``."""

    def __init__(self, recorder: Recorder, desk: LetterDesk) -> None:
        self._recorder = recorder
        self._desk = desk
        self._letters: list[Letter] = []
        self._seen = 0

    def _present(self) -> list[Letter]:
        """What lies here: with what came since somebody looked, without what the worker took from the queue."""
        facts = self._recorder.letters
        self._letters += [Letter(fact) for fact in facts[self._seen :]]
        self._seen = len(facts)
        self._letters = [
            letter
            for letter in self._letters
            if letter.route != "app" or not self._recorder.was_worked(letter._fact.payload)
        ]
        return self._letters

    def of(self, task: Any) -> list[Letter]:
        """The letters of a task, given itself or its name.

        Raises:
            FaultValueError: no app has a task of that name, and none was sent.
        """
        name = self._recorder.name_of(task)
        return [letter for letter in self._present() if letter.task == name]

    @property
    def reasons(self) -> Counter[str]:
        """How many letters there are for each reason."""
        return Counter(letter.reason for letter in self._present())

    def redrive(self, letter: Letter | None = None) -> list[Letter]:
        """Send a letter back to the queue that it came from, or all of them: they leave the dead-letter queue.

        The message has the id it had, and no retries, no ETA and no expiry. Its task's state stays what it was until it
        has run again, and an ``AsyncResult`` that was asked keeps what it said: make a new one. Letters that the
        application sent to its dead-letter queue itself came from nowhere else: those stay, and `consume` works them.
        Returns what was sent.

        Raises:
            FaultTypeError, FaultValueError: that is no letter, none that lies here, or one that came from nowhere else.
        """
        present = self._present()
        if letter is None:
            letters = [letter for letter in present if letter.route != "app"]
        elif not isinstance(letter, Letter):
            raise FaultTypeError(f"redrive({letter!r}): a letter of celery_dlq, or nothing for all of them")
        elif not any(letter is other for other in present):
            raise FaultValueError(f"redrive({letter!r}): it does not lie in the dead-letter queue any more")
        elif letter.route == "app":
            raise FaultValueError(
                f"redrive({letter!r}): the application sent it to {letter.queue!r} itself; consume() works it there"
            )
        else:
            letters = [letter]
        for one in letters:
            self._letters.remove(one)
            if one.reason == "expired" and one.task_id is not None:
                self._desk.forget_revoked(one.task_id)
            self._desk.send_back(one._fact.payload, one.queue)
        return letters

    def consume(self) -> list[Letter]:
        """Let the worker work the application's dead-letter queue until it is empty; what it worked is gone from here.

        Returns what was worked. What fails there becomes a letter anew.

        Raises:
            FaultValueError: there is no such queue (``dlq=None``), or the worker is stopped.
        """
        before = self._present()
        self._desk.work()
        present = self._present()
        return [letter for letter in before if not any(letter is other for other in present)]

    def clear(self) -> None:
        """Throw all letters away, and with them the messages in the application's dead-letter queue."""
        self._desk.throw_away()
        self._present()
        self._letters = []

    def same_as(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Letter | None:
        """The oldest letter of a message that was worked, or should have been, with that task and arguments."""
        return next(
            (
                letter
                for letter in self._present()
                if letter.reason not in ("published", "quarantined", "undecodable")
                and (letter.task, list(letter.args), dict(letter.kwargs)) == (task, list(args), dict(kwargs))
            ),
            None,
        )

    @overload
    def __getitem__(self, index: int) -> Letter: ...
    @overload
    def __getitem__(self, index: slice) -> list[Letter]: ...
    def __getitem__(self, index: int | slice) -> Letter | list[Letter]:
        return self._present()[index]

    def __len__(self) -> int:
        return len(self._present())

    def __repr__(self) -> str:
        return f"<DeadLetterQueue {self._present()!r}>"
