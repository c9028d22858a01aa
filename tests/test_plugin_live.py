"""``--celery-faults-live``, on a terminal and where there is none."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import time

import pytest

pytest.importorskip("rich", reason="rich is not installed: the extra `live`")
pyte = pytest.importorskip("pyte", reason="pyte, which shows what a terminal does, is not installed")

SLOW = """
        import shop

        def real_seconds(seconds):
            import _thread
            lock = _thread.allocate_lock()
            lock.acquire()
            lock.acquire(True, seconds)

        @shop.app.task
        def work(number):
            real_seconds(0.15)
            if number == 3:
                raise ValueError(number)

        def test_quick(celery_faults):
            assert shop.add.delay(1, 2).get() == 3

        def test_slow(celery_faults):
            print("[red]what a test prints[/red]")
            for number in range(5):
                work.apply_async((number,), countdown=number * 60)
            celery_faults.worker.drain()

        def test_that_fails(celery_faults):
            work.delay(1)
            celery_faults.worker.drain()
            assert False

        def test_plain():
            pass
"""


class Terminal:
    """Pytest on a pseudo-terminal: all that was written, and the screen before each time something is taken away.

    What was written is looked at when all of it is there: how much of it one read gets depends on the machine's load.
    """

    def __init__(self, command: list[str], folder: str, environment: dict[str, str]) -> None:
        self.screen = pyte.HistoryScreen(100, 60, history=1000)
        self.code, written = self._run(command, folder, environment)
        self.written = written.decode()
        self.screens: list[list[str]] = []
        stream = pyte.ByteStream(self.screen)
        for part in re.split(rb"(?=\r\x1b\[2K)", written):
            stream.feed(part)
            self.screens.append(self.lines())

    @staticmethod
    def _run(command: list[str], folder: str, environment: dict[str, str]) -> tuple[int, bytes]:
        pid, master = pty.fork()
        if pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, environment)  # noqa: S606
        written = b""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if not select.select([master], [], [], 1)[0]:
                continue
            try:
                written += os.read(master, 65536)
            except OSError:  # the other end is closed
                break
        os.close(master)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), written

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]


@pytest.fixture
def on_terminal(shop, unmeasured):
    def run(*options: str, **environment: str) -> Terminal:
        shop.test(SLOW)
        names = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
        command = [
            sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:anyio", "-p", "no:cacheprovider",
            "--celery-faults-live", "--color=no", *options,
        ]  # fmt: skip
        names |= {"TERM": "xterm", "COLUMNS": "100", "LINES": "60", "PYTHONPATH": os.pathsep.join(sys.path)}
        return Terminal(command, str(shop.pytester.path), names | environment)

    return run


def test_what_happens_is_on_the_screen_while_it_does(on_terminal):
    terminal = on_terminal()
    views = [screen for screen in terminal.screens if any(line.startswith("virtual time") for line in screen)]
    facts = [
        {head: text for head, _, text in (re.split(r"(\s{2,})", line, maxsplit=1) for line in view if "  " in line)}
        for view in views
    ]
    slow = [each for each in facts if each.get("test 2 of 4", "").endswith("::test_slow")]
    assert "0:02:00" in {each["virtual time"] for each in slow}
    assert any("STARTED 1" in each["tasks"] and "RECEIVED" in each["tasks"] for each in slow)
    assert any("SUCCESS 3" in each["tasks"] for each in slow)
    assert {each["workers"] for each in slow} <= {
        "celery@in-memory online, 0 active",
        "celery@in-memory online, 1 active",
    }
    assert {each["queues"] for each in slow} == {"empty"}
    assert {each["faults fired"] for each in slow} == {"none"}


@pytest.mark.parametrize("options", [(), ("-v",), ("--capture=sys",), ("-rA",)], ids=" ".join)
def test_nothing_of_it_is_left_and_nothing_of_pytests_is_lost(on_terminal, options):
    terminal = on_terminal(*options)
    assert terminal.code == pytest.ExitCode.TESTS_FAILED
    lines = [*terminal.lines()]
    assert not any("virtual time  " in line or line.startswith("test 2 of 4") for line in lines)
    if "-v" in options:
        assert [line.split()[1] for line in lines if re.match(r"test_shop.py::\w+ [A-Z]", line)] == [
            "PASSED", "PASSED", "FAILED", "PASSED",
        ]  # fmt: skip
    else:
        assert any(re.match(r"test_shop\.py \.\.F\.\s+\[100%\]$", line) for line in lines)
    assert any(line.startswith("FAILED test_shop.py::test_that_fails") for line in lines)
    assert any("1 failed, 3 passed" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "environment", "why"),
    [
        (("-s",), {}, "-s: what tests print is on the terminal"),
        (("-n1",), {}, "the tests run in the processes of pytest-xdist"),
        ((), {"CI": "true"}, "the variable CI is set"),
        ((), {"TERM": "dumb"}, "this is no terminal"),
    ],
)
def test_where_it_would_be_in_the_way_the_head_says_so(on_terminal, options, environment, why):
    terminal = on_terminal(*options, **environment)
    assert f"celery faults: no live view: {why}" in terminal.written.replace("\r", "").splitlines()
    assert "virtual time  " not in terminal.written


def test_a_quiet_run_stays_quiet(on_terminal):
    assert "virtual time  " not in on_terminal("-q").written


@pytest.mark.parametrize("ini", [False, True])
def test_where_there_is_no_terminal_no_control_codes_are_written(shop, ini):
    shop.test(SLOW)
    shop.ini("celery_faults_app = shop:app", *(["celery_faults_live = true"] if ini else []))
    result = shop.run(*([] if ini else ["--celery-faults-live"]), subprocess=True)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["celery faults: no live view: this is no terminal"])
    assert "\x1b" not in result.stdout.str()


def test_without_rich_it_is_a_usage_error(shop, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "rich" else found(name, *more))
    shop.test(SLOW)
    result = shop.run("--celery-faults-live")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(['*rich*is not installed: pip install "pytest-celery-faults[[]live]"*'])
    shop.run().assert_outcomes(passed=3, failed=1)


def test_an_ini_value_that_is_none(shop):
    shop.test("def test_it(): pass")
    shop.ini("celery_faults_live = perhaps")
    result = shop.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*celery_faults_live = 'perhaps' in the configuration: choose true or false*"])
