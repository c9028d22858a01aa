"""`inject` in full: which executions and calls a fault strikes, what its handle says, what a wrong use of it says."""

from __future__ import annotations

import re
import textwrap

import pytest

from plugin_helpers import section

CLIENT = """\
class Client:
    def update(self):
        return "updated"

    @staticmethod
    def static(x):
        return f"static {x}"

    @classmethod
    def named(cls, x):
        return f"{cls.__name__} {x}"

class Special(Client):
    pass

def fetch():
    return "fetched"

def store():
    return "stored"

NUMBER = 3
"""

WORK = """\
import time

import client
from client import Client, Special, fetch
from shop import app

@app.task
def call(what):
    try:
        return eval(what)
    except KeyError as error:
        return f"caught {error.args[0]}"

@app.task
def other(what):
    return eval(what)

@app.task(bind=True, max_retries=5)
def manual(self):
    try:
        return Client().update()
    except ConnectionError as error:
        raise self.retry(exc=error, countdown=60)
"""

IMPORTS = """\
import time
import pytest
import client
from client import Client, Special, fetch
from pytest_celery_faults import CeleryFaultsError, FaultNeverFiredError, Sleep, inject
from shop import add, app, boom, download, slow
from work import call, manual, other

def outcomes(results):
    '''One letter each: S, or the first of what the exception says.'''
    letters = ""
    for result in results:
        result.get(propagate=False)
        letters += "S" if result.state == "SUCCESS" else str(result.result).strip("'")[0]
    return letters

def run(count):
    return outcomes(add.delay(n, 0) for n in range(count))
"""


@pytest.fixture
def work(shop):
    """The shop, with tasks that call a client."""
    shop.pytester.makepyfile(client=CLIENT, work=WORK)
    return shop


def write(work, source, **more):
    work.test(IMPORTS + source, **more)


# -- which executions


def test_skip_every_and_times_together(work):
    write(
        work,
        """
@pytest.mark.parametrize(("arguments", "pattern"), [
    ({}, "kSSSSSSS"),
    ({"skip": 2}, "SSkSSSSS"),
    ({"times": 3}, "kkkSSSSS"),
    ({"times": None}, "kkkkkkkk"),
    ({"every": 3, "times": None}, "kSSkSSkS"),
    ({"skip": 1, "every": 2, "times": 2}, "SkSkSSSS"),
    ({"skip": 1, "every": 2, "times": None}, "SkSkSkSk"),
    ({"skip": 3, "every": 4, "times": 9}, "SSSkSSSk"),
    ({"skip": 7, "every": 100}, "SSSSSSSk"),
])
def test_call(celery_faults, arguments, pattern):
    handle = celery_faults.inject(KeyError("k"), **arguments)
    assert run(8) == pattern
    assert handle.fired == len(handle.events) == pattern.count("k")

@pytest.mark.inject(KeyError("k"), skip=1, every=2, times=2)
def test_marker():
    assert run(8) == "SkSkSSSS"

@inject(KeyError("k"), skip=1, every=2, times=2)
def test_importable_marker():
    assert run(8) == "SkSkSSSS"

@pytest.mark.inject(OSError("o"), skip=1, every=2, times=2, task=[download, "shop.a*"])
def test_counts_retries_and_all_tasks(retry_recorder):
    assert run(1) == "S"                            # 1st match: let through
    assert outcomes([download.delay("x")]) == "S"   # 2nd: fires; 3rd, its retry: let through
    assert outcomes([slow.delay(1)]) == "S"         # no match
    assert run(2) == "oS"                           # 4th: fires
    assert retry_recorder.of(download).delays == [1]
""",
    )
    work.armed().assert_outcomes(passed=12)


def test_of_several_the_first_that_matches_fires_and_only_its_counters_move(work):
    write(
        work,
        """
def test_each_counts_for_itself(celery_faults):
    first = celery_faults.inject(KeyError("a"), skip=1, times=2)
    second = celery_faults.inject(KeyError("b"), every=2, times=3)
    # The first lets one through, which gives the second its chance; while the first fires the second does not count.
    assert run(8) == "baaSbSbS"
    assert (first.fired, first.remaining) == (2, 0)
    assert (second.fired, second.remaining) == (3, 0)

def test_another_task_moves_nothing(celery_faults):
    handle = celery_faults.inject(KeyError("k"), task=add, skip=1)
    assert outcomes([slow.delay(1), add.delay(1, 1), slow.delay(1), add.delay(1, 1), slow.delay(1)]) == "SSSkS"
    assert handle.fired == 1

def test_another_point_moves_nothing(celery_faults):
    start = celery_faults.inject(KeyError("s"), skip=1)
    end = celery_faults.inject(KeyError("r"), at="return")
    # In the first the fault at the start lets through, in the second the body is not reached.
    assert run(4) == "rsSS"
    assert (start.fired, end.fired) == (1, 1)

@pytest.mark.inject(KeyError("upper"), times=2)
@pytest.mark.inject(KeyError("lower"), skip=1, times=2)
def test_markers(celery_faults):
    later = celery_faults.inject(KeyError("call"))
    assert run(6) == "ullucS"
    assert later.fired == 1
""",
    )
    work.armed().assert_outcomes(passed=4)


# -- at a function


@pytest.mark.parametrize("flag", ["marker", "call"])
@pytest.mark.parametrize(
    ("at", "what", "answer"),
    [
        ("'client.fetch'", "client.fetch()", "fetched"),
        ("fetch", "client.fetch()", "fetched"),
        ("'client.fetch'", "fetch()", "fetched"),
        ("client.fetch", "fetch()", "fetched"),
        ("'work.fetch'", "fetch()", "fetched"),
        ("'client.Client.update'", "Client().update()", "updated"),
        ("Client.update", "Client().update()", "updated"),
        ("Client().update", "Client().update()", "updated"),
        ("'client.Client.update'", "Special().update()", "updated"),
        ("'client.Special.update'", "Special().update()", "updated"),
        ("'client.Client.static'", "Client.static(1)", "static 1"),
        ("Client.static", "Client().static(1)", "static 1"),
        ("'client.Special.static'", "Special.static(1)", "static 1"),
        ("'client.Special.static'", "Special().static(1)", "static 1"),
        ("'client.Client.named'", "Client.named(1)", "Client 1"),
        ("Client.named", "Client().named(1)", "Client 1"),
        ("'client.Client.named'", "Special.named(1)", "Special 1"),
        ("'client.Special.named'", "Special.named(1)", "Special 1"),
        ("'client.Special.named'", "Special().named(1)", "Special 1"),
        ("'client.Special.named'", "type('Very', (Special,), {}).named(1)", "Very 1"),
        ("time.sleep", "time.sleep(1)", "None"),
        ("'time.sleep'", "time.sleep(1)", "None"),
    ],
)
def test_at_a_function_strikes_its_call_inside_the_body(work, at, what, answer, flag):
    """The body's own `except` sees it; the next call is the real one; afterwards nothing is left."""
    fault = f"KeyError('k'), at={at}, task=call"
    marker, statement = ("", f"celery_faults.inject({fault})") if flag == "call" else (f"@inject({fault})", "pass")
    write(
        work,
        f"""
REAL = [vars(Client)[n] for n in ("update", "static", "named")] + [fetch, time.sleep]  # a list is not looked into
{marker}
def test_it(celery_faults):
    {statement}
    assert call.delay({what!r}).get() == "caught k"
    assert str(call.delay({what!r}).get()) == {answer!r}
    fired = celery_faults.timeline.where("fault fired")
    assert [event.task for event in fired] == ["work.call"]

def test_after_it():
    import work
    now = [vars(Client)[n] for n in ("update", "static", "named")] + [fetch, time.sleep]
    assert all(a is b for a, b in zip(now, REAL, strict=True))
    assert fetch is client.fetch is work.fetch
    assert not {{"update", "static", "named"}} & set(vars(Special))
""",
    )
    work.armed().assert_outcomes(passed=2)


def test_at_a_function_only_in_executions_that_match(work):
    write(
        work,
        """
@pytest.mark.inject(KeyError("k"), at=fetch, task=call)
def test_calls_of_others(celery_faults):
    assert fetch() == client.fetch() == "fetched"                # by the test
    assert other.delay("fetch()").get() == "fetched"             # by a task that does not match
    assert call("fetch()") == "fetched"                          # by a task's function that the test calls
    assert call.delay("1").get() == 1                            # no call at all
    assert call.delay("fetch()").get() == "caught k"

@pytest.mark.inject(KeyError("k"), at=fetch, task=call, times=None)
def test_each_call_counts():
    assert call.delay("[call.run('fetch()'), call.run('fetch()')]").get() == ["caught k", "caught k"]

@pytest.mark.inject(KeyError("k"), at=fetch, skip=1)
def test_skip_counts_calls():
    assert call.delay("[call.run('fetch()') for _ in range(3)]").get() == ["fetched", "caught k", "fetched"]

@pytest.mark.inject(ConnectionError, at="client.Client.update", times=2)
def test_the_tasks_own_retry(retry_recorder):
    assert manual.delay().get() == "updated"
    assert retry_recorder.delays == [60, 60]

@pytest.mark.inject(ConnectionError("start"))
def test_at_the_start_the_bodys_own_try_does_not_see_it(retry_recorder):
    with pytest.raises(ConnectionError):
        manual.delay().get()
    assert retry_recorder.count == 0

@pytest.mark.inject(Sleep(10), at=time.sleep)
def test_sleep(celery_faults):
    call.delay("time.sleep(3)").get()
    assert celery_faults.clock.elapsed == 13

@pytest.mark.inject(KeyError("k"), at="time.sleep")
def test_the_tests_own_sleep(celery_faults):
    time.sleep(3)
    assert celery_faults.clock.elapsed == 3
    assert call.delay("time.sleep(5)").get() == "caught k"
    assert celery_faults.clock.elapsed == 3

@pytest.mark.inject(KeyError("k"), at=fetch, task=call)
def test_two_at_once_are_told_apart(celery_faults):
    quick = other.delay("[time.sleep(2), fetch()]")
    struck = call.delay("[time.sleep(1), fetch()]")
    assert struck.get() == "caught k"
    assert quick.get() == [None, "fetched"]
test_two_at_once_are_told_apart = pytest.mark.celery_faults(concurrency=2)(test_two_at_once_are_told_apart)

def test_by_two_names(celery_faults):
    one = celery_faults.inject(KeyError("one"), at="client.fetch")
    two = celery_faults.inject(KeyError("two"), at=fetch)
    assert [call.delay("fetch()").get() for _ in range(3)] == ["caught one", "caught two", "fetched"]
    assert (one.fired, two.fired) == (1, 1)

def test_afterwards():
    import work
    assert fetch is client.fetch is work.fetch and fetch.__name__ == "fetch" and not hasattr(fetch, "__wrapped__")
""",
    )
    work.armed().assert_outcomes(passed=10)


def test_functions_are_put_back_after_a_test_that_fails(work):
    write(
        work,
        """
REAL = [fetch, vars(Client)["update"], time.sleep]

@pytest.mark.inject(KeyError("k"), at=fetch)
@pytest.mark.inject(KeyError("k"), at="client.Special.update")
@pytest.mark.inject(KeyError("k"), at=time.sleep)
@pytest.mark.parametrize("how", ["fails", "never fired", "set-up"])
def test_it(how, request):
    assert client.fetch is not REAL[0], "replaced"
    if how == "set-up":
        request.getfixturevalue("no_such_fixture")
    assert how != "fails"

def test_afterwards():
    import work
    assert work.fetch is client.fetch is fetch is REAL[0]
    assert vars(Client)["update"] is REAL[1] and "update" not in vars(Special)
    assert time.sleep is REAL[2]
""",
    )
    work.armed().assert_outcomes(failed=3, passed=1)


def test_two_names_of_one_function_are_both_put_back(work):
    write(
        work,
        """
REAL = [fetch]

@pytest.mark.inject(KeyError("w"), at="work.fetch")
@pytest.mark.inject(KeyError("c"), at="client.fetch")
def test_it():
    *struck, last = [call.delay("fetch()").get() for _ in range(3)]
    assert (sorted(struck), last) == (["caught c", "caught w"], "fetched")

def test_afterwards():
    import work
    assert client.fetch is REAL[0] and work.fetch is REAL[0] and fetch is REAL[0]
""",
    )
    work.armed().assert_outcomes(passed=2)


def test_a_module_that_is_imported_meanwhile_keeps_a_function_that_works(work):
    work.pytester.makepyfile(late="from client import fetch\n")
    write(
        work,
        """
@pytest.mark.inject(KeyError("k"), at=fetch)
def test_it():
    assert call.delay("__import__('late').fetch()").get() == "caught k"

def test_afterwards():
    import late
    assert late.fetch() == "fetched"
""",
    )
    work.armed().assert_outcomes(passed=2)


# -- when and then


def test_when_is_given_the_execution(work):
    write(
        work,
        """
SEEN = []

def look(execution):
    SEEN.append(execution)
    return execution.args == (2,)

@pytest.mark.inject(KeyError("k"), when=look, times=None)
def test_all_that_it_holds(celery_faults):
    first = add.apply_async((1,), {"y": 2}, headers={"colour": "red"})
    first.get()
    add.apply_async((2,), {"y": 2}, queue="special").get(propagate=False)
    one, two = SEEN
    assert one.task.name == two.task.name == "shop.add"
    assert one.task_id == first.id
    assert (list(one.args), dict(one.kwargs), one.retries, one.queue) == ([1], {"y": 2}, 0, "celery")
    assert (list(two.args), two.queue, two.redelivered) == ([2], "special", False)
    assert one.headers["colour"] == "red"
    assert len(celery_faults.timeline.where("fault fired")) == 1
test_all_that_it_holds = pytest.mark.celery_faults(queues=["celery", "special"])(test_all_that_it_holds)

@pytest.mark.inject(KeyError("w"), when=lambda e: e.retries == 2)
@pytest.mark.inject(OSError, times=2)
def test_retries(retry_recorder):
    with pytest.raises(KeyError, match="w"):
        download.delay("x").get()
    assert retry_recorder.delays == [1, 2]

@pytest.mark.inject(KeyError("k"), when=lambda e: e.kwargs["y"] > 5, skip=1, times=None)
def test_what_it_refuses_is_no_match():
    assert outcomes(add.delay(0, y=y) for y in (1, 9, 2, 9, 3, 9)) == "SSSkSk"

@pytest.mark.inject(KeyError("k"), when=lambda e: e.args == (), at="client.Client.update", task="work.manual")
def test_a_bound_task_is_no_argument_of_itself():
    with pytest.raises(KeyError):
        manual.delay().get()
""",
    )
    work.armed().assert_outcomes(passed=4)


@pytest.mark.parametrize("argument", ["when", "then"])
@pytest.mark.parametrize("statement", ["add.delay(1, 2).get()", "add.delay(1, 2); celery_faults.worker.drain()"])
def test_a_function_of_the_test_that_raises_ends_the_test(work, argument, statement):
    write(
        work,
        f"""
@pytest.mark.inject(KeyError("k"), {argument}=lambda e: 1 / 0)
def test_it(celery_faults):
    {statement}
    assert False, "not reached"
""",
    )
    result = work.armed()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E * ZeroDivisionError: division by zero", "FAILED *ZeroDivisionError*"])
    result.stdout.no_fnmatch_line("*not reached*")


def test_then_is_called_after_each_firing(work):
    write(
        work,
        """
CALLS = []
WORLD = {"mended": False}

@pytest.mark.inject(KeyError("k"), every=2, times=None, then=lambda e: CALLS.append(("first", *e.args)))
@pytest.mark.inject(KeyError("k"), when=lambda e: e.args == (2, 0), then=lambda e: CALLS.append(("two", *e.args)))
def test_in_order(celery_faults):
    # The third execution is the lower marker's, so the upper one counts the others.
    assert run(5) == "kSkkS"
    assert CALLS == [("first", 0, 0), ("two", 2, 0), ("first", 3, 0)]

@pytest.mark.inject(OSError, when=lambda e: not WORLD["mended"], then=lambda e: WORLD.update(mended=True), times=None)
def test_mends_the_world(retry_recorder):
    assert download.delay("x").get() == "done"
    assert retry_recorder.count == 1 and WORLD["mended"]

def test_after_the_sleep(celery_faults):
    times = []
    celery_faults.inject(Sleep(30), then=lambda e: times.append((e.args, celery_faults.clock.elapsed)))
    assert slow.delay(4).get() == 4
    assert [(list(args), at) for args, at in times] == [([4], 30)] and celery_faults.clock.elapsed == 34

def test_at_a_function(celery_faults):
    seen = []
    celery_faults.inject(KeyError("k"), at=fetch, times=2, then=lambda e: seen.append(e.task_id))
    results = [call.delay("fetch()") for _ in range(3)]
    assert [r.get() for r in results] == ["caught k", "caught k", "fetched"]
    assert seen == [results[0].id, results[1].id]
""",
    )
    work.armed().assert_outcomes(passed=4)


# -- probability

CHANCE = """
@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.inject(KeyError("k"), probability=0.5, times=None)
def test_chance(name):
    print("pattern", name, run(60))

@pytest.mark.inject(KeyError("k"), probability=0.5, times=None, task=add)
@pytest.mark.inject(KeyError("k"), probability=0.5, times=None, at="return")
def test_two_faults(celery_faults):
    print("pattern both", run(60))
"""


def patterns(result):
    return dict(line.split()[1:] for line in result.outlines if line.startswith("pattern "))


def test_the_same_seed_fires_the_same_faults(work):
    """Sixty tosses of a coin: that two runs agree by chance is one in 10**18."""
    write(work, CHANCE)
    first = work.armed("-rP", "--celery-faults-seed=7")
    first.assert_outcomes(passed=3)
    expected = patterns(first)
    assert set(expected) == {"one", "two", "both"}
    assert all(set(pattern) == {"k", "S"} and len(pattern) == 60 for pattern in expected.values())
    assert len(set(expected.values())) == 3, "each test and case has a stream of its own"
    assert patterns(work.armed("-rP", "--celery-faults-seed=7")) == expected
    assert patterns(work.armed("-rP", "--celery-faults-seed=7", "-n2", subprocess=True)) == expected
    alone = patterns(work.armed("-rP", "--celery-faults-seed=7", "-k", "two and not faults"))
    assert alone == {"two": expected["two"]}
    other = patterns(work.armed("-rP", "--celery-faults-seed=8"))
    assert all(other[name] != expected[name] for name in expected)


def test_the_chance_of_one_fault_does_not_hang_on_what_else_uses_chance(work):
    """The jitter of a retry or the test's own `random` between firings changes no later firing."""
    write(
        work,
        """
import random
PATTERNS = []

@pytest.mark.inject(KeyError("k"), probability=0.5, times=None)
def test_it():
    import os
    if os.path.exists("use_chance"):
        random.random()
    print("pattern it", run(60))
""",
    )
    before = patterns(work.armed("-rP", "--celery-faults-seed=7"))
    work.pytester.path.joinpath("use_chance").write_text("")
    assert patterns(work.armed("-rP", "--celery-faults-seed=7")) == before != {}


def test_the_ends_of_probability_and_what_it_requires(work):
    write(
        work,
        """
@pytest.mark.inject(KeyError("k"), probability=0, times=None)
def test_never_and_not_required():
    assert run(20) == "S" * 20

@pytest.mark.inject(KeyError("k"), probability=1, times=None)
def test_always():
    assert run(20) == "k" * 20

@pytest.mark.inject(KeyError("k"), probability=0.9)
def test_nothing_ran():
    pass

@inject(KeyError("k"), probability=0.9)
def test_nothing_ran_importable():
    pass

@pytest.mark.inject(KeyError("k"), probability=0, required=True)
def test_required_all_the_same():
    assert run(3) == "SSS"

@pytest.mark.inject(KeyError("k"), probability=1)
def test_certain_and_required():
    pass
""",
    )
    result = work.armed()
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(
        [
            "FAILED test_shop.py::test_required_all_the_same - *",
            "FAILED test_shop.py::test_certain_and_required - *",
        ]
    )


# -- required, and the handle


def test_required_and_blocks(work):
    write(
        work,
        """
@pytest.mark.inject(KeyError("k"), required=False)
def test_not_required():
    pass

def test_call_not_required(celery_faults):
    celery_faults.inject(KeyError("k"), required=False)
    with celery_faults.inject(KeyError("k"), required=False):
        pass

def test_block_fails_at_its_end(celery_faults):
    with pytest.raises(FaultNeverFiredError, match="never fired. What ran: no task at all"):
        with celery_faults.inject(KeyError("k")) as handle:
            pass
    assert (handle.fired, handle.remaining, handle.events) == (0, 0, [])

def test_block_judges_only_itself(celery_faults):
    outer = celery_faults.inject(KeyError("outer"), skip=1)
    with celery_faults.inject(KeyError("inner"), times=None) as inner:
        assert run(2) == "io"
    assert (inner.fired, inner.remaining) == (1, 0)
    assert run(2) == "SS", "the block's fault is gone"
    assert outer.fired == 1

def test_an_exception_in_the_block_comes_first(celery_faults):
    with pytest.raises(ZeroDivisionError):
        with celery_faults.inject(KeyError("k")):
            1 / 0

def test_block_unfired_and_unhandled(celery_faults):
    with celery_faults.inject(KeyError("block")):
        pass
    raise NotImplementedError("not reached")
""",
    )
    result = work.armed()
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*FaultNeverFiredError: inject(KeyError('block')) never fired.*"])
    result.stdout.no_fnmatch_line("*not reached*Error*")
    assert "celery faults that never fired" not in result.stdout.str(), "it is the failure itself"
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*")


def test_the_handle(work):
    write(
        work,
        """
def test_counts(celery_faults):
    handle = celery_faults.inject(KeyError("k"), times=3, task=add)
    assert (handle.fired, handle.remaining, handle.events) == (0, 3, [])
    results = [add.delay(n, 0) for n in range(2)]
    assert outcomes(results) == "kk"
    assert (handle.fired, handle.remaining) == (2, 1)
    assert [event.task_id for event in handle.events] == [result.id for result in results]
    assert handle.events == celery_faults.timeline.where("fault fired")
    assert [event.task for event in handle.events] == ["shop.add", "shop.add"]

def test_without_end(celery_faults):
    handle = celery_faults.inject(KeyError("k"), times=None)
    assert handle.remaining is None
    run(2)
    assert (handle.fired, handle.remaining) == (2, None)
    handle.cancel()
    assert (handle.fired, handle.remaining, len(handle.events)) == (2, 0, 2)
    assert run(2) == "SS"

def test_cancelled_before_it_fired_is_no_failure(celery_faults):
    celery_faults.inject(KeyError("k")).cancel()
    assert run(2) == "SS"

def test_cancel_twice_is_cancel(celery_faults):
    handle = celery_faults.inject(KeyError("k"))
    handle.cancel()
    handle.cancel()
    with celery_faults.inject(KeyError("k")) as handle:
        run(1)
    handle.cancel()
    assert handle.fired == 1

def test_cancel_in_a_block(celery_faults):
    with celery_faults.inject(KeyError("k"), times=None) as handle:
        assert run(1) == "k"
        handle.cancel()
        assert run(1) == "S"

def test_cancel_in_then(celery_faults):
    handle = celery_faults.inject(KeyError("k"), times=None, then=lambda e: handle.cancel())
    assert run(3) == "kSS"

def test_cancel_at_a_function(celery_faults):
    handle = celery_faults.inject(KeyError("k"), at=fetch, times=None)
    assert call.delay("fetch()").get() == "caught k"
    handle.cancel()
    assert call.delay("fetch()").get() == "fetched"
""",
    )
    work.run().assert_outcomes(passed=7)


def test_the_failure_says_how_many_were_let_through(work):
    write(
        work,
        """
@pytest.mark.inject(KeyError("skipped"), skip=5)
def test_skip():
    run(3)

@pytest.mark.inject(KeyError("named"), skip=5, task="shop.add")
def test_named():
    run(3)

@pytest.mark.inject(KeyError("glob"), skip=5, task="shop.a*")
def test_glob():
    run(3)

@pytest.mark.inject(KeyError("chance"), probability=0, required=True)
def test_chance():
    run(4)

@pytest.mark.inject(KeyError("refused"), when=lambda e: False)
def test_refused():
    run(2)

@pytest.mark.inject(KeyError("uncalled"), at=fetch, task=call)
def test_uncalled():
    call.delay("1").get()

@pytest.mark.inject(KeyError("calls"), at=fetch, task=call, skip=9)
def test_calls():
    call.delay("[fetch(), fetch()]").get()
""",
    )
    result = work.armed()
    result.assert_outcomes(failed=7)
    sentences = {}
    for line in result.outlines:
        found = re.match(r"inject\(KeyError\('(\w+)'\)", line)
        if found:
            sentences[found[1]] = line
    assert set(sentences) == {"skipped", "named", "glob", "chance", "refused", "uncalled", "calls"}
    for name, ran, let_through in (
        ("skipped", "shop.add (3 times)", 3),
        ("named", "shop.add (3 times)", 3),
        ("glob", "shop.add (3 times)", 3),
        ("chance", "shop.add (4 times)", 4),
        ("refused", "shop.add (2 times)", 0),
        ("uncalled", "work.call (1 time", 0),
        ("calls", "work.call (1 time", 2),
    ):
        sentence = sentences[name]
        assert f"never fired. What ran: {ran}" in sentence
        if let_through:
            assert f"It matched {let_through} " in sentence
            assert "let it through" in sentence
        else:
            assert "matched" not in sentence
        assert "did not run" not in sentence, "it ran"
    assert "client.fetch" in sentences["uncalled"]


def test_a_test_that_failed_already_fails_once_and_shows_the_section(work):
    write(
        work,
        """
@pytest.mark.inject(KeyError("one"), task=call, skip=3)
@pytest.mark.inject(KeyError("two"), task="shop.slow", times=2)
@pytest.mark.inject(KeyError("fires"))
@pytest.mark.inject(KeyError("needless"), required=False, task=download)
def test_it():
    assert run(2) == "SS", "its own reason"

def test_block(celery_faults):
    celery_faults.inject(KeyError("outside"))
    with celery_faults.inject(KeyError("inside")):
        pass
""",
    )
    for arguments in ([], ["-n2"]):
        result = work.armed(*arguments, subprocess=bool(arguments))
        result.assert_outcomes(failed=2)
        # Under xdist either test may be reported first; the faults of one stand together, the lowest marker first.
        told = [line for line in result.outlines if re.match(r"inject\(.* never fired\.", line)]
        two = next(i for i, line in enumerate(told) if "'two'" in line)
        assert told[two].startswith("inject(KeyError('two') into shop.slow, 2 times) never fired. What ran: shop.add")
        assert told[two + 1].startswith("inject(KeyError('one') into work.call) never fired. What ran: shop.add")
        assert sorted(re.findall(r"KeyError\('(\w+)'\)", " ".join(told))) == ["one", "outside", "two"]
        text = result.stdout.str()
        titles = re.findall("^-+ celery faults that never fired -+$", text, re.MULTILINE)
        assert len(titles) == 2, "one in each failure"
        assert text.count("inject(KeyError('outside')) never fired") == 1
        result.stdout.fnmatch_lines(["FAILED test_shop.py::test_it - AssertionError: its own reason*"])
        result.stdout.no_fnmatch_line("*During handling of the above exception*")


# -- the slip of the class decorator

SPELLINGS = (
    "@pytest.mark.inject({0}, times=1)",
    "@pytest.mark.inject({0}())",
    "@inject({0})",
    "from pytest_celery_faults import inject",
)

SLIPS = {
    "built-in": ("OSError", "import pytest\n@pytest.mark.inject(IOError)\ndef test_it(): pass\n"),
    "built-in of a class": (
        "KeyError",
        "import pytest\n@pytest.mark.inject(KeyError)\nclass TestIt:\n    def test_it(self): pass\n",
    ),
    "built-in of a module": ("KeyError", "import pytest\npytestmark = pytest.mark.inject(KeyError)\n"),
    "user's": (
        "OutOfStock",
        "import pytest\nfrom errors import OutOfStock\n@pytest.mark.inject(OutOfStock)\ndef test_it(): pass\n",
    ),
    "user's of a class": (
        "OutOfStock",
        "import pytest\nfrom errors import OutOfStock\n"
        "@pytest.mark.inject(OutOfStock)\nclass TestIt:\n    def test_it(self): pass\n",
    ),
    "user's of a method": (
        "OutOfStock",
        "import pytest\nfrom errors import OutOfStock\n"
        "class TestIt:\n    @pytest.mark.inject(OutOfStock)\n    def test_it(self): pass\n",
    ),
    "user's that keeps what it is given": (
        "Kept",
        "import pytest\nfrom errors import Kept\n@pytest.mark.inject(Kept)\ndef test_it(): pass\n",
    ),
    "user's under another mark": (
        "OutOfStock",
        "import pytest\nfrom errors import OutOfStock\n"
        "@pytest.mark.inject(OutOfStock)\n@pytest.mark.parametrize('x', [1, 2])\ndef test_it(x): pass\n",
    ),
}
ERRORS = """
class OutOfStock(Exception): pass
class Sold(OutOfStock): pass
class Kept(Exception):
    def __init__(self, code):
        super().__init__()
        self.code = code
"""


@pytest.mark.parametrize("slip", SLIPS)
def test_a_fault_that_pytest_takes_for_a_class_decorator_fails_the_collection(shop, slip, monkeypatch):
    # On a CI machine pytest repeats the whole text in its summary.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    exception, source = SLIPS[slip]
    shop.pytester.makepyfile(errors=ERRORS)
    shop.test(source)
    for armed in ([], ["--celery-faults"]):
        result = shop.run(*armed)
        result.assert_outcomes(errors=1)
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.stdout.fnmatch_lines(["*ERROR collecting test_shop.py*"])
        sentences = [line for line in result.outlines if "class decorator" in line and not line.startswith("ERROR")]
        assert len(sentences) == 1
        for spelling in SPELLINGS:
            assert spelling.format(exception) in sentences[0]
        result.stdout.no_fnmatch_line("*pytest_celery_faults/*")
        result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.parametrize("slip", ["built-in", "user's"])
@pytest.mark.parametrize("armed", [[], ["--celery-faults"]], ids=["not armed", "armed"])
def test_the_slip_is_noticed_under_xdist(shop, slip, armed):
    exception, source = SLIPS[slip]
    shop.pytester.makepyfile(errors=ERRORS)
    shop.test(source)
    result = shop.run(*armed, "-n2", subprocess=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED, "what xdist makes of every failed collection"
    assert set(result.parseoutcomes()) == {"errors"}
    text = result.stdout.str()
    assert all(spelling.format(exception) in text for spelling in SPELLINGS)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_an_exception_in_a_test_module_that_is_no_slip_is_left_alone(shop):
    shop.pytester.makepyfile(errors=ERRORS)
    shop.test(
        """
import pytest
from errors import OutOfStock
from pytest_celery_faults import inject
from shop import add

SOLD_OUT = OutOfStock("sold out")
test_looks_like_one = OutOfStock(lambda: None)

class Marked(Exception):
    pytestmark = [pytest.mark.inject(KeyError("k")), pytest.mark.slow]

MARKED = Marked("m")

@pytest.mark.inject(OutOfStock, times=1)
def test_keyword():
    with pytest.raises(OutOfStock):
        add.delay(1, 2).get()

@pytest.mark.inject(SOLD_OUT)
def test_instance():
    with pytest.raises(OutOfStock, match="sold out"):
        add.delay(1, 2).get()

@inject(OutOfStock)
def test_importable():
    with pytest.raises(OutOfStock):
        add.delay(1, 2).get()
"""
    )
    shop.ini("celery_faults_app = shop:app", "markers = slow")
    shop.armed().assert_outcomes(passed=3)
    shop.run().assert_outcomes(skipped=3)


def test_a_lazy_object_in_a_test_module_is_not_woken(shop):
    shop.test(
        """
class Lazy:
    @property
    def __class__(self):
        raise RuntimeError("woken")

lazy = Lazy()

def test_it(): pass
"""
    )
    shop.run().assert_outcomes(passed=1)


def test_a_slip_in_one_file_says_nothing_of_another(shop):
    """The slip leaves pytest's mark on the exception class, which the next file uses rightly."""
    shop.pytester.makepyfile(errors=ERRORS)
    shop.test(
        SLIPS["user's"][1],
        test_zz_right=(
            "from errors import OutOfStock, Sold\nONE, TWO = OutOfStock('x'), Sold('y')\ndef test_it(): pass\n"
        ),
    )
    result = shop.run("--continue-on-collection-errors")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*ERROR collecting test_shop.py*"])


# -- wrong uses

WRONG = {
    # The fault.
    "inject()": ["needs a fault", "exception class", "Sleep(30)"],
    "inject(times=2)": ["needs a fault"],
    "inject(IOError(), KeyError())": ["one fault", "several markers"],
    "inject(IOError(), fault=KeyError)": ["two faults", "by position", "by name"],
    "inject(3, times=1)": ["exception class", "not 3"],
    "inject('x')": ["exception class", "not 'x'"],
    "inject(None)": ["exception class", "not None"],
    "inject(Sleep, times=1)": ["Sleep needs its seconds", "inject(Sleep(30))"],
    "inject(Crash, times=1)": ["Crash needs to be called", "inject(Crash())"],
    "inject(BrokerDown, times=1)": ["BrokerDown needs its seconds", "inject(BrokerDown(30))"],
    "inject(print, times=1)": ["exception class", "built-in function print"],
    "inject(client.fetch, times=1)": ["exception class", "function fetch"],
    "inject(int, times=1)": ["exception class", "class 'int'"],
    "inject([IOError()])": ["exception class", "not [OSError()]"],
    "inject(UnicodeDecodeError, times=1)": ["UnicodeDecodeError cannot be made without arguments", "pass an instance"],
    "inject(NeedsArguments, times=1)": [
        "NeedsArguments cannot be made without arguments",
        "inject(NeedsArguments(...)",
    ],
    "inject(fault=3)": ["exception class", "not 3"],
    # How often.
    "inject(KeyError(), times=0)": ["times=0", "from 1 up", "None"],
    "inject(KeyError(), times=-1)": ["times=-1", "from 1 up", "None"],
    "inject(KeyError(), times='3')": ["times='3'", "whole number"],
    "inject(KeyError(), times=True)": ["times=True", "whole number"],
    "inject(KeyError(), times=1.5)": ["times=1.5", "whole number"],
    "inject(KeyError(), skip=-1)": ["skip=-1", "from 0 up"],
    "inject(KeyError(), skip='1')": ["skip='1'", "whole number"],
    "inject(KeyError(), skip=True)": ["skip=True", "whole number"],
    "inject(KeyError(), skip=None)": ["skip=None", "whole number"],
    "inject(KeyError(), every=0)": ["every=0", "from 1 up"],
    "inject(KeyError(), every=2.0)": ["every=2.0", "whole number"],
    # Keywords.
    "inject(KeyError(), tims=3)": ["no argument 'tims'", "did you mean 'times'?"],
    "inject(KeyError(), taks='shop.add')": ["no argument 'taks'", "did you mean 'task'?"],
    "inject(KeyError(), probabilty=0.5)": ["no argument 'probabilty'", "did you mean 'probability'?"],
    "inject(KeyError(), requierd=False)": ["no argument 'requierd'", "did you mean 'required'?"],
    "inject(KeyError(), wen=len)": ["no argument 'wen'", "did you mean 'when'?"],
    "inject(KeyError(), zzz=1)": [
        "no argument 'zzz'",
        "task, times, skip, every, at, when, probability, then, required",
    ],
    # Where.
    "inject(KeyError(), at='strat')": ["at='strat'", "start, return", "did you mean 'start'?"],
    "inject(KeyError(), at='fetch')": ["at='fetch'", "start, return", "with its module"],
    "inject(KeyError(), at='')": ["at=''", "start, return"],
    "inject(KeyError(), at=3)": ["at=3", "'start'", "function"],
    "inject(KeyError(), at=[])": ["at=[]", "'start'", "function"],
    "inject(KeyError(), at=client)": ["at=<module 'client'", "'start'", "function"],
    "inject(KeyError(), at='clientt.fetch')": ["at='clientt.fetch'", "no module 'clientt'", "did you mean 'client'?"],
    "inject(KeyError(), at='client.fetsh')": ["at='client.fetsh'", "has no 'fetsh'", "did you mean 'fetch'?"],
    "inject(KeyError(), at='client.Clint.update')": ["has no 'Clint'", "did you mean 'Client'?"],
    "inject(KeyError(), at='client.Client.updat')": ["has no 'updat'", "did you mean 'update'?"],
    "inject(KeyError(), at='client.NUMBER')": ["at='client.NUMBER'", "that is 3", "cannot be called"],
    "inject(KeyError(), at='client.')": ["at='client.'", "no dotted name"],
    "inject(KeyError(), at='.fetch')": ["at='.fetch'"],
    "inject(KeyError(), at='..')": ["at='..'"],
    "inject(KeyError(), at='broken.f')": ["at='broken.f'", "broken"],
    "inject(KeyError(), at='builtins.str.upper')": ["at='builtins.str.upper'", "str"],
    "inject(KeyError(), at=lambda: None)": ["lambda", "no name", "dotted name"],
    "inject(KeyError(), at=functools.partial(print))": ["partial", "no name", "dotted name"],
    "inject(KeyError(), at='publish')": ["KeyError() cannot strike there, at='publish'", "start, return, a function"],
    "inject(Sleep(1), at='ack')": ["Sleep(1) cannot strike there, at='ack'", "start, return, a function"],
    "inject(Crash(), at='publish')": ["Crash() cannot strike there", "start, return, store, stored, a function"],
    "inject(Drop(), at='start')": ["Drop() cannot strike there, at='start'", "publish, receive"],
    "inject(Drop(), at='client.fetch')": ["Drop() cannot strike at a function", "publish, receive"],
    "inject(Drop(), at='recieve')": ["at='recieve'", "publish, receive", "did you mean 'receive'?"],
    "inject(Delay(1), at=client.fetch)": ["Delay(1) cannot strike at a function", "receive, publish"],
    "inject(BackendDown(1), at='start')": ["BackendDown(1) cannot strike there", "store, stored"],
    "inject(Revoke(), at='ack')": ["Revoke(terminate=False) cannot strike there", "receive, start, a function"],
    "inject(KeyError(), at='shop.add')": ["at='shop.add'", "that is a task", "task="],
    "inject(KeyError(), at=shop.add)": ["that is a task", "task="],
    "inject(EndsTheProgram, times=1)": ["EndsTheProgram cannot be made without arguments", "pass an instance"],
    # Which.
    "inject(KeyError(), task=3)": ["task=3", "a task, its name"],
    "inject(KeyError(), task=[])": ["task=[]", "at least one task"],
    "inject(KeyError(), task='')": ["task=''", "a task, its name"],
    "inject(KeyError(), task=['shop.add', None])": ["task=None", "a task, its name"],
    "inject(KeyError(), probability=-0.1)": ["probability=-0.1", "from 0 to 1"],
    "inject(KeyError(), probability=1.1)": ["probability=1.1", "from 0 to 1"],
    "inject(KeyError(), probability='x')": ["probability='x'", "from 0 to 1"],
    "inject(KeyError(), probability=True)": ["probability=True", "from 0 to 1"],
    "inject(KeyError(), probability=None)": ["probability=None", "from 0 to 1"],
    "inject(KeyError(), probability=float('nan'))": ["probability=nan", "from 0 to 1"],
    "inject(KeyError(), when=3)": ["when=3", "a function"],
    "inject(KeyError(), then='x')": ["then='x'", "a function"],
    "inject(KeyError(), required=1)": ["required=1", "True or False"],
    "inject(KeyError(), required='no')": ["required='no'", "True or False"],
    # The other faults.
    "inject(Delay(-1))": ["Delay()", "from 0 up", "not -1"],
    "inject(Delay('x'))": ["Delay()", "seconds as a number", "not 'x'"],
    "inject(BrokerDown(True))": ["BrokerDown()", "seconds as a number", "not True"],
    "inject(BrokerDown(float('nan')))": ["BrokerDown()", "from 0 up", "not nan"],
    "inject(BackendDown(-0.5))": ["BackendDown()", "from 0 up", "not -0.5"],
    "inject(Duplicate(0))": ["Duplicate(copies=0)", "from 1 up"],
    "inject(Duplicate('2'))": ["Duplicate(copies='2')", "whole number"],
    "inject(Duplicate(delay=-1))": ["Duplicate(delay=)", "from 0 up"],
    "inject(Revoke(terminate=1))": ["Revoke(terminate=1)", "True or False"],
    # Sleep.
    "inject(Sleep(-1))": ["Sleep()", "from 0 up", "not -1"],
    "inject(Sleep('x'))": ["Sleep()", "seconds as a number", "not 'x'"],
    "inject(Sleep(True))": ["Sleep()", "seconds as a number", "not True"],
    "inject(Sleep(float('nan')))": ["Sleep()", "from 0 up", "not nan"],
    "inject(Sleep(float('inf')))": ["Sleep()", "from 0 up", "not inf"],
    "inject(Sleep())": ["Sleep takes seconds or beyond", "Sleep(30)"],
    "inject(Sleep(1, beyond='time_limit'))": ["Sleep takes seconds or beyond", "one of the two"],
    "inject(Sleep(beyond='time_limt'))": ["time_limt", "time_limit, soft_time_limit", "did you mean 'time_limit'?"],
    "inject(Sleep(beyond=3))": ["beyond=3", "time_limit, soft_time_limit"],
}

WRONG_FILE = """\
import functools
import pytest
import client, shop
from pytest_celery_faults import BackendDown, BrokerDown, Crash, Delay, Drop, Duplicate, Revoke, Sleep

class NeedsArguments(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
class EndsTheProgram(Exception):
    def __init__(self): raise SystemExit(3)
@pytest.mark.{}
def test_it():
    pass
"""


WRONG_LINE = WRONG_FILE.splitlines().index("@pytest.mark.{}") + 1


def file_of(use):
    return f"test_wrong_{list(WRONG).index(use):02}"


RUNS = {"not armed": [], "armed": ["--celery-faults"], "xdist": ["--celery-faults", "-n2"]}


@pytest.fixture(scope="module")
def collected():
    """What pytest printed for all wrong uses together, by the way it was run."""
    return {}


@pytest.mark.parametrize("use", WRONG)
@pytest.mark.parametrize("run", RUNS)
def test_a_wrong_use_fails_the_collection_of_its_file(work, collected, use, run):
    if run not in collected:
        work.pytester.makepyfile(broken="1 / 0\n", **{file_of(use): WRONG_FILE.format(use) for use in WRONG})
        # All files are gone through, so that a test whose mark means nothing would run and be seen.
        arguments = ["-rA", "--continue-on-collection-errors", *RUNS[run]]
        collected[run] = work.run(*arguments, subprocess=run == "xdist")
    result = collected[run]
    assert "INTERNALERROR" not in result.stdout.str()
    found = section(result, f"ERROR collecting {file_of(use)}.py")
    # Where Python itself runs into the error, at the user's line, pytest marks the message with an E.
    messages = [line for line in found if line.startswith(("@pytest.mark.inject: ", "E  "))]
    assert any(all(word in message for word in WRONG[use]) for message in messages), found
    assert [line for line in found if line.startswith(f"{file_of(use)}.py:{WRONG_LINE}: in ")], "the line of the mark"
    assert not [line for line in found if "pytest_celery_faults/" in line]
    told = {line.split()[0] for line in result.outlines if re.match(rf"[A-Z]+ {file_of(use)}\.py", line)}
    assert told == {"ERROR"}, "neither passed nor skipped"


PLACES = {
    "the lowest of three decorators": (
        7,
        "test_it",
        """
        import pytest

        @pytest.mark.parametrize("x", [1,
            2])
        @pytest.mark.inject(KeyError(), times=2)
        @pytest.mark.inject(KeyError(), times=0)
        def test_it(x): pass
        """,
    ),
    "the upper of two, over several lines": (
        4,
        "test_it",
        """
        import pytest

        @pytest.mark.inject(
            KeyError(),
            times=0,
        )
        @pytest.mark.inject(KeyError(), times=2)
        async def test_it(): pass
        """,
    ),
    "a method": (
        6,
        "TestIt.test_it",
        """
        import pytest

        class TestIt:
            @pytest.mark.celery_faults(concurrency=2)
            @pytest.mark.inject(KeyError(), times=0)
            def test_it(self): pass
        """,
    ),
    "a class": (
        4,
        "TestIt",
        """
        import pytest

        @pytest.mark.inject(KeyError(), times=0)
        class TestIt:
            def test_it(self): pass
        """,
    ),
    "a TestCase": (
        6,
        "TestIt.test_it",
        """
        import pytest
        import unittest

        class TestIt(unittest.TestCase):
            @pytest.mark.inject(KeyError(), times=0)
            def test_it(self): pass
        """,
    ),
    "a module": (
        6,
        "<module>",
        """
        import pytest

        pytestmark = [
            pytest.mark.celery_faults(concurrency=2),
            pytest.mark.inject(KeyError(), times=0),
        ]
        def test_it(): pass
        """,
    ),
    "an annotated list of a module": (
        3,
        "<module>",
        """
        import pytest
        pytestmark: list = [pytest.mark.inject(KeyError(), times=0)]
        def test_it(): pass
        """,
    ),
    "a module with one mark": (
        3,
        "<module>",
        """
        import pytest
        pytestmark = pytest.mark.inject(KeyError(), times=0)
        def test_it(): pass
        """,
    ),
    "a mark with a name of its own, at its test": (
        5,
        "test_it",
        """
        import pytest
        broken = pytest.mark.inject(KeyError(), times=0)

        @broken
        def test_it(): pass
        """,
    ),
    "a case, at its test": (
        4,
        "test_it",
        """
        import pytest

        @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.inject(KeyError(), times=0))])
        def test_it(x): pass
        """,
    ),
    "the importable mark": (
        4,
        "test_it",
        """
        from pytest_celery_faults import inject

        @inject(KeyError, times=0)
        def test_it(): pass
        """,
    ),
    "a setting": (
        5,
        "test_it",
        """
        import pytest

        @pytest.mark.inject(KeyError())
        @pytest.mark.celery_faults(concurrency=0)
        def test_it(): pass
        """,
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_line_of_a_wrong_mark_is_shown(shop, place):
    line, name, source = PLACES[place]
    shop.pytester.path.joinpath("test_shop.py").write_text(textwrap.dedent(source))
    result = shop.run()
    result.assert_outcomes(errors=1)
    wrong = "celery_faults(concurrency=0): a whole*" if place == "a setting" else "times=0: a whole number from 1 up*"
    result.stdout.fnmatch_lines([f"@pytest.mark.*: {wrong}", f"test_shop.py:{line}: in {name}"])


def test_a_mark_whose_source_is_not_at_hand_is_wrong_all_the_same(shop):
    shop.test(
        """
        import pytest
        exec("@pytest.mark.inject(KeyError(), times=0)\\ndef test_it(): pass")
        """
    )
    result = shop.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["@pytest.mark.inject: times=0: a whole number from 1 up*"])


def test_wrong_uses_are_two_kinds_of_error_at_the_call(work):
    """In a call they are the test's own failure, at the test's own line."""
    write(
        work,
        """
@pytest.mark.parametrize(("arguments", "kind", "message"), [
    ({"times": 0}, ValueError, "times=0"),
    ({"times": "3"}, TypeError, "times='3'"),
    ({"skip": -1}, ValueError, "skip=-1"),
    ({"probability": 2}, ValueError, "probability=2"),
    ({"when": 3}, TypeError, "when=3"),
    ({"tims": 3}, TypeError, "did you mean 'times'"),
    ({"at": "client.fetsh"}, ValueError, "did you mean 'fetch'"),
    ({"task": "shop.ad"}, ValueError, "did you mean 'shop.add'"),
])
def test_raises(celery_faults, arguments, kind, message):
    with pytest.raises(kind, match=message) as caught:
        celery_faults.inject(KeyError("k"), **arguments)
    assert isinstance(caught.value, CeleryFaultsError)
    assert run(2) == "SS", "nothing is injected"

def test_fails(celery_faults):
    celery_faults.inject(KeyError("k"), times=0)

def test_fails_at(celery_faults):
    celery_faults.inject(KeyError("k"), at="client.fetsh")
""",
    )
    result = work.run()
    result.assert_outcomes(passed=8, failed=2)
    result.stdout.fnmatch_lines(["E *FaultValueError: times=0: a whole number from 1 up*"])
    result.stdout.fnmatch_lines(["E *FaultValueError: at='client.fetsh'*did you mean 'fetch'?"])
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*")
