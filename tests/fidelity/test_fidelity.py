"""What real Celery does is the measure, its defects included.

See ``fidelity_history`` for what is compared and what cannot be.
"""

from __future__ import annotations

from typing import Any

import pytest
from fidelity_drivers import HarnessDriver
from fidelity_history import History, Raw, differences
from fidelity_scenarios import SCENARIOS, Scenario

pytestmark = [
    pytest.mark.fidelity,
    # The real worker runs with Python's defaults; where warnings are errors, one of Celery's changes what it does.
    pytest.mark.filterwarnings("default"),
]

# The settings of the real worker's process are those of the harness. Scenarios of one setting stand together, so
# that a worker serves as many of them as it can.
PARAMETERS = [
    pytest.param(scenario, id=scenario.name, marks=pytest.mark.celery_faults(conf=scenario.conf))
    for scenario in sorted(SCENARIOS, key=lambda scenario: (scenario.fresh, sorted(scenario.conf)))
]


@pytest.mark.parametrize("real_run", PARAMETERS, indirect=True, scope="module")
def test_same_history(real_run: tuple[Scenario, Raw], celery_faults: Any) -> None:
    scenario, raw = real_run
    real = History(raw)
    driver = HarnessDriver(celery_faults)
    with driver.recording():
        try:
            driver.run(scenario)
        except Exception as exc:
            pytest.fail(f"here: {exc!r}\n\nthe history of the real worker:\n{real}\n\nhere:\n{driver.raw.records}")
    here = History(driver.raw)
    found = differences(real, here, scenario.loses_child)
    if found:
        pytest.fail(
            "\n".join([*found, "", "the real worker:", str(real), "", "the harness:", str(here)]), pytrace=False
        )


TRACEBACKS = [
    pytest.param(scenario, id=scenario.name)
    for scenario in SCENARIOS
    if scenario.name in ("failure", "manual_retry_to_the_end", "soft_limit_uncaught")
]


@pytest.mark.parametrize("scenario", TRACEBACKS)
def test_stored_tracebacks_show_celery_and_the_task_alone(scenario: Scenario, celery_faults: Any) -> None:
    driver = HarnessDriver(celery_faults)
    with driver.recording():
        driver.run(scenario)
    assert History(driver.raw).own_frames == []
