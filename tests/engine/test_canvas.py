"""Workflows: chains, groups, chords and callbacks, as Celery does them."""

from __future__ import annotations

import time

import celery
import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import GroupResult


@pytest.fixture
def multiply(app):
    @app.task(name="shop.multiply")
    def multiply(x, y):
        return x * y

    return multiply


@pytest.fixture
def slow(app):
    def slow(seconds):
        time.sleep(seconds)
        return seconds

    return app.task(name="shop.slow")(slow)


# -- chains


def test_a_chain(add):
    assert chain(add.s(1, 2), add.s(3), add.s(4))().get() == 10
    assert (add.s(1, 2) | add.s(3)).delay().get() == 6


def test_the_parents_of_a_chain(add):
    result = chain(add.s(1, 2), add.s(3), add.s(4)).delay()
    assert result.get() == 10
    assert (result.parent.get(), result.parent.parent.get()) == (6, 3)
    assert result.parent.parent.parent is None


def test_a_chain_ends_where_it_fails(celery_faults, worker, add, fail):
    result = chain(add.s(1, 2), fail.s(), add.s(4)).delay()
    with pytest.raises(LookupError):
        result.get()
    worker.drain()
    assert [message.task for message in celery_faults.sent] == ["shop.add", "shop.fail"]
    assert result.parent.state == "FAILURE"
    assert result.parent.parent.get() == 3


def test_a_delay_in_a_chain(add, elapsed):
    assert chain(add.s(1, 2), add.s(3).set(countdown=30)).delay().get() == 6
    assert elapsed() == 30


def test_immutable_links(add):
    assert chain(add.s(1, 2), add.si(5, 5)).delay().get() == 10


def test_the_parent_of_a_message_in_a_chain(celery_faults, add):
    result = chain(add.s(1, 2), add.s(3)).delay()
    result.get()
    assert [message.parent for message in celery_faults.sent] == [None, result.parent.id]


# -- groups


NUMBERS = (2, 4, 8, 16, 32)


def test_a_group(add):
    result = group(add.s(i, i) for i in NUMBERS)()
    assert not result.ready()
    assert result.get() == [4, 8, 16, 32, 64]
    assert result.ready()
    assert result.successful()
    assert not result.failed()
    assert result.completed_count() == 5


@pytest.mark.celery_faults(concurrency=4)
def test_the_results_of_a_group_are_in_the_order_of_its_members(slow, elapsed):
    assert group(slow.s(seconds) for seconds in (5, 1, 3))().get() == [5, 1, 3]
    assert elapsed() == 5


def test_one_failing_member_fails_the_group(worker, add, fail):
    result = group(add.s(1, 1), fail.s(), add.s(2, 2))()
    with pytest.raises(LookupError, match="failed"):
        result.get()
    worker.drain()
    assert result.ready()
    assert result.failed()
    assert not result.successful()
    assert [member.state for member in result] == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert (result[0].get(), result[2].get()) == (2, 4)
    first, second, third = result.get(propagate=False)
    assert (first, third) == (2, 4)
    assert isinstance(second, LookupError)


@pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="Celery 5.6 waits half a second in join_native() of results that are there already"
)
def test_join(add, slow, elapsed):
    result = group(add.s(1, 1), slow.s(3))()
    assert result.join() == [2, 3]
    assert result.join_native() == [2, 3]
    assert elapsed() == 3


def test_join_gives_up(slow, elapsed):
    from celery.exceptions import TimeoutError as CeleryTimeoutError

    result = group(slow.s(3), slow.s(3))()
    with pytest.raises(CeleryTimeoutError):
        result.join(timeout=4)
    assert elapsed() == 4
    assert result.join() == [3, 3]
    assert elapsed() == 6


def test_iterating_over_results_as_they_come(slow):
    result = group(slow.s(2), slow.s(1))()
    assert [value["result"] for _, value in result.iter_native()] == [2, 1]


def test_a_group_of_a_loop(slow, elapsed):
    result = group(slow.s(2), slow.s(2))()
    while not result.ready():
        time.sleep(1)
    assert elapsed() == 4


@pytest.mark.skipif(
    celery.VERSION < (5, 7),
    reason="Celery 5.6 forgets the waiter of an id when a second result of that id is made (celery#4925)",
)
def test_a_saved_group_is_found_again(app, add):
    result = group(add.s(1, 1), add.s(2, 2))()
    result.save()
    assert GroupResult.restore(result.id, app=app).get() == [2, 4]
    result.delete()
    assert GroupResult.restore(result.id, app=app) is None


def test_revoking_a_group(worker, slow):
    result = group(slow.s(10) for _ in range(3))()
    worker.advance(1)
    result.revoke(terminate=True)
    worker.drain()
    assert [member.state for member in result] == ["REVOKED"] * 3
    with pytest.raises(TaskRevokedError):
        result.get()


def test_an_empty_group(app):
    assert group([], app=app)().get() == []


def test_a_group_in_a_chain(add, total):
    assert chain(add.s(1, 1), group(add.s(1), add.s(2)))().get() == [3, 4]


# -- chords


def test_a_chord(add, total, log):
    assert chord([add.s(i, i) for i in NUMBERS])(total.s()).get() == 124
    assert log == [("total", [4, 8, 16, 32, 64])]


def test_a_group_and_a_task_are_a_chord(add, total):
    assert (group(add.s(1, 1), add.s(2, 2)) | total.s()).delay().get() == 6


def test_a_chord_of_one(add, total):
    assert chord([add.s(1, 1)])(total.s()).get() == 2


def test_a_chord_of_chains(add, total, multiply):
    header = [chain(add.s(i, 1), multiply.s(10)) for i in range(3)]
    assert chord(header)(total.s()).get() == 60


def test_a_chord_in_a_chord(add, total, log):
    inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
    assert chord([inner, add.s(10, 10)])(total.s()).get() == 26
    assert [entry for entry in log if entry[1] != [2, 4]] == [("total", [6, 20])]


def test_a_chord_whose_body_is_a_group(add, multiply):
    result = chord([add.s(1, 1), add.s(2, 2)])(group(multiply.s(1), multiply.s(2)))
    assert result.get() == [[2, 4], [2, 4, 2, 4]]


def test_a_chord_followed_by_a_task(add, total, multiply):
    assert (chord([add.s(1, 1), add.s(2, 2)], total.s()) | multiply.s(7)).delay().get() == 42


def test_the_body_waits_for_the_last_member(slow, total, elapsed):
    result = chord([slow.s(5), slow.s(10)])(total.s())
    assert result.get() == 15
    assert elapsed() == 15


def test_a_failing_member_of_a_header(worker, add, fail, total, log):
    result = chord([add.s(1, 1), fail.s(), add.s(2, 2)])(total.s())
    # `get()` looks at its parents while it waits, and there the member's own exception comes first.
    with pytest.raises(LookupError, match="failed"):
        result.get()
    worker.drain()
    with pytest.raises(ChordError, match=r"Dependency .* raised LookupError\('failed'\)"):
        result.get(follow_parents=False)
    assert log == []
    assert result.state == "FAILURE"
    assert [member.state for member in result.parent] == ["SUCCESS", "FAILURE", "SUCCESS"]


def test_the_errback_of_a_body_hears_of_a_failing_header(worker, add, fail, total, errback, log):
    result = chord([add.s(1, 1), fail.s()])(total.s().on_error(errback.s()))
    worker.drain()
    [(task_id, exception, _)] = log
    assert task_id == result.id
    assert exception.startswith("ChordError(")


def test_a_body_that_fails(worker, add, fail, errback, log):
    result = chord([add.s(1, 1), add.s(2, 2)])(fail.s().on_error(errback.s()))
    with pytest.raises(LookupError):
        result.get()
    worker.drain()
    assert log == [(result.id, "LookupError('failed')", True)]


def test_a_member_of_a_header_that_is_retried(app, add, total, retry_recorder, elapsed):
    @app.task(bind=True)
    def shaky(self):
        if self.request.retries < 2:
            raise self.retry(countdown=10)
        return 100

    result = chord([add.s(1, 1), shaky.s(), add.s(2, 2)])(total.s())
    assert result.get() == 106
    assert elapsed() == 20
    assert retry_recorder.delays == [10, 10]


@pytest.mark.celery_faults(broker="rabbitmq")
def test_a_chord_counts_once_for_each_member_after_a_power_cut(worker, app, add, total, log):
    @app.task(acks_late=True)
    def late():
        time.sleep(10)
        return 100

    result = chord([add.s(1, 1), late.s()])(total.s())
    worker.advance(5)
    worker.crash()
    worker.start()
    assert result.get() == 102
    assert log == [("total", [2, 100])]


# -- callbacks


def test_link(worker, celery_faults, add, multiply):
    result = add.apply_async((2, 2), link=multiply.s(10))
    assert result.get() == 4
    worker.drain()
    [child] = result.children
    assert child.get() == 40
    assert [message.parent for message in celery_faults.sent] == [None, result.id]


def test_several_links(worker, add, multiply):
    result = add.apply_async((2, 2), link=[multiply.s(10), add.s(1)])
    worker.drain()
    [group_result] = result.children
    assert group_result.get() == [40, 5]


def test_no_link_after_a_failure(celery_faults, worker, fail, multiply, errback, log):
    result = fail.apply_async(link=multiply.s(10), link_error=errback.s())
    worker.drain()
    assert log == [(result.id, "LookupError('failed')", True)]
    assert not result.children
    assert celery_faults.sent.of(multiply) == []


def test_no_errback_after_a_success(worker, add, errback, log):
    add.apply_async((1, 2), link_error=errback.s())
    worker.drain()
    assert log == []


def test_an_errback_after_the_last_retry_only(worker, app, errback, log):
    @app.task(autoretry_for=(LookupError,), max_retries=2, default_retry_delay=5)
    def task():
        raise LookupError("failed")

    result = task.apply_async(link_error=errback.s())
    worker.advance(9)
    assert log == []
    worker.drain()
    assert [entry[0] for entry in log] == [result.id]


def test_an_errback_of_a_chain(worker, add, fail, errback, log):
    result = chain(add.s(1, 2), fail.s(), add.s(1)).apply_async(link_error=errback.s())
    worker.drain()
    assert [entry[:2] for entry in log] == [(result.parent.id, "LookupError('failed')")]


def test_an_errback_that_takes_one_argument_is_a_message(celery_faults, worker, app, fail, log):
    """`link_error` of this old style gets the id of the failed task, through its queue."""

    @app.task(name="shop.old_errback")
    def old_errback(task_id):
        log.append(task_id)

    result = fail.apply_async(link_error=old_errback.s())
    worker.drain()
    assert log == [result.id]
    assert [message.task for message in celery_faults.sent] == ["shop.fail", "shop.old_errback"]


def test_children_of_a_task(worker, app, add):
    @app.task(bind=True)
    def parent(self):
        return [add.delay(1, 1).id, add.delay(2, 2).id]

    result = parent.delay()
    ids = result.get()
    worker.drain()
    assert [child.id for child in result.children] == ids
    assert [child.get() for child in result.children] == [2, 4]


def test_a_task_that_replaces_itself(app, add):
    @app.task(bind=True)
    def replaced(self, x):
        raise self.replace(add.s(x, 10))

    result = replaced.delay(5)
    assert result.get() == 15
    assert chain(replaced.s(1), add.s(1)).delay().get() == 12


def test_a_task_that_replaces_itself_by_a_group(app, add, total):
    @app.task(bind=True)
    def replaced(self):
        raise self.replace(group(add.s(1, 1), add.s(2, 2)))

    assert chain(replaced.s(), total.s()).delay().get() == 6


# -- maps


def test_starmap_map_and_chunks(app, add, slow):
    assert add.starmap([(1, 1), (2, 2)]).delay().get() == [2, 4]
    assert slow.map([1, 2]).delay().get() == [1, 2]
    assert add.chunks([(i, i) for i in range(5)], 2).group().delay().get() == [[0, 2], [4, 6], [8]]


# -- results


def test_ignored_results(worker, app, elapsed):
    @app.task(ignore_result=True)
    def task():
        return 1

    result = task.delay()
    worker.drain()
    assert result.state == "PENDING"
    assert result.get() is None


@pytest.mark.celery_faults(conf={"result_expires": 60})
def test_results_expire_on_virtual_time(app, worker, add):
    result = add.delay(1, 2)
    worker.advance(59)
    assert app.AsyncResult(result.id).get() == 3
    worker.advance(2)
    assert app.AsyncResult(result.id).state == "PENDING"


@pytest.mark.celery_faults(conf={"task_track_started": True})
def test_track_started(worker, slow):
    result = slow.delay(10)
    worker.advance(1)
    assert result.state == "STARTED"
    assert result.get() == 10


def test_forget(add):
    result = add.delay(1, 2)
    assert result.get() == 3
    result.forget()
    assert result.state == "PENDING"


def test_progress(worker, app):
    @app.task(bind=True)
    def task(self):
        for percent in (0, 50):
            self.update_state(state="PROGRESS", meta={"percent": percent})
            time.sleep(10)

    result = task.delay()
    worker.advance(5)
    assert (result.state, result.info) == ("PROGRESS", {"percent": 0})
    worker.advance(10)
    assert (result.state, result.info) == ("PROGRESS", {"percent": 50})
    worker.advance(10)
    assert result.state == "SUCCESS"


@pytest.mark.celery_faults(conf={"result_extended": True})
def test_extended_results(add):
    result = add.delay(1, 2)
    assert result.get() == 3
    assert (result.name, result.args, result.queue) == ("shop.add", [1, 2], "celery")
