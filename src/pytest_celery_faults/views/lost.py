"""Which messages ended nowhere: ``celery_faults.assert_nothing_lost()``."""

from __future__ import annotations

from collections.abc import Iterator

from ..broker import Broker
from ..errors import MessagesLostError, hide_ours
from ..recorder import Attempt, Recorder, SentMessage
from ..timeline import REVOKED

__tracebackhide__ = hide_ours


#: The states in which Celery is done with an execution; in others it was torn from it.
ENDS = ("SUCCESS", "FAILURE", "RETRY", "IGNORED", "REJECTED", "REVOKED")


def assert_nothing_lost(recorder: Recorder, broker: Broker) -> None:
    """Raise when a message that was sent ended in no result, no retry, no letter and no queue.

    Raises:
        MessagesLostError: which messages, and where each vanished; or nothing was sent at all.
    """
    if not recorder.sent:
        raise MessagesLostError("nothing was sent in this test, so nothing can be said of its end")
    lost = list(_lost(recorder, broker))
    if lost:
        raise MessagesLostError("\n".join([f"{len(lost)} of {len(recorder.sent)} messages were lost:", *lost]))


def _lost(recorder: Recorder, broker: Broker) -> Iterator[str]:
    waiting = {
        (message.task_id, message.headers.get("retries") or 0)
        for message in [*broker.unacked, *(m for queue in broker.queues for m in broker.messages(queue))]
    }
    waiting |= set(+broker.held_back)
    # The last place in the timeline at which each task id was revoked or became a letter: an id may be sent again.
    ended = {event.task_id: event.index for event in recorder.timeline.where(REVOKED)}
    for letter in recorder.letters:
        ended[letter.task_id] = max(letter.index, ended.get(letter.task_id, -1))
    for message in recorder.sent:
        if (message.task_id, message.retries) in waiting or ended.get(message.task_id, -1) > message.index:
            continue
        attempts = [
            attempt
            for attempt in recorder.records[message.task_id].attempts
            if attempt.retries == message.retries and attempt.index > message.index
        ]
        where = _where(recorder, message, attempts)
        if where:
            label = recorder.timeline.label(message.task, message.task_id)
            retry = f" (retry {message.retries})" if message.retries else ""
            yield f"  {label}{retry}, sent to {message.queue or 'no queue'!r} at {message.at:g} s: {where}"


def _where(recorder: Recorder, message: SentMessage, attempts: list[Attempt]) -> str:
    """Where a message vanished that is in no queue, and has no letter; nothing when it did not."""
    vanished = recorder.vanished.get((message.task_id, message.retries))
    if not attempts:
        delivered = recorder.records[message.task_id].deliveries
        if vanished is None and delivered:
            vanished = "the worker had acknowledged it when it was gone" if delivered[-1].acked else "the worker had it"
        return vanished or "it left its queue and never came to a worker"
    if any(attempt.ended is None for attempt in attempts):
        return ""  # it runs
    last = next((attempt for attempt in reversed(attempts) if attempt.state in ENDS), attempts[-1])
    assert last.ended is not None
    stored = recorder.stored.get(message.task_id, -1) > message.index
    if last.state not in ENDS:
        return "" if stored else f"its worker was gone at {last.ended:g} s, while it ran"
    task = recorder.tasks().get(message.task)
    ignored = task is None or task.ignore_result or message.headers.get("ignore_result")
    if last.state in ("SUCCESS", "FAILURE") and not ignored and not stored:
        return f"it ended with {last.state} at {last.ended:g} s, and its result could not be stored"
    return ""
