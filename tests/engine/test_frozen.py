"""What time functions and dates say while a test runs, before and after."""

from __future__ import annotations

import datetime as datetime_module
import importlib
import pickle
import sys
import textwrap
import threading
import time
import warnings
from datetime import date, datetime, timedelta, timezone
from time import monotonic as bound_monotonic
from time import sleep as bound_sleep
from time import time as bound_time
from types import BuiltinFunctionType
from zoneinfo import ZoneInfo

import pytest

# Through their module: a name bound here would be shown virtual time as well.
from pytest_celery_faults import clock as real

UTC = timezone.utc
START = datetime(2026, 6, 1, 22, 15, 30, tzinfo=UTC)

BOUND = """
    import time
    import datetime
    from datetime import date as day
    from datetime import datetime as dt
    from time import localtime, monotonic, perf_counter, sleep, time_ns
    from time import time as now

    def by_default(clock=now, *, other=time.monotonic):
        return clock(), other()

    class Stamp:
        def of(self, clock=time.time):
            return clock()
"""

#: freezegun's own list of modules to ignore has `queue`, `threading` and `gi` in it, and works by prefix.
NAMES = ("queue_jobs", "gift_shop", "threading_helpers", "shop_clock")


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Modules that were imported before the test and bound everything by name."""
    path = tmp_path_factory.mktemp("modules")
    for name in NAMES:
        (path / f"{name}.py").write_text(textwrap.dedent(BOUND))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        yield {name: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            del sys.modules[name]


@pytest.fixture
def zone():
    """Sets the time zone of the process."""
    with pytest.MonkeyPatch.context() as patch:

        def zone(name):
            patch.setenv("TZ", name)
            time.tzset()

        yield zone
    time.tzset()


# -- all functions agree


def everything():
    """A reading of each function, as an instant in UTC."""
    return {
        "time": datetime.fromtimestamp(time.time(), UTC),
        "time_ns": datetime.fromtimestamp(time.time_ns() / 10**9, UTC),
        "localtime": datetime.fromtimestamp(time.mktime(time.localtime()), UTC),
        "gmtime": datetime(*time.gmtime()[:6], tzinfo=UTC),
        "now": datetime.now().astimezone(UTC),
        "now(tz)": datetime.now(UTC),
        "now(zone)": datetime.now(ZoneInfo("Asia/Kathmandu")).astimezone(UTC),
        "module": datetime_module.datetime.now(UTC),
        "today": datetime.today().astimezone(UTC),
        "timestamp": datetime.fromtimestamp(datetime.now().timestamp(), UTC),
        "strftime": datetime.strptime(time.strftime("%Y-%m-%d %H:%M:%S%z"), "%Y-%m-%d %H:%M:%S%z").astimezone(UTC),
        "bound time": datetime.fromtimestamp(bound_time(), UTC),
    }


@pytest.mark.celery_faults(start=START)
@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"])
def test_all_functions_agree_with_the_clock(celery_faults, zone, name):
    zone(name)
    for _ in range(2):
        assert everything() == dict.fromkeys(everything(), celery_faults.clock.now())
        assert time.time() == celery_faults.clock.time()
        celery_faults.worker.advance(timedelta(hours=7, seconds=7))
    assert celery_faults.clock.now() == START + timedelta(hours=14, seconds=14)


BERLIN = [
    # Summer time begins: 02:00 to 03:00 does not exist.
    (datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC), "2026-03-29 01:59:59", 0, "+0100"),
    (datetime(2026, 3, 29, 1, 0, 0, tzinfo=UTC), "2026-03-29 03:00:00", 0, "+0200"),
    # It ends: 02:00 to 03:00 is there twice.
    (datetime(2026, 10, 25, 0, 30, 0, tzinfo=UTC), "2026-10-25 02:30:00", 0, "+0200"),
    (datetime(2026, 10, 25, 1, 30, 0, tzinfo=UTC), "2026-10-25 02:30:00", 1, "+0100"),
    (datetime(2026, 10, 25, 2, 0, 0, tzinfo=UTC), "2026-10-25 03:00:00", 0, "+0100"),
    # Another day than in UTC.
    (datetime(2026, 12, 31, 23, 0, 0, tzinfo=UTC), "2027-01-01 00:00:00", 0, "+0100"),
]
NEW_YORK = [
    (datetime(2026, 3, 8, 6, 59, 59, tzinfo=UTC), "2026-03-08 01:59:59", 0, "-0500"),
    (datetime(2026, 3, 8, 7, 0, 0, tzinfo=UTC), "2026-03-08 03:00:00", 0, "-0400"),
    (datetime(2026, 11, 1, 5, 30, 0, tzinfo=UTC), "2026-11-01 01:30:00", 0, "-0400"),
    (datetime(2026, 11, 1, 6, 30, 0, tzinfo=UTC), "2026-11-01 01:30:00", 1, "-0500"),
    (datetime(2026, 1, 1, 4, 59, 59, tzinfo=UTC), "2025-12-31 23:59:59", 0, "-0500"),
]


@pytest.mark.parametrize(
    ("name", "instant", "local", "fold", "offset"),
    [("Europe/Berlin", *row) for row in BERLIN] + [("America/New_York", *row) for row in NEW_YORK],
)
def test_local_time_is_right_on_both_sides_of_a_change_of_summer_time(build, zone, name, instant, local, fold, offset):
    zone(name)
    build(start=instant)
    # `str` and strings throughout: a comparison of naive dates does not look at `fold`.
    now = datetime.now()
    assert str(now) == local
    assert now.fold == fold
    assert now.tzinfo is None
    assert now.timestamp() == instant.timestamp()
    assert now.astimezone().strftime("%z") == offset
    assert str(datetime.today()) == local
    assert str(date.today()) == local[:10]
    assert time.strftime("%Y-%m-%d %H:%M:%S %z") == f"{local} {offset}"
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime()) == local
    assert time.localtime().tm_isdst == (offset in ("+0200", "-0400"))
    assert time.ctime() == datetime.strptime(local, "%Y-%m-%d %H:%M:%S").ctime()
    assert str(datetime.fromtimestamp(time.time())) == local
    assert str(date.fromtimestamp(time.time())) == local[:10]
    aware = datetime.now(ZoneInfo(name))
    assert (str(aware), aware.fold) == (f"{local}{offset[:3]}:{offset[3:]}", fold)


def test_an_hour_of_sleep_over_a_change_of_summer_time_is_an_hour(build, zone):
    zone("Europe/Berlin")
    harness = build(start=datetime(2026, 3, 29, 0, 30, tzinfo=UTC))
    before = datetime.now()
    time.sleep(3600)
    after = datetime.now()
    assert harness.clock.elapsed == 3600
    assert (str(before), str(after)) == ("2026-03-29 01:30:00", "2026-03-29 03:30:00")
    assert after.timestamp() - before.timestamp() == 3600
    assert after - before == timedelta(hours=2)


@pytest.mark.celery_faults(start=START)
def test_utcnow(celery_faults, zone):
    zone("America/New_York")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert datetime.utcnow() == START.replace(tzinfo=None)
        assert datetime.utcfromtimestamp(time.time()) == START.replace(tzinfo=None)


def test_given_instants_are_converted_and_not_replaced(celery_faults, zone):
    zone("America/New_York")
    assert time.localtime(0)[:6] == (1969, 12, 31, 19, 0, 0)
    assert time.gmtime(0)[:6] == (1970, 1, 1, 0, 0, 0)
    assert time.ctime(0) == "Wed Dec 31 19:00:00 1969"
    assert time.strftime("%Y", time.gmtime(0)) == "1970"
    assert str(datetime.fromtimestamp(0)) == "1969-12-31 19:00:00"
    assert str(datetime.fromtimestamp(0, UTC)) == "1970-01-01 00:00:00+00:00"
    assert datetime(1969, 12, 31, 19).timestamp() == 0
    assert datetime(1970, 1, 1, tzinfo=UTC).timestamp() == 0


def test_asctime(build, zone):
    zone("America/New_York")
    build(start=START)
    assert time.asctime() == "Mon Jun  1 18:15:30 2026"


@pytest.mark.celery_faults(start=START)
def test_microseconds_are_kept(celery_faults):
    time.sleep(0.123456)
    assert datetime.now(UTC).microsecond == 123456
    assert datetime.now().microsecond == 123456
    assert time.time_ns() == int(START.timestamp()) * 10**9 + 123_456_000


def test_counters_advance_by_what_was_slept(celery_faults):
    def read():
        return time.monotonic_ns(), time.perf_counter_ns(), time.monotonic(), time.perf_counter()

    before = read()
    time.sleep(90_000.25)
    after = read()
    assert after[0] - before[0] == after[1] - before[1] == 90_000_250_000_000
    assert after[2] - before[2] == pytest.approx(90_000.25, abs=1e-9)
    assert after[3] - before[3] == pytest.approx(90_000.25, abs=1e-9)


def test_waits_compare_exactly(celery_faults):
    for expected in (0.1, 0.2, 0.3, 0.4):
        time.sleep(0.1)
        assert celery_faults.clock.elapsed == expected
    time.sleep(0.3)
    assert celery_faults.clock.elapsed == 0.7


def test_dates_are_dates(celery_faults):
    now = datetime.now()
    assert isinstance(now, datetime)
    assert isinstance(now, date)
    assert isinstance(date.today(), date)
    assert not isinstance(date.today(), datetime)
    assert issubclass(datetime, date)
    assert isinstance(now + timedelta(1), datetime)
    assert now - timedelta(seconds=5) < datetime.now()
    assert now.replace(year=2000) == datetime(2000, now.month, now.day, now.hour, now.minute, now.second)
    assert pickle.loads(pickle.dumps(now)) == now
    assert pickle.loads(pickle.dumps(date.today())) == date.today()
    assert datetime.strptime("2026-01-02", "%Y-%m-%d") == datetime(2026, 1, 2)
    assert datetime.fromisoformat("2026-01-02T03:04:05+00:00") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert datetime.combine(date(2026, 1, 2), now.time()).date() == date(2026, 1, 2)


def test_a_date_goes_through_a_task(celery_faults, app):
    @app.task
    def tomorrow(when):
        assert isinstance(when, datetime)
        return when + timedelta(days=1)

    now = datetime.now(UTC)
    assert tomorrow.delay(now).get() == now + timedelta(days=1)


def test_a_task_sees_the_clock_and_sleeps_on_it(celery_faults, app):
    @app.task
    def nap():
        before = time.time_ns(), time.monotonic_ns(), datetime.now(UTC).isoformat()
        time.sleep(10)
        return before, (time.time_ns(), time.monotonic_ns(), datetime.now(UTC).isoformat())

    start = celery_faults.clock.now()
    before, after = nap.delay().get()
    assert after[0] - before[0] == after[1] - before[1] == 10**10
    assert before[2] == start.isoformat()
    assert after[2] == (start + timedelta(seconds=10)).isoformat()


# -- names that were bound before


@pytest.mark.celery_faults(start=START)
@pytest.mark.parametrize("name", NAMES)
def test_bound_names_see_virtual_time(modules, celery_faults, name):
    module = modules[name]
    start_mono = time.monotonic()
    module.sleep(3600)
    expected = START.timestamp() + 3600
    assert celery_faults.clock.elapsed == 3600
    assert module.now() == module.time.time() == module.time_ns() / 10**9 == expected
    assert module.monotonic() == module.perf_counter() == start_mono + 3600
    assert module.dt.now(UTC) == module.datetime.datetime.now(UTC) == START + timedelta(hours=1)
    assert module.day.today() == module.datetime.date.today() == date.fromtimestamp(expected)
    assert module.localtime() == time.localtime(expected)


@pytest.mark.celery_faults(start=START)
@pytest.mark.parametrize("name", NAMES)
def test_default_arguments_see_virtual_time(modules, celery_faults, name):
    module = modules[name]
    time.sleep(5)
    assert module.by_default() == (START.timestamp() + 5, time.monotonic())
    assert module.Stamp().of() == START.timestamp() + 5


def test_names_bound_in_the_test_module_itself(celery_faults):
    before = bound_monotonic()
    bound_sleep(8)
    assert bound_monotonic() - before == 8
    assert bound_time() == celery_faults.clock.time()


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_real_again_afterwards(modules, build, name):
    module = modules[name]
    before = {**vars(module), "defaults": (module.by_default.__defaults__, module.by_default.__kwdefaults__)}
    method = module.Stamp.of.__defaults__
    times = dict(vars(time))
    harness = build(start=START)
    assert module.sleep is not before["sleep"]
    assert module.by_default.__defaults__ != before["defaults"][0]
    harness.close()
    after = {**vars(module), "defaults": (module.by_default.__defaults__, module.by_default.__kwdefaults__)}
    assert after == before
    assert module.Stamp.of.__defaults__ == method
    assert vars(time) == times
    assert isinstance(time.sleep, BuiltinFunctionType)
    assert time.sleep is real.real_sleep
    assert datetime_module.datetime is datetime is type(datetime.now())
    assert datetime_module.date is date is type(date.today())
    assert datetime.__module__ == "datetime"


def test_modules_imported_during_a_test_see_virtual_time_and_are_real_afterwards(build, tmp_path, monkeypatch):
    name = "imported_meanwhile"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(BOUND))
    monkeypatch.syspath_prepend(tmp_path)
    harness = build(start=START)
    try:
        module = importlib.import_module(name)
        module.sleep(60)
        assert harness.clock.elapsed == 60
        assert module.now() == START.timestamp() + 60
        assert module.dt.now(UTC) == START + timedelta(seconds=60)
        assert module.by_default() == (START.timestamp() + 60, time.monotonic())
        harness.close()
        assert module.sleep is time.sleep
        assert module.now is time.time
        assert module.dt is datetime
        assert module.day is date
        assert module.by_default.__defaults__ == (time.time,)
        assert module.by_default.__kwdefaults__ == {"other": time.monotonic}
        assert module.Stamp.of.__defaults__ == (time.time,)

        again = build(start=START)
        module.sleep(60)
        assert again.clock.elapsed == 60
        assert module.by_default() == (START.timestamp() + 60, time.monotonic())
        assert module.dt.now(UTC) == START + timedelta(seconds=60)
    finally:
        del sys.modules[name]


def test_a_module_imported_in_real_time_sees_virtual_time_after_that(build, tmp_path, monkeypatch):
    name = "imported_in_real_time"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(BOUND))
    monkeypatch.syspath_prepend(tmp_path)
    harness = build(start=START)
    try:
        with harness.clock.real():
            module = importlib.import_module(name)
            assert module.sleep is real.real_sleep
        module.sleep(60)
        assert harness.clock.elapsed == 60
        assert module.by_default()[0] == START.timestamp() + 60
    finally:
        del sys.modules[name]


def test_what_a_test_binds_itself_stays_bound(modules, build):
    """A name that was replaced by somebody else, such as `monkeypatch`, is not the harness's to show time in."""
    module = modules["shop_clock"]
    original = module.now

    def mine():
        return 5

    module.now = mine
    try:
        harness = build(start=START)
        assert module.now is mine
        harness.close()
        assert module.now is mine
    finally:
        module.now = original


# -- other threads


@pytest.mark.celery_faults(start=datetime(2001, 1, 1))
def test_other_threads_live_in_real_time(modules, celery_faults):
    seen = {}

    def body():
        seen["before"] = real.real_time_ns()
        seen["time_ns"] = time.time_ns()
        seen["time"] = time.time() * 10**9
        seen["now"] = datetime.now(UTC).timestamp() * 10**9
        seen["naive"] = datetime.now().timestamp() * 10**9
        seen["gmtime"] = (datetime(*time.gmtime()[:6], tzinfo=UTC).timestamp() + 1) * 10**9
        seen["bound"] = modules["shop_clock"].time_ns()
        seen["after"] = real.real_time_ns() + 10**9
        slept = real.real_monotonic()
        time.sleep(0.02)
        modules["shop_clock"].sleep(0.02)
        seen["slept"] = real.real_monotonic() - slept

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    before, after, slept = seen.pop("before"), seen.pop("after"), seen.pop("slept")
    # A float of nanoseconds since the epoch resolves 256 of them.
    assert {name: before - 1000 <= reading <= after for name, reading in seen.items()} == dict.fromkeys(seen, True)
    assert slept >= 0.04
    assert celery_faults.clock.elapsed == 0


def test_a_thread_of_a_task_lives_in_real_time(celery_faults, app):
    def body(seen):
        before = real.real_monotonic()
        time.sleep(0.02)
        seen.append(real.real_monotonic() - before)

    @app.task
    def threaded():
        seen = []
        thread = threading.Thread(target=body, args=(seen,))
        thread.start()
        thread.join()
        return seen[0]

    assert threaded.delay().get() >= 0.02
    assert celery_faults.clock.elapsed == 0


def test_waiting_for_a_thread_is_real(celery_faults):
    event = threading.Event()
    before = real.real_monotonic()
    assert event.wait(0.02) is False
    assert real.real_monotonic() - before >= 0.019
    assert celery_faults.clock.elapsed == 0


# -- options


@pytest.mark.celery_faults(start=datetime(2030, 1, 2, 3, 4, 5, 678_901))
def test_start_is_utc_and_a_whole_second(celery_faults):
    assert celery_faults.clock.now() == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert celery_faults.clock.elapsed == 0


@pytest.mark.celery_faults(start=datetime(2030, 1, 2, 3, 4, 5, tzinfo=ZoneInfo("America/New_York")))
def test_start_may_be_aware(celery_faults):
    assert celery_faults.clock.now() == datetime(2030, 1, 2, 8, 4, 5, tzinfo=UTC)


def test_without_start_it_is_the_real_time(build):
    before = real.real_time_ns() // 10**9
    harness = build()
    after = real.real_time_ns() // 10**9
    assert before <= harness.clock.time() <= after
    assert harness.clock.time() == int(harness.clock.time())


@pytest.mark.celery_faults(clock="real")
def test_the_real_clock(celery_faults, app):
    @app.task
    def nap(seconds):
        before = real.real_monotonic()
        time.sleep(seconds)
        return real.real_monotonic() - before

    assert nap.delay(0.05).get() >= 0.05
    assert celery_faults.clock.elapsed >= 0.05
    before = real.real_monotonic()
    time.sleep(0.02)
    assert real.real_monotonic() - before >= 0.02
    assert type(datetime.now()) is datetime_module.datetime
    assert datetime_module.datetime.__module__ == "datetime"
    low = real.real_time_ns()
    reading = time.time_ns()
    assert low <= reading <= real.real_time_ns()


@pytest.mark.celery_faults(clock="real")
def test_the_real_clock_and_a_timeout(celery_faults, app):
    from celery.exceptions import TimeoutError as CeleryTimeoutError

    @app.task
    def nap():
        time.sleep(0.2)

    result = nap.delay()
    before = real.real_monotonic()
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.05)
    assert real.real_monotonic() - before >= 0.05
    assert result.get() is None


@pytest.mark.celery_faults(start=datetime(2001, 1, 1))
def test_real_time_for_a_while(modules, celery_faults, app):
    @app.task
    def later():
        return "ran"

    result = later.apply_async(countdown=0.01)
    time.sleep(0.005)
    with celery_faults.clock.real():
        before = real.real_monotonic()
        time.sleep(0.03)
        modules["gift_shop"].sleep(0.01)
        assert real.real_monotonic() - before >= 0.04
        low = real.real_time_ns()
        assert low <= time.time_ns() <= real.real_time_ns()
        assert type(datetime.now()).__module__ == "datetime"
        assert celery_faults.clock.elapsed == 0.005
        assert result.state == "PENDING"
    assert celery_faults.clock.elapsed == 0.005
    assert time.time() == celery_faults.clock.time()
    time.sleep(0.004)
    assert result.state == "PENDING"
    assert result.get() == "ran"
    assert celery_faults.clock.elapsed == 0.01


@pytest.mark.celery_faults(start=START)
def test_real_time_ends_when_its_block_fails(celery_faults):
    with pytest.raises(LookupError), celery_faults.clock.real():
        raise LookupError
    assert time.time() == START.timestamp()


def test_a_harness_that_is_closed_in_real_time_leaves_real_time(build):
    harness = build(start=START)
    with harness.clock.real():
        harness.close()
    assert time.sleep is real.real_sleep
    assert type(datetime.now()).__module__ == "datetime"


def test_the_clock_can_not_be_moved_by_freezegun(celery_faults):
    import freezegun.api

    with pytest.raises(TypeError, match=r"moved by celery_faults\.worker\.advance"):
        freezegun.api.freeze_factories[-1].tick(5)
