"""The markers `inject` and `celery_faults`: where they may stand, what they do armed or not, what a wrong one says."""

from __future__ import annotations

import pytest

SKIP_LINE = "celery faults: {} skipped, faults are off: --celery-faults or celery_faults = true"

EVERY_PLACE = {
    "on a function": """
        @pytest.mark.inject(IOError, times=2)
        def test_it(retry_recorder):
            download.delay("x").get()
            assert retry_recorder.delays == [1, 2]
        """,
    "on a class": """
        @pytest.mark.inject(IOError, times=2)
        class TestIt:
            def test_it(self, retry_recorder):
                download.delay("x").get()
                assert retry_recorder.delays == [1, 2]
        """,
    "on a module": """
        pytestmark = pytest.mark.inject(IOError, times=2)
        def test_it(retry_recorder):
            download.delay("x").get()
            assert retry_recorder.delays == [1, 2]
        """,
    "the importable one": """
        from pytest_celery_faults import inject
        @inject(IOError, times=2)
        def test_it(retry_recorder):
            download.delay("x").get()
            assert retry_recorder.delays == [1, 2]
        """,
    "without a fixture of ours": """
        @pytest.mark.inject(IOError(), task="shop.d*")
        def test_it():
            assert download.delay("x").get() == "done"
        """,
    "the fault by name": """
        @pytest.mark.inject(fault=IOError, task=download)
        def test_it(retry_recorder):
            download.delay("x").get()
            assert retry_recorder.delays == [1]
        """,
}


def body(source: str) -> str:
    lines = source.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(
        ["import pytest", "from shop import add, boom, download, slow", *(line[indent:] for line in lines)]
    )


@pytest.mark.parametrize("place", EVERY_PLACE)
def test_inject_arms_its_test_and_without_the_flag_skips_it(shop, place):
    shop.test(body(EVERY_PLACE[place]))
    shop.armed().assert_outcomes(passed=1)
    result = shop.run("-rs")
    result.assert_outcomes(skipped=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["SKIPPED*celery faults are off: --celery-faults or celery_faults = true turns them on"]
    )


def test_a_test_that_is_skipped_for_it_starts_nothing(shop):
    shop.test(
        body(
            """
            @pytest.fixture(autouse=True)
            def noisy():
                raise NotImplementedError("a skipped test sets nothing up")
            @pytest.mark.inject(IOError())
            def test_it(celery_faults): pass
            """
        )
    )
    shop.run().assert_outcomes(skipped=1)


@pytest.mark.parametrize("arguments", [[], ["-q"], ["-n2"], ["-n2", "-q"]], ids=" ".join)
def test_one_line_says_how_many_tests_were_skipped(shop, arguments):
    shop.test(
        body(
            """
            @pytest.mark.inject(IOError())
            @pytest.mark.parametrize("n", range(3))
            def test_it(n): pass
            def test_other(): pass
            @pytest.mark.skip(reason="another reason")
            def test_skipped_for_another_reason(): pass
            """
        ),
        test_more="import pytest\n@pytest.mark.inject(IOError())\ndef test_it(): pass\n",
    )
    result = shop.run(*arguments, subprocess="-n2" in arguments)
    result.assert_outcomes(passed=1, skipped=5)
    assert [line for line in result.outlines if line.startswith("celery faults:")] == [SKIP_LINE.format("4 tests")]
    assert result.ret == 0


def test_one_skipped_test_is_one_test(shop):
    shop.test("import pytest\n@pytest.mark.inject(IOError())\ndef test_it(): pass\n")
    shop.run().stdout.fnmatch_lines([SKIP_LINE.format("1 test")])


@pytest.mark.parametrize("subprocess", [False, True], ids=["inprocess", "subprocess"])
def test_fixtures_and_inject_calls_work_without_the_flag(shop, subprocess):
    shop.test(
        body(
            """
            def test_it(celery_faults, celery_faults_app, celery_dlq, retry_recorder):
                assert celery_faults.app is celery_faults_app
                handle = celery_faults.inject(IOError, times=2)
                assert download.delay("x").get() == "done"
                assert (handle.fired, handle.remaining) == (2, 0)
                assert retry_recorder.delays == [1, 2]
                assert celery_faults.clock.elapsed == 3
                boom.delay()
                celery_faults.worker.drain()
                assert [letter.reason for letter in celery_dlq] == ["failed"]
                assert celery_faults.dlq is celery_dlq and celery_faults.retries is retry_recorder
            def test_unfired(celery_faults):
                celery_faults.inject(IOError)
            """
        )
    )
    result = shop.run(subprocess=subprocess)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["inject(OSError) never fired. What ran: no task at all."])


PARAMETRIZED = """
built = []

@pytest.fixture
def celery_faults_app():
    from shop import app
    built.append("harness")
    return app

@pytest.mark.parametrize("case", [
    "plain",
    pytest.param("marked", marks=pytest.mark.inject(IOError, times=1)),
    "another",
])
def test_it(case):
    assert built == (["harness"] if case == "marked" else []), "only the marked case pays"
    if case == "marked":
        assert download.delay("x").get() == "done"
    built.clear()
"""


def test_only_the_marked_case_of_a_parametrized_test_is_armed(shop):
    shop.test(body(PARAMETRIZED))
    result = shop.armed("-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["1 test, 1 task in 2 executions, *"])
    result = shop.run("-v")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*test_it?marked? SKIPPED*", SKIP_LINE.format("1 test")])
    assert "virtual time" not in result.stdout.str()


def test_a_marked_case_that_is_first_leaves_its_siblings_alone(shop):
    shop.test(
        body(
            """
            import time
            REAL = [time.sleep]  # in a list, where the harness does not look: a name of the module would be replaced
            @pytest.mark.parametrize("case", [pytest.param("marked", marks=pytest.mark.inject(KeyError())), "plain"])
            def test_it(case, request):
                assert ("celery_faults" in request.fixturenames) == (case == "marked")
                assert (time.sleep is REAL[0]) == (case == "plain")
                if case == "marked":
                    with pytest.raises(KeyError):
                        add.delay(1, 2).get()
            """
        )
    )
    shop.armed().assert_outcomes(passed=2)


def test_several_markers_add_up_nearest_first(shop):
    shop.test(
        body(
            """
            pytestmark = pytest.mark.inject(IOError("module"), times=1)

            @pytest.mark.inject(IOError("class"), times=1)
            class TestIt:
                @pytest.mark.inject(IOError("upper decorator"), times=1)
                @pytest.mark.inject(IOError("lower decorator"), times=2)
                def test_order(self, retry_recorder):
                    download.delay("x").get()
                    assert [str(e) for e in retry_recorder.exceptions] == [
                        "lower decorator", "lower decorator", "upper decorator", "class", "module",
                    ]
                    assert retry_recorder.delays == [1, 2, 4, 8, 16]
            """
        )
    )
    shop.armed().assert_outcomes(passed=1)


def test_times_counts_matching_executions_over_all_tasks(shop):
    shop.test(
        body(
            """
            @pytest.mark.inject(KeyError("k"), times=3, task=["shop.add", slow])
            def test_three(celery_faults):
                results = [add.delay(1, 2), download.delay("x"), slow.delay(1), add.delay(1, 2), add.delay(1, 2)]
                celery_faults.worker.drain()
                assert [r.state for r in results] == ["FAILURE", "SUCCESS", "FAILURE", "FAILURE", "SUCCESS"]

            @pytest.mark.inject(KeyError("k"), times=None)
            def test_every_time(celery_faults):
                results = [add.delay(1, 2) for _ in range(7)]
                celery_faults.worker.drain()
                assert {r.state for r in results} == {"FAILURE"}

            @pytest.mark.inject(KeyError("k"), at="return")
            def test_at_return(celery_faults):
                result = slow.delay(5)
                with pytest.raises(KeyError):
                    result.get()
                assert celery_faults.clock.elapsed == 5
            """
        )
    )
    shop.armed().assert_outcomes(passed=3)


NEVER_FIRED = """
@pytest.mark.inject(IOError, task="shop.download", times=2)
def test_another_task_ran():
    add.delay(1, 2).get()
    add.delay(1, 2).get()

@pytest.mark.inject(IOError())
def test_nothing_ran(): pass

@pytest.mark.inject(IOError, times=3)
def test_it_fired_less_often_than_asked():
    download.delay("x")

@pytest.mark.inject(IOError(), required=False)
def test_not_required(): pass

@pytest.mark.inject(IOError())
@pytest.mark.xfail(strict=True)
def test_expected_to_fail(): pass

@pytest.mark.inject(IOError())
def test_failed_already():
    assert 1 == 2, "its own reason"
"""


@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
def test_a_fault_that_never_fired_fails_the_test_in_its_call(shop, arguments):
    """One FAILED each, never an error of the tear-down; what is expected to fail is xfailed."""
    source = NEVER_FIRED.replace('    download.delay("x")', '    download.delay("x").get(timeout=100)')
    shop.test(body(source))
    result = shop.armed("-rA", *arguments, subprocess=bool(arguments))
    result.assert_outcomes(passed=2, failed=3, xfailed=1)
    result.stdout.fnmatch_lines_random(
        [
            "inject(OSError into shop.download, 2 times) never fired. What ran: shop.add (2 times).*",
            "inject(OSError()) never fired. What ran: no task at all.",
            "FAILED test_shop.py::test_another_task_ran - Failed: inject(OSError*",
            "FAILED test_shop.py::test_nothing_ran - Failed: inject(OSError()*",
            "FAILED test_shop.py::test_failed_already - AssertionError: its own reason*",
            "XFAIL test_shop.py::test_expected_to_fail*",
            "PASSED test_shop.py::test_not_required",
            "PASSED test_shop.py::test_it_fired_less_often_than_asked",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")
    result.stdout.no_fnmatch_line("*During handling of the above exception*")


def test_a_fault_that_fires_makes_a_strict_xfail_what_it_is(shop):
    shop.test(
        body(
            """
            @pytest.mark.inject(KeyError("k"))
            @pytest.mark.xfail(strict=True, raises=KeyError)
            def test_fails():
                add.delay(1, 2).get()

            @pytest.mark.inject(IOError())
            @pytest.mark.xfail(strict=True)
            def test_passes():
                download.delay("x").get()
            """
        )
    )
    result = shop.armed()
    result.assert_outcomes(xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["*[[]XPASS(strict)[]]*"])


def test_the_nearest_task_name_is_in_the_failure(shop):
    shop.pytester.makepyfile(
        shop2="from shop import app\n@app.task(name='shop.downloads')\ndef downloads(): pass\n",
    )
    shop.test(
        body(
            """
            import shop2
            @pytest.mark.inject(IOError(), task="shop.download")
            def test_it():
                shop2.downloads.delay().get()
            """
        )
    )
    result = shop.armed()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*never fired. What ran: shop.downloads (1 time*did you mean 'shop.downloads'?"])
    result.stdout.no_fnmatch_line("*Nearest did you mean*")


UNITTEST = """
import unittest
import pytest
from shop import add, download

class TestIt(unittest.TestCase):
    @pytest.mark.inject(IOError, times=2)
    def test_fires(self):
        self.assertEqual(download.delay("x").get(), "done")

    @pytest.mark.inject(IOError, times=2)
    def test_never_fires(self):
        pass

    def test_without(self):
        pass

@pytest.mark.inject(KeyError())
class TestAll(unittest.TestCase):
    def setUp(self):
        self.result = add.delay(1, 2)   # the harness is up before setUp
    def test_fires(self):
        with self.assertRaises(KeyError):
            self.result.get()
    def tearDown(self):
        add.delay(1, 2).get()           # and until after tearDown
"""


def test_the_marker_works_on_methods_of_a_unittest_test_case(shop):
    shop.test(UNITTEST)
    result = shop.armed("-rA", subprocess=True)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*inject(OSError, 2 times) never fired. What ran: no task at all.*"])
    result.stdout.fnmatch_lines(["FAILED test_shop.py::TestIt::test_never_fires*"])
    result = shop.run(subprocess=True)
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines([SKIP_LINE.format("3 tests")])


WRONG_INJECT = {
    "inject()": "inject() needs a fault*",
    "inject(times=2)": "inject() needs a fault*",
    "inject(3, times=1)": "inject() takes an exception class, an exception or a fault*not 3",
    "inject('IOError')": "inject() takes an exception class, an exception or a fault*not 'IOError'",
    "inject(IOError(), KeyError())": "inject() takes one fault*",
    "inject(IOError(), fault=KeyError)": "inject() got two faults*",
    "inject(IOError(), time=3)": "inject() has no argument 'time', did you mean 'times'?*task, times, skip*",
    "inject(IOError(), times=0)": "times=0: a whole number from 1 up*",
    "inject(IOError(), times=-1)": "times=-1: a whole number from 1 up*",
    "inject(IOError(), times='3')": "times='3': a whole number from 1 up*",
    "inject(IOError(), times=True)": "times=True: a whole number from 1 up*",
    "inject(IOError(), times=1.0)": "times=1.0: a whole number from 1 up*",
    "inject(IOError(), at='strat')": "at='strat': choose one of start, return, did you mean 'start'?*",
    "inject(IOError(), at=3)": "at=3: a point such as 'start', or a function*",
    "inject(IOError(), at=[])": "at=[[][]]: a point such as 'start', or a function*",
    "inject(IOError(), at='')": "at='': choose one of start, return*",
    "inject(IOError(), required='no')": "required='no': True or False",
    "inject(IOError(), task=3)": "task=3: a task, its name*",
    "inject(IOError(), task=[])": "task=[[][]]: name at least one task*",
    "inject(IOError(), task='')": "task='': a task, its name*",
    "inject(IOError(), task=['shop.add', None])": "task=None: a task, its name*",
    "inject(UnicodeDecodeError, times=1)": "UnicodeDecodeError cannot be made without arguments*pass an instance*",
    "inject(Sleep, times=1)": "Sleep needs its seconds*",
}

WRONG_SETTINGS = {
    "celery_faults({})": "celery_faults() takes keyword arguments only",
    "celery_faults(brokr='redis')": "celery_faults() has no argument 'brokr', did you mean 'broker'?*It takes: conf*",
    "celery_faults(broker='kafka')": "celery_faults(broker='kafka'): choose one of redis, rabbitmq*",
    "celery_faults(broker='rabbit')": "*choose one of redis, rabbitmq, did you mean 'rabbitmq'?",
    "celery_faults(broker=3)": "celery_faults(broker=3): choose one of redis, rabbitmq*",
    "celery_faults(clock='fast')": "celery_faults(clock='fast'): choose one of virtual, real*",
    "celery_faults(concurrency=0)": "celery_faults(concurrency=0): a whole number from 1 up",
    "celery_faults(concurrency='4')": "celery_faults(concurrency='4'): a whole number from 1 up",
    "celery_faults(concurrency=True)": "celery_faults(concurrency=True): a whole number from 1 up",
    "celery_faults(max_executions=0)": "celery_faults(max_executions=0): a whole number from 1 up",
    "celery_faults(stall_timeout=0)": "celery_faults(stall_timeout=0): real seconds above 0",
    "celery_faults(stall_timeout=float('nan'))": "celery_faults(stall_timeout=nan): real seconds above 0",
    "celery_faults(stall_timeout='30')": "celery_faults(stall_timeout='30'): real seconds",
    "celery_faults(quarantine=1)": "celery_faults(quarantine=1): True or False",
    "celery_faults(delivery_limit=-1)": "celery_faults(delivery_limit=-1): a whole number from 0 up, or None",
    "celery_faults(delivery_limit='5')": "celery_faults(delivery_limit='5'): a whole number from 0 up, or None",
    "celery_faults(conf=['x'])": "celery_faults(conf=[[]'x'[]]): a dict of Celery settings",
    "celery_faults(start='now')": "celery_faults(start='now'): a datetime*",
    "celery_faults(dlq=3)": "celery_faults(dlq=3): the name of a queue, or None",
    "celery_faults(queues=[3])": "celery_faults(queues=[[]3[]]): a list of *",
    "celery_faults(queues=3)": "celery_faults(queues=3): a list of *",
    "celery_faults(apps=['shop'])": "celery_faults(apps=[[]'shop'[]]): a list of *",
    "celery_faults(apps=3)": "celery_faults(apps=3): a list of *",
}


@pytest.mark.parametrize("mark", [*WRONG_INJECT, *WRONG_SETTINGS])
def test_wrong_arguments_fail_the_collection_armed_or_not(shop, mark):
    message = {**WRONG_INJECT, **WRONG_SETTINGS}[mark]
    shop.test(
        "import pytest\nfrom pytest_celery_faults import Sleep\n"
        f"@pytest.mark.{mark}\ndef test_it(): raise NotImplementedError('not reached')\n"
    )
    for result in (shop.run("-rN"), shop.armed("-rN")):
        result.assert_outcomes(errors=1)
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.stdout.fnmatch_lines(["*ERROR collecting test_shop.py*", f"*{message}"])
        result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")
        result.stdout.no_fnmatch_line("*Traceback*")
        result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.parametrize(
    "place",
    [
        "pytestmark = pytest.mark.inject(IOError(), times=0)\ndef test_it(): pass\n",
        "@pytest.mark.inject(IOError(), times=0)\nclass TestIt:\n    def test_it(self): pass\n",
        "import unittest\nclass TestIt(unittest.TestCase):\n"
        "    @pytest.mark.inject(IOError(), times=0)\n    def test_it(self): pass\n",
        "@pytest.mark.parametrize('x', [1, pytest.param(2, marks=pytest.mark.inject(IOError(), times=0))])\n"
        "def test_it(x): pass\n",
    ],
    ids=["module", "class", "unittest", "parametrized case"],
)
@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
def test_a_wrong_argument_is_found_wherever_the_marker_stands(shop, place, arguments):
    shop.test("import pytest\n" + place)
    for armed in ([], ["--celery-faults"]):
        result = shop.run(*armed, *arguments, subprocess=bool(arguments))
        assert result.ret != 0
        result.stdout.fnmatch_lines(["*ERROR collecting test_shop.py*", "*times=0: a whole number from 1 up*"])
        result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")
        result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_wrong_sleep_is_an_error_at_its_line(shop):
    shop.test(
        "import pytest\nfrom pytest_celery_faults import Sleep\n@pytest.mark.inject(Sleep(-1))\ndef test_it(): pass\n"
    )
    result = shop.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_shop.py:3: in *", "*FaultValueError: Sleep() takes seconds from 0 up, not -1"])


def test_an_unknown_task_name_is_an_error_of_that_tests_set_up(shop):
    shop.test(
        body(
            """
            @pytest.mark.inject(IOError(), task="shop.downlod")
            def test_wrong(): raise NotImplementedError("not reached")
            @pytest.mark.inject(IOError(), task="shop.download")
            def test_right(): download.delay("x").get()
            """
        )
    )
    for arguments in ([], ["-n2"]):
        result = shop.armed(*arguments, subprocess=bool(arguments))
        result.assert_outcomes(errors=1, passed=1)
        result.stdout.fnmatch_lines(
            ["*inject(OSError(), task='shop.downlod'): no such task, did you mean 'shop.download'?*shop.add*"]
        )
        result.stdout.no_fnmatch_line("*pytest_celery_faults/*.py:*")
        result.stdout.no_fnmatch_line("*During handling of the above exception*")


def test_settings_of_all_levels_merge_and_the_nearest_wins(shop):
    shop.test(
        body(
            """
            import datetime
            pytestmark = pytest.mark.celery_faults(
                conf={"result_expires": 11, "task_inherit_parent_priority": True, "task_time_limit": 3},
                broker="rabbitmq", start=datetime.datetime(2030, 1, 1),
            )

            @pytest.mark.celery_faults(conf={"result_expires": 22, "task_soft_time_limit": 2}, concurrency=2)
            class TestIt:
                @pytest.mark.celery_faults(conf={"task_time_limit": None, "task_soft_time_limit": None}, concurrency=3)
                def test_nearest(self, celery_faults):
                    conf = celery_faults.app.conf
                    assert (conf.result_expires, conf.task_inherit_parent_priority) == (22, True)
                    assert (conf.task_time_limit, conf.task_soft_time_limit) == (None, None)
                    assert celery_faults.broker.manners == "rabbitmq"
                    assert celery_faults.clock.now() == datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)
                    results = [slow.delay(10) for _ in range(3)]
                    celery_faults.worker.drain()
                    assert celery_faults.clock.elapsed == 10, "three at once"

                def test_class(self, celery_faults):
                    assert celery_faults.app.conf.task_soft_time_limit == 2
                    assert celery_faults.app.conf.task_time_limit == 3

                @pytest.mark.celery_faults(concurrency=1)
                @pytest.mark.celery_faults(concurrency=4, broker="redis")
                def test_the_uppermost_decorator_is_farthest(self, celery_faults):
                    assert celery_faults.broker.manners == "redis"
                    [slow.delay(1) for _ in range(4)]
                    celery_faults.worker.drain()
                    assert celery_faults.clock.elapsed == 1

            def test_module(celery_faults):
                assert celery_faults.app.conf.result_expires == 11
            """
        )
    )
    shop.run().assert_outcomes(passed=4)


def test_without_a_marker_the_settings_are_the_apps(shop):
    shop.test(
        body(
            """
            import time
            def test_defaults(celery_faults):
                assert celery_faults.broker.manners == "redis"
                assert abs(celery_faults.clock.time() - real_time()) < 60
                [slow.delay(10) for _ in range(2)]
                celery_faults.worker.drain()
                assert celery_faults.clock.elapsed == 20, "one after the other"
            def real_time():
                import _pytest.timing
                return _pytest.timing.time()
            """
        )
    )
    shop.run().assert_outcomes(passed=1)


def test_the_settings_marker_alone_brings_the_harness_up(shop):
    """Without the flag too: it is no fault, so it does not wait for it."""
    shop.test(
        body(
            """
            @pytest.mark.celery_faults(conf={"task_ignore_result": False})
            def test_it():
                assert add.delay(1, 2).get() == 3
            """
        )
    )
    shop.run().assert_outcomes(passed=1)


# -- marks that do not stand at a test

LATE = """
@pytest.fixture
def in_a_fixture(request):
    request.node.add_marker(pytest.mark.inject(KeyError(), times=1))

def test_by_a_fixture(in_a_fixture): pass

def test_by_itself(request, celery_faults):
    request.node.add_marker(pytest.mark.inject(KeyError(), times=0))

def test_a_setting(request):
    request.node.add_marker(pytest.mark.celery_faults(concurrency=2))

def test_of_other_plugins(request):
    request.node.add_marker(pytest.mark.xfail(strict=True))
    assert False
"""


@pytest.mark.parametrize("arguments", [[], ["--celery-faults"], ["--celery-faults", "-n2"]], ids=" ".join)
def test_a_mark_that_is_added_while_the_test_runs_fails_it(shop, arguments):
    shop.test(body("import pytest\n" + LATE))
    result = shop.run(*arguments, subprocess="-n2" in arguments)
    result.assert_outcomes(failed=3, xfailed=1)
    late = "@pytest.mark.{} was added while the test ran, which is too late: *"
    result.stdout.fnmatch_lines([late.format("inject") + "celery_faults.inject()"])
    result.stdout.fnmatch_lines([late.format("celery_faults") + "mark the test where it is defined"])


ADDED = """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        if item.name.startswith("test_added"):
            wrong = item.name.endswith("wrong")
            item.add_marker(pytest.mark.inject(KeyError("k"), times=0 if wrong else 1, task="shop.add"))
"""


def test_a_mark_that_a_hook_adds_at_collection_counts_like_any_other(shop):
    shop.pytester.makeconftest(ADDED)
    shop.test(
        body(
            """
            def test_added(celery_faults):
                with pytest.raises(KeyError):
                    add.delay(1, 2).get()

            def test_added_wrong(): raise NotImplementedError("not reached")
            """
        )
    )
    wrong = "*@pytest.mark.inject: times=0: a whole number from 1 up*"
    for arguments in ([], ["-n2"]):
        result = shop.armed(*arguments, subprocess=bool(arguments))
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines([wrong])
    result = shop.run()
    result.assert_outcomes(skipped=1, errors=1)
    result.stdout.fnmatch_lines([wrong])


PLACES_OF_A_WRONG_MARK = {
    "the class of a TestCase": """
        import unittest

        @pytest.mark.inject(KeyError(), times=0)
        class TestIt(unittest.TestCase):
            def test_it(self): raise NotImplementedError
        """,
    "the module of a TestCase": """
        import unittest

        pytestmark = pytest.mark.inject(KeyError(), times=0)

        class TestIt(unittest.TestCase):
            def test_it(self): raise NotImplementedError
        """,
    "an inherited method of a TestCase": """
        import unittest

        class Mixin:
            @pytest.mark.inject(KeyError(), times=0)
            def test_it(self): raise NotImplementedError

        class TestIt(Mixin, unittest.TestCase):
            pass
        """,
    "the parameter of a fixture": """
        @pytest.fixture(params=[pytest.param(1, marks=pytest.mark.inject(KeyError(), times=0))])
        def one(request): return request.param

        def test_it(one): raise NotImplementedError
        """,
    "the setting of a TestCase": """
        import unittest

        @pytest.mark.celery_faults(concurrency=0)
        class TestIt(unittest.TestCase):
            def test_it(self): raise NotImplementedError
        """,
    "the setting of a fixture's parameter": """
        @pytest.fixture(params=[pytest.param(1, marks=pytest.mark.celery_faults(conf=3))])
        def one(request): return request.param

        def test_it(one): raise NotImplementedError
        """,
}


@pytest.mark.parametrize("place", PLACES_OF_A_WRONG_MARK)
@pytest.mark.parametrize("arguments", [[], ["--celery-faults"]], ids=["not armed", "armed"])
def test_a_wrong_mark_is_an_error_wherever_it_comes_from(shop, place, arguments):
    shop.test(body(PLACES_OF_A_WRONG_MARK[place]))
    result = shop.run(*arguments)
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines([r"@pytest\.mark\.(inject: times=0|celery_faults: celery_faults\(con.*=[03]\)): a .*"])
    result.stdout.no_fnmatch_line("*pytest_celery_faults/*")
    result.stdout.no_fnmatch_line("*NotImplementedError*")
