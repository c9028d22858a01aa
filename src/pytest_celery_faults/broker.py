"""The broker: kombu's own Redis transport on the in-memory server, with the manners of Redis or of RabbitMQ.

kombu's channel does what it does in production. This module only says where the server is, tells an observer what
reached it, and changes for RabbitMQ what that broker does differently:

================================  =============================  ==================================================
what                              Redis (kombu's emulation)      RabbitMQ
================================  =============================  ==================================================
served first                      the lowest priority step       the highest priority, in queues with x-max-priority
a message unacked for long        back after visibility_timeout  stays with its consumer
its consumer's connection goes    visibility_timeout             back at once
reject(requeue=True)              goes to the end of the queue   goes back to its place
a message expires in the queue    is delivered                   is dead-lettered
================================  =============================  ==================================================

Sources: https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html and
https://www.rabbitmq.com/docs/priority, /docs/ttl, /docs/confirms.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import redis
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from redis import Redis

from .errors import FaultTypeError, FaultValueError, hide_ours, nearest
from .faults import BrokerDown, Delay, Drop, Duplicate, Fault
from .hub import OrderedSet, Poller
from .memory import Client, ConnectionPool, Server, client, client_of, pool_options
from .messages import Message, as_message, headers_of, identity_of
from .simulation import WORKER_RANK

__tracebackhide__ = hide_ours

REDIS, RABBITMQ = "redis", "rabbitmq"

# When RabbitMQ took a message in, in microseconds of the clock: from then on its time to live counts.
_SENT_AT = "x-taken-in-at"
# The numbers of the injections that made a message what it is: they do not strike it again.
_STRUCK_BY = "x-struck-by"


class Observer(Protocol):
    """Told of what reached the broker, when it did."""

    def published(self, queue: str, payload: dict[str, Any]) -> None: ...
    def delivered(self, queue: str, payload: dict[str, Any]) -> None: ...
    def acked(self, payload: dict[str, Any]) -> None: ...
    def rejected(self, payload: dict[str, Any], requeue: bool) -> None: ...
    def died_in_queue(self, queue: str, payload: dict[str, Any], reason: str) -> None: ...
    def lost(self, payload: Mapping[str, Any], where: str) -> None: ...


class Striker(Protocol):
    """Asked at each point that a task message comes to; returns the fault that strikes it there, if one does.

    ``but`` are the numbers of injections that do not. With the fault comes the number of its injection.
    """

    def strike_message(
        self, point: str, queue: str, payload: Mapping[str, Any], but: Sequence[int]
    ) -> tuple[Fault, int] | None: ...


class Broker:
    """What a test sees of the broker: ``celery_faults.broker``."""

    def __init__(
        self,
        server: Server,
        manners: str,
        db: int,
        observer: Observer,
        dlq: str | None = None,
        delivery_limit: int | None = None,
    ) -> None:
        self._server = server
        self._observer = observer
        self._dlq = dlq
        self._delivery_limit = delivery_limit
        self._striker: Striker | None = None
        self._db = db
        self._declared: dict[str, None] = {}
        self._max_priority: dict[str, int] = {}
        self._client: Client | None = None
        self._channel: Channel | None = None
        self._on_connection: Callable[[], None] | None = None
        #: The names of the queues that the application knows, declared yet or not.
        self._app_queues: Callable[[], Iterable[str]] = tuple
        self._transports: list[Transport] = []
        # When each message that is unacked was delivered, by delivery tag; those whose consumer is gone apart.
        self._held: dict[str, int] = {}
        self._orphans: dict[str, int] = {}
        # The queue that each message was delivered from, by delivery tag: its routing key may be another name.
        self._queue_of: dict[str, str] = {}
        # How often each message was requeued, by delivery tag, which it keeps.
        self._came_back: Counter[str] = Counter()
        self._copies = itertools.count(1)
        #: The messages that an injected fault keeps from their queue: task ids, and numbers of retries.
        self.held_back: Counter[tuple[str, int]] = Counter()
        #: ``"redis"`` or ``"rabbitmq"``.
        self.manners = manners

    @property
    def client(self) -> Client:
        """A Redis client of the in-memory server: the application's own keys, signals between tasks and test.

        A blocking command waits on virtual time and lets the worker run meanwhile.
        """
        if self._client is None:
            self._client = client(self._server, self._db)
        return self._client

    @property
    def queues(self) -> dict[str, int]:
        """The number of messages that wait in each declared queue."""
        return {queue: sum(map(self._length, self._keys(queue))) for queue in self._declared}

    def messages(self, queue: str) -> list[Message]:
        """The messages in a queue, in the order in which they would be delivered.

        Raises:
            FaultTypeError, FaultValueError: there is no such queue.
        """
        if not isinstance(queue, str):
            raise FaultTypeError(f"broker.messages({queue!r}): the name of a queue")
        known = sorted({*self._declared, *self._app_queues()})
        if queue not in known:
            raise FaultValueError(f"there is no queue {queue!r}{nearest(queue, known)} Queues: {', '.join(known)}")
        return [as_message(raw, queue) for raw in self._raw_messages(queue)]

    @property
    def unacked(self) -> list[Message]:
        """The messages that were delivered and neither acked nor rejected, oldest delivery first."""
        channel = self._any_channel()
        if channel is None:
            return []
        held = self.client.hgetall(channel.global_keyprefix + channel.unacked_key)
        order = self.client.zrange(channel.global_keyprefix + channel.unacked_index_key, 0, -1)
        found = []
        for tag in order:
            if tag in held:
                payload, _exchange, routing_key = json.loads(held[tag])
                found.append(as_message(payload, self._queue_of.get(bytes_to_str(tag)) or routing_key))
        return found

    @contextmanager
    def down(self, *, crashed: bool = False) -> Iterator[None]:
        """The broker is unreachable in this block: connections break, and new ones are refused.

        With ``crashed`` since its process ended, and not since the network failed. All that it had is there when it is
        back; but the worker hears of the end on its connections in another order, and Celery 5.7.0 with Redis dies of
        it while it holds messages that are not acknowledged. See docs/fidelity.md.
        """
        self.go_down(None, crashed)
        try:
            yield
        finally:
            self._server.bring_up("broker")

    def go_down(self, seconds: float | None, crashed: bool = False) -> None:
        """The broker is unreachable for so many seconds, or until it is brought up."""
        if self._on_connection is not None and not self._server.is_down("broker"):
            self._on_connection()
        # Those without a channel come back when they connect again.
        self._transports = [transport for transport in self._transports if transport.channels]
        if self.manners == RABBITMQ:
            for transport in self._transports:
                transport.return_unacked()
        self._server.take_down("broker", seconds, crashed)

    def settled(self, tag: str) -> None:
        """A message is not unacked any more; also one whose consumer is gone, but not the process that had it."""
        self._held.pop(tag, None)
        self._orphans.pop(tag, None)

    def abandon(self, tags: Iterable[str]) -> None:
        """The consumer of these messages is gone."""
        for tag in tags:
            delivered_at = self._held.pop(tag, None)
            if delivered_at is not None:
                self._orphans[tag] = delivered_at

    def _struck(self, point: str, queue: str, payload: dict[str, Any]) -> Fault | None:
        """The fault that strikes a message at a point."""
        if self._striker is None or identity_of(payload)[0] is None:
            return None
        struck = self._striker.strike_message(point, queue, payload, payload.get(_STRUCK_BY, ()))
        if struck is None:
            return None
        fault, number = struck
        if isinstance(fault, (Delay, Duplicate)):
            payload[_STRUCK_BY] = [*payload.get(_STRUCK_BY, ()), number]
        return fault

    def _put_later(
        self,
        queue: str,
        payload: Mapping[str, Any],
        seconds: float,
        redelivered: bool = False,
        in_place: bool = False,
    ) -> None:
        """A message comes into its queue so many seconds from now, whoever is connected then; last, or in its place."""
        message = copy.deepcopy(dict(payload))
        properties = message["properties"]
        properties["delivery_tag"] = f"{properties['delivery_tag']}-{next(self._copies)}"
        if redelivered:
            message["headers"] = {**(message.get("headers") or {}), "redelivered": True}
            properties["delivery_info"] = {**(properties.get("delivery_info") or {}), "redelivered": True}

        def put() -> None:
            channel = self._channel
            assert channel is not None
            step = channel._get_message_priority(message, reverse=False)
            push = self.client.rpush if in_place else self.client.lpush
            push(channel.global_keyprefix + channel._q_for_pri(queue, step), json.dumps(message))

        if seconds:
            headers = headers_of(payload)
            identity = (headers["id"], headers.get("retries") or 0)
            self.held_back[identity] += 1

            def let_go() -> None:
                self.held_back[identity] -= 1
                put()

            self._server.simulation.later("the broker to let a message go", seconds, let_go)
        else:
            put()

    def next_redelivery(self) -> int | None:
        """When the visibility timeout brings back the oldest message whose consumer is gone, in microseconds.

        What a living worker holds comes back too, but that alone leads nowhere: it would hold it again.
        """
        if not self._orphans or self.manners == RABBITMQ or self._channel is None:
            return None
        return next(iter(self._orphans.values())) + round(self._channel.visibility_timeout * 1_000_000)

    def _sweep_needed_from(self) -> int | None:
        """The time before which a sweep for messages to restore would find none, if there is one."""
        oldest = self._oldest_delivery()
        if oldest is None or self.manners == RABBITMQ or self._channel is None:
            return None
        return oldest + round(self._channel.visibility_timeout * 1_000_000)

    def _oldest_delivery(self) -> int | None:
        return min((next(iter(held.values())) for held in (self._held, self._orphans) if held), default=None)

    def _keys(self, queue: str) -> list[str]:
        """The lists of a queue, that of its highest priority first."""
        channel = self._any_channel()
        if channel is None:
            return []
        steps = dict.fromkeys(channel._q_for_pri(queue, step) for step in channel.priority_steps)
        return [channel.global_keyprefix + key for key in steps]

    def _length(self, key: str) -> int:
        # Each test asks for it in the end: a client would be a connection and a command for each list.
        return self._server.length_of(self._db, key)

    def _raw_messages(self, queue: str) -> list[dict[str, Any]]:
        return [json.loads(item) for key in self._keys(queue) for item in reversed(self.client.lrange(key, 0, -1))]

    def _came_back_too_often(self, delivery_tag: str) -> bool:
        """Whether a message that is requeued has used up its delivery limit; counts its coming back.

        As quorum queues count: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling.
        """
        self._came_back[delivery_tag] += 1
        return self._delivery_limit is not None and self._came_back[delivery_tag] > self._delivery_limit

    def _any_channel(self) -> Channel | None:
        return self._channel

    def __repr__(self) -> str:
        queues = ", ".join(f"{name}: {count}" for name, count in self.queues.items()) or "no queue yet"
        return f"<Broker with the manners of {self.manners}; {queues}>"


class QoS(kombu_redis.QoS):
    """kombu's record of unacked messages; what it tells the broker is told to the observer as well."""

    channel: Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: What the broker took back when the connection broke: an ack of it comes from a channel that is closed.
        self.returned: set[str] = set()

    def _refuse_returned(self, delivery_tag: str) -> None:
        if delivery_tag in self.returned:
            raise redis.ConnectionError("the channel of this delivery is closed")

    def append(self, message: Any, delivery_tag: str) -> None:
        super().append(message, delivery_tag)
        broker = self.channel.broker
        broker._held[delivery_tag] = broker._server.simulation.clock.now_us
        queue = broker._queue_of.get(delivery_tag) or message.delivery_info["routing_key"]
        self.channel.observer.delivered(queue, message._raw)

    def ack(self, delivery_tag: str) -> None:
        self._refuse_returned(delivery_tag)
        message = self._delivered.get(delivery_tag)
        if message is not None:
            self.channel.broker._struck("ack", "", message._raw)
        super().ack(delivery_tag)
        self.channel.broker.settled(delivery_tag)
        if message is not None:
            self.channel.observer.acked(message._raw)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self._refuse_returned(delivery_tag)
        message = self._delivered.get(delivery_tag)
        too_often = requeue and self.channel.broker._came_back_too_often(delivery_tag)
        super().reject(delivery_tag, requeue=requeue and not too_often)
        self.channel.broker.settled(delivery_tag)
        if message is not None:
            self.channel.observer.rejected(message._raw, requeue)
            if too_often:
                queue = self.channel.broker._queue_of[delivery_tag]
                self.channel.observer.died_in_queue(queue, message._raw, "delivery_limit")

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        super().restore_by_tag(tag, client=client, leftmost=leftmost)
        self.channel.broker.settled(bytes_to_str(tag))

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """kombu's sweep, without asking the server when it would find nothing: it costs a lock and a Lua script."""
        oldest = self.channel.broker._oldest_delivery()
        now = self.channel.broker._server.simulation.clock.now_us
        if oldest is None or now - oldest < self.visibility_timeout * 1_000_000:
            self._vrestore_count += 1
        else:
            super().restore_visible(*args, **kwargs)


class Channel(kombu_redis.Channel):
    """kombu's Redis channel, to the server of the test."""

    QoS = QoS
    connection: Transport
    _in_poll: Any

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        self.broker: Broker = connection.broker
        self.observer: Observer = connection.broker._observer
        self._publisher: Redis | None = None
        # Of the message that is being published.
        self._queues_reached = 0
        super().__init__(connection, **kwargs)
        self.broker._channel = self

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        # kombu reads it from the connection, which a channel that is closed too late does not have any more.
        self.connection.client.hostname  # noqa: B018
        options = pool_options(self.broker._server, self.broker._db, "broker")
        if asynchronous:
            options["on_disconnect"] = self._disconnected
        return options

    def _get_client(self) -> Any:
        kind = super()._get_client()
        return partial(client_of, kind) if isinstance(kind, type) else kind

    def _get_pool(self, asynchronous: bool = False) -> Any:
        pool = super()._get_pool(asynchronous=asynchronous)
        pool.__class__ = ConnectionPool  # kombu names redis-py's
        return pool

    def close(self) -> None:
        """Close the channel; what it held and could not give back, nobody holds now."""
        held = list(self._qos._delivered) if self._qos is not None else []
        try:
            super().close()
        finally:
            self.broker.abandon(held)

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        super()._restore(message, leftmost)
        self.broker.settled(message.delivery_tag)

    def _disconnected(self, connection: Any) -> None:
        if self._registered:
            self._on_connection_disconnect(connection)

    def _create_client(self, asynchronous: bool = False) -> Any:
        """kombu makes a client for each operation: one does, as long as the pool of its connections is the same."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._publisher is None or self._publisher.connection_pool is not self.pool:
            self._publisher = super()._create_client()
        return self._publisher

    def _new_queue(self, queue: str, auto_delete: bool = False, **kwargs: Any) -> None:
        super()._new_queue(queue, auto_delete=auto_delete, **kwargs)
        if not auto_delete:
            self.broker._declared[queue] = None
        limit = (kwargs.get("arguments") or {}).get("x-max-priority")
        if limit is not None:
            self.broker._max_priority[queue] = int(limit)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        super()._queue_bind(exchange, routing_key, pattern, queue)
        # kombu before 5.7 does not let bindings expire.
        if queue in getattr(self, "_expires", ()) and queue not in self._fanout_queues:
            self.connection.keep_bindings_alive()

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> Any:
        self._queues_reached = 0
        result = super().basic_publish(message, exchange, routing_key, **kwargs)
        if not self._queues_reached and identity_of(message)[0] is not None:
            self.observer.published("", message)
            self.observer.lost(message, f"no queue is bound to exchange {exchange!r} for {routing_key!r}")
        return result

    def _put_fanout(self, *args: Any, **kwargs: Any) -> None:
        self._queues_reached += 1
        super()._put_fanout(*args, **kwargs)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self._queues_reached += 1
        broker = self.broker
        # What Celery tries again while the broker is unreachable comes here again.
        fault = None if broker._server.is_down("broker") else broker._struck("publish", queue, message)
        if not isinstance(fault, (Drop, Delay)):
            super()._put(queue, message, **kwargs)
            broker._server.pushed += 1
        if identity_of(message)[0] is not None or queue == broker._dlq:
            broker._declared.setdefault(queue)
            self.observer.published(queue, message)
        if isinstance(fault, Drop):
            self.observer.lost(message, "the broker lost it when it was published")
        elif isinstance(fault, Delay):
            broker._put_later(queue, message, fault.seconds)
        elif isinstance(fault, Duplicate):
            for number in range(1, fault.copies + 1):
                broker._put_later(queue, message, number * fault.delay)

    def _update_queue_cycle(self) -> None:
        """Ask for messages again when the consumed queues change; kombu would within ``brpop_timeout``, a second."""
        super()._update_queue_cycle()
        if self._in_poll and self._in_poll._sock is not None:
            self._in_poll._sock.forget_blocked_command()
            self._in_poll = None


class RabbitQoS(QoS):
    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """RabbitMQ knows no visibility timeout: a message stays with its consumer as long as that lives."""

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        # kombu's redis puts a rejected message behind all others, RabbitMQ back where it was.
        self.channel.requeue_in_place = True
        try:
            super().reject(delivery_tag, requeue=requeue)
        finally:
            self.channel.requeue_in_place = False


class RabbitChannel(Channel):
    """The same channel, where RabbitMQ would act differently. See the table above."""

    QoS = RabbitQoS
    requeue_in_place = False

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        # Redis is asked for the keys in this order: the highest priority first.
        self.priority_steps: list[int] = list(range(9, -1, -1))

    def _q_for_pri(self, queue: str, pri: int) -> str:
        # A queue declared without x-max-priority has no priorities, and a higher one counts as its highest.
        priority = min(pri, self.broker._max_priority.get(queue, 0))
        return f"{queue}{self.sep}{priority}" if priority else queue

    def _size(self, queue: str) -> int:
        keys = {self._q_for_pri(queue, priority) for priority in self.priority_steps}
        with self.conn_or_acquire() as client:
            return sum(client.llen(key) for key in keys)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        message[_SENT_AT] = self.broker._server.simulation.clock.now_us
        super()._put(queue, message, **kwargs)

    def _do_restore_message(
        self, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost and not self.requeue_in_place)


class Transport(kombu_redis.Transport):
    """kombu's Redis transport. A subclass for each test carries its broker."""

    Channel = Channel
    # Of no use here, and it would stick to connections whose URL is not Redis's.
    default_port = None
    broker: Broker
    _hub: Any = None
    _binding_timer: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle.poller.close()
        self.cycle.poller = Poller(self.broker._server)
        self.cycle._channels = OrderedSet()
        self.of_worker: bool = self.broker._server.simulation.current.rank == WORKER_RANK
        self.broker._transports.append(self)

    def establish_connection(self) -> Any:
        if self.broker._on_connection is not None:
            self.broker._on_connection()
        if self not in self.broker._transports:
            self.broker._transports.append(self)
        return super().establish_connection()

    def close_connection(self, connection: Any) -> None:
        super().close_connection(connection)
        if self in self.broker._transports:
            self.broker._transports.remove(self)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        self._hub = loop
        # These watch over sockets and credentials that a server in memory does not have. Each would wake the
        # loop for ever, once a second and once in 25 of them, in a test that waits for hours.
        for name in ("_subclient_health_tref", "_brpop_health_tref", "_reauth_tref", "_binding_expiry_tref"):
            timer = getattr(self.cycle, name, None)
            if timer is not None:
                timer.cancel()

        sweep = getattr(self.cycle, "_restore_messages_tref", None)  # kombu before 5.7 does not keep it
        if sweep is not None:
            sweep.needed_from = self.broker._sweep_needed_from
            sweep.left_out = self._sweeps_left_out

    def _sweeps_left_out(self, count: int) -> None:
        """kombu looks at every tenth sweep only, so those that found nothing to do count as well."""
        for channel in self.cycle._channels:
            if channel.active_queues:
                channel.qos._vrestore_count += count
                return

    def keep_bindings_alive(self) -> None:
        """A queue with ``x-expires`` is consumed: then kombu's refreshing of its bindings is needed after all."""
        if self._hub is not None and self._binding_timer is None:
            refresh = getattr(self.cycle, "maybe_refresh_binding_expiry", None)
            if refresh is not None:
                self._binding_timer = self._hub.call_repeatedly(1, refresh)

    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        broker = self.broker
        if broker.manners == RABBITMQ and self._has_expired(message):
            broker._observer.died_in_queue(queue, message, "expired")
            return
        broker._queue_of[message["properties"]["delivery_tag"]] = queue
        fault = broker._struck("receive", queue, message)
        if isinstance(fault, Drop):
            broker._observer.lost(message, "the broker lost it when it was delivered")
            return
        if isinstance(fault, Delay):
            broker._put_later(queue, message, fault.seconds)
            return
        if isinstance(fault, BrokerDown) and broker.manners == RABBITMQ:
            # It was not acknowledged, so it is still there when the connection is gone.
            broker._put_later(queue, message, 0, redelivered=True, in_place=True)
            raise redis.ConnectionError("Connection closed by server.")
        super()._deliver(message, queue)
        if isinstance(fault, Duplicate):
            for number in range(1, fault.copies + 1):
                broker._put_later(queue, message, number * fault.delay, redelivered=True)

    def _has_expired(self, message: Mapping[str, Any]) -> bool:
        sent_at = message.get(_SENT_AT)
        lifetime = (message.get("properties") or {}).get("expiration")
        if sent_at is None or lifetime is None:
            return False
        return self.broker._server.simulation.clock.now_us >= int(sent_at) + int(lifetime) * 1000

    def return_unacked(self) -> None:
        """RabbitMQ puts what a connection held back where it was, as soon as the connection is gone."""
        for channel in self.channels:
            if channel._qos is not None:
                channel._qos._flush()
                for tag in reversed(list(channel._qos._delivered)):
                    channel._qos.restore_by_tag(tag, client=self.broker.client)
                channel._qos.returned.update(channel._qos._delivered)
                channel._qos._delivered.clear()

    def close_for_good(self) -> None:
        """Let go of everything without a word to the broker, as when the process is gone."""
        for channel in [*self.channels, *self._avail_channels]:
            if channel._qos is not None:
                self.broker.abandon(channel._qos._delivered)
                channel._qos._on_collect.cancel()
                channel._qos._delivered.clear()
            channel.closed = True
            channel._in_poll = None


def transport_for(broker: Broker) -> type[Transport]:
    """The transport class that leads to ``broker``."""
    channel = RabbitChannel if broker.manners == RABBITMQ else Channel
    return type("Transport", (Transport,), {"broker": broker, "Channel": channel})
