"""Redis in memory: fakeredis, with waiting done by the simulation.

A client that waits for an answer (``BLPOP``, ``XREAD BLOCK``, a pub/sub message) parks its fiber. The command
itself is over at once, as on a real server, which answers later; no lock is held meanwhile. A blocked client is
served when it looks, so a message stays in its queue until the worker is driven.
"""

from __future__ import annotations

import copy
import gc
import inspect
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import redis.client
import redis.connection
from fakeredis import FakeRedisConnection, FakeServer
from fakeredis._helpers import NoResponse, SimpleError
from fakeredis._socket import FakeSocket

from .errors import hide_ours
from .simulation import Simulation

__tracebackhide__ = hide_ours

VERSION = (7, 4)


class Server(FakeServer):
    """The data of one test.

    The lock is re-entrant: a garbage collection inside a command reaches ``AsyncResult.__del__``, which
    unsubscribes, on this thread.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(version=VERSION)
        self.lock: threading.RLock = threading.RLock()  # type: ignore[assignment]
        self.simulation = simulation
        #: Counts changes of keys, so that a blocked client looks again only when something changed.
        self.changes: int = 0
        self.files: dict[int, Readable] = {}
        #: Counts the messages that came into queues: what is published to others came before one or after it.
        self.pushed: int = 0
        #: The roles that are, or were last, unreachable because the process of their server ended.
        self.crashed: set[str] = set()
        # Until when each of the server's roles is unreachable, in microseconds; and how many blocks keep it so.
        self._down_until: dict[str, int] = {}
        self._kept_down: Counter[str] = Counter()

    def take_down(self, role: str, seconds: float | None, crashed: bool = False) -> None:
        """Make the server unreachable as broker or as backend: connections break, new ones are refused.

        Without ``seconds`` until it is brought up. Of several outages the longest counts.
        """
        (self.crashed.add if crashed else self.crashed.discard)(role)
        if seconds is None:
            self._kept_down[role] += 1
        else:
            until = self.simulation.clock.now_us + round(seconds * 1_000_000)
            self._down_until[role] = max(until, self._down_until.get(role, 0))
        for file in list(self.files.values()):
            if isinstance(file, Socket) and file.role == role:
                file.broken = True

    def bring_up(self, role: str) -> None:
        self._kept_down[role] -= 1

    def end_outages(self) -> None:
        """The test is over: a result that outlives it may still unsubscribe."""
        self._down_until.clear()
        self._kept_down.clear()
        for file in list(self.files.values()):
            if isinstance(file, Socket):
                file.broken = False

    def is_down(self, role: str | None) -> bool:
        if role is None:
            return False
        return self._kept_down[role] > 0 or self.simulation.clock.now_us < self._down_until.get(role, 0)

    def count_change(self) -> None:
        self.changes += 1
        outside = self.simulation.outside
        if outside is not None and not self.simulation.here:
            outside.notify()

    def length_of(self, db: int, key: str) -> int:
        """How many items are in a list."""
        with self.lock:
            item = self.dbs[db].get(key.encode())
        return len(item.value) if item is not None else 0

    def command_blocks_here(self) -> bool:
        return self.simulation.can_wait


class _Answers(queue.Queue[Any]):
    """The answers that a client has not read yet. Most often one is there, and nobody else takes it: no lock then."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return self.queue.popleft()
        except IndexError:
            return super().get(block, timeout)


class Readable:
    """Anything with a file number that the event loop can wait for."""

    #: When what is to be read came: after how many messages in queues.
    came_at: float = 0.0
    #: Whether the connection broke, since the other end was unreachable.
    broken: bool = False
    #: How often it was read from; ``None``: who hears of it always reads.
    reads: int | None = None

    def readable(self) -> bool:
        raise NotImplementedError


class _Blocked:
    """A blocking command that has no answer yet."""

    __slots__ = ("attempt", "looked_at", "pushed", "shape", "until")

    def __init__(
        self, attempt: Callable[[bool], Any], shape: Callable[[Any], Any] | None, until: int | None, server: Server
    ) -> None:
        self.attempt = attempt
        self.shape = shape
        self.until = until
        # When the client looked last.
        self.looked_at = server.changes
        self.pushed = server.pushed


class Socket(FakeSocket, Readable):
    """A client's end of a connection to the server."""

    _server: Server
    came_at: float = 0.0
    reads: int = 0

    def __init__(self, *args: Any, role: str | None = None, **kwargs: Any) -> None:
        #: Who is at the other end: ``"broker"``, ``"backend"``, or the test's own client.
        self.role = role
        self._blocked_command: _Blocked | None = None
        self._to_send: deque[Any] = deque()
        self._sending = False
        super().__init__(*args, **kwargs)
        self.responses: _Answers | None = _Answers()
        self._db._change_callbacks.add(self._server.count_change)
        self._server.files[self.fileno()] = self

    def close(self) -> None:
        if self._server is not None:
            self._server.files.pop(self.fileno(), None)
        self._blocked_command = None
        super().close()

    def sendall(self, data: Any) -> None:
        if self.broken:
            raise redis.ConnectionError("Connection reset by peer")
        # A collection in the middle of a command could change the very set of subscribers it iterates over.
        # Where one happens all the same, and unsubscribes on this very connection, its command comes after this one.
        self._to_send.append(data)
        if self._sending:
            return
        self._sending = True
        collecting = gc.isenabled()
        if collecting:
            gc.disable()
        try:
            while self._to_send:
                self._send(self._to_send.popleft())
        except StopIteration:
            # The server's own parser is gone: all of a past test is being collected, and a result that goes with it
            # unsubscribes last. Nobody is there to hear it.
            pass
        finally:
            self._sending = False
            self._to_send.clear()
            if collecting:
                gc.enable()

    def _send(self, data: Any) -> None:
        if type(data) is list and self._server.connected and not self._killed:  # what `_Fields` made of a command
            self._process_command(data)
        else:
            super().sendall(data)

    def readable(self) -> bool:
        """Whether an answer is there, or an error; gives a blocked command the chance to get one."""
        responses = self.responses
        if responses is None or responses.queue or self.broken:
            return True
        blocked = self._blocked_command
        if blocked is None:
            return not self._server.connected
        changes = self._server.changes
        if blocked.looked_at != changes:
            blocked.looked_at = changes
            self._try_again(blocked)
            if responses.queue:  # no sooner than the first message since
                self.came_at = blocked.pushed + 1
            blocked.pushed = self._server.pushed
        return bool(responses.queue)

    def answer_due(self) -> int | None:
        """When the blocked command gives up, in microseconds of the clock."""
        return self._blocked_command.until if self._blocked_command is not None else None

    def give_up(self) -> None:
        """Answer a blocked command whose time is over."""
        blocked = self._blocked_command
        if blocked is not None and blocked.until is not None and blocked.until <= self._server.simulation.clock.now_us:
            self._answer(blocked, None)

    def forget_blocked_command(self) -> None:
        """Take the blocked command back, as if it had not been sent."""
        self._blocked_command = None

    def _try_again(self, blocked: _Blocked) -> None:
        with self._server.lock:
            for db in self._server.dbs.values():
                db.time = self._server.simulation.clock.time()
            try:
                result = blocked.attempt(False)
            except SimpleError as error:
                self._blocked_command = None
                self.put_response(self._decode_result(error))
                return
        if result is not None:
            self._answer(blocked, result)

    def _answer(self, blocked: _Blocked, result: Any) -> None:
        self._blocked_command = None
        self.put_response(self._decode_result(result if blocked.shape is None else blocked.shape(result)))

    def put_response(self, msg: Any) -> None:
        # fakeredis asks `if responses:`, and `queue.Queue` has no length, so an open socket always qualifies.
        if self.responses is not None:
            if not self.responses.queue:
                self.came_at = self._server.pushed + 0.5
            self.responses.queue.append(msg)

    def _blocking(
        self, timeout: float | None, func: Callable[[bool], Any], shape: Callable[[Any], Any] | None = None
    ) -> Any:
        if not self._server.command_blocks_here():
            return super()._blocking(timeout, func, shape)
        result = func(True)
        if result is not None or self._in_transaction:
            return result if shape is None else shape(result)
        until = self._server.simulation.clock.now_us + round(timeout * 1_000_000) if timeout else None
        self._blocked_command = _Blocked(func, shape, until, self._server)
        return NoResponse()


class _Fields:
    """In place of redis-py's packer: a command goes to the server in its fields, not as bytes to be parsed again."""

    def __init__(self, encode: Callable[[Any], bytes]) -> None:
        self._encode = encode

    def pack(self, name: str | bytes, *args: Any) -> list[list[bytes]]:
        # As redis-py's: the name may be of several words, and they are not encoded.
        words = name.encode() if isinstance(name, str) else name
        return [[*words.split(), *(bytes(self._encode(arg)) for arg in args)]]


class Connection(FakeRedisConnection):
    """redis-py's connection, to the server of the test. Also told when it is closed, as kombu wants it."""

    _server: Server
    _sock: Socket | None  # type: ignore[assignment]

    def __init__(
        self,
        *args: Any,
        on_disconnect: Callable[[Any], None] | None = None,
        role: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._on_disconnect = on_disconnect
        self._role = role
        super().__init__(*args, **kwargs)
        self._command_packer: _Fields = _Fields(self.encoder.encode)

    def pack_commands(self, commands: Any) -> list[list[bytes]]:
        return [fields for command in commands for fields in self._command_packer.pack(*command)]

    def on_connect(self) -> None:
        """No handshake: there is nobody to introduce oneself to."""

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """No handshake, and no health to check either."""

    def _connect(self) -> Socket:
        if self._server.is_down(self._role):
            raise redis.ConnectionError(f"Error 111 connecting to the {self._role}. Connection refused.")
        return Socket(
            self._server,
            role=self._role,
            client_class=self._client_class,
            db=self.db,
            lua_modules=self._lua_modules,
            client_info=self._client_info,
        )

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        super().disconnect(*args, **kwargs)
        if self._on_disconnect is not None:
            self._on_disconnect(self)

    def is_at_rest(self) -> bool:
        """Whether it is open, and everything that came was read."""
        return self._sock is not None and not self._sock.readable()

    def can_read(self, timeout: float | None = 0, **kwargs: Any) -> bool:
        if self._sock is None:
            self.connect()
        sock = self._sock
        assert sock is not None
        if sock.readable():
            return True
        if timeout == 0 or not self._server.simulation.can_wait:
            return super().can_read(timeout)
        simulation = self._server.simulation
        until = None if timeout is None else simulation.clock.now_us + round(timeout * 1_000_000)
        return simulation.wait("a message on a Redis connection", ready=sock.readable, until=until)

    def read_response(self, disable_decoding: Any = False, **kwargs: Any) -> Any:
        sock = self._sock
        if sock is not None and sock.broken and not (sock.responses and sock.responses.queue):
            if kwargs.get("disconnect_on_error", True):
                self.disconnect()
            raise redis.ConnectionError("Connection closed by server.")
        if sock is not None and not sock.readable() and self._server.simulation.can_wait:
            timeout = kwargs.get("timeout")
            simulation = self._server.simulation
            until = sock.answer_due()
            if isinstance(timeout, (int, float)):
                limit = simulation.clock.now_us + round(timeout * 1_000_000)
                until = limit if until is None else min(limit, until)
            if not simulation.wait("an answer from Redis", ready=sock.readable, until=until):
                sock.give_up()
                if not sock.readable():
                    raise redis.TimeoutError("Timeout reading from the in-memory Redis")
            if sock.broken:
                return self.read_response(disable_decoding=disable_decoding, **kwargs)
        if sock is not None:
            sock.reads += 1
        return super().read_response(disable_decoding=disable_decoding, **kwargs)


class ConnectionPool(redis.ConnectionPool):
    """redis-py's pool, in which an idle connection changes hands at once.

    What redis-py does besides, for each command, is about forks, tokens of credentials and metrics: there are none.
    """

    def get_connection(self, *args: Any, **options: Any) -> Any:
        with self._lock:
            idle = self._available_connections
            if idle and idle[-1].is_at_rest():
                connection = idle.pop()
                self._in_use_connections.add(connection)
                return connection
        return super().get_connection(*args, **options)

    def release(self, connection: Any) -> None:
        with self._lock:
            if connection in self._in_use_connections and connection.is_at_rest():
                self._in_use_connections.remove(connection)
                self._available_connections.append(connection)
                return
        super().release(connection)


_patterns: dict[Any, redis.Redis] = {}


def client_of(kind: type[redis.Redis], connection_pool: Any) -> redis.Redis:
    """A client of a pool as redis-py makes it, which builds its table of all commands' answers for each anew."""
    options = connection_pool.connection_kwargs
    # What that table depends on.
    key = (kind, options.get("protocol"), options.get("legacy_responses", True))
    if key not in _patterns:
        _patterns[key] = kind(connection_pool=connection_pool)
        del _patterns[key].connection_pool
    client = copy.copy(_patterns[key])
    client.connection_pool = connection_pool
    client.single_connection_lock = threading.RLock()
    return client


class Client(redis.Redis):
    """A Redis client. ``SETEX``, which Celery's backend sends, is deprecated in redis-py 8.1 and warns there."""

    def setex(self, name: Any, time: Any, value: Any) -> Any:
        return self.execute_command("SETEX", name, time, value)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class Pipeline(redis.client.Pipeline):
    def setex(self, name: Any, time: Any, value: Any) -> Any:
        return self.execute_command("SETEX", name, time, value)


# redis-py looks up its own version for each connection, to introduce itself with; newer ones can be told not to. And it
# makes listeners for each pool and connection, which hear of credentials: one of each will do.
_TAKEN = inspect.signature(redis.connection.AbstractConnection.__init__).parameters
_LEFT_OUT: dict[str, Any] = {
    **({"driver_info": None} if "driver_info" in _TAKEN else {}),
    **({"event_dispatcher": vars(redis.connection)["EventDispatcher"]()} if "event_dispatcher" in _TAKEN else {}),
}


def pool_options(server: Server, db: int, role: str | None = None) -> dict[str, Any]:
    """What a connection pool needs to lead to the server of the test."""
    return {
        "connection_class": Connection, "server": server, "db": db, "role": role, "protocol": 2, **_LEFT_OUT
    }  # fmt: skip


def client(server: Server, db: int, **options: Any) -> Client:
    return Client(connection_pool=ConnectionPool(**{**options, **pool_options(server, db)}))
