"""Reading a page as a browser does, without one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class _Scripts(HTMLParser):
    """Every script element of a page; HTML knows no escapes in them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self._is_open = False

    def handle_starttag(self, tag, attrs):
        if tag == "script":
            self.found.append((dict(attrs), ""))
            self._is_open = True

    def handle_data(self, data):
        if self._is_open:
            attributes, text = self.found[-1]
            self.found[-1] = attributes, text + data

    def handle_endtag(self, tag):
        if tag == "script":
            self._is_open = False


@dataclass
class Page:
    text: str
    run: dict[str, Any]
    tries: list[list[dict[str, Any]]]
    #: What would be executed.
    code: list[str]

    @classmethod
    def read(cls, path: Path) -> Page:
        parser = _Scripts()
        text = path.read_text("utf-8")
        parser.feed(text)
        blocks = {a["id"]: json.loads(data) for a, data in parser.found if a.get("type") == "application/json"}
        run = blocks.pop("run")
        assert list(blocks) == [f"test-{number}" for number in range(len(run["tests"]))]
        code = [data for a, data in parser.found if a.get("type") != "application/json"]
        return cls(text, run, list(blocks.values()), code)

    @property
    def outcomes(self) -> dict[str, str]:
        return {re.sub(r".*::", "", test["id"]): test["outcome"] for test in self.run["tests"]}

    def tries_of(self, name: str) -> list[dict[str, Any]]:
        return self.tries[list(self.outcomes).index(name)]

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a test by its last try."""
        return self.tries_of(name)[-1]["record"]

    def index(self, name: str) -> dict[str, Any]:
        return self.run["tests"][list(self.outcomes).index(name)]

    def events(self, name: str) -> list[str]:
        record = self.record(name)
        lines = []
        for at, kind, row, attempt, detail in record["events"]:
            label = record["tasks"][row]["label"] if row >= 0 else ""
            lines.append(" ".join(f"{at:g} {self.run['kinds'][kind]} {label} {attempt or ''} {detail}".split()))
        return lines


def show(browser: Any, width: int, scheme: str = "light") -> None:
    """Of that width, for somebody who prefers light or dark."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preference = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
