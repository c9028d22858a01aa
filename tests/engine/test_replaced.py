"""Each name of another library's that is replaced: that it is there as expected, and is given back."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import inspect
import sys
import weakref

import asgiref.sync
import billiard.einfo
import celery.app.base
import celery.worker.components
import kombu.connection
import pytest
from celery.backends.base import Backend
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer
from kombu.transport.base import Transport

from pytest_celery_faults import InternalsError, replaced
from pytest_celery_faults.hub import Hub as OurHub
from pytest_celery_faults.hub import Timer as OurTimer

ASGIREF = replaced.asgiref_names(asgiref.sync)
EACH = pytest.mark.parametrize("what", [*replaced.ALL, *ASGIREF], ids=lambda what: what.name)


def raw(what):
    """The object itself, no descriptor of it called."""
    return vars(what.owner)[what.name]


@EACH
def test_the_name_is_there(what):
    assert what.name in vars(what.owner)
    assert what.path.startswith(("celery.", "kombu.", "billiard.", "asyncio.", "asgiref.", "freezegun."))
    assert what.path.endswith(f".{what.name}")
    assert what.reason


def test_a_name_that_is_gone_is_a_readable_error(build, monkeypatch):
    before = raw(replaced.RETRY)
    monkeypatch.delattr(celery.canvas.Signature, "__call__")
    with pytest.raises(
        InternalsError, match=r"replaces celery\.canvas\.Signature\.__call__ in a test, and this version"
    ):
        build()
    assert raw(replaced.RETRY) is before


def test_no_name_is_listed_twice():
    assert len({what.path for what in replaced.ALL}) == len(replaced.ALL)
    constants = [value for value in vars(replaced).values() if isinstance(value, replaced.Replaced)]
    assert set(map(id, constants)) == set(map(id, replaced.ALL)) - set(map(id, replaced.FACTORIES))


@EACH
def test_it_is_replaced_during_a_test_and_the_original_afterwards(build, what):
    before = raw(what)
    harness = build()
    assert raw(what) is not before
    harness.worker.drain()
    assert raw(what) is not before
    harness.close()
    assert raw(what) is before


@EACH
def test_it_is_given_back_when_a_harness_cannot_be_built(build, what, monkeypatch):
    from pytest_celery_faults.harness import Harness

    before = raw(what)
    during = []

    def fail(self):
        during.append(raw(what))
        raise LookupError

    class Broken:
        def watch(self, *args):
            fail(self)

    with pytest.raises(LookupError):
        Harness(build().app, _options(), 0, "broken", Broken())
    assert during
    assert during[0] is not before


def _options():
    from pytest_celery_faults.harness import make_options

    return make_options({})


# -- each is used by Celery in the way in which it is replaced


def test_a_connection_asks_get_transport_cls_for_its_transport():
    connection = kombu.connection.Connection("memory://")
    assert issubclass(connection.get_transport_cls(), Transport)
    assert list(inspect.signature(kombu.connection.Connection.get_transport_cls).parameters) == ["self"]
    assert "get_transport_cls" in inspect.getsource(kombu.connection.Connection.create_transport)


def test_an_app_asks_get_backend_for_its_backend():
    assert list(inspect.signature(celery.app.base.Celery._get_backend).parameters) == ["self"]
    app = celery.Celery("shop", backend="cache+memory://", set_as_current=False)
    assert isinstance(app._get_backend(), Backend)
    assert "_get_backend" in inspect.getsource(celery.app.base.Celery.backend.fget)


def test_the_backend_of_a_task_is_a_property_that_can_be_set():
    backend = raw(replaced.TASK_BACKEND)
    assert isinstance(backend, property)
    assert backend.fset is not None


def test_retry_takes_what_it_is_given_and_raises():
    parameters = inspect.signature(raw(replaced.RETRY)).parameters
    assert list(parameters)[:5] == ["self", "args", "kwargs", "exc", "throw"]
    assert {"eta", "countdown", "max_retries"} <= set(parameters)


def test_a_workers_timer_and_loop_are_chosen_by_these_names():
    components = celery.worker.components
    assert components._Timer is Timer
    assert components._Hub is Hub
    assert issubclass(OurTimer, Timer)
    assert issubclass(OurHub, Hub)
    # The step names the class it is to make when the worker has no timer class of its own.
    assert "_Timer" in components.Timer.create.__code__.co_names
    assert "_Hub" in components.Hub.create.__code__.co_names


def test_billiard_copies_code_for_each_frame_by_this_name():
    assert raw(replaced.COPY_OF_CODE) is billiard.einfo._Code
    assert {"Code", "f_code"} <= set(billiard.einfo._Frame.__init__.__code__.co_names)
    assert billiard.einfo.Traceback.Frame is billiard.einfo._Frame


def test_asyncio_runs_each_loop_by_the_replaced_names():
    loop = asyncio.SelectorEventLoop
    assert loop.time is raw(replaced.LOOP_TIME)
    assert loop.run_forever is raw(replaced.RUN_FOREVER)
    assert "select" in asyncio.base_events.BaseEventLoop._run_once.__code__.co_names
    assert {"time", "_clock_resolution"} <= set(asyncio.base_events.BaseEventLoop._run_once.__code__.co_names)
    assert "_chain_future" in asyncio.futures.wrap_future.__code__.co_names
    assert "set_event_loop" not in vars(asyncio.DefaultEventLoopPolicy) or "super" in (
        asyncio.DefaultEventLoopPolicy.set_event_loop.__code__.co_names
    )
    if sys.version_info >= (3, 11):
        assert {"signal", "getsignal"} <= set(asyncio.Runner.run.__code__.co_names)


def test_a_loop_keeps_what_a_killed_one_has_to_lose():
    loop = asyncio.new_event_loop()
    names = set(vars(loop))
    assert {
        "_ready", "_scheduled", "_asyncgens", "_default_executor", "_timer_cancelled_count", "_stopping", "_thread_id",
        "_current_handle", "_clock_resolution", "_coroutine_origin_tracking_enabled", "_asyncgens_shutdown_called",
        "_executor_shutdown_called", "_transports", "_selector", "_ssock", "_csock", "_internal_fds",
    } <= names  # fmt: skip
    assert ("_old_agen_hooks" in names) == (sys.version_info >= (3, 13))
    assert set(loop._selector.get_map()) == {loop._ssock.fileno()}
    assert isinstance(asyncio.tasks._current_tasks, dict)
    loop.close()
    assert isinstance(concurrent.futures.thread._threads_queues, weakref.WeakKeyDictionary)


def test_asgiref_makes_its_threads_by_the_replaced_names():
    sync = asgiref.sync
    assert {"CurrentThreadExecutor", "ThreadPoolExecutor"} <= set(sync.AsyncToSync.__call__.__code__.co_names)
    assert {"single_thread_executor", "ThreadPoolExecutor"} <= set(sync.SyncToAsync.__call__.__code__.co_names)
    assert "threadlocal" in sync.SyncToAsync.thread_handler.__code__.co_names
    assert {"run_until_future", "submit"} <= set(dir(sync.CurrentThreadExecutor))


def test_a_running_worker_has_ours(build):
    harness = build()
    harness.worker.drain()
    worker = harness.worker._instance
    assert isinstance(worker.timer, OurTimer)
    assert isinstance(worker.hub, OurHub)
    with harness.app.connection() as connection:
        assert connection.get_transport_cls().broker is harness.broker
    assert harness.app.backend.server is harness.server


def test_celerys_test_tools_start_their_worker_by_the_name_that_is_taken_over():
    from celery.contrib.testing import worker

    what = replaced.takeover_name(worker)
    assert what.path == "celery.contrib.testing.worker._start_worker_thread"
    assert inspect.getsource(worker.start_worker.__wrapped__).count("_start_worker_thread(app,") == 1
    assert [*inspect.signature(raw(what)).parameters] == [
        "app", "concurrency", "pool", "loglevel", "logfile", "WorkController", "perform_ping_check",
        "shutdown_timeout", "kwargs",
    ]  # fmt: skip
