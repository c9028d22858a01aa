"""`celery_faults.outcome(result)`: what has become of tasks, groups, chords and chains, and what is lost."""

from __future__ import annotations

import celery
import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, Ignore, Reject
from celery.result import ResultSet

from pytest_celery_faults import (
    BackendDown,
    Crash,
    Drop,
    Duplicate,
    FaultTypeError,
    FaultValueError,
    Outcome,
    Sleep,
    WaitNeverEndsError,
)
from pytest_celery_faults.errors import NotThereError


@pytest.fixture
def outcome(celery_faults):
    return celery_faults.outcome


# -- single tasks


def test_a_task_from_its_sending_to_its_end(outcome, worker, celery_faults, add):
    celery_faults.inject(Sleep(10), task=add)
    result = add.apply_async((1, 2), countdown=60)
    waits = outcome(result)
    assert (waits.kind, waits.task, waits.state, waits.why) == (
        "task",
        "shop.add",
        "PENDING",
        "it waits in queue 'celery'",
    )
    worker.advance(59)
    assert outcome(result).why == "it is unacknowledged"
    worker.advance(2)
    assert (outcome(result).state, outcome(result).why) == ("PENDING", "it runs")
    worker.drain()
    done = outcome(result)
    assert (done.state, done.value, done.error, done.why) == ("SUCCESS", 3, None, "")
    assert (done.task_id, done.label) == (result.id, "shop.add#1")
    assert (str(done), repr(done)) == ("shop.add#1  SUCCESS  3", "<Outcome of shop.add#1: 'SUCCESS'>")
    assert (waits.state, str(waits)) == ("PENDING", "shop.add#1  PENDING  it waits in queue 'celery'")


def test_a_task_that_failed(outcome, worker, fail):
    result = fail.delay()
    worker.drain()
    failed = outcome(result)
    assert (failed.state, failed.value, repr(failed.error)) == ("FAILURE", None, "LookupError('failed')")
    assert str(failed) == "shop.fail#1  FAILURE  LookupError('failed')"


def test_a_task_between_two_retries(outcome, worker, failing):
    result = failing(autoretry_for=(TypeError,), default_retry_delay=60).delay()
    worker.advance(30)
    retried = outcome(result)
    assert (retried.state, repr(retried.error), retried.why) == ("RETRY", "TypeError('bad')", "it is unacknowledged")


def test_a_task_that_was_revoked(outcome, worker, add):
    result = add.apply_async((1, 2), countdown=60)
    worker.advance(1)
    result.revoke()
    worker.drain()
    assert outcome(result).state == "REVOKED"


@pytest.mark.parametrize("exception", [None, LookupError], ids=["success", "failure"])
def test_a_task_whose_result_is_ignored(outcome, worker, app, exception):
    @app.task(ignore_result=True, name="shop.silent")
    def silent():
        if exception is not None:
            raise exception("silent")
        return 1

    result = silent.delay()
    worker.drain()
    assert result.state == "PENDING"
    assert outcome(result).state == ("SUCCESS" if exception is None else "FAILURE")
    assert repr(outcome(result).error) == ("None" if exception is None else "LookupError('silent')")


def test_a_task_that_is_ignored_or_rejected(outcome, worker, app):
    @app.task(acks_late=True)
    def leave(how):
        raise Ignore() if how == "ignore" else Reject("no", requeue=False)

    ignored, rejected = leave.delay("ignore"), leave.delay("reject")
    worker.drain()
    assert outcome(ignored).state == "IGNORED"
    assert outcome(rejected).state == ("FAILURE" if celery.VERSION >= (5, 7) else "REJECTED")


def test_a_message_that_the_broker_loses(outcome, worker, celery_faults, add):
    celery_faults.inject(Drop(), task=add)
    result = add.delay(1, 2)
    lost = outcome(result)
    assert (lost.state, lost.why) == ("LOST", "the broker lost it when it was published")
    assert str(lost) == "shop.add#1  LOST  the broker lost it when it was published"


def test_a_worker_that_is_gone(outcome, worker, celery_faults, add):
    celery_faults.inject(Sleep(10), task=add)
    result = add.delay(1, 2)
    worker.advance(5)
    worker.crash()
    assert (outcome(result).state, outcome(result).why) == ("LOST", "its worker was gone at 5 s, while it ran")


def test_a_result_that_is_not_stored_has_expired_or_was_forgotten(outcome, worker, celery_faults, add):
    celery_faults.inject(BackendDown(60), task=add)
    results = [add.delay(n, n) for n in (1, 2, 3)]
    worker.drain()
    worker.advance(60)
    assert [outcome(result).state for result in results] == ["LOST"] * 3
    kept, old = add.delay(4, 4), add.delay(5, 5)
    worker.drain()
    assert outcome(old).state == "SUCCESS"
    old.forget()
    assert outcome(old).why == "its result is not in the backend any more"
    worker.advance(86401)
    assert (outcome(kept).state, outcome(kept).why) == ("LOST", "its result is not in the backend any more")


def test_during_an_outage_of_the_backend_it_is_told_all_the_same(outcome, worker, celery_faults, add):
    first = add.delay(1, 2)
    worker.drain()
    celery_faults.inject(BackendDown(60), task=add)
    second = add.delay(3, 4)
    worker.advance(1)
    assert [outcome(result).state for result in (first, second)] == ["SUCCESS", "LOST"]
    worker.advance(60)


def test_a_letter_that_nobody_answers(outcome, worker, celery_faults, app):
    result = app.send_task("nowhere.task", task_id="x")
    worker.drain()
    assert outcome(result).state == "FAILURE"
    assert outcome(result).task == "nowhere.task"


def test_an_eager_result(outcome, add):
    assert (outcome(add.apply((1, 2))).state, outcome(add.apply((1, 2))).value) == ("SUCCESS", 3)


# -- groups


def test_a_group_of_five_with_one_that_fails(outcome, worker, add, fail):
    result = group(add.s(2, 2), add.s(4, 4), fail.s(), add.s(16, 16), add.s(32, 32)).delay()
    worker.drain()
    tree = outcome(result)
    assert (tree.kind, tree.state, len(tree)) == ("group", "FAILURE", 5)
    assert tree.states == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS", "SUCCESS"]
    assert tree.values == [4, 8, None, 32, 64]
    assert [repr(error) for error in tree.errors if error] == ["LookupError('failed')"]
    assert tree[2].task == "shop.fail"
    assert [member.state for member in tree] == tree.states
    assert str(tree) == "\n".join(
        [
            "group  FAILURE",
            "  shop.add#1  SUCCESS  4",
            "  shop.add#2  SUCCESS  8",
            "  shop.fail#1  FAILURE  LookupError('failed')",
            "  shop.add#3  SUCCESS  32",
            "  shop.add#4  SUCCESS  64",
        ]
    )
    assert repr(tree) == "<Outcome of group: ['SUCCESS', 'SUCCESS', 'FAILURE', 'SUCCESS', 'SUCCESS']>"
    with pytest.raises(NotThereError, match="this group has 5 members"):
        tree[5]


@pytest.mark.parametrize(
    ("members", "state"),
    [
        (["SUCCESS", "SUCCESS"], "SUCCESS"),
        (["SUCCESS", "PENDING"], "PENDING"),
        (["PENDING", "FAILURE"], "FAILURE"),
        (["SUCCESS", "REVOKED"], "REVOKED"),
        (["LOST", "FAILURE"], "FAILURE"),
        (["PENDING", "LOST"], "LOST"),
        (["SUCCESS", "IGNORED"], "LOST"),
    ],
)
def test_the_state_of_a_group(outcome, worker, celery_faults, app, members, state):
    @app.task(bind=True)
    def member(self, how):
        if how == "FAILURE":
            raise LookupError
        if how == "IGNORED":
            raise Ignore

    celery_faults.inject(Drop(), task=member, when=lambda execution: "LOST" in execution.args, required=False)
    result = group(member.s(how).set(countdown=60 if how in ("PENDING", "REVOKED") else 0) for how in members).delay()
    worker.advance(1)
    for how, one in zip(members, result.results, strict=True):
        if how == "REVOKED":
            one.revoke(terminate=True)
    worker.advance(1)
    if "REVOKED" in members:  # it is stored when its time comes
        worker.drain()
    assert outcome(result).states == members
    assert outcome(result).state == state


# -- chains


def test_a_chain_from_its_sending_to_its_end(outcome, worker, add):
    result = chain(add.s(1, 2), add.s(3).set(countdown=60), add.s(4))()
    assert outcome(result).states == ("PENDING", "PENDING", "PENDING")
    assert outcome(result)[2].why == "it comes later"
    assert outcome(result)[2].task == "shop.add"
    worker.advance(1)
    assert outcome(result).states == ("SUCCESS", "PENDING", "PENDING")
    worker.drain()
    assert (outcome(result).kind, outcome(result).state, outcome(result).values) == ("chain", "SUCCESS", (3, 6, 10))


def test_a_chain_that_is_broken_in_the_middle(outcome, worker, add, fail):
    result = chain(add.s(1, 2), fail.s(), add.s(4))()
    worker.drain()
    # Celery stores the failure for the steps that will not run.
    assert outcome(result).states == ("SUCCESS", "FAILURE", "FAILURE")


def test_a_chain_that_is_lost_in_the_middle(outcome, worker, celery_faults, add, total):
    celery_faults.inject(Drop(), task=total)
    result = chain(add.si(1, 2), total.si([1]), add.s(4), add.s(5))()
    worker.drain()
    assert outcome(result).states == ("SUCCESS", "LOST", "LOST", "LOST")
    assert outcome(result)[3].why == "shop.total#1 is lost: the broker lost it when it was published"


def test_a_chain_whose_step_is_ignored_goes_no_further(outcome, worker, app, add):
    @app.task(name="shop.ignored")
    def ignored(value):
        raise Ignore

    result = chain(add.s(1, 2), ignored.s(), add.s(4))()
    worker.drain()
    assert outcome(result).states == ("SUCCESS", "IGNORED", "LOST")
    assert outcome(result)[2].why == "shop.ignored#1 ended with IGNORED, and it was never sent"


# -- chords


def test_a_chord(outcome, worker, add, total):
    result = chord([add.s(1, 1), add.s(2, 2).set(countdown=60)])(total.s())
    worker.advance(1)
    assert outcome(result).states == {"header": ["SUCCESS", "PENDING"], "body": "PENDING"}
    assert (outcome(result).body.task, outcome(result).body.why) == ("shop.total", "it comes later")
    worker.drain()
    tree = outcome(result)
    assert (tree.kind, tree.state) == ("chord", "SUCCESS")
    assert tree.values == {"header": [2, 4], "body": 6}
    assert (tree.header.kind, tree.body.value) == ("group", 6)
    assert str(tree).splitlines() == [
        "chord  SUCCESS",
        "  header: group  SUCCESS",
        "    shop.add#1  SUCCESS  2",
        "    shop.add#2  SUCCESS  4",
        "  body: shop.total#1  SUCCESS  6",
    ]


def test_a_chord_with_a_failing_header(outcome, worker, add, fail, total):
    result = chord([add.s(1, 1), fail.s()])(total.s())
    worker.drain()
    tree = outcome(result)
    assert tree.states == {"header": ["SUCCESS", "FAILURE"], "body": "FAILURE"}
    assert isinstance(tree.body.error, ChordError)
    # Celery's text names an id, which is another one in each run.
    assert str(tree.body) == "shop.total  FAILURE  ChordError(\"Dependency shop.fail#1 raised LookupError('failed')\")"


def test_a_chord_that_waits_for_ever(outcome, worker, app, add, total):
    @app.task(name="shop.ignored")
    def ignored():
        raise Ignore

    result = chord([add.s(1, 1), ignored.s()])(total.s())
    worker.drain()
    tree = outcome(result)
    assert tree.states == {"header": ["SUCCESS", "IGNORED"], "body": "LOST"}
    assert tree.body.why == "shop.ignored#1 of its header ended with IGNORED, and the chord was never told"
    assert [task.label or task.task for task in tree.tasks if task.state == "LOST"] == ["shop.total"]


def test_a_chord_that_is_never_told(outcome, worker, celery_faults, add, total):
    celery_faults.inject(Crash(), task=add, at="stored")
    result = chord([add.s(1, 1), add.s(2, 2)])(total.s())
    worker.drain()
    # Celery 5.6 makes a failure of the death of the process, though the success is stored.
    assert outcome(result).body.state == ("LOST" if celery.VERSION >= (5, 7) else "FAILURE")


def test_nestings(outcome, worker, add, total):
    inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
    # Celery makes one group of a group in a group.
    result = group(
        chain(add.s(1, 1), add.s(2)), chord([add.s(3, 3), inner], total.s()), group(add.s(4, 4), add.s(5, 5))
    )()
    assert {task.state for task in outcome(result).tasks} == {"PENDING"}
    worker.drain()
    assert outcome(result).values == [(2, 4), {"header": [6, {"header": [2, 4], "body": 6}], "body": 12}, 8, 10]


def test_a_group_in_a_chain_is_the_header_of_a_chord(outcome, worker, add, total):
    result = chain(add.s(1, 1), group(add.s(1), add.s(2)), total.s(), add.s(5))()
    worker.drain()
    assert outcome(result).values == (2, {"header": [3, 4], "body": 7}, 12)


def test_a_body_that_is_a_group(outcome, worker, add, total):
    result = chord([add.s(1, 1), add.s(2, 2)])(group(total.s(), total.s()))
    worker.drain()
    # Before 5.7 the result of such a body does not lead to the header.
    assert outcome(result).values == ({"header": [2, 4], "body": [6, 6]} if celery.VERSION >= (5, 7) else [6, 6])


# -- the tree as an object


def test_outcomes_compare(outcome, worker, add, fail):
    def run():
        result = group(add.s(1, 1), fail.s(), chain(add.s(1, 2), add.s(3)))()
        worker.drain()
        return outcome(result)

    one, two = run(), run()
    assert one == two
    assert one != run().members[0]
    assert one[0] != one[1]
    assert one != "something else"
    assert isinstance(one, Outcome)
    assert one  # also a single task, which has no members, is something
    assert one[0]


def test_reading_outcomes_runs_nothing(outcome, worker, celery_faults, add):
    result = group(add.s(n, n) for n in range(60)).delay()
    for _ in range(3):
        assert outcome(result).state == "PENDING"
    assert not celery_faults.timeline.where("started")


def test_only_a_chord_has_header_and_body(outcome, worker, add):
    result = group(add.s(1, 1), add.s(2, 2)).delay()
    with pytest.raises(FaultValueError, match="a group has neither header nor body, as a chord has:\ngroup  PENDING"):
        _ = outcome(result).body


def test_wrong_questions(outcome, app, add):
    with pytest.raises(FaultTypeError, match=r"outcome\('x'\): the result of a task, a group, a chord or a chain"):
        outcome("x")
    with pytest.raises(FaultValueError, match="no task with the id 'x' was sent in this test"):
        outcome(app.AsyncResult("x"))


def test_waiting_for_the_body_of_a_chord_that_waits_for_ever(app, add, total):
    @app.task(name="shop.ignored")
    def ignored():
        raise Ignore

    result = chord([add.s(1, 1), ignored.s()])(total.s())
    with pytest.raises(WaitNeverEndsError) as caught:
        result.get()
    assert str(caught.value) == (
        "waiting for the result of shop.total, which nobody sent can never end: the chord's body shop.total will not "
        "be sent: shop.ignored#1 of its header ended with IGNORED, and the chord was never told"
    )


# -- what nothing can bring any more


def test_a_chord_in_the_header_of_a_chord_that_fails(outcome, worker, celery_faults, add, fail, total):
    inner = chord([add.s(1, 1), fail.s()], total.s())
    result = chord([inner, add.s(3, 3)])(total.s())
    worker.drain()
    tree = outcome(result)
    # Celery fails the inner body, and does not tell the outer chord.
    assert tree.states == {"header": [{"header": ["SUCCESS", "FAILURE"], "body": "FAILURE"}, "SUCCESS"], "body": "LOST"}
    assert tree.body.why == "shop.total of its header will not be sent: the chord of shop.add#1 failed"
    assert [missing.why for missing in celery_faults.callbacks.missing] == [tree.body.why]


def test_a_chain_in_the_header_of_a_chord_that_ends(outcome, worker, celery_faults, app, add, total):
    @app.task(name="shop.ignored")
    def ignored():
        raise Ignore

    result = chord([chain(ignored.s(), add.s(2)), add.s(3, 3)])(total.s())
    worker.drain()
    tree = outcome(result)
    assert tree.states == {"header": [("IGNORED", "LOST"), "SUCCESS"], "body": "LOST"}
    assert tree.body.why == (
        "shop.add of its header will not be sent: shop.ignored#1 ended with IGNORED, and it was never sent"
    )
    assert [missing.kind for missing in celery_faults.callbacks.missing] == ["chord body"]


def test_a_body_that_is_a_chain_and_loses_its_first_step(outcome, worker, celery_faults, add, total):
    celery_faults.inject(Drop(), task=total)
    result = chord([add.s(1, 1), add.s(2, 2)])(chain(total.s(), add.s(4)))
    worker.drain()
    # The result of such a chord leads from the last step to the header.
    assert [task.state for task in outcome(result).tasks] == ["SUCCESS", "SUCCESS", "LOST"]
    assert outcome(result).tasks[-1].why == "shop.total#1 is lost: the broker lost it when it was published"


def test_a_header_of_a_chain_in_a_chain_that_is_revoked(outcome, worker, app, add, total):
    result = chain(add.s(1, 1).set(countdown=60), chord([add.s(2), chain(add.s(3), add.s(4))], total.s()), add.s(5))()
    worker.advance(1)
    assert {task.state for task in outcome(result).tasks} == {"PENDING"}
    app.control.revoke(outcome(result).tasks[0].task_id)
    worker.drain()
    first, *others = outcome(result).tasks
    assert first.state == "REVOKED"
    assert {task.state for task in others} == {"LOST"}
    assert {task.why for task in others} == {"shop.add#1 did not run: it was revoked, and it was never sent"}


def test_a_header_that_grows(outcome, worker, celery_faults, app, add, total):
    @app.task(bind=True)
    def grow(self):
        self.add_to_chord(add.s(7, 7).set(countdown=100))
        return 1

    result = chord([grow.s(), add.s(3, 3)])(total.s())
    worker.advance(1)
    assert celery_faults.callbacks.missing == []
    assert outcome(result).body.state == "PENDING"
    worker.drain()
    assert outcome(result).body.value == 21


def test_a_step_whose_predecessor_comes_back_is_pending(outcome, worker, celery_faults, app, add):
    @app.task(acks_late=True, name="shop.late")
    def late():
        return 1

    celery_faults.inject(Sleep(10), task=late)
    result = chain(late.s(), add.s(2))()
    worker.advance(5)
    worker.crash()
    assert outcome(result).states == ("PENDING", "PENDING")
    worker.start()
    worker.drain()
    assert outcome(result).values == (1, 3)


def test_a_lost_step_that_is_sent_once_more_is_pending(outcome, worker, celery_faults, app, add):
    @app.task(acks_late=True, name="shop.late")
    def late():
        return 1

    celery_faults.inject(Drop(), task=add)
    celery_faults.inject(Duplicate(delay=60), task=late)
    result = chain(late.s(), add.s(2))()
    worker.advance(1)
    assert outcome(result).states == ("SUCCESS", "PENDING")
    assert outcome(result)[1].why == "what has sent it is to be worked again"
    worker.drain()
    assert outcome(result).values == (1, 3)


def test_step_by_step_nothing_is_lost_that_comes(outcome, worker, celery_faults, add, fail, total, errback):
    results = [
        add.delay(1, 2),
        chain(add.s(1, 2), add.s(3))(),
        chord([add.s(1, 1), add.s(2, 2)])(total.s()),
        fail.apply_async(link_error=errback.s()),
    ]
    while worker.step() is not None:
        lost = [task for result in results for task in outcome(result).tasks if task.state == "LOST"]
        assert lost == []
        celery_faults.assert_nothing_lost()
    assert [outcome(result).state for result in results] == ["SUCCESS", "SUCCESS", "SUCCESS", "FAILURE"]


@pytest.mark.celery_faults(concurrency=2)
def test_a_task_sees_the_others_that_run(outcome, celery_faults, app, add):
    celery_faults.inject(Sleep(10), task=add)
    seen = []

    @app.task
    def look(result_id):
        seen.append(outcome(app.AsyncResult(result_id)).state)

    other = add.delay(1, 2)
    look.delay(other.id).get()
    assert seen == ["PENDING"]


def test_a_set_of_results_is_a_group(outcome, worker, add):
    results = ResultSet([add.delay(1, 1), add.delay(2, 2)])
    worker.drain()
    assert outcome(results).values == [2, 4]


def test_ids_of_the_applications_own_are_no_tasks(outcome, worker, app):
    order = "3f2b8a1e-0000-4000-8000-000000000001"

    @app.task(name="shop.lookup")
    def lookup():
        raise LookupError(f"no order {order}")

    result = lookup.delay()
    worker.drain()
    assert order in str(outcome(result).error)
    assert str(outcome(result)) == "shop.lookup#1  FAILURE  LookupError('no order <uuid>')"
