"""Make the pictures of the README: of the report, and of what a failing test prints.

It needs Debian's packages chromium and chromium-driver, and ``pip install selenium pillow`` beside the plugin::

    python docs/pictures/make.py
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
FAILING = HERE / "failing.py"
WIDTH = 1180

#: The colors that pytest prints with, as a dark terminal shows them.
STYLES = {
    "1": "font-weight:700", "31": "color:#ff7b72", "32": "color:#7ee787", "33": "color:#e3b341", "34": "color:#79c0ff",
    "35": "color:#d2a8ff", "36": "color:#56d4dd", "90": "color:#8b949e", "94": "color:#a5d6ff", "96": "color:#b3f0ff",
}  # fmt: skip
TERMINAL = """<!DOCTYPE html><meta charset="utf-8"><title>terminal</title><style>
body { margin: 0; background: #0d1117; color: #e6edf3; width: fit-content; padding: 16px 20px }
pre { margin: 0; width: 114ch; white-space: pre-wrap; font: 13px/1.45 "DejaVu Sans Mono", monospace }
</style><pre>%s</pre>"""


def run(*arguments: str) -> str:
    """What pytest prints; the failing test fails."""
    command = [sys.executable, "-m", "pytest", "--celery-faults", "-W", "error", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "COLUMNS": "110"}
    done = subprocess.run(  # noqa: S603 - pytest, on the files of this project
        command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 1:
        sys.exit(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def colored(text: str) -> str:
    """What a terminal makes of its escapes, as HTML."""
    parts, is_open = [], False
    for part in re.split(r"(\x1b\[[\d;]*m)", text):
        if not part.startswith("\x1b"):
            parts.append(html.escape(part))
            continue
        parts.append("</span>" * is_open)
        style = ";".join(STYLES[code] for code in part[2:-1].split(";") if code in STYLES)
        is_open = bool(style)
        parts.append(f'<span style="{style}">' * is_open)
    return "".join(parts)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def failure(text: str) -> str:
    """The part that is about the failure, without what is long and says nothing new here."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if plain(line).startswith(">"))
    timeline = next(i for i, line in enumerate(lines) if "celery faults timeline" in line)
    summary = next(i for i, line in enumerate(lines) if re.search(r"=+ celery faults =+", plain(line)))
    said = next(i for i in range(start, timeline) if not plain(lines[i]).startswith((">", "E")))
    last = next(i for i in range(summary, len(lines)) if plain(lines[i]).startswith("dead letters"))
    skipped = "    ..."
    return "\n".join([*lines[start:said], "", *lines[timeline : timeline + 10], skipped,
                      *lines[summary - 10 : last + 1]])  # fmt: skip


def save(browser: Any, path: Path, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    # The page draws its charts anew for another width.
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    browser.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(200, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    options = ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = "/usr/bin/chromium"
    with (
        tempfile.TemporaryDirectory() as name,
        Chrome(options=options, service=Service("/usr/bin/chromedriver")) as browser,
    ):
        folder = Path(name)
        run(f"--celery-faults-report={folder / 'report.html'}", "--celery-faults-seed=1", "tests", str(FAILING))
        printed = run("--color=yes", "--celery-faults-seed=1", "-p", "no:logging", str(FAILING))
        (folder / "terminal.html").write_text(TERMINAL % colored(failure(printed)), "utf-8")

        browser.get((folder / "terminal.html").as_uri())
        box = browser.execute_script("const b = document.body.getBoundingClientRect(); return [b.width, b.height]")
        save(browser, HERE / "terminal.png", round(box[0]), round(box[1]))

        size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((folder / "report.html").as_uri())
        browser.execute_script("document.querySelector('.test pre').hidden = true")
        browser.execute_async_script("setTimeout(arguments[0], 300)")
        end = browser.execute_script("return document.querySelector('.test').getBoundingClientRect().bottom")
        save(browser, HERE / "report.png", WIDTH, round(end + 110))


if __name__ == "__main__":
    main()
