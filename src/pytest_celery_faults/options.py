"""The options of a run: each a command line flag and an ini key of the same name."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from .errors import nearest

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "")
_LAST_SEED = 2**32 - 1


@dataclass(frozen=True)
class RunOptions:
    """``armed``: do markers take effect; ``app``: the app's path or ``None``, and the option that named it."""

    armed: bool
    app: str | None
    app_option: str
    seed: int


STASH_KEY = pytest.StashKey[RunOptions]()


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("celery faults")
    group.addoption(
        "--celery-faults",
        action="store_true",
        default=None,
        help="Arm the run: `inject` markers take effect. Without it tests that carry one are skipped.",
    )
    group.addoption(
        "--celery-faults-app",
        metavar="PKG.MOD:APP",
        help="The Celery application under test, written as for `celery -A`.",
    )
    group.addoption(
        "--celery-faults-seed",
        metavar="N",
        help="Seed of all chance in the run: jitter, probabilities, ties. Default: random, and in the header.",
    )
    parser.addini("celery_faults", "Arm the run, as --celery-faults does: true or false.", type="string")
    parser.addini("celery_faults_app", "The Celery application under test, as --celery-faults-app.", type="string")
    parser.addini("celery_faults_seed", "Seed of all chance in the run, as --celery-faults-seed.", type="string")


def read_options(config: pytest.Config) -> RunOptions:
    """The options of this run.

    Raises:
        pytest.UsageError: a value means nothing; names the key and the choices.
    """
    flag = config.getoption("--celery-faults")
    armed = bool(flag) or _truth("celery_faults", str(config.getini("celery_faults") or ""))
    app = config.getoption("--celery-faults-app")
    if app:
        return RunOptions(armed, app, "--celery-faults-app", _seed(config))
    return RunOptions(armed, config.getini("celery_faults_app") or None, "celery_faults_app", _seed(config))


def _truth(key: str, value: str) -> bool:
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    hint = nearest(word, ("true", "false"))
    raise pytest.UsageError(f"{key} = {value!r} in the configuration: choose true or false{hint}")


def _seed(config: pytest.Config) -> int:
    worker_input = getattr(config, "workerinput", None)
    if worker_input is not None and "celery_faults_seed" in worker_input:
        return int(worker_input["celery_faults_seed"])
    for where, value in (
        ("--celery-faults-seed", config.getoption("--celery-faults-seed")),
        ("celery_faults_seed", config.getini("celery_faults_seed")),
    ):
        if value:
            if not value.isascii() or not value.isdigit() or int(value) > _LAST_SEED:
                raise pytest.UsageError(f"{where} = {value!r}: a whole number from 0 to {_LAST_SEED}")
            return int(value)
    return random.SystemRandom().randrange(_LAST_SEED)
