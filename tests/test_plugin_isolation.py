"""After a test the application and the process are as before, however the test ended."""

from __future__ import annotations

import pytest

# A plugin of the inner run. It looks before the first test and after each one, when all of its fixtures are gone.
WITNESS = '''
import datetime, os, random, threading, time
import kombu.asynchronous.hub, kombu.pools
import pytest
from celery import _state, signals
from celery.utils.dispatch import Signal
from celery.worker import state as worker_state
import shop

import pytest_celery_faults.harness                # so that what is compared is not the first import
FIRST = []

def process():
    """What the harness must not change, as plain values."""
    app = shop.app
    conf = app.conf
    return {
        "conf": {name: repr(conf[name]) for name in sorted(conf)},
        "conf's changes": dict(conf.changes),
        "conf's maps": [id(layer) for layer in conf.maps],
        "amqp": id(app.amqp),
        "queues": sorted(app.amqp.queues),
        "consume from": sorted(app.amqp.queues.consume_from),
        "tasks": {name: id(task) for name, task in app.tasks.items()},
        "task attributes": {name: sorted(map(repr, vars(task).items())) for name, task in app.tasks.items()},
        "app attributes": sorted(name for name in vars(app) if vars(app)[name] is not getattr(type(app), name, ...)),
        "app's pool": (id(app._pool), id(app._backend_cache), vars(app._local).get("backend")),
        "logical clock": app.clock.value,
        "receivers": {
            name: [key for key, _ in signal.receivers or ()]
            for name, signal in vars(signals).items() if isinstance(signal, Signal)
        },
        "time": [id(getattr(time, name)) for name in
                 ("time", "sleep", "monotonic", "time_ns", "perf_counter", "localtime", "gmtime")],
        "datetime": (id(datetime.datetime), id(datetime.date)),
        "names in the application": (id(shop.sleep), id(shop.datetime), id(shop.patient.__defaults__[0])),
        "kombu's pools": [
            sorted(map(repr, dict.items(group))) for group in (kombu.pools.connections, kombu.pools.producers)
        ],
        "event loop": id(kombu.asynchronous.hub.get_event_loop()),
        "apps": (id(_state.default_app), id(_state._tls.current_app)),
        "join blocks": _state.task_join_will_block(),
        "task stack": repr(_state.get_current_task()),
        "random": random.getstate(),
        "revoked": sorted(worker_state.revoked),
        "worker state": [len(getattr(worker_state, name)) for name in
                         ("requests", "reserved_requests", "active_requests", "successful_requests", "total_count")],
        "all_total_count": list(worker_state.all_total_count),
        "should stop": (worker_state.should_stop, worker_state.should_terminate),
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name != "celery-faults watchdog"),
        "files": sorted(files()),
        "environment": dict(os.environ, PYTEST_CURRENT_TEST=""),
    }

def files():
    for number in os.listdir("/proc/self/fd"):
        try:
            yield number, os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass  # the descriptor of this very listing

def difference(before, after):
    if isinstance(before, dict):
        names = [name for name in {**before, **after} if before.get(name, "nothing") != after.get(name, "nothing")]
        return ", ".join(f"{name}: {difference(before.get(name), after.get(name))}" for name in names)
    if isinstance(before, list) and isinstance(after, list):
        gone, new = [x for x in before if x not in after], [x for x in after if x not in before]
        return f"gone {gone!r}, new {new!r}"[:300]
    return f"{before!r} -> {after!r}"[:300]

def look(when):
    now = process()
    if not FIRST:
        FIRST.append(now)
    changed = [f"{what}: {difference(FIRST[0][what], now[what])}" for what in now if now[what] != FIRST[0][what]]
    print(f"\\nWITNESS {when}: " + ("nothing changed" if not changed else "CHANGED " + "; ".join(changed)))

def pytest_collection_finish(session):
    if not FIRST:
        shop.app.finalize()
        shop.app.amqp, shop.app.tasks, shop.app.amqp.queues.consume_from
        for name in shop.app.conf:
            shop.app.conf[name]
        look("before")

@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid):
    look("after " + nodeid.rpartition("::")[2])

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    look("at the end")
'''

APP = """
from datetime import datetime
from time import sleep, monotonic
from celery import signals
from kombu import Queue

app.conf.task_queues = [Queue("celery"), Queue("dlq")]

@signals.task_failure.connect
def on_failure(sender=None, **_): pass

def patient(clock=monotonic): return clock()
"""

HEAD = """
import random, time
import pytest
from celery import Celery, group, shared_task, signals
from shop import add, app, boom, download, slow

def everything(celery_faults):
    '''Touches whatever a test may touch.'''
    app.conf.result_expires = 5
    app.conf.task_routes = {"shop.add": "celery"}
    app.conf.update(task_acks_late=True, timezone="Asia/Tokyo")

    @app.task
    def made_here(): return random.random()

    @shared_task
    def shared_here(): return 1

    @signals.task_success.connect(weak=False)
    def on_success(**_): pass

    random.seed(5)
    add.rate_limit = "7/s"
    add.max_retries = 77
    made_here.delay().get()
    shared_here.delay().get()
    assert group(add.s(1, 2), download.s("x"))().get() == [3, "done"]
    boom.delay()
    add.apply_async((1, 2), countdown=1000).revoke()
    slow.delay(1000)
    celery_faults.worker.advance(5)
    app.control.inspect(timeout=1).active()
    app.amqp.queues.add("another")
    app.pool, app.producer_pool
    with app.connection_for_write() as connection: connection.ensure_connection()
    add.apply_async((3, 4), countdown=50)          # left in the worker
    slow.delay(7)                                  # left in the queue
    random.random()
"""

ENDINGS = {
    "passes": ("def test_it(celery_faults):\n    everything(celery_faults)\n", {"passed": 1}),
    "passes with settings": (
        "@pytest.mark.celery_faults(conf={'task_track_started': True, 'result_expires': 9}, concurrency=3)\n"
        "def test_it(celery_faults):\n    everything(celery_faults)\n",
        {"passed": 1},
    ),
    "passes in real time": (
        "@pytest.mark.celery_faults(clock='real')\n"
        "def test_it(celery_faults):\n    assert add.delay(1, 2).get() == 3\n",
        {"passed": 1},
    ),
    "fails": ("def test_it(celery_faults):\n    everything(celery_faults)\n    assert 0\n", {"failed": 1}),
    "never fires": (
        "@pytest.mark.inject(IOError(), task='shop.boom')\ndef test_it():\n    add.delay(1, 2).get()\n",
        {"failed": 1},
    ),
    "is wrong about a task": (
        "@pytest.mark.inject(IOError(), task='nobody')\ndef test_it(): pass\n",
        {"errors": 1},
    ),
    "errors in set-up": (
        "@pytest.fixture\ndef broken(celery_faults):\n    everything(celery_faults)\n    raise ValueError('set-up')\n"
        "def test_it(broken): pass\n",
        {"errors": 1},
    ),
    "errors in tear-down": (
        "@pytest.fixture\ndef broken(celery_faults):\n    yield\n    everything(celery_faults)\n"
        "    raise ValueError('down')\n"
        "def test_it(broken): pass\n",
        {"passed": 1, "errors": 1},
    ),
    "skips": (
        "def test_it(celery_faults):\n    everything(celery_faults)\n    pytest.skip('enough')\n",
        {"skipped": 1},
    ),
    "fails inside a task": (
        "def test_it(celery_faults):\n    @app.task\n    def inside(): pytest.fail('inside')\n"
        "    inside.delay().get()\n",
        {"failed": 1},
    ),
    "leaves the worker stopped": (
        "def test_it(celery_faults):\n    everything(celery_faults)\n    celery_faults.worker.stop()\n",
        {"passed": 1},
    ),
    "leaves the worker crashed": (
        "def test_it(celery_faults):\n    everything(celery_faults)\n    celery_faults.worker.crash()\n",
        {"passed": 1},
    ),
    "leaves a task at work": (
        "def test_it(celery_faults):\n    slow.delay(1000)\n    celery_faults.worker.advance(1)\n",
        {"passed": 1},
    ),
    "is stopped by a wait that never ends": (
        "@pytest.mark.celery_faults(queues=['nobody'])\ndef test_it(celery_faults):\n    add.delay(1, 2).get()\n",
        {"failed": 1},
    ),
    "runs a task into its time limit": (
        "def test_it(celery_faults):\n    @app.task(time_limit=3)\n    def hangs(): time.sleep(10)\n"
        "    hangs.delay().get()\n",
        {"failed": 1},
    ),
}

INTERRUPTS = {
    "in the test": "def test_it(celery_faults):\n    everything(celery_faults)\n    raise KeyboardInterrupt\n",
    "in a task": (
        "def test_it(celery_faults):\n    everything(celery_faults)\n"
        "    @app.task\n    def inside():\n        raise KeyboardInterrupt\n    inside.delay().get(timeout=2000)\n"
    ),
    "in a task after a wait": (
        "def test_it(celery_faults):\n    @app.task\n    def inside():\n        time.sleep(3)\n"
        "        raise KeyboardInterrupt\n"
        "    inside.delay()\n    celery_faults.worker.drain()\n"
    ),
    "in set-up": (
        "@pytest.fixture\ndef broken(celery_faults):\n    everything(celery_faults)\n    raise KeyboardInterrupt\n"
        "def test_it(broken): pass\n"
    ),
    "in tear-down": (
        "@pytest.fixture\ndef broken(celery_faults):\n    yield\n    everything(celery_faults)\n"
        "    raise KeyboardInterrupt\n"
        "def test_it(broken): pass\n"
    ),
}


@pytest.fixture
def witnessed(shop):
    path = shop.pytester.path / "shop.py"
    path.write_text(path.read_text() + APP)
    shop.pytester.makepyfile(witness=WITNESS)
    shop.ini("celery_faults_app = shop:app", "pythonpath = .")
    return shop


def changes(result: pytest.RunResult) -> dict[str, str]:
    """What the witness said, by when."""
    said = dict(line.removeprefix("WITNESS ").split(": ", 1) for line in result.outlines if line.startswith("WITNESS "))
    assert "before" in said, result.stdout.str()
    return said


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_is_as_before_after_a_test_that(witnessed, ending):
    source, outcomes = ENDINGS[ending]
    # The second test runs on what the first one left; the third checks that the simulation of neither is left.
    second = (
        "\ndef test_second(celery_faults):\n"
        "    assert not celery_faults.sent and not celery_faults.dlq and celery_faults.clock.elapsed == 0\n"
        "    assert add.delay(3, 4).get() == 7\n    celery_faults.worker.drain()\n"
        "    assert [m.task for m in celery_faults.sent] == ['shop.add']\n"
        "\ndef test_third():\n    start = time.perf_counter()\n    time.sleep(0.01)\n"
        "    assert time.perf_counter() - start >= 0.01\n"
    )
    witnessed.test(HEAD + source + second)
    result = witnessed.armed("-p", "witness", "-s", subprocess=True)
    result.assert_outcomes(**{**outcomes, "passed": outcomes.get("passed", 0) + 2})
    said = changes(result)
    assert said.keys() == {"before", "after test_it", "after test_second", "after test_third", "at the end"}
    assert set(said.values()) == {"nothing changed"}


@pytest.mark.parametrize("where", INTERRUPTS)
def test_all_is_as_before_after_an_interrupt(witnessed, where):
    witnessed.test(HEAD + INTERRUPTS[where] + "\ndef test_second(): raise NotImplementedError('not reached')\n")
    result = witnessed.armed("-p", "witness", "-s", subprocess=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    assert "not reached" not in result.stdout.str()
    assert changes(result)["at the end"] == "nothing changed"


def test_the_witness_notices(witnessed):
    """Each thing it looks at, changed on purpose by a test without the harness."""
    witnessed.test(
        """
        import datetime, os, random, threading, time
        import kombu.pools
        from celery import _state, signals, Celery
        from celery.worker import state
        from shop import add, app
        def test_conf(): app.conf.result_expires = 5
        def test_time(): time.sleep = lambda seconds: None
        def test_tasks(): add.max_retries = 7
        def test_receivers(): signals.task_success.connect(lambda **_: None, weak=False)
        def test_apps(): Celery("other")
        def test_random(): random.seed(1)
        def test_revoked(): state.revoked.add("x")
        def test_join(): _state._set_task_join_will_block(True)
        def test_threads(): threading.Thread(target=threading.Event().wait, daemon=True).start()
        def test_files(): os.open("/dev/null", os.O_RDONLY)
        def test_pools(): kombu.pools.connections[kombu.Connection("memory://")]
        def test_amqp(): del app.__dict__["amqp"]
        """
    )
    said = changes(witnessed.run("-p", "witness", "-s", subprocess=True))
    for name, what in (
        ("conf", "conf"), ("time", "time"), ("tasks", "task attributes"), ("receivers", "receivers"), ("apps", "apps"),
        ("random", "random"), ("revoked", "revoked"), ("join", "join blocks"), ("threads", "threads"),
        ("files", "files"), ("pools", "kombu's pools"), ("amqp", "amqp"),
    ):  # fmt: skip
        assert f"{what}: " in said[f"after test_{name}"], name


def test_looking_for_time_does_not_wake_lazy_objects(shop):
    """Modules hold proxies (lazy settings, current users, Celery's tasks); asking one for its class evaluates it."""
    shop.pytester.makepyfile(
        lazy="""
        import time
        class Lazy:
            woken = []
            @property
            def __class__(self):
                self.woken.append("class")
                raise RuntimeError("outside of a request")
            def __getattr__(self, name):
                self.woken.append(name)
                raise RuntimeError("outside of a request")
        current_user = Lazy()
        """
    )
    shop.test(
        """
        import lazy
        from shop import add
        def test_it(celery_faults):
            assert add.delay(1, 2).get() == 3
        def test_asleep():
            assert lazy.Lazy.woken == []
        """
    )
    shop.run(subprocess=True).assert_outcomes(passed=2)


def test_what_a_module_imported_in_a_test_defines_is_there_to_stay(shop):
    shop.pytester.makepyfile(
        late="""
        from datetime import datetime
        from time import sleep, time
        from celery import signals
        from shop import app
        heard = []
        @app.task
        def late(): return "late"
        @signals.task_success.connect
        def on_success(sender=None, **_): heard.append(sender.name)
        """
    )
    shop.test(
        """
        import datetime, time
        from shop import app
        REAL = {"sleep": time.sleep, "time": time.time, "datetime": datetime.datetime}
        def test_first(celery_faults):
            from late import late
            assert late.delay().get() == "late"
        def test_second(celery_faults):
            import late
            late.heard.clear()
            assert app.tasks["late.late"].delay().get() == "late"
            assert late.heard == ["late.late"]
        def test_after():
            import late
            assert {name: getattr(late, name) for name in REAL} == REAL
        """
    )
    shop.run(subprocess=True).assert_outcomes(passed=3)
