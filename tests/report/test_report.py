"""``--celery-faults-report``: what is on the page, of whichever run, and what keeps it from being written."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from plugin_helpers import section
from pytest_celery_faults.report import collect
from report_helpers import Page

MIXED = """
import pytest
from shop import add, app, boom, download, slow

@app.task
def parent():
    add.delay(1, y=2)

def test_none_of_ours(): pass

def test_children(celery_faults):
    parent.delay()
    celery_faults.worker.drain()

@pytest.mark.inject(OSError("gone"), times=2)
def test_retries():
    assert download.delay("x.csv").get() == "done"

def test_letter(celery_faults):
    boom.delay()
    celery_faults.worker.drain()

@pytest.mark.inject(OSError, times=1)
def test_fails(celery_faults):
    download.delay("y.csv").get()
    assert 0, "its own reason"

@pytest.mark.xfail(reason="not yet")
def test_expected(celery_faults): assert 0

def test_skips(celery_faults): pytest.skip("not here")

@pytest.fixture
def breaks():
    yield
    raise ValueError("tear-down")

def test_breaks(celery_faults, breaks): pass
"""


def report(shop, *arguments: str, subprocess: bool = False, name: str = "report.html") -> tuple[Page, pytest.RunResult]:
    result = shop.armed(f"--celery-faults-report={name}", *arguments, subprocess=subprocess)
    return Page.read(shop.pytester.path / name), result


def test_the_page_has_what_happened_in_each_test(shop):
    shop.test(MIXED)
    page, result = report(shop)
    assert page.outcomes == {
        "test_fails": "failed",
        "test_breaks": "error",
        "test_skips": "skipped",
        "test_children": "passed",
        "test_retries": "passed",
        "test_letter": "passed",
        "test_expected": "xfailed",
    }
    assert list(page.outcomes)[:2] == ["test_fails", "test_breaks"], "first what somebody has to look at"
    assert page.run["others"] == {"passed": 1}
    assert section(result, "celery faults")[-1] == f"report: {shop.pytester.path / 'report.html'}"

    record = page.record("test_retries")
    (task,) = record["tasks"]
    assert (task["label"], task["call"], task["queue"], task["state"]) == (
        "shop.download#1", "'x.csv'", "celery", "SUCCESS",
    )  # fmt: skip
    events = page.events("test_retries")
    attempts = [
        (number, began, ended, state, exception, delay, events[start].split()[1], events[stop].split()[1])
        for number, began, ended, start, stop, state, exception, delay, _ in task["attempts"]
    ]
    assert attempts == [
        (1, 0, 0, "RETRY", "OSError('gone')", 1, "started", "retried"),
        (2, 1, 1, "RETRY", "OSError('gone')", 2, "started", "retried"),
        (3, 3, 3, "SUCCESS", "", None, "started", "succeeded"),
    ]
    assert "1 fault fired shop.download#1 2 OSError('gone')" in events
    index = page.index("test_retries")
    assert (index["elapsed"], index["executions"], index["faults"]) == (3, 3, {"OSError": 2})
    assert (index["states"], index["letters"], index["tasks"]) == ({"SUCCESS": 1}, {}, ["shop.download"])
    assert 0 < index["real"] < 60

    parent, child = page.record("test_children")["tasks"]
    assert (parent["parent"], child["parent"], child["call"]) == (-1, 0, "1, y=2")
    assert page.events("test_children")[child["sent"]] == "0 sent shop.add#1 to celery"

    record = page.record("test_letter")
    assert record["dead"] == [[0, 0, "failed", "harness", "celery", "ValueError('boom')", ""]]
    assert page.index("test_letter")["letters"] == {"failed": 1}
    assert page.index("test_letter")["states"] == {"FAILURE": 1}

    ((when, outcome, text, gist),) = page.tries_of("test_fails")[0]["phases"]
    assert (when, outcome, gist) == ("call", "failed", "AssertionError: its own reason")
    assert '>       assert 0, "its own reason"' in text
    assert page.tries_of("test_breaks")[0]["phases"][0][:2] == ["teardown", "error"]
    assert page.tries_of("test_skips")[0]["phases"][0][2] == "Skipped: not here"
    assert "not yet" in page.tries_of("test_expected")[0]["phases"][0][2]


def comparable(page: Page) -> dict[str, object]:
    """What must be the same of two runs with one seed."""
    tests = {}
    for test, tries in zip(page.run["tests"], page.tries, strict=True):
        for one in tries:
            if one["record"] is not None:
                one["record"].pop("real", None)
        tests[test["id"]] = [test["outcome"], [[one["outcome"], one["record"]] for one in tries]]
    return tests


def test_xdist_makes_the_same_page(shop):
    shop.test(MIXED)
    page, _ = report(shop, "--celery-faults-seed=5", subprocess=True)
    for arguments in (["-n0"], ["-n2"], ["-n2", "--dist=loadfile"], ["-n2", "--dist=worksteal", "-q"]):
        other, result = report(shop, "--celery-faults-seed=5", *arguments, subprocess=True)
        assert comparable(other) == comparable(page), arguments
        assert list(other.outcomes)[:2] == list(page.outcomes)[:2]
        assert other.run["others"] == {"passed": 1}
        assert section(result, "celery faults")[-1].startswith("report: ")


def test_with_dist_each_a_test_is_there_once_for_each_worker(shop):
    shop.test("from shop import add\ndef test_it(celery_faults): add.delay(1, 2).get()\n")
    page, _ = report(shop, "--dist=each", "--tx=2*popen", subprocess=True)
    assert sorted(test["id"] for test in page.run["tests"]) == [
        "test_shop.py::test_it [gw0]",
        "test_shop.py::test_it [gw1]",
    ]


def test_a_worker_of_xdists_that_crashes_takes_no_other_test_along(shop):
    shop.test(
        """
        import os
        from shop import add
        def test_before(celery_faults): add.delay(1, 2).get()
        def test_crashes(celery_faults): os._exit(3)
        def test_after(celery_faults): add.delay(1, 2).get()
        """
    )
    page, _ = report(shop, "-n1", subprocess=True)
    assert page.outcomes == {"test_crashes": "error", "test_before": "passed", "test_after": "passed"}
    assert "crashed while running" in page.tries_of("test_crashes")[-1]["phases"][0][2]
    assert page.record("test_before")["tasks"][0]["state"] == "SUCCESS"


def test_an_interrupted_run_has_what_there_is(shop):
    shop.test(
        """
        from shop import add
        def test_before(celery_faults): add.delay(1, 2).get()
        def test_interrupted(celery_faults):
            add.delay(1, 2).get()
            raise KeyboardInterrupt
        def test_after(celery_faults): pass
        """
    )
    page, result = report(shop, subprocess=True)
    assert result.ret == 2
    assert page.run["exit"] == 2
    assert page.outcomes == {"test_interrupted": "interrupted", "test_before": "passed"}
    assert "0 succeeded shop.add#1 1" in page.events("test_interrupted")
    result.stdout.fnmatch_lines(["report: *report.html"])


def test_what_is_secret_by_its_name_is_not_on_the_page(shop):
    shop.test("""
        from shop import app

        @app.task
        def login(user, password, **more):
            raise KeyError(user)

        def test_it(celery_faults, celery_dlq):
            secret = "hunter" + "2"
            login.delay("ann", secret, x_api_key=secret, options={"Auth-Token": secret})
            celery_faults.worker.drain()
            assert celery_dlq[0].args == ["ann", secret]
    """)
    page, result = report(shop)
    result.assert_outcomes(passed=1)
    call = "'ann', ***, x_api_key=***, options={'Auth-Token': ***}"
    record = page.record("test_it")
    assert record["tasks"][0]["call"] == call
    assert record["dead"][0][-1] == call
    assert "hunter2" not in page.text


def test_a_page_about_no_test_says_so(shop):
    shop.test("def test_it(): pass\ndef test_fails(): assert 0\n")
    page, result = report(shop)
    assert (page.run["tests"], page.run["others"]) == ([], {"passed": 1, "failed": 1})
    assert section(result, "celery faults") == [f"report: {shop.pytester.path / 'report.html'}"]


def test_faults_that_are_off_and_files_that_cannot_be_collected_are_on_the_page(shop):
    shop.test(
        "import pytest\n@pytest.mark.inject(OSError, times=1)\ndef test_it(): pass\n",
        test_wrong="import pytest\n@pytest.mark.inject(OSError, times=0)\ndef test_it(): pass\n",
    )
    shop.run("--celery-faults-report=report.html", "--continue-on-collection-errors")
    page = Page.read(shop.pytester.path / "report.html")
    assert page.outcomes == {"test_wrong.py": "error", "test_it": "skipped"}
    assert "times=0" in page.tries[0][0]["phases"][0][2]
    assert "--celery-faults" in page.tries_of("test_it")[0]["phases"][0][2]


def test_each_test_of_a_shared_worker_has_its_own_part(shop):
    shop.test(
        """
        import pytest
        from celery.contrib.testing import tasks
        from celery.contrib.testing.worker import start_worker
        from shop import add, app, slow

        @pytest.fixture(scope="session", autouse=True)
        def worker():
            with start_worker(app, perform_ping_check=False): yield

        def test_first():
            slow.delay(10).get()
        def test_second():
            add.delay(1, 2).get()
        """
    )
    page, _ = report(shop)
    assert [task["label"] for task in page.record("test_second")["tasks"]] == ["shop.add#1"]
    assert page.index("test_first")["elapsed"] == 10
    assert page.index("test_second")["elapsed"] == 0


def test_a_task_that_goes_on_from_test_to_test_begins_at_0_in_the_later_one(shop):
    shop.test(
        """
        import pytest
        from celery.contrib.testing.worker import start_worker
        from shop import app, slow

        @pytest.fixture(scope="module", autouse=True)
        def worker():
            with start_worker(app, perform_ping_check=False) as worker: yield worker

        def test_first(celery_faults):
            slow.delay(10)
            celery_faults.worker.advance(4)
        def test_second(celery_faults):
            celery_faults.worker.advance(7)
        """
    )
    page, _ = report(shop)
    ((_, began, ended, start, stop, *_),) = page.record("test_first")["tasks"][0]["attempts"]
    assert (began, ended, stop) == (0, None, -1)
    assert start >= 0
    ((_, began, ended, start, stop, *_),) = page.record("test_second")["tasks"][0]["attempts"]
    assert (began, ended, start) == (0, 6, -1)
    assert page.events("test_second")[stop] == "6 succeeded shop.slow#1 1"


HOSTILE = """
import pytest
from shop import app

@app.task
def swallow(*args, **kwargs): pass

@app.task(name="</script><img src=x onerror=alert(1)>")
def named(): raise ValueError("<!--<script>\\x00\\x1b[31m")

class Odd:
    def __repr__(self): raise KeyError("no repr")

@pytest.mark.parametrize("text", ["</script><script>document.title = 'owned'</script>"])
@pytest.mark.celery_faults(conf=dict(task_serializer="pickle", accept_content=["pickle"]))
def test_it(celery_faults, text):
    swallow.delay(text, "<!--", "]]>", "&lt;", "a\\u2028b\\u202ec", "\\ud83d", "\\x00\\x1b[31m", "x" * 10**6)
    swallow.delay(float("nan"), float("inf"), 10**200, {"deep": [[[[[[[["x"]]]]]]]]}, None, b"\\xff", key="v" * 1000)
    swallow.delay(list(range(10**5)), *range(100))
    swallow.delay(Odd())
    named.delay()
    celery_faults.worker.drain()
    assert 0, text + "\\x00\\u202e"
"""


@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
def test_hostile_data_stays_data(shop, arguments):
    shop.test(HOSTILE)
    page, result = report(shop, *arguments, subprocess=True)
    result.assert_outcomes(failed=1)
    assert len(page.code) == 1, "only our own script would be executed"
    data = page.text[page.text.index('id="run">') : page.text.rindex("<script>")]
    assert re.sub(r'</script>\n<script type="application/json" id="test-\d+">|</script>\n$', "", data).count("<") == 0
    assert data.isascii()
    assert "onerror" not in page.text[: page.text.index('id="run">')]
    (record,) = [tries[-1]["record"] for tries in page.tries]
    calls = [task["call"] for task in record["tasks"]]
    assert calls[0].startswith("\"</script><script>document.title = 'owned'</script>\", '<!--', ']]>', '&lt;'")
    assert calls[1].startswith("nan, inf, 1000000")
    assert calls[3].startswith("<Odd")
    assert record["tasks"][4]["label"] == "</script><img src=x onerror=alert(1)>#1"
    assert len(page.text) < 100_000
    shown = json.dumps([page.run, page.tries])
    assert not re.search(r"\\u(d[89a-f]|00[01]|202)", shown.replace("\\\\", "").replace("\\n", "")), "nothing unseen"


def test_long_texts_are_cut():
    assert collect.clean("abc", 10) == "abc"
    assert collect.clean("x" * 300, 10) == f"{'x' * 10}… [290 characters left out]"
    long = collect.clean("a" * 20_000 + "b" * 20_000)
    assert len(long) < 20_100
    assert long.startswith("aaa")
    assert long.endswith("bbb")
    assert collect.clean("\ud800\x1b\u202e\n\t\u2028") == "\\ud800\\x1b\\u202e\n\t\\u2028"


def test_a_test_of_very_many_events_is_cut(shop, monkeypatch):
    monkeypatch.setattr(collect, "MOST_EVENTS", 50)
    monkeypatch.setattr(collect, "MOST_TASKS", 4)
    shop.test(
        """
        from shop import add
        def test_it(celery_faults):
            for n in range(30): add.delay(n, n)
            celery_faults.worker.drain()
        """
    )
    page, _ = report(shop)
    record = page.record("test_it")
    assert len(record["tasks"]) == 4
    events, tasks = record["omitted"]
    assert tasks == 26
    index = page.index("test_it")
    assert index["events"] == events + len(record["events"]) > 100
    assert (index["states"], index["executions"]) == ({"SUCCESS": 30}, 30)


# -- where it goes


@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
@pytest.mark.parametrize(
    ("path", "why"), [("folder", "Is a directory"), ("file/report.html", "(File exists|Not a directory)")]
)
def test_a_path_that_cannot_be_written_is_said_before_the_tests_run(shop, path, why, arguments):
    shop.test("from pathlib import Path\ndef test_it(): Path('ran').touch()\n")
    shop.pytester.mkdir("folder")
    shop.pytester.path.joinpath("file").touch()
    result = shop.run(f"--celery-faults-report={path}", *arguments, subprocess=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    message = re.escape(f"--celery-faults-report = {path!r}: {shop.pytester.path / path} cannot be written: ")
    assert re.search(f"^ERROR: {message}{why}", result.stderr.str(), re.MULTILINE)
    assert not shop.pytester.path.joinpath("ran").exists()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_nobody_may_write_to(shop):
    shop.test("def test_it(): pass\n")
    shop.pytester.mkdir("locked").chmod(0o500)
    result = shop.run("--celery-faults-report=locked/report.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Permission denied" in result.stderr.str()


def test_folders_are_made_and_an_older_page_is_replaced(shop):
    shop.test("def test_it(celery_faults): pass\n")
    page, _ = report(shop, name="new/folder/report.html")
    assert page.outcomes == {"test_it": "passed"}
    shop.test("def test_other(celery_faults): pass\n")
    page, _ = report(shop, name="new/folder/report.html")
    assert page.outcomes == {"test_other": "passed"}


def test_the_ini_key_is_seen_from_the_root_folder_and_the_flag_goes_before_it(shop, monkeypatch):
    shop.test("def test_it(celery_faults): pass\n")
    shop.ini("celery_faults_app = shop:app", "celery_faults_report = pages/report.html")
    folder = shop.pytester.mkdir("elsewhere")
    monkeypatch.chdir(folder)
    shop.run("..")
    assert Page.read(shop.pytester.path / "pages/report.html").outcomes == {"test_it": "passed"}
    shop.pytester.path.joinpath("pages/report.html").unlink()
    shop.run("..", "--celery-faults-report=here.html")
    assert (folder / "here.html").is_file()
    result = shop.run("..", "--celery-faults-report=")
    assert "report:" not in result.stdout.str()
    assert not shop.pytester.path.joinpath("pages/report.html").exists()
    shop.ini("celery_faults_report = elsewhere")
    result = shop.run("..")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "celery_faults_report = 'elsewhere': " in result.stderr.str()


@pytest.mark.parametrize("option", ["--collect-only", "--fixtures", "--markers", "--help"])
def test_nothing_is_written_when_no_tests_are_run(shop, option):
    shop.test("def test_it(celery_faults): pass\n")
    shop.run("--celery-faults-report=new/report.html", option)
    assert not shop.pytester.path.joinpath("new").exists()


def test_a_page_that_cannot_be_written_in_the_end_is_said_and_changes_no_outcome(shop):
    shop.test(
        """
        import os
        def test_it(celery_faults): os.mkdir("report.html")
        """
    )
    result = shop.run("--celery-faults-report=report.html")
    assert result.ret == 0
    assert section(result, "celery faults")[-1].startswith(
        f"report: {shop.pytester.path / 'report.html'} could not be written: "
    )


def test_without_the_option_nothing_of_it_is_imported(shop, unmeasured):
    shop.test(
        """
        import sys
        from shop import add
        def test_it(celery_faults): add.delay(1, 2).get()
        def test_what_is_there():
            assert not [name for name in sys.modules if name.startswith("pytest_celery_faults.report")]
        """
    )
    shop.run(subprocess=True).assert_outcomes(passed=2)


def test_the_page_is_part_of_the_package():
    package = os.path.dirname(collect.__file__)
    assert {"page.html", "page.css", "page.js"} <= set(os.listdir(package))
    assert "pytest_celery_faults" in sys.modules


def test_delays_that_json_cannot_say(shop):
    shop.test(
        """
        from celery.exceptions import Retry
        from shop import app

        @app.task(bind=True)
        def endless(self): raise self.retry(countdown=float("inf"))

        @app.task
        def never(): raise Retry("never", when=float("nan"))

        def test_it(celery_faults):
            endless.delay()
            never.delay()
            celery_faults.worker.drain()
        """
    )
    page, _ = report(shop)
    assert [task["label"] for task in page.record("test_it")["tasks"]] == ["test_shop.endless#1", "test_shop.never#1"]
    assert "NaN" not in page.text
    assert "Infinity" not in page.text[page.text.index('id="run"') : page.text.rindex("<script>")]


def test_subtests_and_unittest(shop):
    shop.test(
        """
        import unittest
        import pytest
        from celery.contrib.testing.worker import start_worker
        from shop import add, app

        def test_sub(celery_faults, subtests):
            for number in range(3):
                with subtests.test(number=number):
                    assert add.delay(1, number).get() < 3

        class TestUnit(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                worker = start_worker(app, perform_ping_check=False)
                worker.__enter__()
                cls.addClassCleanup(worker.__exit__, None, None, None)
            def test_unit(self):
                assert add.delay(1, 2).get() == 3
        """
    )
    if not hasattr(pytest, "Subtests"):
        pytest.skip("pytest has subtests from version 9 on")
    page, _ = report(shop)
    assert page.outcomes == {"test_sub": "failed", "test_unit": "passed"}
    assert len(page.record("test_sub")["tasks"]) == 3
    assert page.index("test_sub")["tries"] == 1
    assert len(page.record("test_unit")["tasks"]) == 1


def test_what_cannot_be_shown_ends_no_run(shop, monkeypatch):
    def breaks(harness):
        raise ValueError("a bug")

    monkeypatch.setattr(collect, "record_of", breaks)
    shop.test("from shop import add\ndef test_it(celery_faults): add.delay(1, 2).get()\n")
    page, result = report(shop)
    result.assert_outcomes(passed=1)
    assert page.tries_of("test_it")[0]["phases"][0][2] == (
        "What is known of its tasks cannot be shown: ValueError('a bug')"
    )
