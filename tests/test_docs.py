"""The code blocks of the reference run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text(encoding="utf-8")
TASKS, IMPORTS, *EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)

APP = """
from celery import Celery

app = Celery("shop", broker="redis://localhost:6379/0", include=["shop.tasks"])
"""
GATEWAY = """
class BusyError(Exception):
    pass

def pay(order):
    return f"{order} is paid"
"""
REQUESTS = """
from types import SimpleNamespace

def get(url):
    return SimpleNamespace(text=url.rpartition("/")[2])
"""


@pytest.fixture
def project(pytester, monkeypatch):
    package = pytester.mkpydir("shop")
    (package / "celery.py").write_text(APP)
    (package / "gateway.py").write_text(GATEWAY)
    imports = "from celery.exceptions import Reject\nfrom shop import gateway\nfrom shop.celery import app\n"
    (package / "tasks.py").write_text(imports + TASKS)
    pytester.makepyfile(requests=REQUESTS)
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\ncelery_faults_app = "shop.celery:app"\n')
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    return pytester


def test_every_block_with_tests_is_an_example():
    assert sum(example.count("def test_") for example in EXAMPLES) == PAGE.count("\ndef test_") > 10


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.search(r"def (\w+)", example)[1])
def test_the_example_passes(project, example):
    project.makepyfile(test_shop=f"{IMPORTS}\n\n{example}")
    result = project.runpytest_subprocess("--celery-faults", "-p", "no:asyncio", "-W", "error")
    result.assert_outcomes(passed=example.count("def test_"))
