"""All scenarios: each of these modules adds its own."""

from __future__ import annotations

import fidelity_asyncio  # noqa: F401
import fidelity_more  # noqa: F401
import fidelity_outages  # noqa: F401
from fidelity_scenarios import SCENARIOS

__all__ = ["SCENARIOS"]
