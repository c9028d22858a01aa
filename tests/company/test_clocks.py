"""unittest, freezegun, pytest-freezer and time-machine: one clock, and who owns it."""

from __future__ import annotations

import re

import pytest

from company import needs

IMPORTS = """
import datetime, time, unittest
import pytest
from shop import add, download, slow

"""


@pytest.fixture
def run(company):
    def run(source, *plugins, args=()):
        company.shop.test(IMPORTS + source)
        return company.run(*args, plugins=plugins)

    return run


def test_a_unittest_test_case(run):
    result = run("""
@pytest.mark.usefixtures("celery_faults")
class DownloadTest(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _parts(self, celery_faults, retry_recorder):
        self.faults, self.retries = celery_faults, retry_recorder

    def setUp(self):
        self.first = add.delay(1, 2)

    def tearDown(self):
        self.assertEqual(add.delay(3, 4).get(), 7)

    @pytest.mark.inject(OSError, times=2)
    def test_download(self):
        self.assertEqual(download.delay("x").get(), "done")
        self.assertEqual(self.retries.delays, [1])
        self.assertEqual(self.faults.clock.elapsed, 1)

    @pytest.mark.inject(OSError, task="shop.download")
    def test_never_fired(self):
        self.assertEqual(self.first.get(), 3)

    def test_sub(self):
        with self.subTest("add"):
            self.assertEqual(self.first.get(), 3)
""")
    result.assert_outcomes(passed=2, failed=1)


FROZEN = """
from freezegun import freeze_time

START = datetime.datetime(2030, 1, 2, tzinfo=datetime.timezone.utc)

@shop.app.task
def now():
    return [time.time(), datetime.datetime.now().isoformat(), shop.now().isoformat()]

def assert_time(celery_faults, seconds):
    moment = START + datetime.timedelta(seconds=seconds)
    local = moment.replace(tzinfo=None)
    assert celery_faults.clock.now() == moment
    assert (time.time(), datetime.datetime.now(), shop.now()) == (moment.timestamp(), local, local)
    assert now.delay().get() == [moment.timestamp(), local.isoformat(), local.isoformat()]

"""
REAL_AFTERWARDS = """
import datetime, time
import shop

def test_after():
    assert time.time() < datetime.datetime(2030, 1, 1).timestamp()
    assert abs(time.time() - datetime.datetime.now().timestamp()) < 60
    assert datetime.datetime is type(datetime.datetime.now()) is type(shop.now())
    assert type(time.time) is type(time.sleep) is type(print)
"""
FROZEN_AFTERWARDS = """
import datetime, time
import shop

def test_after():
    assert datetime.datetime.now() == shop.now() == datetime.datetime(2030, 1, 2, 0, 0, 5)
"""
#: `{0}` is the scope.
FIXTURE = """
@pytest.fixture(scope="{0}")
def frozen():
    with freeze_time("2030-01-02") as frozen:
        yield frozen

"""
START_AND_MOVE = """
    assert_time(celery_faults, 0)
    assert slow.delay(60).get() == 60
    assert_time(celery_faults, 60)
    celery_faults.worker.advance(40)
    assert_time(celery_faults, 100)
"""


@pytest.fixture
def frozen(run, company):
    """A module of the application that has bound `datetime.now` before any freeze."""
    with company.pytester.path.joinpath("shop.py").open("a") as module:
        module.write("\nfrom datetime import datetime\n\ndef now():\n    return datetime.now()\n")

    def frozen(source, *plugins, after=REAL_AFTERWARDS, args=()):
        company.pytester.makepyfile(test_shop_after=after)
        return run(f"import shop\n{FROZEN}{source}", *plugins, args=args)

    return frozen


@pytest.mark.parametrize("scope", ["session", "module", "class"])
def test_a_freeze_of_a_wider_fixture_is_the_start_of_each_test(frozen, scope):
    source = f"""
class TestFrozen:
    @pytest.mark.parametrize("i", range(2))
    def test_moves(self, frozen, i, celery_faults):
        {START_AND_MOVE.replace("    ", "        ")}
    def test_without_celery(self, frozen):
        assert datetime.datetime.now() == shop.now() == datetime.datetime(2030, 1, 2)
        frozen.tick(5)

    def test_goes_on_from_there(self, frozen, celery_faults):
        assert celery_faults.clock.now() == START + datetime.timedelta(seconds=5)
        assert_time(celery_faults, 5)
"""
    after = FROZEN_AFTERWARDS if scope == "session" else REAL_AFTERWARDS
    result = frozen(FIXTURE.format(scope) + source, after=after)
    result.assert_outcomes(passed=5)
    seconds = re.search(r"of virtual time in (.*) s", str(result.stdout))
    assert 0 <= float(seconds[1]) < 60


def test_pytests_durations_within_a_freeze_do_not_mix_frozen_time_with_another(frozen):
    source = """
def test_first(frozen):
    pass

def test_second(frozen, celery_faults):
    assert slow.delay(60).get() == 60
    assert_time(celery_faults, 60)

def test_third(frozen):
    pass
"""
    result = frozen(FIXTURE.format("module") + source, args=("--durations=0", "--durations-min=-1e12", "-vv"))
    result.assert_outcomes(passed=4)
    lengths = re.findall(r"(\S+)s (?:setup|call|teardown) +test_shop.py::test_second", str(result.stdout))
    assert len(lengths) == 3
    assert all(0 <= float(length) < 60 for length in lengths)


def test_a_freeze_of_the_tests_own_fixture_is_the_start(frozen):
    result = frozen(
        FIXTURE.format("function")
        + f"""
@pytest.fixture
def seen(celery_faults, frozen):
    return datetime.datetime.now(), celery_faults.clock.now()

def test_moves(frozen, seen, celery_faults):
    assert seen == (START.replace(tzinfo=None), START)
    {START_AND_MOVE}

@pytest.mark.inject(OSError, times=2)
def test_retries(celery_faults, retry_recorder, frozen):
    assert download.delay("x").get() == "done"
    assert retry_recorder.delays == [1, 2]
    assert_time(celery_faults, 3)

def test_moves_by_the_freeze(celery_faults, frozen):
    result = add.apply_async((1, 2), countdown=60)
    frozen.tick(59)
    assert result.state == "PENDING"
    frozen.tick()
    assert result.state == "SUCCESS"
    frozen.move_to("2030-01-02 00:02")
    assert_time(celery_faults, 120)
"""
    )
    result.assert_outcomes(passed=4)


def test_a_freeze_of_unittests_class_or_set_up_is_the_start(frozen):
    result = frozen(
        f"""
class Faults(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _faults(self, celery_faults):
        self.celery_faults = celery_faults

    def check(self):
        celery_faults = self.celery_faults
        {START_AND_MOVE.replace("    ", "        ")}

@freeze_time("2030-01-02")
class TestDecorated(Faults):
    def setUp(self):
        assert time.time() == START.timestamp()
        add.delay(1, 2)

    def test_it(self):
        self.check()

    def test_again(self):
        self.check()

class TestWhole(Faults):
    @classmethod
    def setUpClass(cls):
        cls.freeze = freeze_time("2030-01-02")
        cls.freeze.start()
        cls.addClassCleanup(cls.freeze.stop)

    def test_it(self):
        self.check()

class TestEach(Faults):
    def setUp(self):
        freeze = freeze_time("2030-01-02")
        freeze.start()
        self.addCleanup(freeze.stop)

    def test_it(self):
        self.check()
"""
    )
    result.assert_outcomes(passed=5)


LATE = {
    "around the test": '@freeze_time("2030-01-02")\ndef test_it(celery_faults):\n    pass\n',
    "inside": 'def test_it(celery_faults):\n    with freeze_time("2030-01-02"):\n        pass\n',
    "around a class": """
@freeze_time("2030-01-02")
class TestIt:
    def test_it(self, celery_faults):
        pass
""",
    "in a task": """
@shop.app.task
def freezes():
    freeze_time("2030-01-02").start()

def test_it(celery_faults):
    freezes.delay().get()
""",
}


@pytest.mark.parametrize("freeze", LATE.values(), ids=list(LATE))
def test_a_freeze_that_comes_too_late_is_refused(frozen, freeze):
    result = frozen(freeze)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*OtherClockError: freeze_time() on the test or in it comes too late*A freeze that a*"]
    )


def test_a_freeze_after_something_ran_is_refused(frozen):
    result = frozen(
        FIXTURE.format("function")
        + """
@pytest.fixture
def sent(celery_faults):
    return add.delay(1, 2)

def test_it(sent, frozen):
    pass
"""
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*OtherClockError: freeze_time() comes too late: shop.add was sent. *"])


def test_a_start_and_a_freeze_are_refused(frozen):
    result = frozen(
        FIXTURE.format("module")
        + """
@pytest.mark.celery_faults(start=datetime.datetime(2001, 1, 1))
def test_it(frozen, celery_faults):
    pass
"""
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*OtherClockError: *celery_faults(start=...)*leave one of them out*"])


def test_freezegun_in_real_time_is_its_users_business(frozen):
    result = frozen("""
def test_block(celery_faults):
    with celery_faults.clock.real(), freeze_time("2030-01-02"):
        assert datetime.date.today() == datetime.date(2030, 1, 2)
    assert slow.delay(60).get() == 60
""")
    result.assert_outcomes(passed=2)


@needs("pytest_freezer", "pytest-freezer")
def test_pytest_freezer(frozen):
    result = frozen(
        f"""
@pytest.mark.freeze_time("2030-01-02")
def test_mark(celery_faults):
    {START_AND_MOVE}

@pytest.mark.freeze_time(datetime.date(2030, 1, 2))
def test_both(freezer, celery_faults):
    {START_AND_MOVE}
    freezer.tick(100)
    assert_time(celery_faults, 200)

def test_real_time(celery_faults, freezer):
    assert celery_faults.clock.now() == freezer().replace(tzinfo=START.tzinfo)
    freezer.move_to("2030-01-02")
    assert_time(celery_faults, 0)

@pytest.fixture
def earlier(freezer):
    freezer.move_to("2001-01-01")

def test_earlier(earlier, celery_faults):
    assert celery_faults.clock.now().year == 2001

def test_back(freezer, celery_faults):
    freezer.move_to("2001-01-01")
""",
        "pytest_freezer",
    )
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*FaultValueError: move_to('2001-01-01 00:00:00') would turn the clock*forward only*"])


@needs("pytest_freezer", "pytest-freezer")
@needs("pytest_asyncio", "pytest-asyncio")
def test_a_freeze_of_an_async_test(frozen):
    source = """
@pytest.mark.asyncio
@pytest.mark.freeze_time("2030-01-02")
async def test_own(celery_faults, freezer):
    assert await celery_faults.worker.aget(add.delay(1, 2)) == 3
    await celery_faults.worker.aadvance(60)
    freezer.tick(60)
    assert_time(celery_faults, 120)

@pytest.mark.asyncio
async def test_of_the_module(frozen, celery_faults):
    assert await celery_faults.worker.aget(slow.delay(60)) == 60
    assert_time(celery_faults, 60)
"""
    options = ("-o", "asyncio_default_fixture_loop_scope=function")
    frozen(FIXTURE.format("module") + source, "asyncio", "freezer", args=options).assert_outcomes(passed=3)


def refused(library):
    return [f"*OtherClockError: {library} and celery_faults would both set the time of this test*celery_faults(start=*"]


@needs("time_machine", "time-machine")
@pytest.mark.parametrize(
    "source",
    [
        'def test_it(celery_faults):\n    with time_machine.travel("2030-01-02"):\n        pass',
        'def test_it(celery_faults, time_machine):\n    time_machine.move_to("2030-01-02")',
        '@pytest.fixture(scope="module")\ndef gone():\n    with time_machine.travel("2030-01-02"):\n        yield\n'
        "def test_it(gone, celery_faults):\n    pass",
    ],
    ids=["inside", "fixture", "before"],
)
def test_time_machine_is_refused(run, source):
    result = run(f"import time_machine\n\n{source}", "time_machine")
    assert result.ret == 1
    result.stdout.fnmatch_lines(refused("time-machine"))
