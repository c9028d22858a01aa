"""What a failing comparison, a wrong question to a fixture and a fault that never fired print."""

from __future__ import annotations

import pytest

from plugin_helpers import section

HEAD = """
import pytest
from pytest_celery_faults import CeleryFaultsError, Sleep
from shop import add, app, boom, download, jittery, slow
"""

COMPARED = """
@pytest.mark.inject(OSError("no net"), times=2)
def test_delays(retry_recorder):
    download.delay("x").get()
    assert retry_recorder.delays == [1, 3]

@pytest.mark.inject(OSError("no net"), times=2, task=download)
def test_waits(retry_recorder, celery_faults):
    download.delay("x")
    celery_faults.worker.advance(0.5)
    slow.delay(10)
    celery_faults.worker.drain()
    assert [1, 2] == retry_recorder.of(download).waits

@pytest.mark.inject(OSError("no net"), times=2)
def test_other_lists(retry_recorder):
    download.delay("x").get()
    assert list(retry_recorder.delays) == [1, 3]
"""
TABLES = {
    "test_delays": [
        "E         attempt  started at  exception          planned delay  real delay",
        "E         1        0 s         OSError('no net')  1 s            1 s",
        "E         2        1 s         OSError('no net')  2 s            2 s",
        "E         3        3 s         -                  -              -",
    ],
    "test_waits": [
        "E         attempt  started at  exception          planned delay  real delay",
        "E         1        0 s         OSError('no net')  1 s            10.5 s",
        "E         2        10.5 s      OSError('no net')  2 s            2 s",
        "E         3        12.5 s      -                  -              -",
    ],
}


@pytest.mark.parametrize("arguments", [[], ["-vv"], ["-q"], ["-n2"]], ids=" ".join)
def test_delays_that_differ_are_shown_as_a_table(shop, arguments):
    shop.test(HEAD + COMPARED)
    result = shop.armed(*arguments, subprocess="-n2" in arguments)
    result.assert_outcomes(failed=3)
    for test, table in TABLES.items():
        shown = section(result, test)
        start = shown.index("E         shop.download#1")
        assert shown[start + 1 : start + 5] == table
    assert "E         shop.download#1" not in section(result, "test_other_lists")


def test_without_assertion_rewriting_the_test_fails_all_the_same(shop):
    shop.test(HEAD + COMPARED)
    shop.armed("--assert=plain").assert_outcomes(failed=3)


def test_a_policy_that_is_not_followed_is_shown_as_a_table(shop):
    shop.test(
        HEAD
        + """
@app.task(bind=True, default_retry_delay=1800)
def manual(self):
    raise self.retry(exc=OSError("no net"), countdown=60)

def test_it(retry_recorder):
    with pytest.raises(OSError):
        manual.delay().get()
    retry_recorder.assert_follows_policy()
"""
    )
    result = shop.run()
    result.assert_outcomes(failed=1)
    shown = section(result, "test_it")
    start = next(i for i, line in enumerate(shown) if "PolicyNotFollowedError" in line)
    assert "test_shop.manual#1 does not follow its policy: 1800 s each time, max_retries=3" in shown[start]
    assert shown[start + 1 : start + 3] == [
        "E       attempt  started at  exception          planned delay  promised  real delay",
        "E       1        0 s         OSError('no net')  60 s           1800 s    60 s        "
        "<- another countdown than the task's settings say",
    ]
    assert shown[start - 1] == ">       retry_recorder.assert_follows_policy()"


# -- wrong questions

WRONG_CALLS = {
    "celery_faults.worker.advance(-1)": "advance(-1): time can't go backwards",
    "celery_faults.worker.advance('1')": "advance() takes seconds or a timedelta, not '1'",
    "celery_faults.worker.advance(True)": "advance() takes seconds or a timedelta, not True",
    "celery_faults.worker.advance(None)": "advance() takes seconds or a timedelta, not None",
    "celery_faults.worker.advance(float('nan'))": "advance(nan): that is no length of time",
    "celery_faults.worker.advance(float('inf'))": "advance(inf): that is no length of time",
    "celery_faults.inject()": "inject() needs a fault",
    "celery_faults.inject(KeyError, times=0)": "times=0: a whole number from 1 up, or None",
    "celery_faults.inject(KeyError, task='shop.ad')": "no such task, did you mean 'shop.add'? The application's tasks:",
    "celery_faults.inject(KeyError, task='shop.x*')": "no such task",
    "celery_faults.inject(KeyError, task=['shop.add', 'shop.bom'])": "no such task, did you mean 'shop.boom'?",
    "celery_faults.inject(Sleep(beyond='time_limit'), task=add)": "shop.add has no time_limit",
    "celery_faults.inject(KeyError, at='shop.gone')": "at='shop.gone': shop has no 'gone'",
    "celery_faults.timeline.where('ackd')": "'ackd' is no kind of event, did you mean 'acked'? There is: sent",
    "celery_faults.timeline.where(task='shop.ad')": "there is no task 'shop.ad', did you mean 'shop.add'?",
    "celery_faults.timeline.where(task=3)": "3 is neither a task nor the name of one",
    "celery_faults.sent.of('shop.ad')": "there is no task 'shop.ad', did you mean 'shop.add'?",
    "celery_faults.sent.of(None)": "None is neither a task nor the name of one",
    "celery_dlq.of('shop.ad')": "there is no task 'shop.ad', did you mean 'shop.add'?",
    "celery_dlq.of(3)": "3 is neither a task nor the name of one",
    "celery_dlq.redrive('shop.add')": "redrive('shop.add'): a letter of celery_dlq, or nothing for all of them",
    "retry_recorder.of('shop.ad')": "no task 'shop.ad' was sent in this test, did you mean 'shop.add'? Sent: shop.add",
    "retry_recorder.of(boom)": "no task 'shop.boom' was sent in this test. Sent: shop.add",
    "retry_recorder.of(app.AsyncResult('x'))": "no task with the id 'x' was sent in this test",
    "retry_recorder.of(add).assert_follows_policy()": "shop.add#1 was not retried: there is nothing to compare",
    "app.AsyncResult('x').get()": "waiting for the result of task x, which nobody sent can never end",
    "add.apply_async((1, 2), queue='nowhere').get()": "nothing consumes queue 'nowhere': 1 message is in it",
    "(celery_faults.worker.stop(), add.delay(1, 2).get())": "can never end: the worker is stopped",
}


@pytest.fixture(scope="module")
def answers():
    """What pytest printed for all of them together."""
    return {}


@pytest.mark.parametrize("call", WRONG_CALLS)
@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
def test_a_wrong_question_is_answered_at_the_users_line(shop, answers, call, arguments):
    key = str(arguments)
    if key not in answers:
        tests = [
            f"def test_{number}(celery_faults, celery_dlq, retry_recorder):\n"
            f"    assert add.delay(1, 2).get() == 3\n    {line}\n"
            for number, line in enumerate(WRONG_CALLS)
        ]
        shop.test(HEAD + "\n".join(tests))
        answers[key] = shop.run("-rA", *arguments, subprocess=bool(arguments))
        assert answers[key].parseoutcomes()["failed"] == len(WRONG_CALLS)
    result = answers[key]
    shown = section(result, f"test_{list(WRONG_CALLS).index(call)}")
    assert f">       {call}" in shown
    errors = [line for line in shown if line.startswith("E  ")]
    assert WRONG_CALLS[call] in errors[0]
    assert not [line for line in shown if "pytest_celery_faults/" in line], "no frame of the plugin's"


def test_an_error_of_the_plugins_own_is_shown_with_its_frames(shop):
    shop.test(
        HEAD
        + """
from pytest_celery_faults.views.sent import Sent

def test_it(celery_faults, monkeypatch):
    monkeypatch.setattr(Sent, "_messages", 3, raising=False)
    celery_faults.sent._messages = 3
    len(celery_faults.sent)
"""
    )
    result = shop.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*views/sent.py:*: TypeError"])


# -- near misses

MISSED = {
    "test_nothing_ran": ("KeyError('nothing')", "What ran: no task at all."),
    "test_when": ("KeyError('when')", "What ran: shop.add (2 times). `when` said no 2 times."),
    "test_skip": ("KeyError('skip')", "It matched 1 time, and skip, every or probability let it through."),
    "test_function": ("KeyError('function')", "shop.add did not call time.sleep."),
    "test_return": ("KeyError('return')", "shop.boom did not come to the point 'return'."),
    "test_other": ("KeyError('other')", "What ran: shop.add (1 time). shop.slow did not run."),
    "test_nearest": ("KeyError('nearest')", "shop.adds did not run, did you mean 'shop.add'?"),
    "test_replaced": (
        "KeyError('replaced')",
        "test_shop.helper was replaced after the fault was put there, by a fixture perhaps: replace what it calls.",
    ),
    "test_limit": ("Sleep(beyond='time_limit')", "What ran: shop.add (1 time). shop.add has no time_limit."),
}


def test_a_fault_that_never_fired_names_the_nearest_miss(shop):
    shop.test(
        HEAD
        + """
@app.task
def adds(): pass
adds.name = "shop.adds"
app.tasks["shop.adds"] = adds

@pytest.mark.inject(KeyError("nothing"))
def test_nothing_ran(): pass

@pytest.mark.inject(KeyError("when"), when=lambda execution: execution.args[0] > 5)
def test_when():
    add.delay(1, 2).get(), add.delay(2, 2).get()

@pytest.mark.inject(KeyError("skip"), skip=3)
def test_skip(): add.delay(1, 2).get()

@pytest.mark.inject(KeyError("function"), at="time.sleep", task=add)
def test_function(): add.delay(1, 2).get()

@pytest.mark.inject(KeyError("return"), at="return")
def test_return(): boom.delay().get(propagate=False)

@pytest.mark.inject(KeyError("other"), task=slow)
def test_other(): add.delay(1, 2).get()

@pytest.mark.inject(KeyError("nearest"), task="shop.adds")
def test_nearest(): add.delay(1, 2).get()

def helper(): return 1

@app.task
def helped(): return helper()

@pytest.mark.inject(KeyError("replaced"), at="test_shop.helper", task=helped)
def test_replaced(monkeypatch):
    import sys
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda: 2)
    assert helped.delay().get() == 2

@pytest.mark.inject(Sleep(beyond="time_limit"))
def test_limit(): add.delay(1, 2).get()
"""
    )
    result = shop.armed()
    result.assert_outcomes(failed=len(MISSED))
    for test, (fault, miss) in MISSED.items():
        [sentence] = [line for line in section(result, test) if "never fired" in line]
        assert sentence.startswith(f"inject({fault}")
        assert sentence.endswith(miss)


def test_a_fault_that_came_too_late_or_behind_another_says_so(shop):
    shop.test(
        HEAD
        + """
@pytest.mark.inject(KeyError("first"), times=None)
def test_shadowed(celery_faults):
    celery_faults.inject(KeyError("behind"))
    for _ in range(2):
        add.delay(1, 2).get(propagate=False)

def test_after(celery_faults):
    add.delay(1, 2).get()
    with celery_faults.inject(KeyError("late")):
        boom.delay().get(propagate=False)
        boom.delay().get(propagate=False)

def test_empty_block(celery_faults):
    add.delay(1, 2).get()
    with celery_faults.inject(KeyError("empty")):
        pass

@pytest.mark.inject(KeyError("several"), task=[slow, boom])
def test_several():
    add.delay(1, 2).get()
"""
    )
    result = shop.armed()
    result.assert_outcomes(failed=3, passed=1)
    for test, fault, sentence in (
        ("test_shadowed", "behind", "What ran: shop.add (2 times). Another fault struck first 2 times."),
        ("test_empty_block", "empty", "What ran: no task at all."),
        ("test_several", "several", "shop.slow did not run. shop.boom did not run."),
    ):
        [line] = [line for line in section(result, test) if "never fired" in line]
        assert f"inject(KeyError('{fault}')" in line
        assert line.endswith(sentence)


def test_delays_can_be_recorded_as_a_property_under_xdist(shop):
    shop.test(
        HEAD
        + """
@pytest.mark.inject(OSError, times=2)
def test_it(retry_recorder, record_property):
    download.delay("x").get()
    record_property("delays", retry_recorder.delays)
    record_property("waits", retry_recorder.waits)
"""
    )
    result = shop.armed("-n1", "--junit-xml=report.xml", subprocess=True)
    result.assert_outcomes(passed=1)
    assert '<property name="delays" value="[1, 2]"' in (shop.pytester.path / "report.xml").read_text()


def test_an_exception_that_cannot_be_shown_does_not_hide_what_happened(shop):
    shop.test(
        HEAD
        + """
class Unprintable(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")

@pytest.mark.inject(Unprintable(), task=download)
def test_it(celery_faults, celery_dlq, retry_recorder):
    download.delay("x")
    celery_faults.worker.drain()
    assert celery_dlq.reasons == {"failed": 1}
    assert retry_recorder.of(download).delays == [1]
"""
    )
    result = shop.armed()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *<Unprintable, whose repr() raises*"])
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")
