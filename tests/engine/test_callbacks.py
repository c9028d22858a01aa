"""`celery_faults.callbacks`: links, errbacks and chord bodies, who owed them, and which were due and did not run."""

from __future__ import annotations

import celery
import pytest
from celery import Task, chain, chord, group, signals
from celery.exceptions import ChordError, Ignore

from pytest_celery_faults import BrokerDown, Callback, Crash, Delay, Drop, FaultValueError, Sleep


@pytest.fixture
def note(app, log):
    def note(value):
        log.append(value)

    return app.task(name="shop.note")(note)


@pytest.fixture
def old_errback(app, log):
    def old_errback(task_id):
        log.append(task_id)

    return app.task(name="shop.old_errback")(old_errback)


@pytest.fixture
def callbacks(celery_faults):
    return celery_faults.callbacks


def brief(callbacks):
    return [(one.kind, one.task, one.at) for one in callbacks]


# -- links


def test_a_link(worker, callbacks, add, log, note):
    result = add.apply_async((1, 2), link=note.s())
    worker.drain()
    [link] = callbacks
    assert isinstance(link, Callback)
    assert (link.kind, link.task, link.parent, link.args, link.at) == ("link", "shop.note", result.id, [3], 0)
    assert link.task_id == result.children[0].id
    assert callbacks.links == callbacks.of(result) == callbacks.of(add) == callbacks.of(result.id) == [link]
    assert (callbacks.errbacks, callbacks.bodies, callbacks.missing) == ([], [], [])
    assert repr(link) == "<link shop.note(3) of shop.add#1 at 0 s>"
    assert log == [3]


def test_a_link_runs_when_its_turn_comes(worker, callbacks, add, note):
    add.apply_async((1, 2), link=note.s().set(countdown=60))
    worker.advance(59)
    assert callbacks == []
    [missing] = callbacks.missing
    assert (missing.kind, missing.task, missing.at, missing.why) == ("link", "shop.note", None, "it is unacknowledged")
    worker.advance(1)
    assert brief(callbacks) == [("link", "shop.note", 60)]
    assert callbacks.missing == []


def test_several_links_with_arguments_of_their_own(worker, callbacks, add, note):
    add.apply_async((1, 2), link=[add.s(10), note.s(), note.si("fixed"), add.s(y=5)])
    worker.drain()
    assert [(link.task, link.args, link.kwargs) for link in callbacks.links] == [
        ("shop.add", [3, 10], {}),
        ("shop.note", [3], {}),
        ("shop.note", ["fixed"], {}),
        ("shop.add", [3], {"y": 5}),
    ]


def test_what_the_body_sends_itself_is_no_link(worker, callbacks, app, note):
    @app.task
    def parent():
        note.delay("by the body")
        return 1

    parent.apply_async(link=note.s())
    worker.drain()
    assert [link.args for link in callbacks] == [[1]]


def test_the_next_step_of_a_chain_is_no_link(worker, callbacks, add):
    chain(add.s(1, 2).set(link=add.s(100)), add.s(3), add.s(4))()
    worker.drain()
    assert [(link.task, link.args) for link in callbacks] == [("shop.add", [3, 100])]


def test_the_links_of_a_chain_and_of_a_group(worker, callbacks, add, note):
    linked = chain(add.s(1, 2), add.s(3))
    linked.link(note.s())
    result = linked.apply_async()
    worker.drain()
    assert [(link.args, link.parent) for link in callbacks] == [([6], result.id)]
    members = group(add.s(n, n) for n in (1, 2, 3))
    members.link(note.si("of the group"))
    result = members.apply_async()
    worker.drain()
    # Celery links to the first task of a group.
    assert [link.parent for link in callbacks][1:] == [result.results[0].id]


def test_links_that_are_a_group_a_chain_and_a_chord(worker, callbacks, add, note, total):
    links = [group(add.s(1), add.s(2)), chain(add.s(3), note.s()), chord([add.s(4), add.s(5)], total.s())]
    add.apply_async((1, 2), link=links)
    worker.drain()
    # Of the chord its header is what is linked; the body runs as a body.
    assert sorted((link.task, link.args) for link in callbacks.links) == [
        *(("shop.add", [3, n]) for n in (1, 2, 3, 4, 5))
    ]
    assert [body.args for body in callbacks.bodies] == [[[7, 8]]]


def test_a_link_of_each_execution(celery_faults, worker, callbacks, add, note):
    celery_faults.inject(Delay(5), task=note)
    result = add.apply_async((1, 2), link=note.s(), task_id="once")
    worker.drain()
    add.apply_async((1, 2), link=note.s(), task_id="once")
    worker.drain()
    assert [(link.parent, link.at) for link in callbacks.links] == [(result.id, 5)] * 2
    assert callbacks.missing == []


def test_a_link_of_a_task_that_ignores_its_result(worker, callbacks, add, note):
    add.apply_async((1, 2), link=note.s(), ignore_result=True)
    worker.drain()
    assert [link.args for link in callbacks] == [[3]]
    assert callbacks.missing == []


def test_a_link_that_is_retried_runs_once(worker, callbacks, add, app):
    @app.task(bind=True, name="shop.twice")
    def twice(self, value):
        if not self.request.retries:
            raise self.retry(countdown=7)

    add.apply_async((1, 2), link=twice.s())
    worker.drain()
    assert brief(callbacks) == [("link", "shop.twice", 0)]


def test_a_task_that_replaces_itself_takes_its_links_along(worker, callbacks, app, add, note):
    @app.task(bind=True, name="shop.replaced")
    def replaced(self):
        raise self.replace(add.s(1, 2))

    result = replaced.apply_async(link=note.s())
    worker.drain()
    assert [(link.args, link.parent) for link in callbacks] == [([3], result.id)]
    assert callbacks.missing == []


def test_a_link_that_the_broker_loses_is_missing(celery_faults, worker, callbacks, add, note):
    celery_faults.inject(Drop(), task=note)
    result = add.apply_async((1, 2), link=note.s())
    worker.drain()
    assert callbacks == []
    [missing] = callbacks.missing
    assert (missing.kind, missing.parent) == ("link", result.id)
    assert missing.why == "the broker lost it when it was published"
    assert repr(missing) == ("<link shop.note of shop.add#1 did not run: the broker lost it when it was published>")
    assert repr(callbacks) == f"<Callbacks [], missing [{missing!r}]>"


def test_a_link_that_is_revoked_is_missing(app, worker, callbacks, add, note):
    add.apply_async((1, 2), link=note.s().set(countdown=60))
    worker.advance(1)
    [missing] = callbacks.missing
    app.control.revoke(missing.task_id)
    worker.drain()
    assert [missing.why for missing in callbacks.missing] == ["it was revoked"]


def test_a_link_that_is_too_old_is_missing(celery_faults, worker, callbacks, add, note):
    celery_faults.inject(Delay(10), task=note)
    add.apply_async((1, 2), link=note.s().set(expires=5))
    worker.drain()
    assert callbacks == []
    assert [missing.why for missing in callbacks.missing] == ["it is a dead letter: expired"]


def test_a_link_to_a_task_that_nobody_has_is_missing(worker, callbacks, add, app):
    add.apply_async((1, 2), link=app.signature("nowhere.task"))
    worker.drain()
    [missing] = callbacks.missing
    assert (missing.task, missing.why) == ("nowhere.task", "it is a dead letter: unregistered")


def test_no_link_is_due_when_the_parent_fails(worker, callbacks, fail, note):
    fail.apply_async(link=note.s())
    worker.drain()
    assert (callbacks, callbacks.missing) == ([], [])


# -- errbacks


def test_an_errback_of_the_new_style_is_called_in_place(worker, callbacks, fail, errback, celery_faults):
    result = fail.apply_async(link_error=errback.s())
    worker.drain()
    [called] = callbacks.errbacks
    request, exception, traceback = called.args
    assert (called.task, called.parent, called.at, called.task_id) == ("shop.errback", result.id, 0, None)
    assert request.id == result.id
    assert isinstance(exception, LookupError)
    assert "raise LookupError" in traceback
    assert callbacks.missing == []
    assert not celery_faults.sent.of(errback)
    assert repr(called).startswith(
        "<link_error shop.errback(<Context of shop.fail>, LookupError('failed'), 'Traceback (most recent call last)"
    )


def test_an_errback_of_the_old_style_is_sent(worker, callbacks, fail, old_errback, log):
    result = fail.apply_async(link_error=old_errback.s())
    worker.drain()
    [called] = callbacks.errbacks
    assert (called.task, called.parent, called.args) == ("shop.old_errback", result.id, [result.id])
    assert called.task_id is not None
    assert log == [result.id]


def test_both_styles_and_an_immutable_one(worker, callbacks, fail, errback, old_errback, note):
    fail.apply_async(link_error=[old_errback.s(), errback.s(), note.si("fixed"), note.si("fixed")])
    worker.drain()
    assert sorted(called.task for called in callbacks.errbacks) == [
        "shop.errback", "shop.note", "shop.note", "shop.old_errback",
    ]  # fmt: skip
    assert callbacks.missing == []


def test_what_an_errback_sends_or_calls_itself_is_none(worker, callbacks, fail, app, add, note):
    @app.task
    def errback(request, exc, traceback):
        note.delay("cleaned up")
        note.s("in place")()

    fail.apply_async(link_error=errback.s())
    worker.drain()
    assert [called.task for called in callbacks] == [errback.name]


def test_an_errback_that_raises(worker, callbacks, fail, errback, app, celery_dlq):
    @app.task(name="shop.broken")
    def broken(request, exc, traceback):
        raise KeyError("broken")

    fail.apply_async(link_error=[broken.s(), errback.s()])
    worker.drain()
    first, *others = callbacks.errbacks
    assert first.task == "shop.broken"
    assert repr(first.error) == "KeyError('broken')"
    assert repr(first).endswith("raised KeyError('broken')>")
    # Celery 5.6 takes it for an error of its own, calls the errbacks once more, and none after the one that raises.
    assert celery_dlq.reasons == {"failed": 1}
    assert [called.task for called in others] == ["shop.errback" if celery.VERSION >= (5, 7) else "shop.broken"]
    assert [missing.task for missing in callbacks.missing] == ([] if celery.VERSION >= (5, 7) else ["shop.errback"])


def test_a_retry_calls_no_errback(worker, callbacks, failing, errback):
    task = failing(autoretry_for=(TypeError,), max_retries=2, default_retry_delay=5)
    task.apply_async(link_error=errback.s())
    worker.advance(9)
    assert (callbacks, callbacks.missing) == ([], [])
    worker.drain()
    assert brief(callbacks) == [("link_error", "shop.errback", 10)]


def test_a_hard_time_limit_calls_the_errback_twice(celery_faults, worker, callbacks, add, errback):
    celery_faults.inject(Sleep(10), task=add)
    add.apply_async((1, 2), link_error=errback.s(), time_limit=3)
    worker.drain()
    assert brief(callbacks) == [("link_error", "shop.errback", 3)] * 2
    assert callbacks.missing == []


def test_an_errback_of_a_task_whose_process_dies(celery_faults, worker, callbacks, add, errback):
    celery_faults.inject(Crash(), task=add)
    add.apply_async((1, 2), link_error=errback.s())
    worker.drain()
    assert [called.task for called in callbacks.errbacks] == ["shop.errback"]


def test_a_process_that_dies_before_its_errback_is_called(celery_faults, worker, callbacks, fail, errback):
    celery_faults.inject(Crash(), task=fail, at="stored")
    result = fail.apply_async(link_error=errback.s())
    worker.drain()
    assert result.state == "FAILURE"
    # The worker finds the process dead, and calls it.
    assert [type(called.args[1]).__name__ for called in callbacks.errbacks] == ["WorkerLostError"]
    assert callbacks.missing == []


def test_a_chain_that_is_broken_in_the_middle(worker, callbacks, celery_faults, add, fail, errback, note):
    result = chain(add.s(1, 2), fail.s(), add.s(4).set(link=note.s())).apply_async(link_error=errback.s())
    worker.drain()
    assert [(called.kind, called.parent) for called in callbacks] == [("link_error", result.parent.id)]
    assert callbacks.missing == []
    assert [message.task for message in celery_faults.sent] == ["shop.add", "shop.fail"]


# -- chords


def test_the_body_of_a_chord(worker, callbacks, add, total):
    result = chord([add.s(1, 1), add.s(2, 2)])(total.s())
    worker.drain()
    [body] = callbacks
    assert (body.kind, body.task, body.args, body.task_id) == ("chord body", "shop.total", [[2, 4]], result.id)
    # Its parent is the task that was done last.
    assert body.parent == result.parent.results[1].id
    assert callbacks.bodies == [body]
    assert callbacks.missing == []


def test_nested_chords(worker, callbacks, add, total):
    inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
    result = chord([inner, add.s(3, 3)])(total.s())
    worker.drain()
    assert sorted(body.args for body in callbacks.bodies) == [[[2, 4]], [[6, 6]]]
    assert result.get() == 12
    assert callbacks.missing == []


def test_bodies_that_are_a_group_and_a_chain(worker, callbacks, add, total, note):
    chord([add.s(1, 1), add.s(2, 2)])(group(total.s(), total.s()))
    chord([add.s(1, 1), add.s(2, 2)])(chain(total.s(), note.s()))
    worker.drain()
    assert [body.task for body in callbacks.bodies] == ["shop.total"] * 3
    assert callbacks.missing == []


def test_the_errback_of_a_chord(worker, callbacks, add, fail, total, errback):
    result = chord([add.s(1, 1), fail.s()])(total.s().on_error(errback.s()))
    worker.drain()
    [called] = callbacks
    assert (called.kind, called.task, called.parent) == ("link_error", "shop.errback", result.id)
    assert isinstance(called.args[1], ChordError)
    assert called.parent_label == "the chord of shop.add#1"
    assert callbacks.missing == []


@pytest.mark.celery_faults(conf={"task_allow_error_cb_on_chord_header": True})
def test_the_errback_of_a_chord_on_its_header_too(worker, callbacks, add, fail, total, errback):
    body = total.s()
    tasks = chord([add.s(1, 1), fail.s()], body)
    tasks.link_error(errback.s())
    result = tasks.apply_async()
    worker.drain()
    assert [called.parent for called in callbacks.errbacks] == [result.id, result.parent.results[1].id]
    assert callbacks.missing == []


def test_a_header_that_is_ignored_keeps_the_body_waiting_for_ever(worker, callbacks, app, add, total):
    @app.task(name="shop.ignored")
    def ignored():
        raise Ignore()

    chord([add.s(1, 1), ignored.s()])(total.s())
    worker.drain()
    [missing] = callbacks.missing
    assert (missing.kind, missing.task, missing.parent_label) == ("chord body", "shop.total", "the chord of shop.add#1")
    assert missing.why == "shop.ignored#1 of its header ended with IGNORED, and the chord was never told"


def test_a_header_whose_process_dies_when_its_result_is_stored(celery_faults, worker, callbacks, add, total, errback):
    celery_faults.inject(Crash(), task=add, at="stored")
    chord([add.s(1, 1), add.s(2, 2)])(total.s().on_error(errback.s()))
    worker.drain()
    if celery.VERSION >= (5, 7):
        [missing] = callbacks.missing
        assert missing.why == "shop.add#1 of its header stored its result, and the chord was never told"
    else:  # the worker reports a failure on top of the stored success
        assert [called.task for called in callbacks] == ["shop.errback"]
        assert callbacks.missing == []


def test_a_header_that_the_broker_loses(celery_faults, worker, callbacks, add, total):
    celery_faults.inject(Drop(), task=add)
    chord([add.s(1, 1), add.s(2, 2)])(total.s())
    worker.drain()
    [missing] = callbacks.missing
    assert missing.why == "shop.add#1 of its header is lost: the broker lost it when it was published"


def test_a_header_that_still_runs_or_waits_owes_no_body_yet(celery_faults, worker, callbacks, app, add, total):
    @app.task(bind=True, name="shop.again")
    def again(self):
        if not self.request.retries:
            raise self.retry(countdown=60)
        return 1

    celery_faults.inject(Sleep(10), task=add)
    chord([add.s(1, 1), again.s()])(total.s())
    for _ in range(6):
        worker.advance(10)
        assert callbacks.missing == []
    worker.drain()
    assert brief(callbacks) == [("chord body", "shop.total", 70)]


def test_a_body_that_the_broker_loses(celery_faults, worker, callbacks, add, total):
    celery_faults.inject(Drop(), task=total)
    chord([add.s(1, 1), add.s(2, 2)])(total.s())
    worker.drain()
    [missing] = callbacks.missing
    assert (missing.kind, missing.why) == ("chord body", "the broker lost it when it was published")


# -- questions


def test_the_order_is_that_in_which_they_ran(worker, callbacks, add, note):
    add.apply_async((1, 2), link=note.s().set(countdown=9))
    add.apply_async((3, 4), link=note.s().set(countdown=3))
    worker.drain()
    assert [(link.args, link.at) for link in callbacks] == [([7], 3), ([3], 9)]


def test_a_wrong_parent(callbacks, add):
    with pytest.raises(FaultValueError, match=r"there is no task 'shop\.ad', did you mean 'shop\.add'"):
        callbacks.of("shop.ad")


def test_the_first_protocol(bare_app, build):
    @bare_app.task(name="shop.add")
    def add(x, y):
        return x + y

    harness = build(conf={"task_protocol": 1})
    add.apply_async((1, 2), link=add.s(10))
    harness.worker.drain()
    assert [link.args for link in harness.callbacks] == [[3, 10]]


@pytest.mark.celery_faults(concurrency=2)
def test_two_parents_at_once(celery_faults, worker, callbacks, app, add, note):
    celery_faults.inject(Sleep(5), task=add, times=2)
    results = [add.apply_async((n, n), link=note.s()) for n in (1, 2)]
    worker.drain()
    assert [(link.parent, link.args) for link in callbacks] == [(results[0].id, [2]), (results[1].id, [4])]


def test_an_errback_that_cannot_be_sent_is_missing(celery_faults, worker, callbacks, fail, old_errback):
    celery_faults.inject(BrokerDown(60), task=old_errback)
    result = fail.apply_async(link_error=old_errback.s())
    worker.advance(30)
    assert callbacks == []
    [missing] = callbacks.missing
    assert (missing.kind, missing.task, missing.parent) == ("link_error", "shop.old_errback", result.id)
    assert missing.why == "its parent ended with FAILURE, and it was never called"
    # The worker's main process hears of the failed task when it is connected again, and calls the errback itself.
    worker.advance(60)
    if celery.VERSION[:3] < (5, 6, 3):  # it has forgotten what its children were at
        assert callbacks.of(result) == []
    else:
        assert [called.task for called in callbacks.of(result)] == ["shop.old_errback"]
        assert callbacks.missing == []


# -- what only looks like a callback


def test_what_handlers_of_a_task_send_is_no_link(worker, callbacks, app, note):
    class Sending(Task):
        def before_start(self, *_):
            note.delay("before_start")

        def on_success(self, *_):
            note.delay("on_success")

        def on_failure(self, *_):
            note.delay("on_failure")

        def on_retry(self, *_):
            note.delay("on_retry")

        def after_return(self, *_):
            note.delay("after_return")

    @app.task(base=Sending, bind=True, name="shop.sending")
    def sending(self, how):
        if how == "fail":
            raise LookupError
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=1)
        return how

    for how in ("fail", "succeed", "retry"):
        sending.apply_async((how,), link=note.s())
    worker.drain()
    assert [link.args for link in callbacks.links] == [["succeed"], ["retry"]]
    assert callbacks.missing == []


def test_what_receivers_of_signals_send_is_no_link(worker, callbacks, add, note):
    def on_prerun(sender, **_):
        if sender is add:
            note.delay("prerun")

    signals.task_prerun.connect(on_prerun)
    add.apply_async((1, 2), link=note.s())
    worker.drain()
    assert [link.args for link in callbacks.links] == [[3]]


def test_an_errback_with_arguments_of_its_own(worker, callbacks, app, fail):
    got = []

    @app.task(name="shop.partial")
    def partial(request, exc, traceback, *args, **kwargs):
        got.append(([request, exc, traceback, *args], kwargs))

    fail.apply_async(link_error=[partial.s(k=2), partial.s("extra", k=3)])
    worker.drain()
    assert [(called.args, called.kwargs) for called in callbacks.errbacks] == got
    assert [called.kwargs for called in callbacks.errbacks] == [{"k": 2}, {"k": 3}]


def test_an_id_that_is_sent_again_with_another_link(worker, callbacks, add, note, old_errback):
    add.apply_async((1, 2), link=note.s(), task_id="once")
    worker.drain()
    add.apply_async((1, 2), link=old_errback.s(), task_id="once")
    worker.drain()
    assert [link.task for link in callbacks.links] == ["shop.note", "shop.old_errback"]
    assert callbacks.missing == []


def test_an_eager_call_has_no_callbacks_here(worker, callbacks, add, fail, note, errback):
    add.apply((1, 2), link=note.s())
    fail.apply(link_error=errback.s())
    worker.drain()
    assert (callbacks, callbacks.missing) == ([], [])


def test_the_callbacks_of_a_chords_body_by_its_id_and_its_task(worker, callbacks, add, fail, total, errback):
    result = chord([add.s(1, 1), fail.s()])(total.s().on_error(errback.s()))
    worker.drain()
    [called] = callbacks.errbacks
    assert (
        callbacks.of(result)
        == callbacks.of(result.id)
        == callbacks.of(called.parent)
        == callbacks.of(total)
        == [called]
    )


def test_many_callbacks_are_not_counted_again_for_each(worker, callbacks, add, note, monkeypatch):
    for number in range(50):
        add.apply_async((number, 0), link=note.s())
    worker.drain()
    made = []
    original = type(callbacks)._that_ran
    monkeypatch.setattr(type(callbacks), "_that_ran", lambda self: made.append(1) or original(self))
    assert [callbacks[index].args[0] for index in range(50)] == list(range(50))
    assert len(list(reversed(callbacks))) == 50
    assert len(made) == 1
