"""What arms a run, the seed, and what a wrong option says."""

from __future__ import annotations

import re

import pytest

ARMED_OR_NOT = """
import pytest
from shop import download

@pytest.mark.inject(IOError, times=1)
def test_retried(retry_recorder):
    assert download.delay("x").get() == "done"
    assert retry_recorder.delays == [1]
"""

JITTER = """
import pytest
from shop import jittery

@pytest.mark.inject(IOError, times=4)
def test_first(retry_recorder):
    jittery.delay().get()
    print("delays of first:", retry_recorder.delays)

@pytest.mark.inject(IOError, times=4)
def test_second(retry_recorder):
    jittery.delay().get()
    print("delays of second:", retry_recorder.delays)
"""


def delays(result: pytest.RunResult) -> dict[str, str]:
    """The delays that each test of JITTER printed."""
    found = dict(re.findall(r"delays of (\w+): (\[.*\])", result.stdout.str()))
    assert found, result.stdout.str()
    return found


@pytest.mark.parametrize(
    ("ini", "flags", "armed"),
    [
        ([], [], False),
        ([], ["--celery-faults"], True),
        (["celery_faults = true"], [], True),
        (["celery_faults = Yes"], [], True),
        (["celery_faults = on"], [], True),
        (["celery_faults = 1"], [], True),
        (["celery_faults = false"], [], False),
        (["celery_faults = off"], [], False),
        (["celery_faults = no"], [], False),
        (["celery_faults = 0"], [], False),
        (["celery_faults = false"], ["--celery-faults"], True),
    ],
)
def test_the_flag_or_its_ini_twin_arms_the_run(shop, ini, flags, armed):
    shop.ini("celery_faults_app = shop:app", *ini)
    shop.test(ARMED_OR_NOT)
    result = shop.run(*flags)
    result.assert_outcomes(passed=int(armed), skipped=int(not armed))
    assert result.ret == 0


@pytest.mark.parametrize("subprocess", [False, True], ids=["inprocess", "subprocess"])
def test_an_ini_value_that_is_none_is_a_usage_error(shop, subprocess):
    shop.ini("celery_faults = ture")
    shop.test(ARMED_OR_NOT)
    result = shop.run(subprocess=subprocess)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: celery_faults = 'ture'*true or false*did you mean 'true'?"])
    result.stderr.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "4294967296", "1e3"])
@pytest.mark.parametrize("twin", ["flag", "ini"])
def test_a_seed_that_is_none_is_a_usage_error(shop, value, twin):
    if twin == "ini":
        shop.ini(f"celery_faults_seed = {value}")
    result = shop.run(*([f"--celery-faults-seed={value}"] if twin == "flag" else []))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    key = {"flag": "--celery-faults-seed", "ini": "celery_faults_seed"}[twin]
    result.stderr.fnmatch_lines([f"ERROR: {key} = '{value}': a whole number from 0 to 4294967295"])


@pytest.mark.parametrize("seed", ["0", "7", "4294967295"])
def test_the_seed_is_in_the_header_of_an_armed_run(shop, seed):
    shop.test("def test_nothing(): pass")
    shop.armed(f"--celery-faults-seed={seed}").stdout.fnmatch_lines(
        [f"celery faults: armed, --celery-faults-seed={seed}"]
    )
    shop.ini(f"celery_faults_seed = {seed}", "celery_faults = true")
    shop.run().stdout.fnmatch_lines([f"celery faults: armed, --celery-faults-seed={seed}"])
    shop.run("--celery-faults-seed=11").stdout.fnmatch_lines(["celery faults: armed, --celery-faults-seed=11"])


def test_an_unarmed_run_has_nothing_of_ours_in_its_header(shop):
    shop.test("def test_nothing(): pass")
    result = shop.run("--celery-faults-seed=7")
    result.stdout.no_fnmatch_line("celery faults*")
    result.assert_outcomes(passed=1)


def test_the_seed_of_the_header_replays_the_run(shop):
    shop.test(JITTER)
    first = shop.armed("-s")
    first.assert_outcomes(passed=2)
    seed = re.search(r"--celery-faults-seed=(\d+)", first.stdout.str())
    assert seed is not None
    assert delays(shop.armed("-s", seed[0])) == delays(first)


def test_two_runs_without_a_seed_differ(shop):
    shop.test("def test_nothing(): pass")
    seeds = {re.search(r"--celery-faults-seed=(\d+)", shop.armed().stdout.str())[1] for _ in range(3)}
    assert len(seeds) == 3


def test_the_same_seed_gives_the_same_jitter_and_another_seed_another(shop):
    shop.test(JITTER)
    one, again = (delays(shop.armed("-s", "--celery-faults-seed=1")) for _ in range(2))
    other = delays(shop.armed("-s", "--celery-faults-seed=2"))
    assert one == again
    assert one["first"] != other["first"]
    assert one["second"] != other["second"]
    assert one["first"] != one["second"], "each test has a stream of its own"


def test_selection_order_and_workers_do_not_change_what_a_test_draws(shop):
    shop.test(JITTER)
    seed = "--celery-faults-seed=1"
    whole = delays(shop.armed("-s", seed))
    assert delays(shop.armed("-s", seed, "-k", "second")) == {"second": whole["second"]}
    assert delays(shop.armed("-s", seed, "test_shop.py::test_second", "test_shop.py::test_first")) == whole
    distributed = shop.armed("-rP", seed, "-n2", subprocess=True)
    distributed.assert_outcomes(passed=2)
    assert delays(distributed) == whole


def test_the_workers_of_xdist_share_a_random_seed(shop):
    shop.test(
        """
        import pytest
        @pytest.mark.parametrize("n", range(8))
        def test_seed(n, request):
            from pytest_celery_faults.options import STASH_KEY
            print("seed:", request.config.stash[STASH_KEY].seed)
        """
    )
    result = shop.armed("-rP", "-n2", subprocess=True)
    result.assert_outcomes(passed=8)
    output = result.stdout.str()
    in_header = re.search(r"--celery-faults-seed=(\d+)", output)
    assert in_header is not None
    assert set(re.findall(r"seed: (\d+)", output)) == {in_header[1]}


def test_without_the_plugin_its_flag_is_unknown(shop):
    shop.ini()
    shop.test("def test_nothing(): pass")
    result = shop.run("-p", "no:celery_faults", "--celery-faults", subprocess=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --celery-faults*"])
    shop.run("-p", "no:celery_faults", subprocess=True).assert_outcomes(passed=1)


def test_it_works_without_assertion_rewriting(shop):
    shop.test(ARMED_OR_NOT + "\n@pytest.mark.inject(KeyError())\ndef test_unfired(): pass\n")
    result = shop.armed("--assert=plain", subprocess=True)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*never fired*"])


def test_help_and_markers_describe_what_there_is(shop):
    shop.run("--help").stdout.fnmatch_lines(
        [
            "*--celery-faults *",
            "*--celery-faults-app=PKG.MOD:APP*",
            "*--celery-faults-seed=N*",
            "*celery_faults (string)*",
        ]
    )
    shop.run("--markers").stdout.fnmatch_lines(["@pytest.mark.inject(fault, *", "@pytest.mark.celery_faults(*"])


def test_a_run_that_uses_nothing_of_ours_loads_nothing(shop, unmeasured):
    shop.test(
        """
        import sys
        def test_light():
            heavy = {"celery", "kombu", "redis", "fakeredis", "freezegun", "greenlet"}
            assert not heavy & set(sys.modules)
        """
    )
    result = shop.armed(subprocess=True)
    result.assert_outcomes(passed=1)
    assert "celery faults" not in result.stdout.str().split("test session starts")[1].split("test_shop.py")[1]
