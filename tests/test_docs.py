"""The code blocks of the pages in docs/ run, and what they say that a run prints is what it prints.

Blocks that begin with a comment such as ``# shop/tasks.py`` are that file: the first of a page is its application, the
last the imports of its tests. All others are tests. Where one is followed by a block of text, its tests fail, and the
text is what pytest then prints; a line ``...`` stands for any number of lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
FILE = re.compile(r"# ([\w/]+\.py)\n")
TEST = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)

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

class ConnectionError(OSError):
    pass

def get(url, **options):
    return SimpleNamespace(text=url.rpartition("/")[2])
"""


@dataclass
class Example:
    """A block of tests, and what it prints when they are such as fail."""

    code: str
    prints: list[str] = field(default_factory=list)

    @property
    def tests(self) -> list[str]:
        return TEST.findall(self.code)


@dataclass
class Page:
    """The files and examples of a page."""

    files: dict[str, str] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    #: What stands in it and would not be looked at.
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Page:
        page, last = cls(), ""
        for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            file = FILE.match(code)
            if language == "python" and file:
                page.files[file[1]] = code
            elif language == "python" and TEST.search(code):
                page.examples.append(Example(code))
            elif language == "text" and last == "example":
                page.examples[-1].prints = code.splitlines()
            else:
                page.skipped.append(code)
            last = "example" if language == "python" and not file else language
        return page


PAGES = {path.relative_to(DOCS).as_posix(): Page.read(path) for path in sorted(DOCS.rglob("*.md"))}
RUN = {name: page for name, page in PAGES.items() if page.files or page.examples}


@pytest.fixture
def project(pytester, monkeypatch):
    # pytest says more in a failure there.
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    package = pytester.mkpydir("shop")
    (package / "celery.py").write_text(APP)
    (package / "gateway.py").write_text(GATEWAY)
    pytester.makepyfile(requests=REQUESTS)
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\ncelery_faults_app = "shop.celery:app"\npythonpath = ["."]\ntestpaths = ["tests"]\n'
    )
    pytester.mkdir("tests")
    return pytester


def test_no_block_is_left_out():
    assert set(RUN) >= {"reference.md", *(name for name in PAGES if name.startswith("howto/"))}
    assert len(RUN) >= 5
    for name, page in PAGES.items():
        assert page.skipped == [], name
        fences = re.findall(r"^ *(?:```|~~~).*", (DOCS / name).read_text("utf-8"), re.MULTILINE)
        prints = sum(bool(example.prints) for example in page.examples)
        assert len(fences) == 2 * (len(page.files) + len(page.examples) + prints), name


@pytest.mark.parametrize("name", RUN)
def test_a_page_says_what_its_tests_are_about(name):
    page = RUN[name]
    application, *more, tests = page.files
    assert (application, tests) == ("shop/tasks.py", "test_shop.py")
    assert all(file.startswith("shop/") for file in more)
    names = [test for example in page.examples for test in example.tests]
    assert len(names) == len(set(names)) > 2


@pytest.mark.parametrize("name", RUN)
def test_the_examples_of_a_page_do_what_it_says(project, name):
    page = RUN[name]
    for file, code in page.files.items():
        if file != "test_shop.py":
            (project.path / file).write_text(code)
    for number, example in enumerate(page.examples):
        (project.path / "tests" / f"test_{number}.py").write_text(f"{page.files['test_shop.py']}\n\n{example.code}")
    failing = {test for example in page.examples for test in example.tests if example.prints}
    is_async = any("@pytest.mark.asyncio" in example.code for example in page.examples)
    asyncio = (
        ("-o", "asyncio_default_fixture_loop_scope=function") if is_async else ("-p", "no:asyncio", "-p", "no:anyio")
    )

    result = project.runpytest_subprocess("--celery-faults", *asyncio, "-W", "error", "-rA", timeout=120)

    ended = re.findall(r"^([A-Z]+) tests/\S+?::(?:\w+::)?([\w\[\]-]+)", "\n".join(result.outlines), re.MULTILINE)
    assert sorted(ended) == sorted(
        ("FAILED" if test in failing else "PASSED", test) for example in page.examples for test in example.tests
    )
    for example in page.examples:
        assert_printed(example.prints, result.outlines)


def assert_printed(expected: list[str], lines: list[str]) -> None:
    """Each stretch of lines between two ``...`` was printed as it stands, one after the other."""
    lines = [line.rstrip() for line in lines]
    position = 0
    for stretch in "\n".join(expected).split("\n...\n"):
        wanted = [as_pattern(line) for line in stretch.removesuffix("\n...").splitlines()]
        starts = range(position, len(lines) - len(wanted) + 1)
        found = next((start for start in starts if all(map(fnmatchcase, lines[start:], wanted))), None)
        assert found is not None, "was not printed:\n" + stretch
        position = found + len(wanted)


def as_pattern(line: str) -> str:
    """A line that a run prints; how long it took and the ids of tasks are others in each run."""
    line = re.sub(r"in \d+\.\d+ s$", "in * s", line.replace("[", "[[]"))
    return re.sub(r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b", "*", line)
