"""Where messages are, and which ended nowhere: ``celery_faults.assert_nothing_lost()``."""

from __future__ import annotations

from collections.abc import Iterator

from celery.worker import state as worker_state

from ..broker import Broker
from ..errors import MessagesLostError, hide_ours
from ..messages import Message
from ..recorder import Attempt, Recorder, SentMessage
from ..timeline import REVOKED

__tracebackhide__ = hide_ours


#: The states in which Celery is done with an execution; in others it was torn from it.
ENDS = ("SUCCESS", "FAILURE", "RETRY", "IGNORED", "REJECTED", "REVOKED")


class Snapshot:
    """Where the messages are at one moment."""

    def __init__(self, recorder: Recorder, broker: Broker) -> None:
        self._recorder = recorder
        self._tasks = recorder.tasks()
        held = [(message, "it is unacknowledged") for message in broker.unacked]
        lying = [
            (message, f"it waits in queue {queue!r}") for queue in broker.queues for message in broker.messages(queue)
        ]
        self._waiting = {_identity(message): where for message, where in [*held, *lying]}
        self._waiting |= dict.fromkeys(+broker.held_back, "the broker holds it back")
        # The last place in the timeline at which each task id was revoked or became a letter: an id may be sent again.
        self._ended = {
            event.task_id: (event.index, f"it was {event.detail}") for event in recorder.timeline.where(REVOKED)
        }
        for letter in recorder.letters:
            if letter.index > self._ended.get(letter.task_id, (-1, ""))[0]:
                self._ended[letter.task_id] = (letter.index, f"it is a dead letter: {letter.reason}")

    def waits(self, message: SentMessage) -> str:
        """Where a message waits; nothing when it does not."""
        return self._waiting.get((message.task_id, message.retries), "")

    def refused(self, message: SentMessage) -> str:
        """Why a message was not worked, or how it died afterwards; nothing when it did not."""
        index, why = self._ended.get(message.task_id, (-1, ""))
        return why if index > message.index else ""

    def attempts(self, message: SentMessage) -> list[Attempt]:
        """The executions of a message, redeliveries included."""
        return [
            attempt
            for attempt in self._recorder.records[message.task_id].attempts
            if attempt.retries == message.retries and attempt.index > message.index
        ]

    def is_worked(self, message: SentMessage) -> bool:
        """Whether a worker has it and has not done with it: its parts hear of each other one after the other."""
        return message.task_id in worker_state.requests

    def lost(self, message: SentMessage) -> str:
        """Where a message vanished; nothing when it did not."""
        if self.waits(message) or self.refused(message) or self.is_worked(message):
            return ""
        return self._where(message, self.attempts(message))

    def _where(self, message: SentMessage, attempts: list[Attempt]) -> str:
        """Where a message vanished that is in no queue, and has no letter; nothing when it did not."""
        recorder = self._recorder
        vanished = recorder.vanished.get((message.task_id, message.retries))
        if not attempts:
            delivered = recorder.records[message.task_id].deliveries
            if vanished is None and delivered:
                acked = delivered[-1].acked
                vanished = "the worker had acknowledged it when it was gone" if acked else "the worker had it"
            return vanished or "it left its queue and never came to a worker"
        if any(attempt.ended is None for attempt in attempts):
            return ""  # it runs
        last = next((attempt for attempt in reversed(attempts) if attempt.state in ENDS), attempts[-1])
        assert last.ended is not None
        stored = recorder.stored.get(message.task_id, -1) > message.index
        if last.state not in ENDS:
            return "" if stored else f"its worker was gone at {last.ended:g} s, while it ran"
        task = self._tasks.get(message.task)
        ignored = task is None or task.ignore_result or message.headers.get("ignore_result")
        if last.state in ("SUCCESS", "FAILURE") and not ignored and not stored:
            return f"it ended with {last.state} at {last.ended:g} s, and its result could not be stored"
        return ""


def _identity(message: Message) -> tuple[str | None, int]:
    return message.task_id, message.retries


def assert_nothing_lost(recorder: Recorder, snapshot: Snapshot) -> None:
    """Raise when a message that was sent ended in no result, no retry, no letter and no queue.

    Raises:
        MessagesLostError: which messages, and where each vanished; or nothing was sent at all.
    """
    if not recorder.sent:
        raise MessagesLostError("nothing was sent in this test, so nothing can be said of its end")
    lost = list(_lost(recorder, snapshot))
    if lost:
        raise MessagesLostError("\n".join([f"{len(lost)} of {len(recorder.sent)} messages were lost:", *lost]))


def _lost(recorder: Recorder, snapshot: Snapshot) -> Iterator[str]:
    for message in recorder.sent:
        where = snapshot.lost(message)
        if where:
            label = recorder.timeline.label(message.task, message.task_id)
            retry = f" (retry {message.retries})" if message.retries else ""
            yield f"  {label}{retry}, sent to {message.queue or 'no queue'!r} at {message.at:g} s: {where}"
