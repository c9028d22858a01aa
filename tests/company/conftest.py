from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from company import Company


@pytest.fixture
def company(shop, monkeypatch):
    return Company(shop, monkeypatch)
