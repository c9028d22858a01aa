"""A freeze of freezegun's that is active when the clock of a test begins, or that one of its fixtures makes."""

from __future__ import annotations

import copyreg
import datetime as datetime_module
import importlib
import pickle
import sys
import textwrap
import time
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from time import time as bound_time

import freezegun.api
import pytest
from freezegun import freeze_time

from pytest_celery_faults import FaultValueError, InternalsError, OtherClockError, freezes
from pytest_celery_faults import clock as real

UTC = timezone.utc
MOMENT = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
FROZEN = freezegun.api.real_datetime(2030, 1, 2, 3, 4, 5, 678_901)

BOUND = """
    import time
    from datetime import date, datetime
    from time import monotonic, sleep
    from time import time as now

    def by_default(clock=now):
        return clock()
"""
#: freezegun ignores modules that begin with `queue`, and this plugin does not.
NAMES = ("frozen_shop", "queue_of_frozen_jobs")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Import modules that bind time by name."""
    loaded = []

    def load(*names):
        for name in names:
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(BOUND))
        importlib.invalidate_caches()
        loaded.extend(names)
        return [importlib.import_module(name) for name in names]

    monkeypatch.syspath_prepend(tmp_path)
    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def everything(module):
    """All that a freeze or a clock replaces, here, in another module, and in the libraries'."""
    api = freezegun.api
    names = [dict(vars(each)) for each in (api.FakeDatetime, api.FakeDate, api._freeze_time, api.FrozenDateTimeFactory)]
    stacks = [list(stack) for stack in freezes.STACKS]
    return (
        # freezegun leaves a `time.clock` behind, which went with Python 3.3.
        {**vars(time), "clock": None}, dict(vars(datetime_module)), names, dict(copyreg.dispatch_table),
        dict(vars(module)), module.by_default.__defaults__, datetime, date, bound_time, stacks,
    )  # fmt: skip


@pytest.fixture
def frozen_build(build):
    """Builds a harness in a freeze, and gives it back before that ends."""

    @contextmanager
    def frozen_build(*args, options=None, **kwargs):
        with freeze_time(*args, **kwargs) as factory:
            harness = build(**(options or {}))
            harness.factory = factory
            try:
                yield harness
            finally:
                harness.close()

    return frozen_build


@contextmanager
def untouched(module):
    """Everything is afterwards as it was before."""
    before = everything(module)
    yield
    assert everything(module) == before


def assert_all_show(moment, module=None):
    """The test's own names, and those of a module."""
    stamp = moment.timestamp()
    assert time.time() == bound_time() == stamp
    assert time.time_ns() == round(stamp * 10**6) * 1000
    assert datetime.now(UTC) == datetime_module.datetime.now(UTC) == moment
    # As freezegun shows it: local time is UTC.
    assert datetime.now() == datetime.today() == moment.replace(tzinfo=None)
    assert date.today() == moment.date()
    assert datetime.now().timestamp() == stamp
    assert datetime.fromtimestamp(stamp) == datetime.now()
    if module is not None:
        assert module.now() == module.by_default() == module.time.time() == stamp
        assert module.datetime.now(UTC) == moment
        assert module.date.today() == moment.date()


# -- a freeze from before the test


@pytest.mark.parametrize("name", NAMES)
def test_the_clock_starts_at_a_freeze_from_before_and_moves(build, load, name):
    (module,) = load(name)
    with untouched(module):
        with freeze_time(FROZEN), untouched(module):
            harness = build()
            assert harness.clock.now() == MOMENT
            assert_all_show(MOMENT, module)
            harness.worker.advance(3600)
            module.sleep(5)
            assert harness.clock.elapsed == 3605
            assert_all_show(MOMENT + timedelta(seconds=3605), module)
            harness.close()
            assert datetime.now(UTC) == MOMENT
        assert time.time is freezegun.api.real_time


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata"])
def test_local_time_is_what_freezegun_takes_for_it(build, monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        with freeze_time(FROZEN):
            frozen = datetime.now(), date.today(), datetime.now().timestamp(), datetime.fromtimestamp(0)
            harness = build()
            assert (datetime.now(), date.today(), datetime.now().timestamp(), datetime.fromtimestamp(0)) == frozen
            assert datetime.now(UTC) == datetime.now(timezone(timedelta(hours=5))) == MOMENT
            harness.close()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_offset_is_one_of_local_time_alone(frozen_build):
    with frozen_build(FROZEN, tz_offset=-4) as harness:
        assert harness.clock.now() == datetime.now(UTC) == MOMENT
        assert datetime.now() == datetime.today() == FROZEN - timedelta(hours=4)
        assert date.today() == date(2030, 1, 1)
        assert datetime.now().timestamp() == time.time() == MOMENT.timestamp()
        assert datetime.fromtimestamp(time.time()) == datetime.now()


def test_retries_on_a_frozen_clock_are_exact(frozen_build):
    with frozen_build(FROZEN) as harness:

        @harness.app.task(autoretry_for=(OSError,), retry_backoff=True, retry_jitter=False)
        def download():
            if harness.retries.count < 3:
                raise OSError
            return datetime.now(UTC)

        assert download.delay().get() == MOMENT + timedelta(seconds=7)
        assert harness.retries.delays == harness.retries.waits == [1, 2, 4]
        assert harness.clock.elapsed == 7


def test_a_freeze_that_goes_on_by_itself_is_a_start_like_any_other(frozen_build):
    with frozen_build(FROZEN, tick=True) as harness:
        assert MOMENT <= harness.clock.now() < MOMENT + timedelta(seconds=30)
        before = time.time()
        real.real_sleep(0.01)
        assert time.time() == before
        time.sleep(2)
        assert harness.clock.elapsed == 2


def test_a_freeze_that_each_look_moves_is_refused(build):
    with freeze_time(FROZEN, auto_tick_seconds=15):
        with pytest.raises(OtherClockError, match="leave auto_tick_seconds out"):
            build()
        assert date.today() == FROZEN.date()
    harness = build()
    start = harness.clock.now()
    with pytest.raises(OtherClockError, match="leave auto_tick_seconds out"):
        freeze_time(FROZEN, auto_tick_seconds=15).start()
    assert harness.clock.now() == datetime.now(UTC) == start


def test_two_starts_are_refused(build):
    with freeze_time(FROZEN):
        with pytest.raises(OtherClockError, match="leave one of them out"):
            build(start=datetime(2001, 1, 1))
        assert datetime.now() == FROZEN
    harness = build(start=datetime(2001, 1, 1))
    with pytest.raises(OtherClockError, match="leave one of them out"), freeze_time(FROZEN):
        pass
    assert harness.clock.now() == datetime(2001, 1, 1, tzinfo=UTC)


def test_a_clock_that_cannot_be_shown_leaves_a_freeze_alone(build, load, monkeypatch):
    (module,) = load(NAMES[0])
    with untouched(module), freeze_time(FROZEN):
        monkeypatch.delattr(freezegun.api.FrozenDateTimeFactory, "tick")
        with untouched(module), pytest.raises(InternalsError, match=r"FrozenDateTimeFactory\.tick in a test"):
            build()
        monkeypatch.undo()
        assert module.datetime.now() == FROZEN


def test_with_the_real_clock_a_freeze_is_its_makers_business(build):
    with freeze_time(FROZEN):
        harness = build(clock="real")
        assert datetime.now() == FROZEN
        harness.close()


def test_the_innermost_freeze_counts(build, load):
    (module,) = load(NAMES[0])
    with untouched(module), freeze_time("2001-01-01"), freeze_time(FROZEN), untouched(module):
        harness = build()
        assert harness.clock.now() == MOMENT
        harness.close()


def test_real_time_is_real_in_spite_of_a_freeze_from_before(build, load):
    (module,) = load(NAMES[0])
    with freeze_time(FROZEN):
        harness = build()
        with harness.clock.real():
            assert time.time is module.now is freezegun.api.real_time
            assert abs(module.datetime.now(UTC).timestamp() - real.real_time_ns() / 10**9) < 60
            with freeze_time("2001-01-01"):
                assert date.today() == module.date.today() == date(2001, 1, 1)
            assert time.time is module.now is freezegun.api.real_time
        assert_all_show(MOMENT, module)
        harness.close()
        assert module.datetime.now() == FROZEN


def test_a_date_goes_through_a_task_and_pickle(frozen_build):
    with frozen_build(FROZEN) as harness:

        @harness.app.task
        def tomorrow(when):
            return when + timedelta(days=1)

        assert tomorrow.delay(datetime.now(UTC)).get() == MOMENT + timedelta(days=1)
        assert pickle.loads(pickle.dumps(datetime.now())) == FROZEN


# -- modules that come and go, and the scan that remembers them


def test_a_module_that_was_imported_in_a_freeze(build, load):
    with freeze_time(FROZEN):
        (module,) = load("frozen_early")
        with untouched(module):
            harness = build()
            harness.worker.advance(60)
            assert_all_show(MOMENT + timedelta(seconds=60), module)
            harness.close()
        assert module.now() == MOMENT.timestamp()
    assert module.now is freezegun.api.real_time
    harness = build(start=datetime(2001, 1, 1))
    module.sleep(5)
    assert harness.clock.elapsed == 5
    assert module.now() == harness.clock.time() == datetime(2001, 1, 1, 0, 0, 5, tzinfo=UTC).timestamp()
    assert module.datetime.now(UTC) == harness.clock.now()


def test_a_module_that_was_imported_during_a_test_in_a_freeze(build, load):
    with freeze_time(FROZEN):
        harness = build()
        (module,) = load("frozen_meanwhile")
        with harness.clock.real():
            (other,) = load("frozen_in_real_time")
        harness.worker.advance(60)
        assert_all_show(MOMENT + timedelta(seconds=60), module)
        harness.close()
        assert module.now() == other.now() == MOMENT.timestamp()
        assert module.datetime.now() == other.datetime.now() == FROZEN
    for each in (module, other):
        assert each.now is freezegun.api.real_time
        assert each.datetime is datetime_module.datetime is freezegun.api.real_datetime
        assert each.sleep is real.real_sleep


def test_a_freeze_between_two_tests_changes_nothing(build, load):
    (module,) = load(NAMES[0])
    build().close()
    with freeze_time(FROZEN):
        assert module.now() == MOMENT.timestamp()
    harness = build(start=datetime(2001, 1, 1))
    assert module.now() == harness.clock.time()
    assert module.datetime.now(UTC) == harness.clock.now()


# -- a freeze that is made while the clock is there, and nothing has happened


def test_a_freeze_that_a_fixture_makes_is_the_start(build, load):
    (module,) = load(NAMES[0])
    with untouched(module):
        harness = build()
        with freeze_time(FROZEN) as frozen:
            assert harness.clock.now() == MOMENT
            assert harness.clock.elapsed == 0
            assert frozen() == FROZEN
            assert_all_show(MOMENT, module)
            harness.set_up_is_over()
            time.sleep(60)
            assert_all_show(MOMENT + timedelta(seconds=60), module)
            assert frozen() == FROZEN + timedelta(seconds=60)
        assert_all_show(MOMENT + timedelta(seconds=60), module)
        harness.close()


def test_monotonic_time_does_not_jump_with_the_start(build):
    before = real.real_monotonic()
    harness = build()
    with freeze_time(FROZEN):
        harness.set_up_is_over()
        started = time.monotonic()
        assert before <= started <= before + 60
        harness.worker.advance(60)
        assert time.monotonic() == time.perf_counter() == started + 60


def test_a_freeze_for_a_part_of_the_set_up_leaves_the_start_alone(build):
    harness = build()
    start = harness.clock.now()
    with freeze_time("2001-01-01"):
        assert datetime.now() == datetime(2001, 1, 1)
        with freeze_time(FROZEN):
            assert datetime.now() == FROZEN
        assert datetime.now() == datetime(2001, 1, 1)
    assert harness.clock.now() == datetime.now(UTC) == start
    assert datetime.now().astimezone(UTC) == start


def test_a_freeze_in_which_something_happened_lasts_until_the_test(build):
    harness = build()

    @harness.app.task
    def noop():
        pass

    frozen = freeze_time(FROZEN)
    frozen.start()
    noop.delay()
    with pytest.raises(OtherClockError, match=r"ends before the test begins, and test_freezes.noop was sent"):
        frozen.stop()
    assert harness.clock.now() == MOMENT


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (lambda harness: harness.worker.advance(60), "the clock has gone on for 60 s"),
        (lambda harness: harness.app.send_task("shop.add"), "shop.add was sent"),
        (lambda harness: harness.broker.client.set("key", "value", ex=60), "the worker or the broker .* was used"),
    ],
    ids=["moved", "sent", "written"],
)
def test_a_freeze_after_something_happened_is_refused(build, what, why):
    harness = build()
    what(harness)
    start = harness.clock.now()
    with pytest.raises(OtherClockError, match=f"too late: {why}"), freeze_time(FROZEN):
        pass
    assert harness.clock.now() == datetime.now(UTC) == start


def test_a_freeze_in_the_test_is_refused(build):
    harness = build()
    harness.set_up_is_over()
    start = harness.clock.now()

    @freeze_time(FROZEN)
    def frozen_test():
        raise AssertionError

    for enter in (frozen_test, freeze_time(FROZEN).start):
        with pytest.raises(OtherClockError, match=r"on the test or in it comes too late: freezegun and celery_faults"):
            enter()
    assert harness.clock.now() == datetime.now(UTC) == start


def test_a_freeze_that_goes_on_after_the_test_is_freezegun_s_again(build, load):
    """A fixture of the session that a test was the first to ask for."""
    (module,) = load(NAMES[0])
    with untouched(module):
        harness = build()
        frozen = freeze_time(FROZEN)
        factory = frozen.start()
        harness.worker.advance(60)
        harness.close()
        assert datetime.now() == module.datetime.now() == factory() == FROZEN
        factory.tick(5)
        assert module.now() == MOMENT.timestamp() + 5
        frozen.stop()
        assert module.now is freezegun.api.real_time


def test_an_old_freeze_is_not_stopped_in_a_test(build):
    frozen = freeze_time(FROZEN)
    frozen.start()
    try:
        harness = build()
        with pytest.raises(OtherClockError, match="older than the test"):
            frozen.stop()
        assert harness.clock.now() == MOMENT
        harness.close()
    finally:
        frozen.stop()
    assert time.time is freezegun.api.real_time


# -- what moves a freeze


@pytest.fixture(params=["before", "made"])
def frozen(request, build):
    """A clock that started at a freeze, and what the freeze gave to its maker."""
    if request.param == "before":
        with freeze_time(FROZEN) as factory:
            harness = build()
            harness.set_up_is_over()
            yield harness, factory
            harness.close()
            assert factory() == FROZEN
    else:
        harness = build()
        with freeze_time(FROZEN) as factory:
            harness.set_up_is_over()
            yield harness, factory


def test_a_tick_drives_the_worker(frozen):
    harness, factory = frozen
    ran = []

    @harness.app.task
    def later():
        ran.append(datetime.now())

    later.apply_async(countdown=10)
    assert factory.tick() == FROZEN + timedelta(seconds=1)
    assert factory.tick(8.5) == FROZEN + timedelta(seconds=9.5)
    assert not ran
    assert factory.tick(timedelta(minutes=1)) == FROZEN + timedelta(seconds=69.5)
    assert ran == [FROZEN + timedelta(seconds=10)]
    assert harness.clock.elapsed == 69.5
    assert_all_show(MOMENT + timedelta(seconds=69.5))


@pytest.mark.parametrize("target", ["2030-01-03", date(2030, 1, 3), datetime(2030, 1, 3, tzinfo=UTC)], ids=str)
def test_a_move_to_a_later_time_drives_the_worker(frozen, target):
    harness, factory = frozen
    factory.move_to(target)
    assert harness.clock.now() == datetime.now(UTC) == datetime(2030, 1, 3, tzinfo=UTC)
    assert harness.timeline


@pytest.mark.parametrize("back", [lambda f: f.tick(-1), lambda f: f.move_to("2001-01-01")], ids=["tick", "move_to"])
def test_a_clock_is_not_turned_back(frozen, back):
    harness, factory = frozen
    with pytest.raises(FaultValueError, match="would turn the clock of celery_faults back from 2030-01-02 03:04:05"):
        back(factory)
    assert harness.clock.now() == MOMENT


def test_in_the_set_up_a_move_sets_the_start(build):
    harness = build()
    with freeze_time(FROZEN) as factory:
        factory.move_to("2001-01-01")
        factory.tick(5)
        assert harness.clock.now() == datetime.now(UTC) == datetime(2001, 1, 1, 0, 0, 5, tzinfo=UTC)
        assert harness.clock.elapsed == 0
