"""A worker that several tests share: of a session, a module, a class; what it keeps, and what it leaves alone."""

from __future__ import annotations

import pytest

PLUGIN = 'pytest_plugins = ("celery.contrib.pytest",)\n'

#: Looks between the tests: after each one the process is as it was before the first.
WITNESS = """
import datetime, random, sys, time
import pytest
from celery import _state, signals
from celery.worker import state as worker_state
import celery.app.base, kombu.connection, kombu.pools
import shop

def process():
    return {
        "time": (time.time, time.sleep, time.monotonic, datetime.datetime),
        "random": random.getstate(),
        "backend": vars(celery.app.base.Celery)["backend"],
        "transport": vars(kombu.connection.Connection)["get_transport_cls"],
        "pools": dict(dict.items(kombu.pools.connections)),
        "current app": (_state.default_app, _state._tls.current_app),
        "conf": [id(layer) for layer in shop.app.conf.maps],
        "amqp": id(shop.app.amqp),
        "revoked": list(worker_state.revoked),
        "requests": dict(worker_state.requests),
        "receivers": {n: list(s.receivers or ()) for n, s in vars(signals).items() if hasattr(s, "receivers")},
        "tasks": sorted(shop.app.tasks),
    }

before = []

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    if not before:
        import pytest_celery_faults.harness
        shop.app.amqp, shop.app.tasks
        before.append(process())
    result = yield
    after = process()
    changed = [name for name in after if after[name] != before[0][name]]
    print(f"changed after {item.name}: {changed}")
    return result
"""


@pytest.fixture
def contrib(shop):
    """The application, and Celery's plugin; no app is named."""
    shop.ini()
    shop.pytester.makeconftest(PLUGIN)
    return shop


SESSION = """
import time
import pytest, shop
from celery.contrib.testing import tasks
from celery.contrib.testing.worker import start_worker

KNOWN = {"real": time.time()}

@pytest.fixture(scope="session")
def worker():
    with start_worker(shop.app, perform_ping_check=False) as worker:
        yield worker
    KNOWN["ended"] = True

def test_1(worker):
    KNOWN["result"] = shop.add.delay(1, 2)
    assert KNOWN["result"].get(timeout=1) == 3
    KNOWN["revoked"] = shop.add.apply_async((1, 2), countdown=300)
    KNOWN["later"] = shop.add.apply_async((3, 4), countdown=3000)
    KNOWN["queued"] = shop.add.apply_async((5, 6), queue="nobody's")
    shop.app.control.revoke(KNOWN["revoked"].id)
    time.sleep(100)
    KNOWN["at"] = time.time(), time.monotonic()

def test_without_it():
    assert abs(time.time() - KNOWN["real"]) < 60
    before = time.perf_counter()
    time.sleep(0.05)
    assert 0.05 <= time.perf_counter() - before < 5

def test_2(worker, celery_faults, retry_recorder, celery_dlq):
    assert celery_faults.clock.elapsed == 0
    assert not celery_faults.sent
    assert time.time() == KNOWN["at"][0]
    assert time.monotonic() == KNOWN["at"][1]
    assert KNOWN["result"].get(timeout=1) == 3
    assert celery_faults.broker.queues["nobody's"] == 1
    assert shop.app.control.inspect().revoked() == {worker.hostname: [KNOWN["revoked"].id]}
    assert KNOWN["later"].get(timeout=2900) == 7
    assert time.time() == KNOWN["at"][0] + 2900
    assert KNOWN["revoked"].state == "REVOKED"
    assert [event.at for event in celery_faults.timeline.where("started", task=shop.add)] == [2900]
    assert worker.stats()["total"] == {"shop.add": 2}
"""


def test_the_session_worker_goes_on_from_test_to_test(contrib):
    contrib.pytester.makeconftest(PLUGIN + WITNESS)
    contrib.test(SESSION)
    result = contrib.armed("-s")
    result.assert_outcomes(passed=3)
    changed = [line.rpartition("changed after ")[2] for line in result.outlines if "changed after" in line]
    assert changed == ["test_1: []", "test_without_it: []", "test_2: []"]


def test_each_test_counts_its_own_real_time(contrib):
    contrib.test("""
        import time
        import pytest, shop
        from celery.contrib.testing.worker import start_worker

        @pytest.fixture(scope="session")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker

        def test_with(worker):
            shop.add.delay(1, 2).get()

        def test_without():
            time.sleep(0.5)

        def test_again(worker, celery_faults):
            assert celery_faults.real_seconds < 0.5
    """)
    contrib.armed().assert_outcomes(passed=3)


def test_the_same_under_xdist(contrib):
    contrib.test(SESSION, test_more=SESSION)
    contrib.armed("-n2", "--dist=loadfile").assert_outcomes(passed=6)


def test_the_sessions_fixtures_of_celery(contrib):
    """Tasks of the session's app stay registered; a test of the other scope has a worker of its own meanwhile."""
    contrib.test("""
        import time
        from celery import current_app
        KNOWN = {}

        def test_1(celery_session_app, celery_session_worker):
            @celery_session_app.task
            def mul(x, y):
                return x * y
            celery_session_worker.reload()
            KNOWN["mul"], KNOWN["result"] = mul, mul.delay(3, 4)
            assert KNOWN["result"].get(timeout=10) == 12
            time.sleep(1000)
            KNOWN["time"] = time.time()

        def test_own(celery_app, celery_worker, celery_faults):
            assert celery_faults.app is celery_app
            assert not [name for name in celery_app.tasks if name.endswith(".mul")]
            assert celery_app.AsyncResult(KNOWN["result"].id).state == "PENDING"
            assert time.time() < KNOWN["time"] - 900

        def test_2(celery_session_worker, celery_session_app):
            assert current_app._get_current_object() is celery_session_app
            assert time.time() == KNOWN["time"]
            assert KNOWN["result"].get() == 12
            assert KNOWN["mul"].delay(5, 6).get(timeout=10) == 30
    """)
    contrib.armed().assert_outcomes(passed=3)


def test_faults_strike_in_their_own_test_alone(contrib):
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker
        from pytest_celery_faults import inject

        @pytest.fixture(scope="module")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker

        @inject(OSError, times=2)
        def test_twice(worker, retry_recorder):
            assert shop.download.delay("x").get() == "done"
            assert retry_recorder.delays == [1, 2]

        def test_not_here(worker, retry_recorder, celery_dlq):
            result = shop.download.delay("x")
            assert result.get() == "done"
            assert retry_recorder.of(result).count == 0
            with pytest.raises(ValueError):
                shop.boom.delay().get()
            assert len(celery_dlq) == 1

        @inject(OSError, times=2, at="shop.time.sleep")
        def test_never(worker, celery_dlq):
            assert not celery_dlq
            shop.add.delay(1, 2).get()

        def test_the_function_is_given_back(worker):
            import time
            assert shop.slow.delay(5).get() == 5
    """)
    result = contrib.armed()
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["inject(OSError at shop.time.sleep, *) never fired. What ran: shop.add (1 time)*"])


def test_what_is_under_way_goes_on_in_the_next_test(contrib):
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker
        from pytest_celery_faults import inject

        @pytest.fixture(scope="module")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker

        @inject(OSError, times=1)
        def test_1(worker, celery_faults):
            shop.download.apply_async(("x",), task_id="download")
            celery_faults.worker.advance(0.25)
            shop.slow.apply_async((60,), task_id="slow")
            celery_faults.worker.advance(0.25)

        def test_2(worker, celery_faults, retry_recorder):
            assert shop.slow.AsyncResult("slow").get() == 60
            assert shop.download.AsyncResult("download").get() == "done"
            history = retry_recorder.of("download")
            assert history.delays == [1]
            assert [attempt.started for attempt in history.attempts] == [-0.5, 59.75]
            assert [str(event).split(None, 2)[2] for event in celery_faults.timeline.where("succeeded")] == [
                "succeeded       shop.slow#1 attempt 1", "succeeded       shop.download#1 attempt 2"]
    """)
    result = contrib.armed()
    result.assert_outcomes(passed=2)


def test_unittest(contrib):
    contrib.test("""
        import threading, time, unittest
        import shop
        from celery.contrib.testing import tasks
        from celery.contrib.testing.worker import start_worker

        class TestShop(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                super().setUpClass()
                cls.context = start_worker(shop.app)
                cls.worker = cls.context.__enter__()

            @classmethod
            def tearDownClass(cls):
                assert cls.results.pop().state == "PENDING", "the backend is there"
                cls.context.__exit__(None, None, None)
                super().tearDownClass()

            def setUp(self):
                self.before = time.time()
                self.sent = shop.slow.delay(60)

            def tearDown(self):
                assert time.time() - self.before == 60

            def test_1(self):
                assert self.sent.get(timeout=60) == 60
                type(self).results = [self.sent]

            def test_2(self):
                assert self.results[0].get(timeout=1) == 60
                assert self.sent.get(timeout=60) == 60
                self.results.append(shop.add.apply_async((1, 2), countdown=5))

        def test_afterwards():
            assert type(time.sleep).__name__ == "builtin_function_or_method"
    """)
    result = contrib.armed()
    result.assert_outcomes(passed=3)


def test_a_worker_from_the_start_of_the_session_is_every_tests(contrib):
    contrib.pytester.makeconftest("""
import shop
from celery.contrib.testing import tasks
from celery.contrib.testing.worker import start_worker

def pytest_sessionstart(session):
    session.worker = start_worker(shop.app)
    session.worker.__enter__()

def pytest_sessionfinish(session):
    session.worker.__exit__(None, None, None)
""")
    contrib.test("""
        import time, shop
        def test_1():
            assert shop.slow.delay(3600).get() == 3600
        def test_2():
            assert shop.slow.delay(3600).get() == 3600
    """)
    contrib.armed().assert_outcomes(passed=2)


FAKE = """
from celery.contrib.testing import tasks, worker
def real(*args, **kwargs):
    raise LookupError("the real one")
worker._start_worker_thread = real
"""


@pytest.fixture
def fake(contrib):
    """Celery's own thread is an error that tells that it was to be started."""
    import celery.contrib.testing.worker as module

    before = module._start_worker_thread
    contrib.pytester.makeconftest(PLUGIN + FAKE)
    yield contrib
    module._start_worker_thread = before


IN_MEMORY = """
def test_it(celery_app, celery_worker):
    celery_app.control.inspect().ping()
"""
MARK = "import pytest\npytestmark = pytest.mark.celery_faults(takeover={})\n"


@pytest.mark.parametrize(("ini", "flag", "mark", "taken"), [
    ("", "", "", True),
    ("celery_faults_takeover = false", "", "", False),
    ("celery_faults_takeover = true", "", "", True),
    ("celery_faults_takeover = off", "--celery-faults-takeover=on", "", True),
    ("", "--celery-faults-takeover=false", "", False),
    ("", "", MARK.format(False), False),
    ("celery_faults_takeover = false", "", MARK.format(True), True),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["celery_worker", "start_worker"])
def test_it_can_be_turned_off(fake, ini, flag, mark, taken, kind):
    fake.ini(ini)
    start = "import shop\nfrom celery.contrib.testing.worker import start_worker\n"
    start += "def test_it():\n    with start_worker(shop.app):\n        assert shop.add.delay(1, 2).get() == 3\n"
    fake.test(mark + (IN_MEMORY if kind == "celery_worker" else start))
    result = fake.armed(*([flag] if flag else []))
    if taken:
        result.assert_outcomes(passed=1)
    else:
        result.stdout.fnmatch_lines(["E * LookupError: the real one"])


def test_alone_it_is_celerys_own_worker_in_a_thread(contrib):
    contrib.test("""
        import threading, time
        import pytest

        @pytest.mark.celery_faults(takeover=False)
        def test_real(celery_app, celery_worker):
            thread = []
            @celery_app.task
            def where():
                return threading.current_thread().name
            celery_worker.reload()
            assert where.delay().get(timeout=10) != "MainThread"

        def test_taken(celery_app, celery_worker):
            @celery_app.task
            def where():
                return threading.current_thread().name
            assert where.delay().get(timeout=10) == "MainThread"
    """)
    contrib.armed(subprocess=True).assert_outcomes(passed=2)


@pytest.mark.parametrize("where", ["ini", "flag"])
def test_a_value_that_is_none_is_a_usage_error(contrib, where):
    contrib.test(IN_MEMORY)
    if where == "ini":
        contrib.ini("celery_faults_takeover = flase")
        result = contrib.armed()
    else:
        result = contrib.armed("--celery-faults-takeover=flase")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    key = "celery_faults_takeover" if where == "ini" else "--celery-faults-takeover"
    result.stderr.fnmatch_lines([f"ERROR: {key} = 'flase' *: choose true or false, did you mean 'false'?"])


def test_a_wrong_type_is_an_error_at_collection(contrib):
    contrib.test("import pytest\n@pytest.mark.celery_faults(takeover='no')\ndef test_it(): pass\n")
    result = contrib.armed()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*celery_faults(takeover='no'): True or False"])


@pytest.mark.parametrize("order", ["shared_first", "marked_first"])
def test_what_one_test_says_of_a_worker_that_others_have(contrib, order):
    marked = """
@pytest.mark.celery_faults(takeover=False)
def test_left_alone(worker):
    raise NotImplementedError("not reached")

@pytest.mark.celery_faults(concurrency=2, clock="real")
def test_settings(worker):
    raise NotImplementedError("not reached")

@pytest.mark.celery_faults(takeover=True)
def test_agrees(worker):
    assert shop.add.delay(1, 2).get() == 3
"""
    shared = "def test_shared(worker):\n    assert shop.add.delay(1, 2).get() == 3\n"
    contrib.test("""
import pytest, shop
from celery.contrib.testing.worker import start_worker

@pytest.fixture(scope="module")
def worker():
    with start_worker(shop.app, perform_ping_check=False) as worker:
        yield worker
""" + (shared + marked if order == "shared_first" else marked + shared))  # fmt: skip
    result = contrib.armed()
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines([
        "*celery_faults(takeover=False)*worker*'worker'*celery_faults_takeover = false",
        "@pytest.mark.celery_faults(concurrency=2, clock='real'): the worker of this test is started by the module "
        "fixture 'worker' and runs on from test to test; a single test cannot change it",
    ])  # fmt: skip
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")


def test_settings_of_a_module_are_those_of_its_worker(contrib):
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker
        pytestmark = pytest.mark.celery_faults(concurrency=2, broker="rabbitmq")

        @pytest.fixture(scope="module")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker

        def test_1(worker, celery_faults):
            assert worker.concurrency == 2
            assert celery_faults.broker.manners == "rabbitmq"

        def test_2(worker, celery_faults):
            assert worker.concurrency == 2
    """)
    contrib.armed().assert_outcomes(passed=2)


def test_an_own_app_for_celery_faults_beside_a_shared_worker_is_an_error(contrib):
    contrib.test("""
        import pytest, shop
        from celery import Celery
        from celery.contrib.testing.worker import start_worker

        @pytest.fixture(scope="module")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker

        @pytest.fixture
        def celery_faults_app():
            return Celery("other", broker="redis://127.0.0.1:1/0")

        def test_both(worker, celery_faults):
            raise NotImplementedError("not reached")

        def test_other(celery_faults):
            assert celery_faults.app.main == "other"
    """)
    result = contrib.armed()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["the fixture celery_faults_app returned <Celery other at *>, but the worker of this*"])


def test_the_app_in_the_configuration_gives_way_to_the_shared_workers(contrib):
    contrib.ini("celery_faults_app = shop:app")
    contrib.test("""
        def test_it(celery_session_app, celery_session_worker, celery_faults):
            assert celery_faults.app is celery_session_app
        def test_other(celery_faults):
            assert celery_faults.app.main == "shop"
    """)
    contrib.armed().assert_outcomes(passed=2)


def test_a_fixture_that_fails_shows_none_of_the_plugins_code(contrib):
    contrib.test("""
        import pytest
        from celery import Celery
        from celery.contrib.testing.worker import start_worker

        @pytest.fixture
        def broken():
            raise LookupError("the user's own")

        @pytest.fixture(scope="module")
        def bare():
            with start_worker(Celery("bare", broker="memory://", set_as_current=False)):
                yield

        def test_it(broken):
            raise NotImplementedError("not reached")

        def test_ping(bare):
            raise NotImplementedError("not reached")
    """)
    result = contrib.armed(subprocess=True)  # where nobody has imported the task that is pinged
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["E *LookupError: the user's own", "E *AssertionError*celery.ping*"])
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")


@pytest.mark.parametrize("scope", ["function", "session"])
def test_an_error_in_a_fixture_gives_everything_back(contrib, scope):
    contrib.pytester.makeconftest(PLUGIN + WITNESS)
    contrib.test(f"""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker

        @pytest.fixture(scope="{scope}")
        def before_it():
            with start_worker(shop.app, perform_ping_check=False):
                raise LookupError("in the block")

        @pytest.fixture(scope="{scope}")
        def after_it():
            with start_worker(shop.app, perform_ping_check=False):
                yield
            raise LookupError("at the end")

        @pytest.fixture(scope="{scope}")
        def wrong():
            with start_worker(shop.app, perform_ping_check=False, consumer_cls="no.such:Consumer"):
                raise NotImplementedError("not reached")

        def test_before(before_it): raise NotImplementedError("not reached")
        def test_wrong(wrong): raise NotImplementedError("not reached")
        def test_after(after_it): assert shop.add.delay(1, 2).get() == 3
    """)
    result = contrib.armed("-s")
    result.assert_outcomes(passed=1, errors=3)
    result.stdout.fnmatch_lines(
        ["E *LookupError: in the block", "E *No module named 'no'*", "E *LookupError: at the end"]
    )
    changed = [line.rpartition("changed after ")[2] for line in result.outlines if "changed after" in line]
    assert changed == ["test_before: []", "test_wrong: []", "test_after: []"]


@pytest.mark.parametrize("where", ["body", "task"])
def test_an_interrupt_ends_the_run_and_the_worker(contrib, where):
    contrib.pytester.makeconftest("""
import shop
def pytest_unconfigure(config):
    import time
    print("time:", type(time.sleep).__name__, "eager:", shop.app.conf.task_always_eager)
shop.app.conf.task_always_eager = True
""")
    contrib.test(f"""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker

        @pytest.fixture(scope="session")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker
            print("worker ended")

        @shop.app.task
        def interrupted():
            raise KeyboardInterrupt

        def test_1(worker):
            assert not shop.app.conf.task_always_eager

        def test_2(worker):
            {"raise KeyboardInterrupt" if where == "body" else "interrupted.delay().get()"}

        def test_3(worker):
            raise NotImplementedError("not reached")
    """)
    result = contrib.armed("-s", subprocess=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*worker ended*"])
    assert "time: builtin_function_or_method eager: True" in result.stdout.str()


def test_an_async_test_with_the_fixtures(contrib):
    contrib.test("""
        import asyncio
        import pytest

        @pytest.mark.asyncio
        async def test_it(celery_app, celery_worker, celery_faults):
            @celery_app.task
            def mul(x, y):
                return x * y
            result = mul.apply_async((3, 4), countdown=3600)
            assert await celery_faults.worker.aget(result, timeout=3600) == 12
            assert await asyncio.to_thread(mul.delay(5, 6).get, timeout=5) == 30
    """)
    contrib.armed(asyncio="strict").assert_outcomes(passed=1)


def test_celerys_own_worker_beside_ours_is_an_error(contrib):
    contrib.ini("celery_faults_app = shop:app")
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker

        @pytest.mark.celery_faults(takeover=False)
        def test_both(celery_faults):
            with start_worker(shop.app, perform_ping_check=False):
                raise NotImplementedError("not reached")
    """)
    result = contrib.armed()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *TakeoverError: start_worker(): with takeover=False it is Celery's own*"])


def test_a_worker_that_a_test_counts_on_without_its_fixture(contrib):
    """It is there, since a thread would be; for a test that does not talk to it, it is not."""
    contrib.pytester.makeconftest(
        PLUGIN
        + WITNESS
        + """
import pytest, shop
from celery.contrib.testing.worker import start_worker

@pytest.fixture(scope="session")
def worker():
    with start_worker(shop.app, perform_ping_check=False) as worker:
        yield worker
"""
    )
    contrib.test("""
        import time
        import pytest, shop
        from celery import Celery
        from celery.result import AsyncResult

        @pytest.mark.parametrize("number", [1, 2, 3])
        def test_asked_for_while_it_runs(request, number):
            request.getfixturevalue("worker")
            assert shop.slow.apply_async((3600,), task_id=f"task {number}").get(timeout=3600) == 3600

        def test_not_asked_for():
            assert shop.slow.delay(3600).get(timeout=3600) == 3600
            assert shop.app.control.inspect().ping()

        def test_results():
            assert AsyncResult("task 1", app=shop.app).get(timeout=1) == 3600

        def test_another_one():
            other = Celery("other", broker="memory://alone", backend="cache+memory://", set_as_current=False)
            other.send_task("shop.add", (1, 2), task_id="not ours")
            assert AsyncResult("not ours", app=other).state == "PENDING"
            before = time.perf_counter()
            time.sleep(0.05)
            assert 0.05 <= time.perf_counter() - before < 5

        @pytest.mark.celery_faults(stall_timeout=7)
        def test_a_worker_of_ones_own(celery_faults):
            assert AsyncResult("task 1", app=shop.app).state == "PENDING"
            assert celery_faults.clock.elapsed == 0
    """)
    contrib.ini("celery_faults_app = shop:app")
    result = contrib.armed("-s")
    result.assert_outcomes(passed=7)
    changed = [line.rpartition("changed after ")[2] for line in result.outlines if "changed after" in line]
    # The pools of an app that nobody took over are its own.
    assert [line.partition(": ")[2] for line in changed] == ["[]"] * 5 + ["['pools']"] * 2


def test_what_a_test_did_not_wait_for_is_done_before_the_next_one(contrib):
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker

        @pytest.fixture(scope="module")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker

        def test_1(worker):
            shop.add.apply_async((1, 2), task_id="unwaited")

        def test_2(worker, celery_faults):
            assert shop.add.AsyncResult("unwaited").state == "SUCCESS"
            assert not len(celery_faults.timeline)
    """)
    contrib.armed().assert_outcomes(passed=2)


def test_each_test_has_a_history_of_its_own(contrib):
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker
        from pytest_celery_faults import inject

        @pytest.fixture(scope="module")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker

        @pytest.mark.parametrize("number", [1, 2])
        @inject(OSError, times=2)
        def test_it(worker, retry_recorder, number):
            assert shop.download.delay("x").get() == "done"
            assert retry_recorder.delays == [1, 2]
    """)
    contrib.armed().assert_outcomes(passed=2)


def test_a_worker_that_nobody_stops_ends_with_the_run(contrib):
    contrib.pytester.makeconftest("""
import pytest
KEPT = []
@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    print("closed:", [harness.is_closed for harness in KEPT])
""")
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker
        from conftest import KEPT
        CONTEXT = start_worker(shop.app, perform_ping_check=False)

        @pytest.fixture(scope="session")
        def worker():
            return CONTEXT.__enter__()

        def test_it(worker, celery_faults):
            assert shop.add.delay(1, 2).get() == 3
            KEPT.append(celery_faults)
    """)
    result = contrib.armed("-s", subprocess=True)
    result.assert_outcomes(passed=1)
    assert "closed: [True]" in result.stdout.str()
