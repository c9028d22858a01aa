"""A suite written for Celery's own test tools, as its documentation shows them: on a thread and a real Redis, and here.

``tests/suites/contrib`` runs unchanged on both, in a process of its own, and each of its tests has to end alike.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import celery
import pytest

SUITE = Path(__file__).parent / "suites" / "contrib"
#: How many tests it has.
SIZE = 39


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


@pytest.fixture(scope="module")
def real_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of our own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: nothing real to compare with")
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        deadline = time.monotonic() + 10
        while True:
            assert server.poll() is None, "redis-server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


def run(folder: Path, url: str, *options: str) -> tuple[dict[str, str], float]:
    """How each test of the suite ends, and how long that takes altogether, in seconds."""
    folder.mkdir(exist_ok=True)
    suite = shutil.copytree(SUITE, folder / "suite", ignore=shutil.ignore_patterns("__pycache__"))
    (suite / "pytest.ini").write_text("[pytest]\n")
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-p", "no:anyio", "-q", f"--junitxml={report}"]
    began = time.perf_counter()
    completed = subprocess.run(  # noqa: S603  our own tests
        [*command, *options],
        cwd=suite,
        env={**os.environ, "SUITE_REDIS_URL": url, "PYTEST_ADDOPTS": "", "PYTHONDEVMODE": ""},
        capture_output=True,
        text=True,
        timeout=150,
    )
    took = time.perf_counter() - began
    assert completed.returncode in (0, 1), completed.stdout + completed.stderr
    return outcomes(report), took


def outcomes(report: Path) -> dict[str, str]:
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  it is pytest's
        ends = [
            f"{end.tag} {end.get('type') or ''}".strip() for end in case if end.tag in ("failure", "error", "skipped")
        ]
        found[f"{case.get('classname')}::{case.get('name')}"] = ", ".join(ends) or "passed"
    return found


@pytest.fixture(scope="module")
def nowhere() -> Iterator[str]:
    """A URL at which nobody answers."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{holder.getsockname()[1]}/0"


@pytest.mark.skipif(celery.VERSION[:3] < (5, 6, 3), reason="Celery's own test worker forgets tasks that are due later")
def test_each_test_ends_as_with_celerys_own_worker(tmp_path, real_url, nowhere, record_property):
    real, real_took = run(tmp_path / "real", real_url)
    ours, ours_took = run(tmp_path / "ours", nowhere, "--celery-faults", "-W", "error")
    record_property("seconds on a real Redis", f"{real_took:.1f}")
    record_property("seconds in memory", f"{ours_took:.1f}")
    assert ours == real
    assert len(real) == SIZE
    assert ours_took < real_took / 2


@pytest.mark.parametrize("options", [(), ("-n", "2", "--dist=loadfile")], ids=["alone", "xdist"])
def test_it_passes_in_memory(tmp_path, nowhere, options):
    found, _took = run(tmp_path / "ours", nowhere, "--celery-faults", "-W", "error", *options)
    assert len(found) == SIZE
    assert {name.rpartition("::")[2]: end for name, end in found.items() if end != "passed"} == {
        "test_a_wrong_assertion": "skipped pytest.xfail",
        "test_skipped": "skipped pytest.skip",
        **({} if celery.VERSION >= (5, 7) else {"test_group_is_saved": "skipped pytest.xfail"}),
    }


def test_the_comparison_sees_how_a_test_ends(tmp_path, nowhere):
    """Where Celery's worker is left alone it finds no Redis, and the tests end otherwise."""
    found, _took = run(
        tmp_path / "ours", nowhere, "--celery-faults", "--celery-faults-takeover=false", "-k", "TestDouble or skipped"
    )
    assert found == {
        "test_own_worker.TestDouble::test_one": "error",
        "test_own_worker.TestDouble::test_two": "error",
        "test_session_scope::test_skipped": "skipped pytest.skip",
    }
