"""What a failing comparison, a wrong question to a fixture and a fault that never fired print."""

from __future__ import annotations

import re

import pytest

from plugin_helpers import section

HEAD = """
import pytest
from celery import chord
from pytest_celery_faults import CeleryFaultsError, Sleep
from shop import add, app, boom, download, jittery, slow
"""

COMPARED = """
@pytest.mark.inject(OSError("no net"), times=2)
def test_delays(retry_recorder):
    download.delay("x").get()
    assert retry_recorder.delays == [1, 3]

@pytest.mark.inject(OSError("no net"), times=2)
def test_one_more(retry_recorder):
    download.delay("x").get()
    assert retry_recorder.delays == [1, 2, 4]

@pytest.mark.inject(OSError("no net"), times=2)
def test_one_less(retry_recorder):
    download.delay("x").get()
    assert retry_recorder.delays == [2]

@pytest.mark.inject(OSError("no net"), times=2, task=download)
def test_waits(retry_recorder, celery_faults):
    download.delay("x")
    celery_faults.worker.advance(0.5)
    slow.delay(10)
    celery_faults.worker.drain()
    assert [1, 2] == retry_recorder.of(download).waits

@pytest.mark.inject(OSError("no net"), times=2)
def test_states(retry_recorder):
    download.delay("x").get()
    assert [attempt.state for attempt in retry_recorder.attempts] == ["RETRY", "SUCCESS"]

@pytest.mark.inject(OSError("no net"), times=2)
def test_other_lists(retry_recorder):
    download.delay("x").get()
    assert list(retry_recorder.delays) == [1, 3]

def test_reasons(celery_faults, celery_dlq):
    boom.delay()
    app.send_task("nowhere")
    celery_faults.worker.drain()
    assert celery_dlq.reasons == {"failed": 2, "rejected": 1}

def test_letters(celery_faults, celery_dlq):
    boom.delay()
    app.send_task("nowhere")
    celery_faults.worker.drain()
    assert [letter.reason for letter in celery_dlq] == ["failed", "rejected"]

def test_signals(celery_faults):
    result = boom.delay()
    celery_faults.worker.drain()
    expected = ["before_task_publish", "task_received", "task_prerun", "task_success"]
    assert celery_faults.signals.names(result) == expected

def test_sent(celery_faults):
    add.delay(1, 2)
    assert [message.task for message in celery_faults.sent] == ["shop.add", "shop.add"]

def test_callbacks(celery_faults):
    add.apply_async((1, 2), link=add.s(3))
    celery_faults.worker.drain()
    assert [link.task for link in celery_faults.callbacks] == ["shop.slow"]

def test_outcome(celery_faults):
    result = chord([add.s(1, 1), boom.s()])(add.s(1))
    celery_faults.worker.drain()
    assert celery_faults.outcome(result).states == {"header": ["SUCCESS", "SUCCESS"], "body": "FAILURE"}

def test_not_equal(celery_faults):
    boom.delay()
    celery_faults.worker.drain()
    assert "failed" not in celery_faults.dlq.reasons
"""
HEADING = "attempt  started at  exception          planned delay  real delay"
TABLES = {
    "test_delays": [
        "shop.download#1",
        HEADING,
        "1        0 s         OSError('no net')  1 s            1 s",
        "2        1 s         OSError('no net')  2 s            2 s         <- expected 3",
        "3        3 s         -                  -              -",
    ],
    "test_one_more": [
        "shop.download#1",
        HEADING,
        "1        0 s         OSError('no net')  1 s            1 s",
        "2        1 s         OSError('no net')  2 s            2 s",
        "3        3 s         -                  -              -",
        "<- missing: 4",
    ],
    "test_one_less": [
        "shop.download#1",
        HEADING,
        "1        0 s         OSError('no net')  1 s            1 s         <- not expected",
        "2        1 s         OSError('no net')  2 s            2 s",
        "3        3 s         -                  -              -",
    ],
    "test_waits": [
        "shop.download#1",
        HEADING,
        "1        0 s         OSError('no net')  1 s            10.5 s      <- expected 1",
        "2        10.5 s      OSError('no net')  2 s            2 s",
        "3        12.5 s      -                  -              -",
    ],
    "test_states": [
        "shop.download#1",
        "attempt  state    started at  exception          planned delay  real delay",
        "1        RETRY    0 s         OSError('no net')  1 s            1 s         <- not expected",
        "2        RETRY    1 s         OSError('no net')  2 s            2 s",
        "3        SUCCESS  3 s         -                  -              -",
    ],
    "test_reasons": [
        "celery_dlq",
        "reason        task       args  exception            at",
        "unregistered  nowhere    []    KeyError('nowhere')  0 s",
        "failed        shop.boom  []    ValueError('boom')   0 s",
        "<- 'unregistered': 1, expected 0",
        "<- 'failed': 1, expected 2",
        "<- 'rejected': 0, expected 1",
    ],
    "test_letters": [
        "celery_dlq",
        "reason        task       queue   route    args  exception            at",
        "unregistered  nowhere    celery  broker   []    KeyError('nowhere')  0 s  <- expected 'failed'",
        "failed        shop.boom  celery  harness  []    ValueError('boom')   0 s  <- expected 'rejected'",
    ],
    "test_sent": [
        "celery_faults.sent",
        "task      queue   args    retries  countdown  at",
        "shop.add  celery  [1, 2]  0        -          0 s",
        "<- missing: 'shop.add'",
    ],
    "test_callbacks": [
        "celery_faults.callbacks",
        "task      kind  parent      at",
        "shop.add  link  shop.add#1  0 s  <- expected 'shop.slow'",
    ],
    "test_outcome": [
        "celery_faults.outcome()",
        "chord  FAILURE",
        "header: group  FAILURE",
        "shop.add#1  SUCCESS  2",
        "shop.boom#1  FAILURE  ValueError('boom')  <- expected 'SUCCESS'",
        "body: shop.add  FAILURE  ChordError(\"Dependency shop.boom#1 raised ValueError('boom')\")",
    ],
    "test_not_equal": [
        "celery_dlq",
        "reason  task       args  exception           at",
        "failed  shop.boom  []    ValueError('boom')  0 s",
    ],
}
# pytest shows eight lines when it is not verbose: those that differ, and what stands next to them.
SIGNALS = {
    False: [
        "celery_faults.signals",
        "name                 task         process  at",
        "before_task_publish  shop.boom#1  test     0 s",
        "after_task_publish   shop.boom#1  test     0 s  <- not expected",
        "task_failure         shop.boom#1  child    0 s  <- expected 'task_success'",
        "task_postrun         shop.boom#1  child    0 s  <- not expected",
        "... 2 more lines, -vv shows them",
    ],
    True: [
        "celery_faults.signals",
        "name                 task         process  at",
        "before_task_publish  shop.boom#1  test     0 s",
        "after_task_publish   shop.boom#1  test     0 s  <- not expected",
        "task_received        shop.boom#1  main     0 s",
        "task_prerun          shop.boom#1  child    0 s",
        "task_failure         shop.boom#1  child    0 s  <- expected 'task_success'",
        "task_postrun         shop.boom#1  child    0 s  <- not expected",
    ],
}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def explanations(result):
    """The lines that pytest marks with an E, by test."""
    shown = {}
    for line in (COLOUR.sub("", line) for line in result.outlines):
        title = re.fullmatch(r"_+ (test_\w+) _+", line)
        if title:
            shown[title[1]] = lines = []
        elif shown and re.match("E  ", line):
            lines.append(line[1:].strip())
    return shown


@pytest.mark.parametrize("arguments", [[], ["-vv"], ["-q"], ["-n2"], ["--color=yes"]], ids=" ".join)
def test_what_differs_is_shown_as_a_table(shop, arguments, monkeypatch):
    monkeypatch.delenv("CI", raising=False)  # pytest shows everything there
    shop.test(HEAD + COMPARED)
    result = shop.armed(*arguments, subprocess="-n2" in arguments)
    shown = explanations(result)
    assert shown.keys() == {*TABLES, "test_signals", "test_other_lists"}
    for test, table in {**TABLES, "test_signals": SIGNALS["-vv" in arguments]}.items():
        assert shown[test][1 : len(table) + 1] == table
        assert shown[test][len(table) + 1].startswith("celery faults: ")
    assert not any("shop.download#1" in line for line in shown["test_other_lists"][:-1])


def test_a_long_table_is_whole_when_pytest_is_verbose(shop, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    shop.test(
        HEAD
        + """
def test_it(celery_faults):
    results = [boom.delay() for _ in range(30)]
    celery_faults.worker.drain()
    reasons = [letter.reason for letter in celery_faults.dlq]
    assert reasons == ["failed"] * 17 + ["expired"] + ["failed"] * 12
"""
    )
    brief = explanations(shop.armed())["test_it"]
    assert brief[-2] == "... 26 more lines, -vv shows them"
    assert [line for line in brief if "<-" in line] == [
        "failed  shop.boom  celery  harness  []    ValueError('boom')  0 s  <- expected 'expired'"
    ]
    whole = explanations(shop.armed("-vv"))["test_it"]
    assert sum(line.startswith("failed ") for line in whole) == 30
    assert not any("more lines" in line for line in whole)


EXPLAINED_BY_PYTEST = """
import pytest

@pytest.mark.inject(OSError("no net"), times=3)
def test_an_approximation(retry_recorder):
    download.delay("x").get()
    assert retry_recorder.delays == pytest.approx([1, 2, 5])

@pytest.mark.inject(OSError("no net"), times=2)
def test_a_list_that_was_changed(retry_recorder):
    download.delay("x").get()
    delays = retry_recorder.delays
    delays.pop(0)
    assert delays == [5]

def test_another_list(celery_faults):
    boom.delay()
    celery_faults.worker.drain()
    assert celery_faults.dlq.reasons
    statuses = ["shop.boom"]
    assert statuses == ["shop.add"]

def test_the_right_side(celery_faults):
    add.delay(1, 2)
    tasks = [message.task for message in celery_faults.sent]
    assert ["mine"] == tasks
"""


def test_what_pytest_explains_better_is_left_to_it(shop):
    shop.test(HEAD + EXPLAINED_BY_PYTEST)
    result = shop.armed("-vv")
    result.assert_outcomes(failed=4)
    shown = explanations(result)
    assert len(shown) == 4
    assert any("Mismatched elements: 1 / 3" in line for line in shown["test_an_approximation"])
    for lines in shown.values():
        assert not any(line.startswith(("attempt ", "celery_dlq", "celery_faults.sent")) for line in lines)


def test_a_list_is_explained_by_what_the_test_looked_at_last(shop):
    shop.test(
        HEAD
        + """
def test_sent(celery_faults, celery_dlq):
    boom.delay()
    celery_faults.worker.drain()
    assert len(celery_dlq) == 1
    assert [message.task for message in celery_faults.sent] == ["shop.add"]

def test_states(retry_recorder):
    add.delay(1, 2).get()
    slow.delay(1).get()
    assert [attempt.state for attempt in retry_recorder.of(slow).attempts] == ["FAILURE"]
"""
    )
    shown = explanations(shop.armed())
    assert shown["test_sent"][1] == "celery_faults.sent"
    assert shown["test_states"][1] == "shop.slow#1"


def test_an_exception_of_any_sort_stays_what_it_was(shop):
    shop.test(
        HEAD
        + """
class NoneForAll(Exception):
    def __getattr__(self, name):
        return None

class NoPlace(Exception):
    @property
    def __dict__(self):
        raise RuntimeError("no place")

ONE = LookupError("the real error")

def test_none(celery_faults):
    add.delay(1, 2).get()
    raise NoneForAll("the real error")

def test_no_place(celery_faults):
    add.delay(1, 2).get()
    raise NoPlace("the real error")

def test_one(celery_faults):
    slow.delay(1).get()
    raise ONE

def test_two(celery_faults):
    slow.delay(2).get()
    raise ONE
"""
    )
    result = shop.armed("-rf")
    result.assert_outcomes(failed=4)
    assert sum("FAILED" in line and "the real error" in line for line in result.outlines) == 4
    # One exception raised in two tests says in each what happened there.
    second = section(result, "test_two")
    assert [line for line in second if "celery faults: " in line] == [
        "E       celery faults: no fault fired; last event: 2.000000 s succeeded shop.slow#1 attempt 1"
    ]


def test_without_assertion_rewriting_what_was_looked_at_is_a_section(shop):
    shop.test(HEAD + COMPARED)
    result = shop.armed("--assert=plain")
    result.assert_outcomes(failed=13)
    title = "celery faults: what the test looked at last"
    shown = [i for i, line in enumerate(result.outlines) if line.strip("- ") == title]
    tables = [result.outlines[i + 1 : i + 6] for i in shown]
    assert ["shop.download#1", HEADING] in [table[:2] for table in tables]
    assert "celery_faults.signals" in [table[0] for table in tables]
    # With its explanations pytest says it where the comparison is.
    assert not any(title in line for line in shop.armed().outlines)


def test_a_wait_that_ended_in_an_error_shows_the_last_events_of_what_was_waited_for(shop):
    shop.test(
        HEAD
        + """
from celery import group

def test_get(celery_faults):
    add.delay(1, 1)
    boom.delay().get()

def test_timeout(celery_faults):
    slow.delay(10).get(timeout=3)

def test_group(celery_faults):
    group(add.s(1, 1), boom.s()).delay().get()

@pytest.mark.inject(OSError("no net"), times=None)
def test_only_the_last(celery_faults):
    result = download.delay("x")
    result.get()

@pytest.mark.celery_faults(queues=["other"])
def test_never(celery_faults):
    add.delay(1, 1).get()

def test_other_errors(celery_faults):
    boom.delay()
    celery_faults.worker.drain(fail_fast=True)
"""
    )
    result = shop.armed()
    result.assert_outcomes(failed=6)
    shown = explanations(result)
    heading = "celery faults: the last events of what was waited for:"
    events = {test: lines[lines.index(heading) + 1 :] for test, lines in shown.items() if heading in lines}
    assert events.keys() == {"test_get", "test_timeout", "test_group", "test_only_the_last", "test_never"}
    assert events["test_get"] == [
        "0.000000 s sent shop.boom#1 to celery",
        "0.000000 s received shop.boom#1",
        "0.000000 s acked shop.boom#1",
        "0.000000 s started shop.boom#1 attempt 1",
        "0.000000 s failed shop.boom#1 attempt 1 ValueError('boom')",
        "0.000000 s dead-lettered shop.boom#1 failed",
    ]
    assert events["test_timeout"][-1] == "0.000000 s started shop.slow#1 attempt 1"
    assert {line.split()[3] for line in events["test_group"]} == {"shop.add#1", "shop.boom#1"}
    assert len(events["test_only_the_last"]) == 6
    assert events["test_never"] == ["0.000000 s sent shop.add#1 to celery"]


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
    "celery_faults.signals.count('task_falure')": "'task_falure' is no signal, did you mean 'task_failure'? There is:",
    "celery_faults.signals.names('shop.ad')": "there is no task 'shop.ad', did you mean 'shop.add'?",
    "celery_faults.callbacks.of('shop.ad')": "there is no task 'shop.ad', did you mean 'shop.add'?",
    "celery_faults.callbacks[3]": "there is no number 3: celery_faults.callbacks has 0 callbacks",
    "celery_faults.outcome(3)": "outcome(3): the result of a task, a group, a chord or a chain",
    "celery_faults.outcome(app.AsyncResult('x'))": "outcome(): no task with the id 'x' was sent in this test",
    "celery_faults.broker.messages('celry')": "there is no queue 'celry', did you mean 'celery'? Queues: celery, dlq",
    "celery_faults.broker.messages(3)": "broker.messages(3): the name of a queue",
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
def test_it(celery_faults):
    celery_faults.sent._recorder = 3
    len(celery_faults.sent)
"""
    )
    result = shop.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*views/sent.py:*: AttributeError"])


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
