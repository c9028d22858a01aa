"""What a run says at its end, and what the report of a failing test holds."""

from __future__ import annotations

import re

import pytest

from plugin_helpers import section

MIXED = """
import pytest
from pytest_celery_faults import Sleep
from shop import add, app, boom, download, slow

@app.task(time_limit=5)
def limited():
    pass

@pytest.mark.inject(IOError, times=3)
def test_retries():
    download.delay("x").get()           # 7 s, 4 executions

@pytest.mark.inject(KeyError("k"))
@pytest.mark.inject(Sleep(beyond="time_limit"), task="test_shop.limited")
def test_kinds(celery_faults):
    limited.delay()                     # ended at 5 s
    add.delay(1, 2)
    add.delay(3, 4)
    celery_faults.worker.drain()

def test_letters(celery_faults):
    boom.delay()
    boom.delay()
    slow.delay(3600).get()

def test_none_of_ours(): pass

@pytest.mark.inject(IOError())
def test_fails():
    download.delay("x").get()           # 1 s
    assert 0, "its own reason"
"""


@pytest.mark.parametrize("arguments", [[], ["-q"], ["-n2"], ["-n2", "-q"]], ids=" ".join)
def test_the_summary_adds_up_all_tests_of_all_workers(shop, arguments):
    shop.test(MIXED)
    result = shop.armed(*arguments, subprocess=True)
    result.assert_outcomes(passed=4, failed=1)
    lines = section(result, "celery faults")
    virtual = 7 + 5 + 3600 + 1
    numbers = re.fullmatch(
        r"4 tests, 8 tasks in 12 executions, ([\d.]+) min of virtual time in (\d+\.\d\d) s", lines[0]
    )
    assert numbers is not None, lines
    assert float(numbers[1]) == round(virtual / 60, 1)
    assert 0 < float(numbers[2]) < 60, "real seconds, not virtual ones"
    faults = dict(re.findall(r"(\w+) (\d+)", lines[1].removeprefix("faults fired: ")))
    assert faults == {"OSError": "4", "KeyError": "1", "Sleep": "1"}
    letters = dict(re.findall(r"(\w+) (\d+)", lines[2].removeprefix("dead letters: ")))
    assert letters == {"failed": "3", "time_limit": "1"}
    assert len(lines) == 3
    assert result.stdout.str().count("virtual time") == 1


def test_without_faults_and_letters_the_summary_says_so(shop):
    shop.test("from shop import add\ndef test_it(celery_faults): add.delay(1, 2).get()\n")
    lines = section(shop.run(), "celery faults")
    assert re.fullmatch(r"1 test, 1 task in 1 execution, 0 s of virtual time in \d+\.\d\d s", lines[0])
    assert lines[1:] == ["faults fired: none", "dead letters: none"]


@pytest.mark.parametrize("arguments", [[], ["--celery-faults"], ["--celery-faults", "-n2"]], ids=" ".join)
def test_there_is_no_summary_when_nothing_of_ours_ran(shop, arguments):
    shop.test("def test_it(): pass\ndef test_fails(): assert 0\n")
    result = shop.run(*arguments, subprocess=True)
    result.assert_outcomes(passed=1, failed=1)
    assert [line for line in result.outlines if "celery faults" in line and "seed=" not in line] == []
    assert "dead letters" not in result.stdout.str()


def test_a_test_whose_set_up_fails_is_counted_and_an_error_before_the_harness_is_not(shop):
    shop.test(
        """
        import pytest
        from shop import add
        @pytest.fixture
        def breaks():
            add.delay(1, 2).get()
            raise ValueError("set-up")
        def test_it(celery_faults, breaks): pass
        """
    )
    result = shop.run()
    result.assert_outcomes(errors=1)
    assert section(result, "celery faults")[0].startswith("1 test, 1 task in 1 execution")
    shop.ini("celery_faults_app = nothing:app")
    result = shop.run(subprocess=True)
    result.assert_outcomes(errors=1)
    assert "virtual time" not in result.stdout.str()


FAILING = """
import pytest
from shop import download, jittery

@pytest.mark.inject(IOError, times=2)
def test_fails():
    download.delay("x").get()
    jittery.delay().get()
    assert 0, "its own reason"

@pytest.mark.inject(IOError, times=3)
def test_jitter_fails():
    jittery.delay().get()
    assert 0, "its own reason"
"""


def timelines(result: pytest.RunResult) -> dict[str, list[str]]:
    """The timeline in the report of each failing test."""
    found: dict[str, list[str]] = {}
    name, inside = "", False
    for line in result.outlines:
        head = re.fullmatch(r"_+ (\w+) _+", line)
        if head:
            name, inside = head[1], False
        elif re.fullmatch(r"-+ celery faults timeline -+", line):
            assert name not in found, "one section for each test"
            found[name], inside = [], True
        elif re.match(r"[-=]{3,}", line):
            inside = False
        elif inside:
            found[name].append(line)
    return found


@pytest.mark.parametrize("arguments", [[], ["-n2"], ["--tb=short"], ["-q"]], ids=" ".join)
def test_a_failing_tests_report_has_the_timeline(shop, arguments):
    shop.test(FAILING)
    result = shop.armed(*arguments, subprocess=True)
    result.assert_outcomes(failed=2)
    found = timelines(result)
    assert found.keys() == {"test_fails", "test_jitter_fails"}
    events = [" ".join(line.split()) for line in found["test_fails"]]
    expected = [
        "0.000000 s sent shop.download#1 to celery",
        "0.000000 s started shop.download#1 attempt 1",
        "0.000000 s fault fired shop.download#1 attempt 1 OSError",
        "0.000000 s retried shop.download#1 attempt 1 in 1 s",
        "1.000000 s started shop.download#1 attempt 2",
        "1.000000 s retried shop.download#1 attempt 2 in 2 s",
        "3.000000 s started shop.download#1 attempt 3",
        "3.000000 s succeeded shop.download#1 attempt 3",
        "3.000000 s sent shop.jittery#1 to celery",
        "3.000000 s succeeded shop.jittery#1 attempt 1",
    ]
    positions = [events.index(event) for event in expected]
    assert positions == sorted(positions)


def test_one_line_of_it_is_in_the_failures_text_too(shop):
    shop.test(FAILING)
    result = shop.armed("-k", "test_fails", "--show-capture=no")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*celery faults: *OSError*last event: 3.000000 s succeeded shop.jittery#1 attempt 1*"])


def test_two_runs_with_one_seed_print_the_same_timeline(shop):
    shop.test(FAILING)
    seed = "--celery-faults-seed=5"
    first = timelines(shop.armed(seed, subprocess=True))
    assert len(first["test_jitter_fails"]) > 10
    for again in (
        shop.armed(seed, subprocess=True),
        shop.armed(seed),
        shop.armed(seed, "-n2", subprocess=True),
        shop.armed(seed, "--celery-faults-app=shop:app", "-v", "--tb=long"),
    ):
        assert timelines(again) == first
    other = timelines(shop.armed("--celery-faults-seed=6"))
    assert other["test_fails"] == first["test_fails"], "no chance in it"
    assert other["test_jitter_fails"] != first["test_jitter_fails"]


def test_passed_and_skipped_tests_and_those_without_events_have_no_timeline(shop):
    shop.test(
        """
        import pytest
        from shop import add
        def test_passes(celery_faults): add.delay(1, 2).get()
        def test_skips(celery_faults):
            add.delay(1, 2).get()
            pytest.skip("enough")
        def test_fails_without_events(celery_faults): assert 0
        def test_fails_without_us(): assert 0
        """
    )
    result = shop.run("-rA", subprocess=True)
    result.assert_outcomes(passed=1, skipped=1, failed=2)
    assert "celery faults timeline" not in result.stdout.str()


def test_an_error_of_set_up_or_tear_down_has_the_timeline(shop):
    shop.test(
        """
        import pytest
        from shop import add
        @pytest.fixture
        def before():
            add.delay(1, 2).get()
            raise ValueError("set-up")
        @pytest.fixture
        def after():
            yield
            add.delay(1, 2).get()
            raise ValueError("tear-down")
        def test_set_up(celery_faults, before): pass
        def test_tear_down(celery_faults, after): pass
        """
    )
    result = shop.run()
    result.assert_outcomes(passed=1, errors=2)
    assert result.stdout.str().count("succeeded       shop.add#1 attempt 1") == 2 + result.stdout.str().count(
        "last event:"
    )


@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
def test_pytests_own_durations_stay_real(shop, arguments):
    shop.test(
        """
        import pytest, time
        from shop import add, slow
        @pytest.fixture
        def long_set_up():
            slow.delay(6 * 3600).get()
            yield
            time.sleep(6 * 3600)
        # On Redis an ETA beyond the visibility timeout is delivered again and again; here one execution is enough.
        @pytest.mark.celery_faults(broker="rabbitmq")
        def test_long(celery_faults, long_set_up):
            assert add.apply_async((1, 2), countdown=6 * 3600).get() == 3
            assert celery_faults.clock.elapsed == 12 * 3600
        """
    )
    result = shop.run("--durations=0", "--durations-min=0", "-vv", "--junitxml=report.xml", *arguments, subprocess=True)
    result.assert_outcomes(passed=1)
    durations = [
        float(line.split("s ")[0]) for line in result.outlines if re.match(r"[\d.]+s +(setup|call|teardown) ", line)
    ]
    assert len(durations) == 3, result.stdout.str()
    assert max(durations) < 60
    total = re.search(r"1 passed in ([\d.]+)s", result.stdout.str())
    assert total is not None
    assert float(total[1]) < 60
    times = re.findall(r'time="([\d.]+)"', (shop.pytester.path / "report.xml").read_text())
    assert times
    assert max(map(float, times)) < 60
    assert section(result, "celery faults")[0].startswith("1 test, 2 tasks in 2 executions, 18.0 h of virtual time in ")
