"""A browser, where there is one, and a page for it: one of each for the whole session."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin_helpers import SHOP
from report_helpers import show

#: Tests of which the page has something of everything.
TESTS = """
import pytest
from pytest_celery_faults import Crash, Duplicate, Revoke, Sleep
from shop import add, app, boom, download, slow

@app.task
def parent(count):
    for n in range(count):
        add.delay(n, n)

@app.task(bind=True, max_retries=3)
def poll(self):
    if self.request.retries < 3:
        raise self.retry(countdown=[0.1, 0.1, 1800][self.request.retries])

@app.task(time_limit=5, soft_time_limit=4, acks_late=True)
def resize(name): pass

def test_passes(celery_faults):
    parent.delay(3)
    celery_faults.worker.drain()

@pytest.mark.inject(OSError("gone"), times=2)
def test_retries():
    download.delay("x.csv").get()

def test_long_waits(celery_faults):
    poll.delay()
    celery_faults.worker.drain()

@pytest.mark.inject(Duplicate(), task=resize)
@pytest.mark.inject(Sleep(beyond="soft_time_limit"), task=resize)
def test_fails(celery_faults):
    resize.delay("cat.png")
    celery_faults.worker.drain()
    assert not celery_faults.dlq

@pytest.fixture
def breaks():
    raise ValueError("set-up")

def test_breaks(celery_faults, breaks): pass
def test_skips(celery_faults): pytest.skip("not here")

OWNED = "</script><script>document.title = 'owned'</script><img src=x onerror=\\"document.title='owned'\\"><!--"

@pytest.mark.parametrize("text", [OWNED])
def test_hostile(celery_faults, text):
    add.delay(text, "\\ud83d\\u202e\\x1b[31m" + "x" * 10**5)
    celery_faults.worker.drain()
    assert 0, text
"""


#: What a browser tells a page in its own time comes later still, so that what does not wait for it fails everywhere.
LATE = """
{
  const late = heard => function (...told) { setTimeout(() => heard.apply(this, told), 50); };
  window.ResizeObserver = class extends ResizeObserver { constructor(heard) { super(late(heard)); } };
  const { addEventListener } = EventTarget.prototype;
  EventTarget.prototype.addEventListener = function (kind, heard, ...rest) {
    return addEventListener.call(this, kind, kind === "toggle" ? late(heard) : heard, ...rest);
  };
}
"""


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "shop.py").write_text(SHOP.replace("{port}", "1"))
    (folder / "test_shop.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\ncelery_faults_app = shop:app\npythonpath = .\n")
    command = [sys.executable, "-m", "pytest", "--celery-faults", "--celery-faults-report=report.html"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    ended = subprocess.run(  # noqa: S603 - pytest, on the tests above
        [*command, "-p", "celery_faults"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stdout
    return folder / "report.html"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's chromium, driven by selenium."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("no browser: selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no browser: chromium and chromedriver (Debian's chromium-driver) are not installed")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location, driver = programs
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--force-device-scale-factor=1"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(driver))
    try:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LATE})
        yield browser
    finally:
        browser.quit()
        browser.command_executor.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """The browser in its first state; whatever a page says on its console is an error."""
    chromium.get_log("browser")
    show(chromium, 1280)
    yield chromium
    assert chromium.get_log("browser") == []
