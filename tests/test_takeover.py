"""In an armed run Celery's own test tools give the in-process worker, for one test: fixtures and `start_worker`."""

from __future__ import annotations

import re

import pytest

PLUGIN = 'pytest_plugins = ("celery.contrib.pytest",)\n'

# What tells that a test is in this process, and not in the real one: nobody waits an hour.
HOUR = """
import time
def an_hour_passes():
    before = time.time()
    time.sleep(3600)
    assert 3600 <= time.time() - before < 3601
"""


@pytest.fixture
def contrib(shop):
    """The application, and Celery's plugin; no app is named."""
    shop.ini()
    shop.pytester.makeconftest(PLUGIN)
    shop.pytester.makepyfile(hour=HOUR)
    return shop


def test_the_fixtures_of_celery_as_its_documentation_shows_them(contrib):
    contrib.test("""
        from celery.contrib.testing.worker import TestWorkController
        from hour import an_hour_passes

        def test_create_task(celery_app, celery_worker):
            @celery_app.task
            def mul(x, y):
                return x * y

            celery_worker.reload()
            assert mul.delay(4, 4).get(timeout=10) == 16
            assert mul.apply_async((3, 4), countdown=3600).get(timeout=3600) == 12
            assert celery_worker.app is celery_app
            assert isinstance(celery_worker, TestWorkController)
            an_hour_passes()

        def test_the_next_one_begins_anew(celery_app, celery_worker):
            assert not [name for name in celery_app.tasks if name.endswith(".mul")]
            assert celery_app.control.inspect().active() == {celery_worker.hostname: []}
    """)
    contrib.armed().assert_outcomes(passed=2)


def test_the_fixtures_that_configure(contrib):
    contrib.test("""
        import pytest
        from celery import Celery, Task, current_app
        from hour import an_hour_passes

        class Greet(Task):
            name = "greet"
            def run(self, who):
                return f"hello {who}"

        @pytest.fixture(scope="session")
        def celery_config():
            urls = {"broker_url": "redis://127.0.0.1:1/0", "result_backend": "redis://127.0.0.1:1/1"}
            return {**urls, "task_default_queue": "low-prio"}

        @pytest.fixture(scope="session")
        def celery_parameters():
            return {"strict_typing": False, "name": "mine"}

        @pytest.fixture(scope="session")
        def celery_enable_logging():
            return True

        @pytest.fixture(scope="session")
        def celery_includes():
            return ["included"]

        @pytest.fixture(scope="session")
        def celery_worker_parameters():
            return {"queues": ("high-prio", "low-prio"), "hostname": "celery@mine", "concurrency": 2}

        @pytest.mark.celery(task_acks_late=True)
        def test_all(celery_app, celery_worker):
            assert celery_app.main == "mine"
            assert celery_app.strict_typing is False
            assert celery_app.conf.task_acks_late
            assert celery_worker.hostname == "celery@mine"
            assert celery_worker.concurrency == 2
            assert set(celery_app.amqp.queues.consume_from) == {"high-prio", "low-prio"}
            assert celery_app.tasks["included.nap"].delay(3600).get() == 3600
            both = [celery_app.tasks["included.nap"].apply_async((60,), queue=q) for q in ("high-prio", "low-prio")]
            assert [result.get(timeout=60) for result in both] == [60, 60]
            an_hour_passes()

        def test_not_consumed(celery_app, celery_worker):
            from celery.exceptions import TimeoutError

            @celery_app.task
            def nap():
                raise NotImplementedError("not reached")
            result = nap.apply_async(queue="other")
            with pytest.raises(TimeoutError):
                result.get(timeout=3600)
    """, included="""
        import time
        from celery import shared_task
        @shared_task
        def nap(seconds):
            time.sleep(seconds)
            return seconds
    """)  # fmt: skip
    result = contrib.armed()
    result.assert_outcomes(passed=2)


def test_class_tasks_with_the_session_worker(contrib):
    contrib.test("""
        import pytest
        from celery import Task

        class Greet(Task):
            name = "greet"
            def run(self, who):
                return f"hello {who}"

        @pytest.fixture(scope="session")
        def celery_class_tasks():
            return [Greet]

        def test_it(celery_session_app, celery_session_worker):
            assert celery_session_app.tasks["greet"].delay("you").get(timeout=10) == "hello you"
    """)
    contrib.armed().assert_outcomes(passed=1)


def test_the_trap_for_the_current_app(contrib):
    """As with Celery's own worker, which makes its app the current one all the same."""
    contrib.test("""
        import pytest
        from celery import current_app

        @pytest.fixture(scope="session")
        def use_celery_app_trap():
            return True

        def test_without_a_worker(celery_app):
            with pytest.raises(RuntimeError, match="depends on current_app"):
                current_app.conf

        def test_with_one(celery_app, celery_worker):
            @celery_app.task
            def mul(x, y):
                return x * y
            assert mul.delay(2, 3).get(timeout=5) == 6

        def test_without_a_worker_again(celery_app):
            with pytest.raises(RuntimeError, match="depends on current_app"):
                current_app.conf
    """)
    contrib.armed().assert_outcomes(passed=3)


@pytest.mark.parametrize("bound", ["from celery.contrib.testing.worker import start_worker", "late"])
@pytest.mark.parametrize("subprocess", [False, True], ids=["inprocess", "subprocess"])
def test_start_worker_in_a_test(contrib, bound, subprocess):
    """In whatever way it is imported, and when: in a process of its own the module is not there before."""
    late = "from celery.contrib.testing.worker import start_worker" if bound == "late" else "pass"
    contrib.test(f"""
        {bound if bound != "late" else "pass"}
        import threading
        import shop
        from celery.contrib.testing import tasks
        from hour import an_hour_passes

        def test_it():
            {late}
            with start_worker(shop.app) as worker:
                assert worker.app is shop.app
                assert shop.add.delay(1, 2).get(timeout=5) == 3
                assert shop.slow.delay(3600).get(timeout=3600) == 3600
            result = shop.add.delay(3, 4)
            an_hour_passes()
            assert result.state == "PENDING"
            with start_worker(shop.app, perform_ping_check=False):
                assert result.get(timeout=5) == 7
            assert result.state == "SUCCESS"
            assert not [t for t in threading.enumerate() if "watchdog" not in t.name and t.name != "MainThread"]
    """)
    contrib.armed(subprocess=subprocess).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("imported", "start_worker"),
    [
        ("from celery.contrib.testing.worker import start_worker", "start_worker"),
        ("from celery.contrib.testing import worker as workers", "workers.start_worker"),
        ("import celery.contrib.testing.worker", "celery.contrib.testing.worker.start_worker"),
    ],
    ids=["name", "module", "package"],
)
@pytest.mark.parametrize("url", ["redis://nowhere.invalid/0", "memory://"])
def test_what_is_sent_before_the_worker_starts_waits_for_it(contrib, imported, start_worker, url):
    """In memory, as in a broker; by the test itself, by a fixture of its own, and where no worker ever starts."""
    contrib.test(f"""
        import pytest
        import unittest
        from celery import Celery
        {imported}
        from hour import an_hour_passes

        app = Celery("early", broker={url!r}, backend={"cache+" if url == "memory://" else ""!r} + {url!r})
        other = Celery("other, and the current one", broker={url!r})

        class Proxy:
            def __getattribute__(self, name):
                raise RuntimeError("bound to nothing")

        proxy = Proxy()

        @app.task
        def add(x, y):
            return x + y

        @app.task(ignore_result=True)
        def note(x):
            noted.append(x)

        noted = []

        def test_by_the_test():
            early = add.delay(1, 2)
            assert early.state == "PENDING"
            with {start_worker}(app, perform_ping_check=False):
                assert early.get(timeout=5) == 3
            an_hour_passes()

        def test_without_a_result():
            note.delay(1)
            with {start_worker}(app, perform_ping_check=False):
                pass
            assert noted == [1]

        def test_by_its_result():
            known = app.AsyncResult("known")
            assert known.state == "PENDING"
            with {start_worker}(app, perform_ping_check=False):
                assert add.apply_async((1, 2), task_id="known").get() == known.get() == 3

        @pytest.fixture
        def early():
            return add.delay(3, 4)

        def test_by_a_fixture(early):
            with {start_worker}(app, perform_ping_check=False):
                assert early.get(timeout=5) == 7

        class Test(unittest.TestCase):
            def setUp(self):
                self.early = add.delay(5, 6)
            def test_by_set_up(self):
                with {start_worker}(app, perform_ping_check=False):
                    assert self.early.get(timeout=5) == 11

        def test_without_a_worker():
            if False:
                {start_worker}
            add.delay(1, 2)

        def test_nothing_is_left_of_it():
            with {start_worker}(app, perform_ping_check=False) as worker:
                assert worker.stats()["total"] == {{}}

        @pytest.mark.celery_faults(takeover=False)
        def test_outside():
            with app.connection_for_write() as connection:
                assert connection.get_transport_cls().__module__.startswith("kombu.")
            assert app._pool is None
    """)
    contrib.armed().assert_outcomes(passed=8)


def test_what_is_sent_beside_a_kept_worker_of_another_application_waits_as_well(contrib):
    contrib.test("""
        import pytest, shop
        from celery import Celery
        from celery.contrib.testing.worker import start_worker
        from hour import an_hour_passes

        app = Celery("early", broker="redis://elsewhere.invalid/0", backend="redis://elsewhere.invalid/0")

        @app.task
        def add(x, y):
            return x + y

        @pytest.fixture(scope="session")
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker

        def test_1(worker):
            assert shop.add.delay(1, 2).get(timeout=5) == 3

        def test_2():
            early = add.delay(1, 2)
            with start_worker(app, perform_ping_check=False):
                assert early.get(timeout=5) == 3
            an_hour_passes()

        def test_3(worker):
            assert shop.add.delay(1, 2).get(timeout=5) == 3
    """)
    contrib.armed().assert_outcomes(passed=3)


def test_start_worker_is_found_when_its_module_imports_at_the_second_try(contrib):
    contrib.test("""
        import sys
        import pytest, shop
        from hour import an_hour_passes

        def test_it():
            sys.modules["celery.utils.nodenames"] = None
            with pytest.raises(ImportError):
                import celery.contrib.testing.worker
            del sys.modules["celery.utils.nodenames"]
            from celery.contrib.testing.worker import start_worker

            with start_worker(shop.app, perform_ping_check=False):
                assert shop.slow.delay(3600).get(timeout=3600) == 3600
            an_hour_passes()
    """)
    contrib.armed(subprocess=True).assert_outcomes(passed=1)


def test_what_is_sent_before_the_worker_starts_takes_no_connection_from_outside(contrib):
    """One that was opened before is there again afterwards."""
    contrib.test("""
        import pytest
        from celery import Celery
        from celery.contrib.testing.worker import start_worker
        from hour import an_hour_passes

        app = Celery("early", broker="memory://", backend="cache+memory://")

        @app.task
        def add(x, y):
            return x + y

        @pytest.mark.celery_faults(takeover=False)
        def test_outside():
            add.delay(1, 2)
            global pool, queued
            pool, queued = app.pool, app.connection_for_read().default_channel._size("celery")
            assert queued

        def test_in_memory():
            early = add.delay(3, 4)
            with start_worker(app, perform_ping_check=False):
                assert early.get(timeout=5) == 7
            an_hour_passes()

        @pytest.mark.celery_faults(takeover=False)
        def test_outside_again():
            assert app.pool is pool
            assert app.connection_for_read().default_channel._size("celery") == queued
    """)
    contrib.armed().assert_outcomes(passed=3)


def test_a_fixture_of_the_users_that_starts_it(contrib):
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker
        from hour import an_hour_passes

        @pytest.fixture
        def worker():
            with start_worker(shop.app, perform_ping_check=False) as worker:
                yield worker
            assert shop.add.AsyncResult("left").state == "SUCCESS", "what can run runs before the worker ends"

        def test_it(worker):
            assert shop.slow.delay(3600).get(timeout=3600) == 3600
            shop.add.apply_async((1, 2), task_id="left")
            an_hour_passes()
            shop.add.apply_async((1, 2), task_id="left")
    """)
    contrib.armed().assert_outcomes(passed=1)


def test_what_can_run_runs_before_the_worker_ends(contrib):
    contrib.test("""
        import shop
        from celery.contrib.testing.worker import start_worker

        def test_it():
            with start_worker(shop.app, perform_ping_check=False):
                done, later = shop.slow.delay(5), shop.add.apply_async((1, 2), countdown=60)
            assert done.state == "SUCCESS"
            assert later.state == "PENDING"
    """)
    contrib.armed().assert_outcomes(passed=1)


def test_a_task_that_outlives_the_shutdown_is_an_error_as_with_celery(contrib):
    contrib.test("""
        import pytest, shop
        from celery.contrib.testing.worker import start_worker

        def test_it():
            with pytest.raises(RuntimeError, match="shutdown_timeout"):
                with start_worker(shop.app, perform_ping_check=False, shutdown_timeout=20):
                    shop.slow.delay(60)
            with start_worker(shop.app, perform_ping_check=False, shutdown_timeout=60):
                result = shop.slow.delay(60)
            assert result.state == "SUCCESS"
    """)
    contrib.armed().assert_outcomes(passed=1)


def test_one_harness_with_the_other_fixtures_and_marks(contrib):
    """The app is that of the fixture `celery_app`, whatever the configuration names."""
    contrib.ini("celery_faults_app = shop:app")
    contrib.test("""
        import pytest
        from celery import shared_task
        from pytest_celery_faults import inject

        @shared_task(autoretry_for=(OSError,), retry_backoff=True, retry_jitter=False, max_retries=5)
        def download(url):
            return "done"

        @pytest.fixture
        def early(celery_app):
            celery_app.tasks[download.name].apply_async(("early",), task_id="early")

        @inject(OSError, times=3, task=download)
        def test_all(early, celery_worker, celery_app, celery_faults, celery_faults_app, retry_recorder, celery_dlq):
            assert celery_faults.app is celery_faults_app is celery_app
            assert download.AsyncResult("early").get(timeout=10) == "done"
            assert retry_recorder.delays == [1, 2, 4]
            assert not celery_dlq
            with celery_faults.inject(ValueError, task=download):
                with pytest.raises(ValueError):
                    download.delay("x").get()
            assert [letter.reason for letter in celery_dlq] == ["failed"]

        @inject(OSError, times=3)
        def test_marks_alone(celery_worker):
            assert download.delay("x").get(timeout=7) == "done"

        @inject(OSError, times=1)
        def test_nothing_is_driven(celery_worker):
            download.delay("x")

        @pytest.mark.celery_faults(concurrency=3, conf={"task_default_rate_limit": "1/m"})
        def test_settings(celery_worker, celery_app):
            assert celery_worker.concurrency == 3
            assert celery_app.conf.task_default_rate_limit == "1/m"
    """)
    result = contrib.armed()
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["*test_nothing_is_driven*", "inject(OSError) never fired. What ran: celery.ping (1 time)."]
    )


def test_start_worker_beside_the_fixture_celery_faults(shop):
    """The automatic worker makes room for it, and is there again afterwards."""
    shop.test("""
        import shop
        from celery.contrib.testing.worker import start_worker

        def test_it(celery_faults):
            assert shop.add.delay(1, 2).get() == 3
            with start_worker(shop.app, perform_ping_check=False, hostname="celery@asked", concurrency=2) as worker:
                assert list(shop.app.control.inspect().ping()) == ["celery@asked"]
                both = [shop.slow.delay(60), shop.slow.delay(60)]
                assert [result.get(timeout=60) for result in both] == [60, 60]
            assert shop.add.delay(1, 2).get() == 3
            assert list(shop.app.control.inspect().ping()) == ["celery@in-memory"]
    """)
    shop.armed().assert_outcomes(passed=1)


def test_a_failure_shows_the_timeline(contrib):
    contrib.test("""
        import shop
        from celery.contrib.testing.worker import start_worker
        def test_in_a_block():
            with start_worker(shop.app, perform_ping_check=False):
                assert shop.add.delay(1, 2).get() == 4
        def test_after_it():
            with start_worker(shop.app, perform_ping_check=False):
                result = shop.add.delay(1, 2).get()
            assert result == 4
    """)
    result = contrib.armed()
    result.assert_outcomes(failed=2)
    lines = [line for line in result.outlines if re.match(r" +0\.000000 s  succeeded +shop\.add#1", line)]
    assert len(lines) == 2
    result.stdout.fnmatch_lines(["2 tests, 2 tasks in 2 executions*"])


@pytest.mark.parametrize("source", [
    "def test_it(celery_app, celery_worker): pass",
    "def test_it(celery_session_app, celery_session_worker): pass",
    """
import shop
from celery.contrib.testing.worker import start_worker
def test_it():
    with start_worker(shop.app): pass
""",
], ids=["celery_worker", "celery_session_worker", "start_worker"])  # fmt: skip
def test_an_unarmed_run_has_celerys_own_thread(contrib, source):
    contrib.pytester.makeconftest(PLUGIN + """
from celery.contrib.testing import tasks, worker
original = worker._start_worker_thread
def pytest_runtest_setup(item):
    assert worker._start_worker_thread is original
def real(*args, **kwargs):
    raise LookupError("the real one")
worker._start_worker_thread = real
original = real
""")  # fmt: skip
    contrib.test(source)
    import celery.contrib.testing.worker as module

    before = module._start_worker_thread
    try:
        result = contrib.run()
    finally:
        module._start_worker_thread = before
    result.stdout.fnmatch_lines(["E * LookupError: the real one"])


def test_the_name_is_given_back_after_the_run(contrib):
    import celery.contrib.testing.worker as module

    before = module._start_worker_thread
    contrib.test("""
        def test_it(celery_app, celery_worker):
            from celery.contrib.testing import worker
            print("name:", worker._start_worker_thread.__module__)
    """)
    result = contrib.armed("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*name: pytest_celery_faults.takeover"])
    assert module._start_worker_thread is before


def test_celerys_own_checks_stay(contrib):
    """`start_worker` itself is Celery's: its signals, and its ping."""
    contrib.test("""
        import pytest
        from celery import Celery
        from celery.contrib.testing import worker

        def test_signals(celery_app):
            heard = []
            def hear(signal, sender, **_):
                heard.append((signal.name, sender))
            signals = worker.test_worker_starting, worker.test_worker_started, worker.test_worker_stopped
            for signal in signals:
                signal.connect(hear)
            with worker.start_worker(celery_app) as w:
                w.ensure_started()
            assert heard == [(signal.name, celery_app) for signal in signals]

        def test_ping(celery_app):
            app = Celery("bare", broker="memory://", set_as_current=False)
            dict.pop(app.tasks, "celery.ping", None)
            with pytest.raises(AssertionError, match="celery.ping"):
                with worker.start_worker(app):
                    pass

        class Mine(worker.TestWorkController):
            def on_before_init(self, **kwargs):
                self.mine = True
                super().on_before_init(**kwargs)

        def test_a_class_of_ones_own(celery_app):
            with worker.start_worker(celery_app, WorkController=Mine) as w:
                assert isinstance(w, Mine)
                assert w.mine
    """)
    contrib.armed().assert_outcomes(passed=3)


def test_another_app_in_one_test_is_an_error_that_names_both(contrib):
    contrib.test("""
        import shop
        from celery import Celery
        from celery.contrib.testing.worker import start_worker

        def test_apps(celery_app, celery_worker):
            with start_worker(shop.app):
                raise NotImplementedError("not reached")

        def test_workers(celery_app, celery_worker):
            with start_worker(celery_app):
                raise NotImplementedError("not reached")
    """)
    result = contrib.armed()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E *TakeoverError: start_worker(<Celery shop at *>): this test runs <Celery celery.tests at *>*",
            "E *TakeoverError: start_worker(): another worker of this test runs already*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")


def test_it_consumes_what_celerys_own_worker_would(contrib):
    """Not each queue that a task names; unless the marker says so."""
    contrib.test("""
        import pytest
        from celery.exceptions import TimeoutError

        @pytest.fixture(scope="session")
        def celery_config():
            return {"task_routes": {"*.report": {"queue": "reports"}}}

        @pytest.mark.parametrize("consumed", [False, pytest.param(True, marks=pytest.mark.celery_faults(
            queues=["celery", "reports"]))])
        def test_it(celery_app, celery_worker, consumed):
            @celery_app.task
            def report():
                return "done"
            if consumed:
                assert report.delay().get(timeout=60) == "done"
            else:
                with pytest.raises(TimeoutError):
                    report.delay().get(timeout=60)
    """)
    contrib.armed().assert_outcomes(passed=2)
