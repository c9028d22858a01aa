"""The README's code runs, and a failure looks as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TASKS, TESTS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
[FAILURE] = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)

APP = """
from celery import Celery

app = Celery("shop", broker="redis://localhost:6379/0", include=["shop.tasks"])
"""
HEAD = """
import pytest

from pytest_celery_faults import Sleep
from shop.tasks import download, resize

"""


@pytest.fixture
def project(pytester, monkeypatch):
    package = pytester.mkpydir("shop")
    (package / "celery.py").write_text(APP)
    bodies = TASKS.replace("def download(name): ...", 'def download(name): return "done"')
    (package / "tasks.py").write_text("from shop.celery import app\n" + bodies)
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\ncelery_faults_app = "shop.celery:app"\n')
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    return pytester


def test_the_example_passes(project):
    project.makepyfile(test_tasks=HEAD + TESTS)
    result = project.runpytest_subprocess("--celery-faults", "-p", "no:asyncio")
    result.assert_outcomes(passed=2)


def test_a_failure_looks_like_that(project):
    lines = FAILURE.splitlines()
    source = [line[4:] for line in lines[:2]] + [f"    {lines[2][5:].strip()}"]
    project.makepyfile(test_tasks=HEAD + "\n".join(source))
    result = project.runpytest_subprocess("--celery-faults", "-p", "no:asyncio")
    result.assert_outcomes(failed=1)
    expected = [
        "*" if line.strip() == "..." else re.sub(r"in \d+\.\d+ s$", "in * s", line.replace("[", "[[]"))
        for line in lines[3:]
    ]
    result.stdout.fnmatch_lines(expected)
