"""Where there is no redis-server, the comparison with a real worker is skipped, and that is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(folder: Path, *arguments: str) -> list[str]:
    """What pytest says of two scenarios; it finds programs in ``folder`` only."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", "-k", "result_ignored"]
    completed = subprocess.run(  # noqa: S603  our own tests
        [*command, *arguments],
        cwd=ROOT,
        # Options of the run around this one are not for it.
        env={**os.environ, "PATH": str(folder), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (completed.returncode, completed.stderr) == (0, "")
    return completed.stdout.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ("tests/fidelity", "-q", "-rN"),
        ("tests/fidelity", "-q", "-rN", "-n", "2"),
        ("tests", "--ignore-glob=tests/test_*", "--ignore=tests/engine", "-q", "-rN", "-n", "2"),
    ],
    ids=" ".join,
)
def test_what_is_skipped_is_said_in_a_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    lines = run(tmp_path, *arguments)
    said = [line for line in lines if "redis-server" in line]
    assert said == ["fidelity: redis-server is not installed; 2 comparisons with a real worker were skipped"]
    assert lines[-1].startswith("2 skipped")


def test_each_skip_says_why(tmp_path: Path) -> None:
    skips = [line for line in run(tmp_path, "tests/fidelity", "-rs") if line.startswith("SKIPPED")]
    assert len(skips) == 1
    assert skips[0].startswith("SKIPPED [2] ")
    assert skips[0].endswith("redis-server is not installed: nothing real to compare with")
