"""Starts and stops the clock of a test, and freezegun's, with many modules loaded; prints the seconds as JSON."""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import freezegun

from pytest_celery_faults.clock import TimeSource
from pytest_celery_faults.freezes import Freezes
from pytest_celery_faults.frozen import Freeze
from pytest_celery_faults.simulation import Simulation

#: Every third of the modules that are made up binds names of the time, as modules of applications do.
BINDS = "import datetime as dt\nfrom datetime import datetime\nfrom time import monotonic, sleep, time\n"
FUNCTIONS = "\n".join(f"def function_{number}(x, y=None):\n    return x" for number in range(30))


class Nobody:
    def entering(self, fiber: Any) -> None:
        pass

    leaving = killed = entering


def load(modules: int) -> None:
    for number in range(modules - len(sys.modules)):
        name = f"made_up_{number}"
        module = types.ModuleType(name)
        exec((BINDS if number % 3 == 0 else "") + FUNCTIONS, vars(module))  # noqa: S102  our own text
        sys.modules[name] = module


def ours() -> None:
    source = TimeSource()
    freeze = Freeze(Simulation(source, Nobody(), list), Freezes(source, str, lambda by: None, False))
    freeze.start()
    assert time.time() == source.time()
    assert sys.modules["made_up_0"].time is time.time
    freeze.finish()
    assert time.time() != source.time()
    assert sys.modules["made_up_0"].time is time.time


def theirs() -> None:
    with freezegun.freeze_time("2030-01-01"):
        assert time.time() == 1893456000.0


def seconds(function: Callable[[], None], times: int) -> list[float]:
    took = []
    for _ in range(times):
        began = _NOW[0]()
        function()
        took.append(_NOW[0]() - began)
    return took


# In a list, where no clock looks.
_NOW = [time.perf_counter]


if __name__ == "__main__":
    modules, times = int(sys.argv[1]), int(sys.argv[2])
    load(modules)
    found = {"modules": len(sys.modules), "plugin": seconds(ours, times), "freezegun": seconds(theirs, 10)}
    print(json.dumps(found))
