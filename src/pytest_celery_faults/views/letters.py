"""``celery_dlq``: every message that ended badly."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import FaultTypeError, FaultValueError, hide_ours, safe_repr
from ..messages import decode_arguments, decoded_body, headers_of, identity_of
from ..recorder import DeadLetter, Recorder
from ..secrets import Shown
from .base import View, chosen
from .table import Table

if TYPE_CHECKING:
    from ..letterdesk import LetterDesk

__tracebackhide__ = hide_ours

REASONS = (
    "rejected", "failed", "max_retries", "time_limit", "worker_lost", "expired", "unregistered", "undecodable",
    "delivery_limit", "quarantined", "published",
)  # fmt: skip


# Quarantine does not go by these: nobody has tried to work the message, or knows what is in it.
_NO_POISON = ("published", "quarantined", "undecodable")

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

    def __init__(self, fact: DeadLetter, shown: Shown | None = None) -> None:
        self._fact = fact
        self._shown = shown
        self.task: str | None = fact.task
        self.task_id: str | None = fact.task_id
        self.reason: str = fact.reason
        self.queue: str = fact.queue
        self.exception: BaseException | None = fact.exception
        self.traceback: str | None = fact.traceback
        self.at: float = fact.at
        self.args: Sequence[Any]
        self.kwargs: Mapping[str, Any]
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
        retries = self.headers.get("retries")
        return retries if isinstance(retries, int) else 0

    @property
    def route(self) -> str:
        if self.reason == "published":
            return "app"
        delivery = self._fact.delivery
        return "broker" if delivery is not None and delivery.rejected else "harness"

    @property
    def said_args(self) -> str:
        """The positional arguments as they may be shown."""
        return f"[{', '.join(self._words(self.args, {}))}]"

    def _words(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        return self._shown.words(self.task, args, kwargs, self.headers) if self._shown is not None else []

    def __repr__(self) -> str:
        exception = f" {safe_repr(self.exception)}" if self.exception is not None else ""
        what = f"{self.task}({', '.join(self._words(self.args, self.kwargs))})" if self.task is not None else "no task"
        return f"<Letter {what} from {self.queue!r}: {self.reason}{exception}{_FATES[self.route]}>"


def _content(payload: Mapping[str, Any]) -> str | None:
    """The task and arguments of a message as text, equal for equal ones; ``None`` where they cannot be decoded."""
    if decoded_body(payload) is None:
        return None
    args, kwargs = decode_arguments(payload)
    return json.dumps([identity_of(payload)[0], args, kwargs], sort_keys=True, default=safe_repr, skipkeys=True)


class DeadLetterQueue(View[Letter]):
    """All letters of a test, oldest first: the fixture ``celery_dlq``."""

    _name, _elements = "celery_dlq", "letters"

    def __init__(self, recorder: Recorder, desk: LetterDesk) -> None:
        self._recorder = recorder
        self._desk = desk
        self.begin()

    def begin(self) -> None:
        """A test begins: nothing lies here."""
        self._letters: list[Letter] = []
        self._seen = 0
        # How many of them lie in the application's own queue, from which a worker may take them.
        self._in_queue = 0
        # The reasons of those that quarantine goes by, by task and arguments.
        self._reasons: defaultdict[Any, list[str]] = defaultdict(list)

    def _present(self) -> list[Letter]:
        """What lies here: with what came since somebody looked, without what the worker took from the queue."""
        facts = self._recorder.letters
        for fact in facts[self._seen :]:
            letter = Letter(fact, self._recorder.shown)
            self._letters.append(letter)
            self._add_to_index(letter)
            self._in_queue += letter.route == "app"
        self._seen = len(facts)
        if self._in_queue:
            self._letters = [
                letter
                for letter in self._letters
                if letter.route != "app" or not self._recorder.was_worked(letter._fact.payload)
            ]
            self._in_queue = sum(letter.route == "app" for letter in self._letters)
        return self._letters

    def of(self, task: Any) -> list[Letter]:
        """The letters of a task, given itself, its name, its id or its result.

        Raises:
            FaultValueError: no app has a task of that name, and none was sent.
        """
        is_chosen = chosen(task, self._recorder)
        return self._looked_at([letter for letter in self._present() if is_chosen(letter.task, letter.task_id)])

    @property
    def reasons(self) -> Counter[str]:
        """How many letters there are for each reason."""
        letters, readable = list(self._present()), self._recorder.timeline.readable
        return self._recorder.tell(
            Counter(letter.reason for letter in letters),
            lambda: Table.of(self._name, letters, ("reason", "task", "args", "exception", "at"), readable),
        )

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
        self._index()
        return letters

    def consume(self) -> list[Letter]:
        """Let the worker work the application's dead-letter queue until it is empty; what it worked is gone from here.

        Returns what was worked. What fails there becomes a letter anew.

        Raises:
            FaultValueError: there is no such queue (``dlq=None``), or the worker is stopped.
        """
        before = list(self._present())
        self._desk.work()
        present = self._present()
        return [letter for letter in before if not any(letter is other for other in present)]

    def clear(self) -> None:
        """Throw all letters away, and with them the messages in the application's dead-letter queue."""
        self._desk.throw_away()
        self._present()
        self._letters = []
        self._in_queue = 0
        self._index()

    def why_dead(self, payload: Mapping[str, Any]) -> str | None:
        """Why a message with the same task and arguments died that was worked, or should have been, if one did."""
        key = _content(payload)
        if key is None:
            return None
        self._present()
        found = self._reasons.get(key)
        if found:
            return found[0]
        dying = self._recorder.about_to_die()
        return next((why for why, other in dying if why not in _NO_POISON and _content(other) == key), None)

    def _index(self) -> None:
        """Sort what lies here by task and arguments."""
        self._reasons.clear()
        for letter in self._letters:
            self._add_to_index(letter)

    def _add_to_index(self, letter: Letter) -> None:
        if letter.reason not in _NO_POISON:
            self._reasons[_content(letter._fact.payload)].append(letter.reason)
