"""What the plugin relies on in Celery and its libraries, and what none of them promises.

Names that are replaced for a test are in ``replaced.py``. ``tests/engine/test_replaced.py`` looks after them, and after
those of asyncio and asgiref.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from importlib.metadata import version
from pathlib import Path
from types import FunctionType

import pytest

import pytest_celery_faults

#: What subclasses of ours override: what a caller gives must come, in that order; more may come besides.
OVERRIDDEN = {
    "celery.apps.worker.Worker": """
        install_platform_tweaks(self, worker)
        on_before_init(self, quiet, kwargs)
        set_process_status(self, info)
        setup_logging(self, colorize)
    """,
    "celery.backends.asynchronous.BaseResultConsumer": """
        _wait_for_pending(self, result, timeout, on_interval, on_message, kwargs)
    """,
    "celery.backends.asynchronous.Drainer": """
        drain_events_until(self, p, timeout, interval, on_interval, wait)
    """,
    "celery.backends.base.Backend": """
        _call_task_errbacks(self, request, exc, traceback)
        chord_error_from_stack(self, callback, exc)
        mark_as_done(self, task_id, result, request, store_result, state)
        mark_as_failure(self, task_id, exc, traceback, request, store_result, call_errbacks, state)
        store_result(self, task_id, result, state, traceback, request, kwargs)
    """,
    "celery.backends.base.BaseKeyValueStoreBackend": """
        _get_task_meta_for(self, task_id)
    """,
    "celery.backends.redis.RedisBackend": """
        ResultConsumer
        __init__(self, host, port, db, password, max_connections, url, connection_pool, kwargs)
        _get_client(self)
        _get_pool(self, params)
        _params_from_url(self, url, defaults)
        add_to_chord(self, group_id, result)
        on_chord_part_return(self, request, state, result, propagate, kwargs)
        set_chord_size(self, group_id, chord_size)
    """,
    "celery.backends.redis.ResultConsumer": """
        __init__(self, args, kwargs)
        cancel_for(self, task_id)
        consume_from(self, task_id)
        drain_events(self, timeout)
    """,
    "celery.concurrency.base.BasePool": """
        CLOSE
        RUN
        TERMINATE
        _get_info(self)
        flush(self)
        maintain_pool(self, args, kwargs)
        num_processes
        on_apply(self, args, kwargs)
        on_start(self)
        on_stop(self)
        on_terminate(self)
        register_with_event_loop(self, loop)
        terminate_job(self, pid, signal)
        uses_semaphore
    """,
    "celery.worker.worker.WorkController": """
        __init__(self, app, hostname, kwargs)
        _process_task(self, req)
        stop(self, in_sighandler, exitcode)
        terminate(self, in_sighandler)
    """,
    "fakeredis._clients._base.FakeBaseConnectionMixin": """
        __init__(self, args, version, server_type, server, client_class, lua_modules, writer, connected, kwargs)
    """,
    "fakeredis._clients._sync.FakeBaseConnection": """
        _connect(self)
        can_read(self, timeout)
        read_response(self, kwargs)
    """,
    "fakeredis._core._server.FakeServer": """
        __init__(self, version, server_type, config)
    """,
    "fakeredis._socket._base.BaseFakeSocket": """
        _blocking(self, timeout, func, shape)
        close(self)
        put_response(self, msg)
        sendall(self, data)
    """,
    "fakeredis._socket._fakesocket.FakeSocket": """
        __init__(self, server, db, lua_modules, args, kwargs)
    """,
    "kombu.asynchronous.hub.Hub": """
        __init__(self, timer)
        _create_poller(self)
        _pop_ready(self)
        fire_timers(self, min_delay, max_delay, max_timers, propagate)
    """,
    "kombu.asynchronous.timer.Entry": """
        __init__(self, fun, args, kwargs)
    """,
    "kombu.asynchronous.timer.Timer": """
        Entry
        __init__(self, max_interval, on_error, kwargs)
        _enter(self, eta, priority, entry, push)
        call_repeatedly(self, secs, fun, args, kwargs, priority)
        clear(self)
        enter_after(self, secs, entry, priority, time)
        queue
    """,
    "kombu.transport.redis.Channel": """
        QoS
        __init__(self, args, kwargs)
        _connparams(self, asynchronous)
        _create_client(self, asynchronous)
        _do_restore_message(self, payload, exchange, routing_key, pipe, leftmost)
        _get_client(self)
        _get_pool(self, asynchronous)
        _new_queue(self, queue, auto_delete, kwargs)
        _put(self, queue, message, kwargs)
        _put_fanout(self, exchange, message, routing_key, kwargs)
        _q_for_pri(self, queue, pri)
        _queue_bind(self, exchange, routing_key, pattern, queue)
        _restore(self, message, leftmost)
        _size(self, queue)
        _update_queue_cycle(self)
        close(self)
    """,
    "kombu.transport.redis.QoS": """
        __init__(self, args, kwargs)
        ack(self, delivery_tag)
        append(self, message, delivery_tag)
        reject(self, delivery_tag, requeue)
        restore_by_tag(self, tag, client, leftmost)
        restore_visible(self, start, num, interval)
    """,
    "kombu.transport.redis.Transport": """
        Channel
        __init__(self, args, kwargs)
        default_port
        register_with_event_loop(self, connection, loop)
    """,
    "kombu.transport.virtual.base.Channel": """
        basic_publish(self, message, exchange, routing_key, kwargs)
    """,
    "kombu.transport.virtual.base.Transport": """
        _deliver(self, message, queue)
        close_connection(self, connection)
        establish_connection(self)
    """,
    "redis.client.Redis": """
        pipeline(self, transaction, shard_hint)
    """,
    "redis.commands.core.BasicKeyCommands": """
        setex(self, name, time, value)
    """,
    "redis.connection.AbstractConnection": """
        disconnect(self)
        on_connect(self)
        on_connect_check_health(self, check_health)
        pack_commands(self, commands)
    """,
    "redis.connection.ConnectionPool": """
        get_connection(self, command_name, keys, options)
        release(self, connection)
    """,
}
#: Of use where they are there: they came with Celery 5.7 and kombu 5.7.
OPTIONAL = {"celery.backends.redis.RedisBackend._add_driver_info", "kombu.asynchronous.hub.Hub._create_waker"}

#: Private names that are read, called or set. After a class: in its body, or given to `self` by one of its methods.
PRIVATE = {
    "billiard.pool.ApplyResult": "_ack _job _set _set_terminated",
    "celery._state": "_get_active_apps _on_app_finalizers _set_task_join_will_block _task_stack _tls",
    "celery.app.amqp.AMQP": "_producer_pool",
    "celery.app.amqp.Queues": "_consume_from",
    "celery.app.base.Celery": "_after_fork_registered _backend_cache _ensure_after_fork _pool",
    "celery.app.trace": "_localized",
    "celery.backends.base.Backend": "_pending_messages _pending_results",
    "celery.backends.redis.ResultConsumer": "_decode_result _pubsub",
    "celery.canvas.Signature": "_merge",
    "celery.utils.collections.ConfigurationView": "_observers",
    "celery.worker.heartbeat.Heart": "_send _send_sent_signal",
    "celery.worker.worker.WorkController": "_quick_release",
    "fakeredis._clients._base.FakeBaseConnectionMixin": "_client_class _lua_modules",
    "fakeredis._core._database.Database": "_change_callbacks",
    "fakeredis._socket._base.BaseFakeSocket": "_client_info _db _decode_result _in_transaction _process_command",
    "freezegun.api": "_EPOCH _freeze_time _parse_time_to_freeze",
    "kombu.asynchronous.timer.Timer": "_queue",
    "kombu.pools": "_limit",
    "kombu.transport.redis.Channel": "_fanout_queues _on_connection_disconnect",
    "kombu.transport.redis.MultiChannelPoller": "_channels",
    "kombu.transport.virtual.base.Channel": "_get_message_priority _qos",
    "kombu.transport.virtual.base.Message": "_raw",
    "kombu.transport.virtual.base.QoS": "_delivered _flush _on_collect",
    "kombu.transport.virtual.base.Transport": "_avail_channels",
    "redis.connection.AbstractConnection": "_command_packer",
    "redis.connection.ConnectionPool": "_available_connections _in_use_connections _lock",
    "vine.promises.promise": "_lvpending _svpending",
}

#: pytest's own, and those of asyncio and Python that `test_replaced.py` or nobody else looks after.
OF_OTHERS = {
    "_asyncgens", "_asyncgens_shutdown_called", "_clock_resolution", "_coroutine_origin_tracking_enabled", "_csock",
    "_current_frames", "_current_handle", "_current_tasks", "_default_executor", "_executor_shutdown_called",
    "_file", "_fixtureinfo", "_fixturemanager", "_get_running_loop", "_getframe", "_internal_fds",
    "_log_destroy_pending",
    "_make_self_pipe", "_old_agen_hooks", "_scheduled", "_selector", "_set_running_loop", "_ssock", "_thread_id",
    "_threads_queues", "_timer_cancelled_count",
}  # fmt: skip
#: Attributes that the plugin gives to functions of its own.
OURS = {"_celery_faults_body", "_celery_faults_target"}

LIBRARIES = ("billiard", "celery", "fakeredis", "freezegun", "kombu", "redis", "vine")
SOURCES = sorted(Path(pytest_celery_faults.__file__).parent.rglob("*.py"))


def of_library(path):
    """How a failure calls it."""
    library = path.partition(".")[0]
    return f"{library} {version(library)}"


def found(path):
    """The class or module of a dotted path."""
    for end in range(path.count(".") + 1, 0, -1):
        module, names = path.split(".")[:end], path.split(".")[end:]
        try:
            value = importlib.import_module(".".join(module))
        except ModuleNotFoundError:
            continue
        for name in names:
            value = getattr(value, name, None)
        if value is not None:
            return value
    return None


def knows(owner, name):
    """Whether a module or class has it, or one of the methods of the class uses it."""
    if hasattr(owner, name):
        return True
    classes = inspect.getmro(owner) if inspect.isclass(owner) else ()
    functions = [f for cls in classes for f in vars(cls).values() if isinstance(f, FunctionType)]
    return any(name in function.__code__.co_names for function in functions)


def complaints_about(owner_path, entries):
    """A sentence for each name, or parameter, that is not there."""
    owner = found(owner_path)
    if owner is None:
        return [f"{of_library(owner_path)} has no {owner_path}, of which the plugin uses {', '.join(entries)}"]
    complaints = []
    for entry in entries:
        name, _, parameters = entry.rstrip(")").partition("(")
        if not knows(owner, name):
            complaints.append(f"{of_library(owner_path)} has no {owner_path}.{name}, on which the plugin relies")
        elif parameters:
            taken = list(inspect.signature(getattr(owner, name)).parameters)
            expected = parameters.split(", ")
            if [each for each in taken if each in expected] != expected:
                complaints.append(
                    f"{of_library(owner_path)}: {owner_path}.{name} takes ({', '.join(taken)}), "
                    f"and the plugin overrides it as ({parameters})"
                )
    return complaints


def overridden():
    return {owner: [line.strip() for line in text.strip().splitlines()] for owner, text in OVERRIDDEN.items()}


@pytest.mark.parametrize(("owner", "entries"), overridden().items(), ids=list(OVERRIDDEN))
def test_what_is_overridden_is_there(owner, entries):
    assert complaints_about(owner, entries) == []


@pytest.mark.parametrize(("owner", "names"), PRIVATE.items(), ids=list(PRIVATE))
def test_what_is_private_is_there(owner, names):
    assert complaints_about(owner, names.split()) == []


def imports():
    """All that the plugin imports of the libraries: module, and name or ``None``."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                yield from ((node.module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)


def test_what_is_imported_is_there():
    wanted = sorted({(module, name or "") for module, name in imports() if module.partition(".")[0] in LIBRARIES})
    assert len(wanted) > 50
    missing = [(module, name) for module, name in wanted if found(f"{module}.{name}" if name else module) is None]
    assert [f"{of_library(module)} has no {module} {name}, which the plugin imports" for module, name in missing] == []


def test_no_override_is_left_out():
    for module in pkgutil.walk_packages(pytest_celery_faults.__path__, "pytest_celery_faults."):
        importlib.import_module(module.name)
    listed = {f"{owner}.{entry.partition('(')[0]}" for owner, entries in overridden().items() for entry in entries}
    theirs = set()
    for name, module in list(sys.modules.items()):
        if name.startswith("pytest_celery_faults"):
            for ours in filter(inspect.isclass, list(vars(module).values())):
                if ours.__module__ == name:
                    theirs |= set(overrides_of(ours))
    assert theirs - OPTIONAL == listed


def overrides_of(ours):
    bases = [base for base in inspect.getmro(ours)[1:] if base.__module__.partition(".")[0] in LIBRARIES]
    for name in vars(ours):
        if name == "__init__" or not re.match("__|_abc_impl|_is_protocol", name):
            base = next((base for base in bases if name in vars(base)), None)
            if base is not None:
                yield f"{base.__module__}.{base.__qualname__}.{name}"


def test_no_private_name_is_left_out():
    used, own = set(), set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    own.add(name)
                case ast.Attribute(attr=name) if re.match("_[a-z]", name):
                    used.add(name)
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    own.add(name)
                case (
                    ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name))
                    | ast.Name(id=name, ctx=ast.Store())
                ):
                    own.add(name)
    assert used - own - OURS - OF_OTHERS <= {name for names in PRIVATE.values() for name in names.split()}


@pytest.mark.parametrize(
    ("owner", "entry", "sentence"),
    [
        ("celery.gone.Gone", "gone", "celery .* has no celery.gone.Gone, of which the plugin uses gone"),
        (
            "celery.app.base.Celery",
            "_gone",
            r"celery .* has no celery.app.base.Celery._gone, on which the plugin relies",
        ),
        (
            "kombu.transport.redis.QoS",
            "ack(self, gone)",
            r"kombu .*: kombu.transport.redis.QoS.ack takes \(self, delivery_tag\), and the plugin overrides it as "
            r"\(self, gone\)",
        ),
    ],
)
def test_a_name_that_is_gone_is_a_readable_failure(owner, entry, sentence):
    (complaint,) = complaints_about(owner, [entry])
    assert re.fullmatch(sentence, complaint)
