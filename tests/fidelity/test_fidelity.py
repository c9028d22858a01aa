"""What real Celery does is the measure, its defects included.

See ``fidelity_history`` for what is compared and what cannot be.
"""

from __future__ import annotations

from typing import Any

import pytest
from fidelity_all import SCENARIOS
from fidelity_drivers import HarnessDriver
from fidelity_expected import Difference
from fidelity_history import History, Raw, differences
from fidelity_scenarios import Scenario

pytestmark = [
    pytest.mark.fidelity,
    # The real worker runs with Python's defaults; where warnings are errors, one of Celery's changes what it does.
    pytest.mark.filterwarnings("default"),
]

# The settings of the real worker's process are those of the harness. Scenarios of one setting stand together, so
# that a worker serves as many of them as it can.
PARAMETERS = [
    pytest.param(
        scenario, id=scenario.name, marks=pytest.mark.celery_faults(conf=scenario.conf, concurrency=scenario.workers)
    )
    for scenario in sorted(SCENARIOS, key=lambda scenario: (scenario.fresh, scenario.workers, sorted(scenario.conf)))
]


@pytest.mark.parametrize("real_run", PARAMETERS, indirect=True, scope="module")
def test_same_history(real_run: tuple[Scenario, Raw], celery_faults: Any, page_writer: Any) -> None:
    scenario, raw = real_run
    real = History(raw, scenario.difference, scenario.jitter)
    driver = HarnessDriver(celery_faults)
    with driver.recording():
        try:
            driver.run(scenario)
        except Exception as exc:
            pytest.fail(f"here: {exc!r}\n\nthe history of the real worker:\n{real}\n\nhere:\n{driver.raw.records}")
    only_here = Difference("", real=scenario.difference.here) if scenario.difference else None
    here = History(driver.raw, only_here, scenario.jitter)
    found = differences(real, here, scenario)
    if scenario.shows and not scenario.shows.holds(History(raw, jitter=scenario.jitter)):
        found.append(f"the real worker does not show this: {scenario.shows.text}")
    if found:
        pytest.fail(
            "\n".join([*found, "", "the real worker:", str(real), "", "the harness:", str(here)]), pytrace=False
        )
    if page_writer is not None:
        page_writer.as_declared.add(scenario.name)
