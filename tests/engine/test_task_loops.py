"""asyncio inside tasks: on virtual time, limited and killed as in a pool process."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
from celery.exceptions import TaskRevokedError

from pytest_celery_faults import Crash, Sleep, StalledTaskError, WaitNeverEndsError, clock

START, RETURN = "start", "return"
FOREVER = 10_000


async def fetch(seconds=0):
    """What faults strike at."""
    await asyncio.sleep(seconds)
    return "fetched"


@pytest.fixture
def task(app):
    """Makes a task whose body is `asyncio.run` of a coroutine function."""

    def task(function=None, **options):
        if function is None:
            return lambda function: task(function, **options)

        def run(*args):
            return asyncio.run(function(*args))

        return app.task(name=f"shop.{function.__name__}", **options)(run)

    return task


@pytest.fixture
def note(log, elapsed):
    return lambda what: log.append((what, elapsed()))


@pytest.fixture
def napping(app, note):
    """A task that waits in a coroutine, and says how it ends."""

    def napping(**options):
        async def nap():
            try:
                note("began")
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                note("cancelled")
                raise
            finally:
                note("finally")
                await asyncio.sleep(3)
                note("cleaned up")

        @app.task(name="shop.napping", **options)
        def napping():
            try:
                asyncio.run(nap())
            except BaseException as error:
                note(type(error).__name__)
                raise
            finally:
                note("left")

        return napping

    return napping


# -- time


def wait_for(seconds):
    return asyncio.wait_for(asyncio.Event().wait(), seconds)


async def call_later(seconds):
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


async def call_at(seconds):
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_at(loop.time() + seconds, over.set_result, None)
    await over


@pytest.mark.parametrize("wait", [asyncio.sleep, wait_for, call_later, call_at])
@pytest.mark.parametrize("seconds", [0.1, 1, 86_400.25])
def test_what_takes_time_takes_virtual_time(task, elapsed, wait, seconds):
    @task
    async def main():
        loop, before, began = asyncio.get_running_loop(), time.monotonic(), asyncio.get_running_loop().time()
        assert began == before
        try:
            await wait(seconds)
        except asyncio.TimeoutError:
            assert wait is wait_for
        return loop.time() - began, time.monotonic() - before

    assert main.delay().get() == pytest.approx([seconds, seconds])
    assert elapsed() == seconds


def test_many_fractions_add_up_exactly(task, elapsed):
    @task
    async def main():
        for _ in range(1000):
            await asyncio.sleep(0.1)

    main.delay().get()
    assert elapsed() == 100


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout, TaskGroup and Runner are of 3.11")
def test_timeout_task_group_and_runner(app, elapsed, note, log):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.sleep(FOREVER)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))
            group.create_task(asyncio.sleep(4))
        note("main")

    @app.task(name="shop.run")
    def run():
        with asyncio.Runner() as runner:
            runner.run(main())
            time.sleep(1)
            runner.run(main())

    run.delay().get()
    assert log == [("main", 6.5), ("main", 14)]


def test_time_sleep_in_a_coroutine_holds_up_its_loop(task, note, log):
    async def other():
        await asyncio.sleep(1)
        note("other")

    @task
    async def main():
        sibling = asyncio.create_task(other())
        await asyncio.sleep(0)
        time.sleep(5)
        note("slept")
        await sibling

    main.delay().get()
    assert log == [("slept", 5), ("other", 5)]


@pytest.mark.celery_faults(concurrency=2)
def test_two_tasks_take_turns(task, note, log):
    @task
    async def ticking(name, seconds):
        for _ in range(3):
            await asyncio.sleep(seconds)
            note(name)
            assert asyncio.current_task() in asyncio.all_tasks()
            assert len(asyncio.all_tasks()) == 1

    results = [ticking.delay("a", 2), ticking.delay("b", 3)]
    assert [result.get() for result in results] == [None, None]
    assert log == [("a", 2), ("b", 3), ("a", 4), ("b", 6), ("a", 6), ("b", 9)]


def test_with_one_process_the_second_task_waits(task, elapsed):
    @task
    async def main():
        await asyncio.sleep(2)
        return elapsed()

    results = [main.delay(), main.delay()]
    assert [result.get() for result in results] == [2, 4]


def test_advance_ends_in_the_middle_of_a_coroutine(task, worker, note, log):
    @task
    async def main():
        for _ in range(5):
            await asyncio.sleep(1)
            note("tick")

    main.delay()
    worker.advance(3)
    assert log == [("tick", 1), ("tick", 2), ("tick", 3)]


def test_context_variables_and_asynchronous_generators(task, elapsed):
    variable = contextvars.ContextVar("variable", default="none")

    async def numbers():
        try:
            for number in range(3):
                await asyncio.sleep(1)
                yield number
        finally:
            variable.set("closed")

    async def child():
        await asyncio.sleep(1)
        assert variable.get() == "main"
        variable.set("child")

    @task
    async def main():
        variable.set("main")
        await asyncio.create_task(child())
        assert variable.get() == "main"
        return [number async for number in numbers()], variable.get()

    assert main.delay().get() == [[0, 1, 2], "closed"]
    assert variable.get() == "none"
    assert elapsed() == 4


@pytest.mark.celery_faults(clock="real")
def test_on_a_real_clock_it_takes_real_time(task):
    @task
    async def main():
        await asyncio.sleep(0.2)

    began = clock.real_monotonic()
    main.delay().get()
    assert 0.19 < clock.real_monotonic() - began < 5


# -- limits, signals and crashes


def test_a_soft_limit_cancels_the_coroutine(napping, note, log, elapsed):
    result = napping(soft_time_limit=5).delay()
    with pytest.raises(SoftTimeLimitExceeded):
        result.get()
    assert log == [
        ("began", 0), ("cancelled", 5), ("finally", 5), ("cleaned up", 8), ("SoftTimeLimitExceeded", 8), ("left", 8)
    ]  # fmt: skip
    assert elapsed() == 8


def test_a_soft_limit_in_blocking_code_is_raised_there(task, note, log):
    @task(soft_time_limit=5)
    async def main():
        try:
            time.sleep(FOREVER)
        except SoftTimeLimitExceeded:
            note("soft")
            return "saved"

    assert main.delay().get() == "saved"
    assert log == [("soft", 5)]


def test_of_a_hard_limit_the_coroutine_hears_nothing(napping, log, elapsed, worker):
    with pytest.raises(TimeLimitExceeded):
        napping(time_limit=5).delay().get()
    assert elapsed() == 5
    worker.advance(FOREVER * 2)
    assert log == [("began", 0)]


def test_a_hard_limit_ends_what_a_soft_one_began(napping, log, elapsed, worker):
    with pytest.raises(TimeLimitExceeded):
        napping(soft_time_limit=5, time_limit=7).delay().get()
    assert elapsed() == 7
    worker.advance(FOREVER * 2)
    assert log == [("began", 0), ("cancelled", 5), ("finally", 5)]


def test_revoke_terminate_unwinds_at_that_instant(app, napping, log, worker, elapsed):
    result = napping().delay()
    worker.advance(4)
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get()
    worker.drain()
    assert elapsed() == 7
    assert log == [
        ("began", 0), ("cancelled", 4), ("finally", 4), ("cleaned up", 7), ("SystemExit", 7), ("left", 7)
    ]  # fmt: skip


def test_revoke_with_sigkill_runs_nothing(napping, log, worker):
    result = napping().delay()
    worker.advance(4)
    result.revoke(terminate=True, signal="SIGKILL")
    with pytest.raises(TaskRevokedError):
        result.get()
    worker.advance(FOREVER * 2)
    assert log == [("began", 0)]


@pytest.mark.parametrize(("at", "ran"), [(START, []), (f"{__name__}.fetch", ["began"]), (RETURN, ["began", "ended"])])
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


@pytest.mark.celery_faults(concurrency=2)
def test_a_crash_is_nothing_to_the_other_process(task, celery_faults, log, note):
    @task
    async def main(name):
        await asyncio.sleep(1)
        if name == "crashes":
            await fetch()
        await asyncio.sleep(1)
        note(name)

    celery_faults.inject(Crash(), at=f"{__name__}.fetch")
    results = [main.delay("crashes"), main.delay("goes on")]
    with pytest.raises(WorkerLostError):
        results[0].get()
    results[1].get()
    assert log == [("goes on", 2)]


def test_a_worker_that_crashes_takes_the_coroutine_with_it(napping, worker, log):
    napping().delay()
    worker.advance(1)
    worker.crash()
    worker.start()
    worker.advance(FOREVER)
    assert log == [("began", 0)]


# -- what Celery offers, called from a coroutine


def test_a_retry_from_a_coroutine(app, elapsed):
    async def main(self):
        await asyncio.sleep(1)
        if self.request.retries < 2:
            raise self.retry(countdown=10)
        return self.request.retries

    @app.task(name="shop.retrying", bind=True)
    def retrying(self):
        return asyncio.run(main(self))

    assert retrying.delay().get() == 2
    assert elapsed() == 23


def test_a_coroutine_sends_tasks_and_must_not_wait_for_them(task, add, note, log):
    @task
    async def main():
        result = add.delay(1, 2)
        with pytest.raises(RuntimeError, match=r"Never call result.get"):
            result.get()
        await asyncio.sleep(1)
        return result.id

    assert add.AsyncResult(main.delay().get()).get() == 3


# -- faults at coroutine functions


def test_an_exception_is_raised_where_the_coroutine_is_awaited(task, celery_faults, log):
    @task
    async def main():
        coroutine = fetch()
        log.append("called")
        with pytest.raises(OSError, match="broken"):
            await coroutine
        return await asyncio.gather(fetch(), fetch())

    celery_faults.inject(OSError("broken"), at=f"{__name__}.fetch")
    assert main.delay().get() == ["fetched", "fetched"]
    assert log == ["called"]


def test_gather_returns_an_injected_exception(task, celery_faults):
    @task
    async def main():
        results = await asyncio.gather(fetch(), fetch(), return_exceptions=True)
        return [repr(result) for result in results]

    celery_faults.inject(OSError("broken"), at=fetch, skip=1)
    assert main.delay().get() == ["'fetched'", "OSError('broken')"]


def test_a_sleep_holds_up_its_own_coroutine_only(task, celery_faults, note, log):
    @task
    async def main():
        sibling = asyncio.create_task(asyncio.sleep(1))
        sibling.add_done_callback(lambda _: note("sibling"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(fetch(), 5)
        note("timeout")
        return await fetch()

    celery_faults.inject(Sleep(30), at=f"{__name__}.fetch")
    assert main.delay().get() == "fetched"
    assert log == [("sibling", 1), ("timeout", 5)]


def test_a_sleep_beyond_a_limit_in_a_coroutine(task, celery_faults, elapsed):
    @task(soft_time_limit=20)
    async def main():
        await fetch()

    celery_faults.inject(Sleep(beyond="soft_time_limit"), at=f"{__name__}.fetch")
    with pytest.raises(SoftTimeLimitExceeded):
        main.delay().get()
    assert elapsed() == 20


def test_a_sleep_at_the_start_comes_before_the_loop(task, celery_faults, elapsed):
    @task
    async def main():
        await asyncio.sleep(1)

    celery_faults.inject(Sleep(30))
    main.delay().get()
    assert elapsed() == 31


# -- what is real


@pytest.fixture
def echo():
    """A socket whose other end answers after 0.1 real seconds."""
    ours, theirs = socket.socketpair()

    def answer():
        data = theirs.recv(100)
        threading.Event().wait(0.1)
        theirs.sendall(data.upper())

    thread = threading.Thread(target=answer)
    thread.start()
    ours.setblocking(False)
    yield ours
    ours.close()
    thread.join()
    theirs.close()


def test_an_answer_from_a_socket_is_waited_for(task, echo, elapsed):
    @task
    async def main():
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(echo, b"hello")
        data = await asyncio.wait_for(loop.sock_recv(echo, 100), 20)
        return data.decode()

    began = clock.real_monotonic()
    assert main.delay().get() == "HELLO"
    assert elapsed() == 0
    assert clock.real_monotonic() - began < 5


def test_streams(task, echo, elapsed):
    @task
    async def main():
        reader, writer = await asyncio.open_connection(sock=echo)
        writer.write(b"hello")
        data = await reader.readexactly(5)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(7)
        return data.decode()

    assert main.delay().get() == "HELLO"
    assert elapsed() == 7


def real_sleep(seconds):
    # Another thread sees real time.
    time.sleep(seconds)
    return threading.current_thread() is not threading.main_thread()


@pytest.mark.parametrize("call", [
    lambda: asyncio.to_thread(real_sleep, 0.1),
    lambda: asyncio.get_running_loop().run_in_executor(None, real_sleep, 0.1),
])  # fmt: skip
def test_virtual_time_does_not_jump_over_a_call_in_another_thread(task, elapsed, note, log, call):
    @task
    async def main():
        asyncio.get_running_loop().call_later(1, note, "later")
        done = await asyncio.wait_for(call(), 10)
        note("called")
        await asyncio.sleep(1)
        return done

    assert main.delay().get() is True
    assert log == [("called", 0), ("later", 1)]
    assert elapsed() == 1


def test_a_short_timer_comes_before_a_long_call(task, note, log):
    @task
    async def main():
        asyncio.get_running_loop().call_later(0.05, note, "later")
        await asyncio.to_thread(real_sleep, 0.3)
        note("called")

    main.delay().get()
    assert log == [("later", 0.05), ("called", 0.05)]


@pytest.mark.celery_faults(concurrency=2)
def test_what_another_task_waits_for_is_not_jumped_over(task, log, note):
    @task
    async def calling():
        await asyncio.wait_for(asyncio.to_thread(real_sleep, 0.1), 5)
        note("called")

    @task
    async def sleeping():
        await asyncio.sleep(2)
        note("slept")

    results = [sleeping.delay(), calling.delay()]
    for result in results:
        result.get()
    assert log == [("called", 0), ("slept", 2)]


def test_a_subprocess(task, elapsed):
    @task
    async def main():
        command = [sys.executable, "-S", "-c", "print(input()[::-1])"]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(b"hello\n"), 20)
        await asyncio.sleep(1)
        return said.decode(), process.returncode

    assert main.delay().get() == ["olleh\n", 0]
    assert elapsed() == 1


def test_a_subprocess_without_pipes(task, elapsed):
    @task
    async def main():
        process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "raise SystemExit(3)")
        return await asyncio.wait_for(process.wait(), 20)

    assert main.delay().get() == 3
    assert elapsed() == 0


def test_a_thread_of_the_tasks_own_wakes_its_loop(task, elapsed):
    @task
    async def main():
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        thread = threading.Thread(target=lambda: (real_sleep(0.1), loop.call_soon_threadsafe(event.set)))
        thread.start()
        await asyncio.wait_for(event.wait(), 20)
        thread.join()

    main.delay().get()
    assert elapsed() == 0


@pytest.mark.celery_faults(concurrency=2)
def test_a_loop_is_woken_by_another_task(task, app, note, log):
    waiting = {}

    @task
    async def main():
        waiting["event"], waiting["loop"] = asyncio.Event(), asyncio.get_running_loop()
        await waiting["event"].wait()
        note("woken")

    @app.task(name="shop.wake")
    def wake():
        time.sleep(3)
        waiting["loop"].call_soon_threadsafe(waiting["event"].set)
        time.sleep(3)

    results = [main.delay(), wake.delay()]
    for result in results:
        result.get()
    assert log == [("woken", 3)]


def test_a_coroutine_that_nothing_wakes_is_named(task):
    @task
    async def forgotten():
        await asyncio.Event().wait()

    result = forgotten.delay()
    with pytest.raises(WaitNeverEndsError, match=r"shop.forgotten#1 waits for asyncio: .*forgotten"):
        result.get()


@pytest.mark.celery_faults(stall_timeout=0.3)
@pytest.mark.usefixtures("hang_is_failure")
def test_an_answer_that_never_comes(task):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    @task
    async def listening():
        await asyncio.get_running_loop().sock_recv(ours, 1)

    result = listening.delay()
    with pytest.raises(StalledTaskError, match=r"shop.listening#1 has waited for .* asyncio: .*listening"):
        result.get()
    ours.close()
    theirs.close()


def test_an_interrupt_that_takes_the_place_of_a_step(task):
    """Its coroutine never goes on, and `asyncio.run` waits for it: the interrupt is what the test is told."""

    @task
    async def turning():
        loop = asyncio.get_running_loop()

        def strike():
            loop._ready.clear()
            raise KeyboardInterrupt

        loop.call_soon(strike)
        while True:
            await asyncio.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        turning.delay().get()


@pytest.mark.celery_faults(stall_timeout=0.3)
@pytest.mark.usefixtures("hang_is_failure")
@pytest.mark.parametrize("within", ["main", "child", "callback"])
def test_a_coroutine_that_never_waits(task, within):
    async def spin():
        while True:
            await asyncio.sleep(0)

    def again():
        asyncio.get_running_loop().call_soon(again)

    @task
    async def busy():
        if within == "callback":
            again()
        elif within == "child":
            asyncio.create_task(spin()).add_done_callback(print)
        else:
            await spin()
        await asyncio.sleep(FOREVER)

    result = busy.delay()
    with pytest.raises(StalledTaskError, match=r"shop.busy.*blocked"):
        result.get()


# -- loops that are kept


@pytest.fixture
def kept():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def on_kept(app, kept):
    """A task on a loop that stays."""

    def on_kept(function, **options):
        def run(*args):
            return kept.run_until_complete(function(*args))

        return app.task(name="shop.on_kept", **options)(run)

    return on_kept


def test_a_loop_is_kept_between_tasks(on_kept, kept, elapsed):
    background = []

    async def main():
        if not background:
            background.append(asyncio.create_task(asyncio.sleep(3, "background")))
        await asyncio.sleep(2)
        return background[0].done()

    task = on_kept(main)
    assert [task.delay().get(), task.delay().get()] == [False, True]
    assert elapsed() == 4
    assert not kept.is_running()


@pytest.mark.parametrize("within", ["sleep", "thread", "gather", "blocking"])
def test_a_kept_loop_goes_on_after_a_killed_task(on_kept, log, elapsed, within):
    async def main(hangs):
        if not hangs:
            await asyncio.sleep(2)
            return "went on"
        asyncio.get_running_loop().call_later(4, log.append, "timer")
        sibling = asyncio.create_task(nap())
        await asyncio.sleep(0)
        try:
            if within == "sleep":
                await asyncio.sleep(FOREVER)
            elif within == "thread":
                await asyncio.to_thread(real_sleep, 0.3)
            elif within == "gather":
                await asyncio.gather(asyncio.to_thread(real_sleep, 0.3), sibling)
            else:
                time.sleep(FOREVER)
        finally:
            log.append("finally")

    async def nap():
        try:
            await asyncio.sleep(5)
        finally:
            log.append("sibling")

    task = on_kept(main, time_limit=0.1)
    with pytest.raises(TimeLimitExceeded):
        task.delay(True).get()
    assert elapsed() == 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = task.apply_async((False,), time_limit=30)
        assert result.get() == "went on"
        assert elapsed() == 2.1
        # What the thread has to say comes to nobody.
        real_sleep(0.4)
        assert task.apply_async((False,), time_limit=30).get() == "went on"
    assert log == []


def test_a_loop_made_when_the_process_starts(app, elapsed, worker):
    from celery.signals import worker_process_init

    made = []

    def make(**_):
        made.append(asyncio.new_event_loop())
        asyncio.set_event_loop(made[-1])

    async def main():
        await asyncio.sleep(2)
        return made.index(asyncio.get_running_loop())

    @app.task(name="shop.current")
    def current():
        return asyncio.get_event_loop().run_until_complete(main())

    @app.task(name="shop.killed", time_limit=5)
    def killed():
        asyncio.get_event_loop().run_until_complete(asyncio.sleep(FOREVER))

    worker_process_init.connect(make)
    try:
        assert [current.delay().get(), current.delay().get()] == [0, 0]
        with pytest.raises(TimeLimitExceeded):
            killed.delay().get()
        assert current.delay().get() == 1
    finally:
        worker_process_init.disconnect(make)
    assert elapsed() == 11


@pytest.mark.celery_faults(concurrency=2)
def test_each_process_has_a_current_loop(app):
    @app.task(name="shop.current")
    def current():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            loop = asyncio.get_event_loop()
        loop.run_until_complete(asyncio.sleep(1))
        return id(loop)

    results = [current.delay(), current.delay()]
    assert len({result.get() for result in results}) == 2


def test_the_current_loop_is_as_in_a_fresh_main_thread(app):
    """The same in a process of its own, whose main thread asks."""

    def ask():
        said = []
        for _ in range(3):
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    loop = asyncio.get_event_loop()
                    said.append((loop.is_closed(), [str(warning.message) for warning in warned]))
                    kept.append(loop)
                except RuntimeError as error:
                    said.append(str(error).rstrip("."))
            if len(said) == 2:
                asyncio.run(asyncio.sleep(0))
        return said

    kept = []
    task = app.task(name="shop.ask")(ask)
    here = task.delay().get()
    alone = []
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork where other threads are
        pid = os.fork()
    if not pid:
        try:
            asyncio.set_event_loop_policy(None)  # other tests have run in this process
            os.write(writer, repr(ask()).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    alone = eval(os.read(reader, 10_000).decode())  # noqa: S307
    os.close(reader)
    os.close(writer)
    kept[0].close()
    assert here == [list(said) if isinstance(said, tuple) else said for said in alone]


# -- the test's own asyncio


def test_a_loop_of_the_test_is_in_real_time(task, worker, elapsed):
    @task
    async def main():
        assert asyncio.get_running_loop() is not own[0]
        await asyncio.sleep(50)

    own = []

    async def test():
        own.append(asyncio.get_running_loop())
        before = asyncio.get_running_loop().time()
        await asyncio.sleep(0.1)
        assert 0.05 < asyncio.get_running_loop().time() - before < 5
        assert elapsed() == 0
        result = main.delay()
        worker.drain()
        assert asyncio.get_running_loop() is own[0]
        assert sys.get_asyncgen_hooks().firstiter.__self__ is own[0]
        return result.state

    began = clock.real_monotonic()
    assert asyncio.run(test()) == "SUCCESS"
    assert 0.05 < clock.real_monotonic() - began < 5
    assert elapsed() == 50


def test_a_loop_in_another_thread_is_in_real_time(task, worker, elapsed):
    took = []

    def other():
        began = time.monotonic()
        asyncio.run(asyncio.sleep(0.2))
        took.append(time.monotonic() - began)

    @task
    async def main():
        await asyncio.sleep(50)

    thread = threading.Thread(target=other)
    thread.start()
    main.delay().get()
    thread.join()
    assert 0.15 < took[0] < 5
    assert elapsed() == 50


def thread_state():
    local = asyncio.get_event_loop_policy()._local
    return (
        asyncio._get_running_loop(),
        sys.get_asyncgen_hooks(),
        sys.get_coroutine_origin_tracking_depth(),
        signal.getsignal(signal.SIGINT),
        local._loop,
        local._set_called,
    )


def test_while_a_task_waits_the_test_sees_nothing_of_its_loop(napping, task, worker):
    before = thread_state()

    @task
    async def main():
        asyncio.get_running_loop().set_debug(True)
        assert signal.getsignal(signal.SIGINT) is before[3]
        await asyncio.sleep(3)

    result = main.delay()
    worker.advance(1)
    assert thread_state() == before
    result.get()
    assert thread_state() == before
    napping(time_limit=5).delay()
    worker.advance(1)
    assert thread_state() == before
    worker.drain()
    assert thread_state() == before


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
@pytest.mark.parametrize("end", ["limit", "crash", "test"])
def test_killed_loops_leave_no_descriptors(build, bare_app, end):
    def run():
        harness = build()
        harness.worker.start()
        if end == "crash":
            harness.inject(Crash(), at=f"{__name__}.fetch", times=None)
        for _ in range(5):
            main.delay()
        harness.worker.advance(26)
        harness.close()

    @bare_app.task(name="shop.main", time_limit=None if end == "test" else 5)
    def main():
        asyncio.run(run_forever())

    async def run_forever():
        if end == "crash":
            await fetch()
        reader, writer = socket.socketpair()
        connection = await asyncio.open_connection(sock=reader)
        writer.close()
        await asyncio.sleep(FOREVER, connection)

    run()
    before = sorted(os.listdir("/proc/self/fd"))
    run()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_loop_of_the_process_is_closed_at_the_end_of_the_test(build, bare_app):
    loops = []

    @bare_app.task(name="shop.current")
    def current():
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.sleep(1))
        loops.append(loop)

    before = len(os.listdir("/proc/self/fd"))
    harness = build()
    current.delay().get()
    harness.close()
    assert len(os.listdir("/proc/self/fd")) == before
    # Whoever keeps it can use it in the next test.
    assert loops[0].run_until_complete(asyncio.sleep(0, "again")) == "again"
    loops[0].close()


SCRIPT = """
import asyncio, gc, json, logging, os, sys, threading, time, warnings

import greenlet
from celery import Celery

from pytest_celery_faults import Crash
from pytest_celery_faults.harness import Harness, make_options
from pytest_celery_faults.watchdog import Watchdog

logging.disable(logging.ERROR)
URL = "redis://127.0.0.1:1/0"
app = Celery("shop", broker=URL, backend=URL)
kept = asyncio.new_event_loop()
watchdog = Watchdog()


async def never(seconds):
    try:
        await asyncio.sleep(seconds)
    finally:
        print("finally")


async def many():
    tasks = [asyncio.create_task(never(seconds)) for seconds in (100, 200)]
    generator = numbers()
    await generator.__anext__()
    await asyncio.gather(*tasks, asyncio.to_thread(time.sleep, 0.01))


async def numbers():
    try:
        yield 1
    finally:
        print("finally")


@app.task(name="shop.run", time_limit=5)
def run():
    asyncio.run(many())


@app.task(name="shop.on_kept", time_limit=5)
def on_kept():
    kept.run_until_complete(many())


@app.task(name="shop.unstarted", time_limit=5)
def unstarted():
    async def main():
        coroutine = asyncio.create_task(never(1))
        time.sleep(100)

    asyncio.run(main())


def test(number):
    harness = Harness(app, make_options({}), 0, f"test {number}", watchdog)
    for task in (run, on_kept, unstarted):
        task.delay()
    harness.worker.advance(10 if number % 2 else 12)
    harness.close()


def descriptors():
    return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
"""

EACH_OF_MANY = """
test(0)
before = descriptors()
for number in range(70):
    test(number)
    if number % 10 == 0:
        gc.collect()
assert descriptors() == before, (before, descriptors())
# Those of the calls in other threads end by themselves.
end = time.monotonic() + 20
while threading.active_count() > 2 and time.monotonic() < end:
    time.sleep(0.01)
assert [thread.name for thread in threading.enumerate()] == ["MainThread", "celery-faults watchdog"]
watchdog.stop()
print("done")
"""


def test_of_many_killed_tasks_nothing_is_heard(unmeasured):
    """In a process of its own, to its very end."""
    environment = {**os.environ, "PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1"}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", SCRIPT + EACH_OF_MANY],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "done\n"
    assert done.returncode == 0


def test_in_a_run_of_its_own_where_warnings_are_errors(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    pytester.makepyfile(
        """
        import asyncio

        import pytest
        from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
        from celery import Celery

        URL = "redis://127.0.0.1:1/0"
        app = Celery("shop", broker=URL, backend=URL)
        loop = asyncio.new_event_loop()

        @pytest.fixture
        def celery_faults_app():
            return app

        async def main(seconds):
            try:
                await asyncio.gather(asyncio.sleep(seconds), asyncio.to_thread(print, "thread"))
            finally:
                await asyncio.sleep(1)

        @app.task(name="shop.run", soft_time_limit=5, time_limit=10)
        def run(seconds):
            asyncio.run(main(seconds))

        @app.task(name="shop.kept", time_limit=10)
        def kept(seconds):
            loop.run_until_complete(main(seconds))

        @pytest.mark.parametrize("number", range(3))
        def test_ends(celery_faults, number):
            run.delay(2).get()
            kept.delay(2).get()
            with pytest.raises(SoftTimeLimitExceeded):
                run.delay(20).get()
            with pytest.raises(TimeLimitExceeded):
                kept.delay(20).get()
            assert celery_faults.clock.elapsed == 22

        def test_in_the_middle(celery_faults):
            run.delay(2)
            celery_faults.worker.advance(1)
        """
    )
    result = pytester.runpytest_subprocess("-W", "error", "--celery-faults", "-p", "no:asyncio")
    result.assert_outcomes(passed=4)
    assert str(result.stderr) == ""


def test_a_timeout_strikes_while_something_real_makes_progress(app):
    """Each byte that comes begins the wait anew; the time of all of them counts."""
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def send():
        with suppress(BrokenPipeError):  # the reader has gone
            while not over.wait(0.05):
                theirs.send(b"x")

    @app.task(name="shop.read")
    def read():
        async def forever():
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                while True:
                    await reader.read(1)
            finally:
                writer.close()

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(forever(), 0.5))
        return "ended"

    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert read.delay().get(timeout=30) == "ended"
    finally:
        over.set()
        sender.join()
        theirs.close()
