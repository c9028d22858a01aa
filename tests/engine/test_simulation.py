"""What runs next, alone: fibers and a clock, without Celery."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref

import pytest

from pytest_celery_faults import WaitNeverEndsError
from pytest_celery_faults.clock import TimeSource
from pytest_celery_faults.simulation import TASK_RANK, TEST_RANK, WORKER_RANK, PassThrough, Simulation

SECOND = 1_000_000


class Switches:
    """Keeps the order of switches."""

    def __init__(self):
        self.log = []

    def entering(self, fiber):
        self.log.append(("enter", fiber.name))

    def leaving(self, fiber):
        self.log.append(("leave", fiber.name))

    def killed(self, fiber):
        self.log.append(("kill", fiber.name))


@pytest.fixture
def switches():
    return Switches()


@pytest.fixture
def reasons():
    return []


@pytest.fixture
def sim(switches, reasons):
    simulation = Simulation(TimeSource(), switches, lambda: list(reasons))
    yield simulation
    if not simulation.closing:
        simulation.close()


@pytest.fixture
def elapsed(sim):
    return lambda: (sim.clock.now_us - sim.clock.start_us) / SECOND


# -- time


def test_the_test_sleeps_on_virtual_time(sim, elapsed):
    sim.sleep(3)
    assert elapsed() == 3
    sim.sleep(0)
    assert elapsed() == 3


@pytest.mark.parametrize("parts", [[0.1] * 10, [0.3, 0.1, 0.6]])
def test_sums_of_fractions_are_exact(sim, elapsed, parts):
    for part in parts:
        sim.sleep(part)
    assert elapsed() == 1


def test_a_negative_sleep_is_an_error_and_moves_nothing(sim, elapsed):
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        sim.sleep(-1)
    assert elapsed() == 0


def test_time_jumps_to_the_next_due_time_only(sim, elapsed):
    seen = []

    def task(delay):
        def body():
            sim.sleep(delay)
            seen.append((delay, elapsed()))

        return body

    for delay in (7, 2, 5):
        sim.spawn(f"task {delay}", TASK_RANK, task(delay))
    sim.run_until_idle("all")
    assert seen == [(2, 2), (5, 5), (7, 7)]
    assert elapsed() == 7


def test_run_for_ends_exactly_there_and_includes_its_end(sim, elapsed):
    seen = []

    def body():
        for _ in range(10):
            sim.sleep(1)
            seen.append(elapsed())

    sim.spawn("task", TASK_RANK, body)
    sim.run_for("3 s", 3 * SECOND)
    assert seen == [1, 2, 3]
    assert elapsed() == 3
    sim.run_for("half a second", SECOND // 2)
    assert seen == [1, 2, 3]
    assert elapsed() == 3.5


def test_no_time_passes_while_anything_can_run(sim, elapsed):
    at = []

    def chatter(count):
        at.append(elapsed())
        if count:
            sim.spawn("next", TASK_RANK, lambda: chatter(count - 1))

    sim.spawn("first", TASK_RANK, lambda: chatter(50))
    sim.sleep(1)
    assert at == [0] * 51


# -- ties


@pytest.mark.parametrize("order", [("worker", "a", "b"), ("a", "worker", "b"), ("a", "b", "worker")])
def test_at_one_instant_the_worker_is_first_then_tasks_in_order_then_the_test(sim, elapsed, order):
    log = []

    def body(name):
        sim.sleep(2)
        log.append((name, elapsed()))

    for name in order:
        rank = WORKER_RANK if name == "worker" else TASK_RANK
        sim.spawn(name, rank, lambda name=name: body(name))
    sim.sleep(2)
    log.append(("test", elapsed()))
    assert log == [("worker", 2), ("a", 2), ("b", 2), ("test", 2)]


def test_tasks_go_on_in_the_order_in_which_they_began_to_wait(sim):
    log = []

    def body(name, first):
        sim.sleep(first)
        sim.sleep(10 - first)
        log.append(name)

    # All three are due at ten seconds; `late` began its last wait after the others.
    for name, first in (("late", 3), ("early", 1), ("middle", 2)):
        sim.spawn(name, TASK_RANK, lambda name=name, first=first: body(name, first))
    sim.run_until_idle("all")
    assert log == ["early", "middle", "late"]


def test_what_falls_due_at_the_end_of_a_wait_is_done_with_all_its_consequences(sim, elapsed):
    log = []

    def body():
        sim.sleep(2)
        sim.spawn("child", TASK_RANK, lambda: log.append(elapsed()))

    sim.spawn("task", TASK_RANK, body)
    sim.sleep(2)
    assert log == [2]


# -- waits


def test_a_wait_says_whether_it_was_woken_or_timed_out(sim, elapsed):
    flag, found = [], []

    def waiter():
        until = sim.clock.now_us + 5 * SECOND
        found.append((sim.wait("a flag", ready=lambda: bool(flag), until=until), elapsed()))
        found.append((sim.wait("nothing", ready=lambda: False, until=sim.clock.now_us + SECOND), elapsed()))

    sim.spawn("waiter", TASK_RANK, waiter)
    sim.sleep(2)
    flag.append(1)
    sim.run_until_idle("all")
    assert found == [(True, 2), (False, 3)]


def test_the_test_can_wait_too(sim, elapsed):
    flag = []

    def body():
        sim.sleep(4)
        flag.append(1)
        sim.sleep(4)

    sim.spawn("task", TASK_RANK, body)
    assert sim.wait("a flag", ready=lambda: bool(flag)) is True
    assert elapsed() == 4
    assert sim.wait("nothing", ready=lambda: False, until=sim.clock.now_us + SECOND) is False
    assert elapsed() == 5


def test_a_wait_that_never_ends_names_what_and_why(sim, reasons, elapsed):
    reasons.append("the door is shut")
    with pytest.raises(WaitNeverEndsError) as caught:
        sim.wait("a visitor", ready=lambda: False)
    assert str(caught.value) == "waiting for a visitor can never end: the door is shut"
    assert elapsed() == 0


def test_a_wait_that_never_ends_without_a_reason(sim):
    with pytest.raises(WaitNeverEndsError) as caught:
        sim.wait("a visitor", ready=lambda: False)
    assert str(caught.value) == (
        "waiting for a visitor can never end: no message is in any queue, no timer is set and no task runs"
    )


def test_tasks_that_wait_for_ever_are_named(sim):
    sim.spawn("shop.pay#1", TASK_RANK, lambda: sim.wait("a lock", ready=lambda: False))
    with pytest.raises(WaitNeverEndsError) as caught:
        sim.run_until_idle("the worker")
    assert str(caught.value) == "waiting for the worker can never end: shop.pay#1 waits for a lock"


def test_it_works_on_after_a_wait_that_never_ends(sim, elapsed):
    with pytest.raises(WaitNeverEndsError):
        sim.wait("a visitor", ready=lambda: False)
    log = []
    sim.spawn("task", TASK_RANK, lambda: (sim.sleep(1), log.append(elapsed())))
    sim.run_until_idle("all")
    assert log == [1]


def test_all_due_times_pass_before_a_wait_is_given_up(sim, elapsed):
    sim.spawn("task", TASK_RANK, lambda: sim.sleep(3600))
    with pytest.raises(WaitNeverEndsError):
        sim.wait("a visitor", ready=lambda: False)
    assert elapsed() == 3600


def test_housekeeping_keeps_nothing_going_but_is_done_when_time_passes(sim, elapsed):
    ticks = []

    following = [sim.clock.now_us + SECOND]

    def loop():
        while True:
            sim.wait("ticks", due=lambda: (None, following[0]))
            following[0] += SECOND
            ticks.append(elapsed())

    sim.spawn("worker", WORKER_RANK, loop)
    sim.run_until_idle("all")
    assert (ticks, elapsed()) == ([], 0)
    sim.sleep(3)
    assert ticks == [1, 2, 3]
    with pytest.raises(WaitNeverEndsError):
        sim.wait("a visitor", ready=lambda: False)
    assert elapsed() == 3


def test_a_loop_of_sleeps_in_which_nothing_can_happen_is_ended(sim, elapsed, monkeypatch):
    monkeypatch.setattr(Simulation, "idle_sleeps_allowed", 5)
    sim.spawn("task", TASK_RANK, lambda: sim.sleep(10))
    # The ten in which a task ran do not count, and five more are allowed.
    for _ in range(15):
        sim.sleep(1)
    with pytest.raises(WaitNeverEndsError) as caught:
        sim.sleep(1)
    assert "sleeps for, 5 times in a row, can never end: no message is in any queue" in str(caught.value)
    assert elapsed() == 16


def test_busy(sim):
    assert not sim.busy()
    sim.spawn("task", TASK_RANK, lambda: sim.sleep(1))
    assert sim.busy()
    sim.sleep(0.5)
    assert sim.busy()
    sim.sleep(0.5)
    assert not sim.busy()


def test_waiting_lists_the_parked_fibers_in_order(sim):
    for name in ("a", "b"):
        sim.spawn(name, TASK_RANK, lambda: sim.sleep(5))
    worker = sim.spawn("worker", WORKER_RANK, lambda: sim.sleep(5))
    sim.sleep(1)
    assert [fiber.name for fiber in sim.waiting()] == ["a", "b", "worker"]
    assert [fiber.name for fiber in sim.waiting_tasks()] == ["a", "b"]
    assert worker.alive
    sim.sleep(5)
    assert sim.waiting() == []
    assert not worker.alive


# -- steps


def test_a_step_ends_at_the_first_thing_that_happens_and_moves_no_time(sim, elapsed):
    log = []

    def record(what):
        log.append(what)
        sim.pause_for_step()

    def body(name):
        record(f"{name} 1")
        record(f"{name} 2")
        sim.sleep(1)
        record(f"{name} 3")

    for name in "ab":
        sim.spawn(name, TASK_RANK, lambda name=name: body(name))

    def step():
        count = len(log)
        sim.run_step(lambda: len(log) > count)
        return log[count:]

    assert [step() for _ in range(5)] == [["a 1"], ["a 2"], ["b 1"], ["b 2"], []]
    assert elapsed() == 0
    sim.run_until_idle("all")
    assert log[4:] == ["a 3", "b 3"]
    assert elapsed() == 1


def test_what_happens_outside_a_step_does_not_pause(sim):
    log = []
    sim.spawn("task", TASK_RANK, lambda: (log.append(1), sim.pause_for_step(), log.append(2)))
    sim.run_until_idle("all")
    sim.pause_for_step()
    assert log == [1, 2]


# -- errors


def test_what_a_fiber_raises_comes_out_of_the_tests_wait(sim, elapsed):
    def body():
        sim.sleep(2)
        raise KeyboardInterrupt

    sim.spawn("task", TASK_RANK, body)
    with pytest.raises(KeyboardInterrupt):
        sim.sleep(5)
    assert elapsed() == 2


def test_pass_through_is_unwrapped(sim):
    def body():
        try:
            raise PassThrough(LookupError("inside"))
        except Exception:
            pytest.fail("a task's `except Exception` caught it")

    sim.spawn("task", TASK_RANK, body)
    with pytest.raises(LookupError, match="inside"):
        sim.sleep(5)


def test_throw_makes_a_wait_raise_at_that_instant(sim, elapsed):
    log = []

    def body():
        try:
            sim.sleep(10)
        except ZeroDivisionError:
            log.append(elapsed())
            sim.sleep(1)
            log.append(elapsed())

    fiber = sim.spawn("task", TASK_RANK, body)
    sim.sleep(3)
    sim.throw(fiber, ZeroDivisionError())
    sim.run_until_idle("all")
    assert log == [3, 4]


# -- killed fibers


class Witness:
    """Says so when it is collected."""


def test_nothing_of_a_killed_fiber_runs(sim):
    log = []

    def body():
        witness = Witness()
        weakref.finalize(witness, log.append, "collected")
        try:
            sim.sleep(10)
            log.append("went on")
        except BaseException:
            log.append("except")
            raise
        finally:
            log.append("finally")

    fiber = sim.spawn("task", TASK_RANK, body)
    sim.sleep(1)
    sim.kill(fiber)
    sim.sleep(20)
    assert log == []
    assert sim.waiting() == []
    sim.close()
    del fiber
    gc.collect()
    assert log == []


def test_nothing_of_a_fiber_runs_that_was_killed_before_it_began(sim):
    log = []
    fiber = sim.spawn("task", TASK_RANK, lambda: log.append("ran"))
    sim.kill(fiber)
    sim.sleep(1)
    assert log == []


def test_a_killed_fiber_that_was_ready_does_not_go_on(sim):
    log = []

    def killer():
        sim.sleep(1)
        sim.kill(victim)

    def body():
        try:
            sim.sleep(1)
            log.append("went on")
        finally:
            log.append("finally")

    sim.spawn("killer", WORKER_RANK, killer)
    victim = sim.spawn("victim", TASK_RANK, body)
    sim.run_until_idle("all")
    gc.collect()
    assert log == []


def test_a_generator_of_a_killed_fiber_does_not_go_on(sim):
    log = []

    def numbers():
        try:
            yield 1
            yield 2
        finally:
            log.append("finally of the generator")

    def body():
        for _ in numbers():
            sim.sleep(10)

    fiber = sim.spawn("task", TASK_RANK, body)
    sim.sleep(1)
    sim.kill(fiber)
    sim.close()
    del fiber
    gc.collect()
    assert log == []


def test_closing_kills_tasks_and_unwinds_the_worker(sim):
    log = []

    def task():
        try:
            sim.sleep(10)
        finally:
            log.append("task")

    def worker():
        try:
            sim.sleep(10)
        finally:
            log.append("worker")

    sim.spawn("task", TASK_RANK, task)
    sim.spawn("worker", WORKER_RANK, worker)
    sim.sleep(1)
    sim.close()
    gc.collect()
    assert log == ["worker"]


def test_a_worker_that_waits_while_it_is_unwound_does_not_hang(sim):
    log = []

    def worker():
        try:
            sim.sleep(10)
        finally:
            log.append("unwinding")
            sim.sleep(10)
            log.append("never")

    sim.spawn("worker", WORKER_RANK, worker)
    sim.sleep(1)
    sim.close()
    assert log == ["unwinding"]


def test_after_the_end_a_wait_is_an_error_at_once(sim):
    sim.close()
    with pytest.raises(WaitNeverEndsError, match="waiting for a visitor can never end: the test is over"):
        sim.wait("a visitor", ready=lambda: False)


# -- surroundings


def test_fibers_run_in_a_copy_of_the_tests_context(sim):
    variable = contextvars.ContextVar("variable")
    variable.set("test")
    seen = []

    def body(name):
        seen.append(variable.get())
        variable.set(name)
        sim.sleep(1)
        seen.append(variable.get())

    for name in "ab":
        sim.spawn(name, TASK_RANK, lambda name=name: body(name))
    sim.run_until_idle("all")
    assert seen == ["test", "test", "a", "b"]
    assert variable.get() == "test"


def test_a_fiber_of_a_fiber_sees_the_tests_context_as_it_is_then(sim):
    variable = contextvars.ContextVar("variable")
    variable.set("before")
    seen = []

    def parent():
        variable.set("parent's own")
        sim.sleep(2)
        sim.spawn("child", TASK_RANK, lambda: seen.append(variable.get()))

    sim.spawn("parent", TASK_RANK, parent)
    sim.sleep(1)
    variable.set("after")
    sim.sleep(5)
    assert seen == ["after"]


def test_the_watcher_is_told_of_each_switch(sim, switches):
    sim.spawn("a", TASK_RANK, lambda: sim.sleep(1))
    sim.sleep(1)
    assert switches.log == [
        ("leave", "the test"),
        ("enter", "a"),
        ("leave", "a"),
        ("enter", "a"),
        ("leave", "a"),
        ("enter", "the test"),
    ]


def test_current_is_the_fiber_that_runs(sim):
    seen = []
    fiber = sim.spawn("a", TASK_RANK, lambda: seen.append(sim.current))
    assert sim.current is sim.test
    assert sim.test.rank == TEST_RANK
    sim.sleep(1)
    assert seen == [fiber]
    assert sim.current is sim.test
    assert repr(fiber) == "<Fiber a>"


def test_another_thread_is_not_here(sim):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(sim.here))
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_test_may_wait_from_another_greenlet_than_before(sim, elapsed):
    import greenlet

    sim.sleep(1)
    greenlet.greenlet(lambda: sim.sleep(1)).switch()
    sim.sleep(1)
    assert elapsed() == 3
