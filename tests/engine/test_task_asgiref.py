"""asgiref inside tasks: its threads are fibers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery.exceptions import TaskRevokedError

from pytest_celery_faults import Crash, Sleep, WaitNeverEndsError, clock

FOREVER = 10_000


async def fetch(seconds=0):
    """What faults strike at."""
    await asyncio.sleep(seconds)
    return "fetched"


@pytest.fixture
def task(app):
    """Makes a task whose body is `async_to_sync` of a coroutine function."""

    def task(function=None, **options):
        if function is None:
            return lambda function: task(function, **options)

        def run(*args):
            return async_to_sync(function)(*args)

        return app.task(name=f"shop.{function.__name__}", **options)(run)

    return task


@pytest.fixture
def note(log, elapsed):
    return lambda what: log.append((what, elapsed()))


def in_coroutine(function, *args):
    """A synchronous function, called from a coroutine."""

    async def call():
        await asyncio.sleep(1)
        return await sync_to_async(function)(*args)

    return call


def nested(depth):
    """Synchronous and asynchronous functions, one in the other; each takes a second."""
    time.sleep(1)
    return depth if not depth else async_to_sync(in_coroutine(nested, depth - 1))()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_calls_nested_both_ways(app, elapsed, depth):
    run = app.task(name="shop.nested")(nested)
    assert run.delay(depth).get() == 0
    assert elapsed() == 1 + 2 * depth


def test_sync_to_async_in_asyncio_run(app, elapsed):
    @app.task(name="shop.run")
    def run():
        return asyncio.run(in_coroutine(nested, 1)())

    assert run.delay().get() == 0
    assert elapsed() == 4


@pytest.mark.celery_faults(concurrency=2)
def test_two_tasks_take_turns(task, note, log):
    @task
    async def ticking(name, seconds):
        for _ in range(3):
            await sync_to_async(time.sleep)(seconds / 2)
            await asyncio.sleep(seconds / 2)
            note(name)

    results = [ticking.delay("a", 2), ticking.delay("b", 3)]
    assert [result.get() for result in results] == [None, None]
    assert log == [("a", 2), ("b", 3), ("a", 4), ("b", 6), ("a", 6), ("b", 9)]


def test_coroutines_go_on_while_a_function_runs(task, note, log):
    @task
    async def main():
        sibling = asyncio.create_task(asyncio.sleep(2))
        sibling.add_done_callback(lambda _: note("sibling"))
        await sync_to_async(time.sleep)(5)
        note("slept")

    main.delay().get()
    assert log == [("sibling", 2), ("slept", 5)]


def test_errors_come_through(task):
    def fail():
        raise LookupError("failed")

    @task
    async def main():
        with pytest.raises(LookupError):
            await sync_to_async(fail)()
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        main.delay().get()


def test_thread_sensitive_false_is_a_real_thread(task, elapsed):
    def real_sleep():
        time.sleep(0.1)
        return threading.current_thread() is not threading.main_thread()

    @task
    async def main():
        return await asyncio.wait_for(sync_to_async(real_sleep, thread_sensitive=False)(), 5)

    assert main.delay().get() is True
    assert elapsed() == 0


# -- limits, signals and crashes


@pytest.fixture
def napping(app, note):
    def napping(**options):
        async def nap():
            try:
                note("began")
                await asyncio.sleep(8)
                note("slept")
            finally:
                note("finally")

        @app.task(name="shop.napping", **options)
        def napping():
            try:
                async_to_sync(nap)()
            except BaseException as error:
                note(type(error).__name__)
                raise

        return napping

    return napping


def test_a_soft_limit_is_raised_in_the_task_and_the_coroutine_goes_on(napping, worker, log, elapsed):
    with pytest.raises(SoftTimeLimitExceeded):
        napping(soft_time_limit=5).delay().get()
    assert elapsed() == 5
    worker.advance(5)
    assert log == [("began", 0), ("SoftTimeLimitExceeded", 5), ("slept", 8), ("finally", 8)]


def test_of_a_hard_limit_nobody_hears(napping, worker, log, elapsed):
    with pytest.raises(TimeLimitExceeded):
        napping(time_limit=5).delay().get()
    assert elapsed() == 5
    worker.advance(FOREVER)
    assert log == [("began", 0)]


def test_what_goes_on_ends_with_its_process(app, worker, napping, log):
    @app.task(name="shop.die", time_limit=1)
    def die():
        time.sleep(FOREVER)

    with pytest.raises(SoftTimeLimitExceeded):
        napping(soft_time_limit=5).delay().get()
    with pytest.raises(TimeLimitExceeded):
        die.delay().get()
    worker.advance(FOREVER)
    assert log == [("began", 0), ("SoftTimeLimitExceeded", 5)]


def test_revoke_terminate(napping, worker, log):
    result = napping().delay()
    worker.advance(4)
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get()
    worker.advance(FOREVER)
    assert log == [("began", 0), ("SystemExit", 4)]


@pytest.mark.parametrize(
    ("at", "ran"), [("start", []), (f"{__name__}.fetch", ["began"]), ("return", ["began", "ended"])]
)
def test_a_crash_ends_it_there(task, celery_faults, worker, log, note, at, ran):
    @task
    async def main():
        note("began")
        try:
            await asyncio.gather(asyncio.sleep(1), fetch(1))
        finally:
            note("ended")

    celery_faults.inject(Crash(), at=at)
    with pytest.raises(WorkerLostError):
        main.delay().get()
    worker.advance(FOREVER)
    assert [what for what, _ in log] == ran


def test_faults_at_functions_in_the_coroutine(task, celery_faults, elapsed):
    @task
    async def main():
        with pytest.raises(OSError, match="broken"):
            await fetch()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(fetch(), 5)
        return await fetch()

    celery_faults.inject(OSError("broken"), at=f"{__name__}.fetch")
    celery_faults.inject(Sleep(30), at=f"{__name__}.fetch")
    assert main.delay().get() == "fetched"
    assert elapsed() == 5


def test_a_coroutine_that_nothing_wakes(task):
    @task
    async def forgotten():
        await asyncio.Event().wait()

    result = forgotten.delay()
    with pytest.raises(WaitNeverEndsError, match=r"shop.forgotten#1 waits for asyncio: .*forgotten"):
        result.get()


# -- everywhere else


def test_the_test_itself_has_real_threads(app, worker, elapsed):
    @app.task(name="shop.add")
    def add():
        return 1

    async def test():
        await asyncio.sleep(0.1)
        await sync_to_async(add.delay)()
        return threading.current_thread() is not threading.main_thread()

    began = clock.real_monotonic()
    assert async_to_sync(test)() is True
    assert 0.05 < clock.real_monotonic() - began < 5
    assert elapsed() == 0
    worker.drain()


def test_other_threads_have_their_own(task):
    SyncToAsync.threadlocal.mark = "test"

    @task
    async def main():
        return await sync_to_async(lambda: getattr(SyncToAsync.threadlocal, "mark", None))()

    try:
        assert main.delay().get() is None
        assert SyncToAsync.threadlocal.mark == "test"
    finally:
        vars(SyncToAsync.threadlocal).clear()


def test_asgiref_is_not_imported_but_found_when_a_task_imports_it(tmp_path):
    script = """
        import sys, time
        from celery import Celery
        from pytest_celery_faults.harness import Harness, make_options
        from pytest_celery_faults.watchdog import Watchdog

        app = Celery("shop", broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/0")

        @app.task(name="shop.run")
        def run():
            import asyncio
            from asgiref.sync import async_to_sync
            async_to_sync(asyncio.sleep)(1000)

        finders = list(sys.meta_path)
        first = Harness(app, make_options({}), 0, "first", Watchdog())
        first.close()
        assert sys.meta_path == finders
        assert "asgiref" not in sys.modules
        harness = Harness(app, make_options({}), 0, "test", Watchdog())
        run.delay().get()
        assert harness.clock.elapsed == 1000
        harness.close()
        assert sys.meta_path == finders
        from asgiref import sync
        from concurrent.futures import ThreadPoolExecutor
        assert sync.ThreadPoolExecutor is ThreadPoolExecutor
        assert type(sync.SyncToAsync.single_thread_executor) is ThreadPoolExecutor
    """
    lines = "\n".join(line[8:] for line in script.splitlines())
    environment = {**os.environ, "PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1"}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert "Warning" not in done.stderr
