"""The page: a frame of HTML, and in it data as JSON. Nothing that comes from a test is ever part of the HTML."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

# JSON may hold these as escapes in its strings, and nowhere else can they stand. Its other characters are ASCII.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def write(path: Path, index: dict[str, Any], tests: Iterable[str]) -> None:
    """Write the page. ``tests`` are JSON, in the order of those in the index.

    Raises:
        OSError: it cannot be written.
    """
    style, script, frame = (_file(name) for name in ("page.css", "page.js", "page.html"))
    head, end = frame.split("%data%")
    head = head.replace("%style-hash%", _hash(style)).replace("%script-hash%", _hash(script))
    head = head.replace("%style%", style)
    end = end.replace("%script%", script)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(head)
        file.write(_block("run", json.dumps(index, separators=(",", ":"))))
        for number, test in enumerate(tests):
            file.write(_block(f"test-{number}", test))
        file.write(end)


def _block(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text.translate(_ESCAPES)}</script>\n'


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
