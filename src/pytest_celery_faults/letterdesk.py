"""What is done with dead letters: sent back, worked, thrown away, and kept from being worked twice."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery.worker import state
from kombu.serialization import dumps, registry
from kombu.transport.virtual import Channel

from .errors import FaultValueError, QuarantinedError, hide_ours
from .messages import headers_of
from .recorder import Recorder

if TYPE_CHECKING:
    from .harness import Harness
    from .views.letters import DeadLetterQueue

__tracebackhide__ = hide_ours


class LetterDesk:
    """Moves messages between the application's queues and its dead-letter queue."""

    def __init__(self, harness: Harness, dlq: str | None) -> None:
        self._harness = harness
        self._dlq = dlq

    def send_back(self, payload: Mapping[str, Any], queue: str) -> None:
        """Publish a message again, as if it had never been retried, held back or redelivered."""
        properties = dict(payload["properties"])
        # What a broker or a delivery added.
        encoding = properties.pop("body_encoding", None)
        for name in ("delivery_info", "delivery_tag", "expiration"):
            properties.pop(name, None)
        headers = {name: value for name, value in (payload["headers"] or {}).items() if name != "redelivered"}
        for name, value in (("retries", 0), ("eta", None), ("expires", None)):
            if name in headers:
                headers[name] = value
        body: Any = payload["body"]
        body = base64.b64decode(body) if encoding == "base64" else body
        fields = headers_of(payload)
        if fields is not payload["headers"] and "retries" in fields:  # Celery's first protocol
            name = registry.type_to_name[payload["content-type"]]
            body = dumps({**fields, "retries": 0, "eta": None, "expires": None}, serializer=name)[2]
        with self._harness.app.connection_for_write() as connection:
            channel: Channel = connection.default_channel
            message = channel.prepare_message(
                body,
                content_type=payload["content-type"],
                content_encoding=payload["content-encoding"],
                headers=headers,
                properties=properties,
            )
            channel.basic_publish(message, exchange="", routing_key=queue)

    def forget_revoked(self, task_id: str) -> None:
        """A worker remembers what expired as revoked, and would refuse it: here it is as after a restart."""
        state.revoked.discard(task_id)

    def throw_away(self) -> None:
        """Empty the application's dead-letter queue."""
        if self._dlq is not None:
            with self._harness.app.connection_for_write() as connection:
                connection.default_channel.queue_purge(self._dlq)

    def work(self) -> None:
        """Let the worker consume the dead-letter queue until it is empty."""
        self._harness.simulation.run(self._work)

    def _work(self) -> None:
        dlq, harness = self._dlq, self._harness
        if dlq is None:
            raise FaultValueError("consume(): this test has no dead-letter queue, @pytest.mark.celery_faults(dlq=None)")
        worker, simulation, recorder = harness.worker, harness.simulation, harness.recorder
        worker.ensure_started()
        if not worker.running:
            raise FaultValueError("consume(): the worker is stopped, celery_faults.worker.start() brings a new one")
        added = dlq not in harness.consumed_queues()

        def empty() -> bool:
            return not harness.broker.queues.get(dlq) and not recorder.is_busy_with(dlq)

        # What the control commands `add_consumer` and `cancel_consumer` do in the worker.
        consumer = harness.consumer
        if added:
            consumer.call_soon(consumer.add_task_queue, dlq)
            simulation.run_now(f"the worker to consume {dlq!r}", lambda: dlq in harness.consumed_queues())
        try:
            simulation.wait(f"the worker to work {dlq!r}", ready=empty)
        finally:
            if added and worker.running:
                consumer.call_soon(consumer.cancel_task_queue, dlq)
                simulation.run_now(f"the worker to leave {dlq!r}", lambda: dlq not in harness.consumed_queues())


class Quarantine:
    """Refuses a message that is equal to a dead one, before it is run: a poison message is worked once.

    A broker or a consumer of the application's would have to do this in production; Celery has nothing like it.
    """

    def __init__(self, letters: DeadLetterQueue, recorder: Recorder, dlq: str | None) -> None:
        self._letters = letters
        self._recorder = recorder
        self._dlq = dlq

    def refuses(self, request: Any) -> bool:
        """Whether a task is not to be run, given its request, which then has failed and been rejected."""
        delivery = self._recorder.delivery_of(request.message)
        if delivery is None or delivery.queue == self._dlq:
            return False
        reason = self._letters.why_dead(delivery.payload)
        if reason is None:
            return False
        error = QuarantinedError(f"a message equal to this one is a dead letter already: {reason}")
        self._recorder.quarantined(request.message, error)
        # What Celery's strategy does with a request that it refuses.
        request.task.backend.mark_as_failure(
            request.id, error, request=request._context, store_result=request.store_errors
        )
        request.reject(requeue=False)
        return True
