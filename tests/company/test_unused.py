"""Installed and not used, it costs nothing that is worth the name."""

from __future__ import annotations

import pytest

#: Of our own, all that such a run loads: each module more is half a millisecond and more in everybody's runs.
LIGHT = {"errors", "fixtures", "hookspecs", "markers", "options", "places", "plugin", "summary"}
#: What Celery's test tools have to do with it, in an armed run.
LIGHT_WHEN_ARMED = LIGHT | {"imports", "takeover"}
HEAVY = ("celery", "kombu", "billiard", "redis", "fakeredis", "freezegun", "greenlet", "django")


@pytest.mark.parametrize("options", [("--collect-only",), ()], ids=["collect-only", "run"])
@pytest.mark.parametrize("armed", [False, True], ids=["not armed", "armed"])
def test_nothing_heavy_is_imported(company, unmeasured, options, armed):
    company.shop.ini("addopts =")
    company.pytester.makepyfile("def test_nothing():\n    pass")
    company.pytester.makeconftest(f"""
import sys

def pytest_unconfigure(config):
    print("LOADED", [name for name in {HEAVY!r} if name in sys.modules])
    print("OURS", sorted(name.partition(".")[2] for name in sys.modules if name.startswith("pytest_celery_faults.")))
""")
    arguments = ["-p", "celery_faults", *(["--celery-faults"] if armed else []), *options]
    result = company.pytester.runpytest_subprocess(*arguments, timeout=60)
    assert result.ret == 0
    assert "LOADED []" in result.outlines
    assert f"OURS {sorted(LIGHT_WHEN_ARMED if armed else LIGHT)}" in result.outlines
