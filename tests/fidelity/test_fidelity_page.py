"""The page in the documentation is about the scenarios as they are now."""

from __future__ import annotations

import re

import fidelity_page
from fidelity_all import SCENARIOS


def test_every_scenario_is_on_the_page() -> None:
    _, written = fidelity_page.read()
    assert re.findall(r"^\| `(\w+)` \|", written, re.M) == [one.name for one in SCENARIOS]


def test_the_page_is_what_a_run_would_write() -> None:
    # Other versions than the page's are compared as well, so the numbers are not looked at.
    _, written = fidelity_page.read()
    assert written == fidelity_page.body()
