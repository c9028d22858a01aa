"""The options of a run: each a command line flag and an ini key of the same name."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from .errors import nearest

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "")
_LAST_SEED = 2**32 - 1

#: The options with which pytest only says something.
_RUN_NO_TESTS = ("collectonly", "help", "version", "markers", "showfixtures", "show_fixtures_per_test", "cacheshow")


class RunOptions(NamedTuple):
    """``armed``: do markers take effect; ``app``: the app's path or ``None``, and the option that named it.

    ``takeover``: do Celery's own test tools give the in-process worker, in an armed run. ``live``: is what happens
    shown while it does. ``report``: where the page about the run is written, if it is. ``secrets``: the names of
    arguments that are masked where they are shown, ``None`` for the usual ones.
    """

    armed: bool
    app: str | None
    app_option: str
    seed: int
    takeover: bool = True
    live: bool = False
    report: Path | None = None
    secrets: tuple[str, ...] | None = None


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
    group.addoption(
        "--celery-faults-takeover",
        metavar="BOOL",
        help="In an armed run, whether Celery's own test tools (celery.contrib.testing.worker.start_worker, the "
        "fixtures of celery.contrib.pytest) give the in-process worker: true or false. Default: true.",
    )
    group.addoption(
        "--celery-faults-live",
        action="store_true",
        default=None,
        help="Show on a terminal what happens while it does: the test, virtual time, tasks by state, faults, queues, "
        'workers. Needs rich: pip install "pytest-celery-faults[live]".',
    )
    group.addoption(
        "--celery-faults-report",
        metavar="PATH.html",
        help="Write a page about the run: each test on virtual time, with attempts, waits, faults and dead letters.",
    )
    parser.addini("celery_faults", "Arm the run, as --celery-faults does: true or false.", type="string")
    parser.addini("celery_faults_app", "The Celery application under test, as --celery-faults-app.", type="string")
    parser.addini("celery_faults_seed", "Seed of all chance in the run, as --celery-faults-seed.", type="string")
    parser.addini(
        "celery_faults_live", "Show what happens while it does, as --celery-faults-live: true or false.", type="string"
    )
    parser.addini(
        "celery_faults_secrets",
        "Names of arguments that are masked wherever the plugin shows them: globs, in place of the usual ones.",
        type="linelist",
        default=None,
    )
    parser.addini(
        "celery_faults_report", "Where to write a page about the run, as --celery-faults-report.", type="string"
    )
    parser.addini(
        "celery_faults_takeover",
        "Whether Celery's own test tools give the in-process worker, as --celery-faults-takeover: true or false.",
        type="string",
        default="true",
    )


def read_options(config: pytest.Config) -> RunOptions:
    """The options of this run.

    Raises:
        pytest.UsageError: a value means nothing; names the key and the choices.
    """
    flag = config.getoption("--celery-faults")
    armed = bool(flag) or _truth("celery_faults", str(config.getini("celery_faults") or ""))
    takeover = _truth("celery_faults_takeover", str(config.getini("celery_faults_takeover")))
    given = config.getoption("--celery-faults-takeover")
    if given is not None:
        takeover = _truth("--celery-faults-takeover", given, "on the command line")
    live = bool(config.getoption("--celery-faults-live")) or _truth(
        "celery_faults_live", str(config.getini("celery_faults_live") or "")
    )
    app, app_option = config.getoption("--celery-faults-app"), "--celery-faults-app"
    if not app:
        app, app_option = config.getini("celery_faults_app") or None, "celery_faults_app"
    return RunOptions(armed, app, app_option, _seed(config), takeover, live, _report(config), _secrets(config))


def _truth(key: str, value: str, where: str = "in the configuration") -> bool:
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    hint = nearest(word, ("true", "false"))
    raise pytest.UsageError(f"{key} = {value!r} {where}: choose true or false{hint}")


def _secrets(config: pytest.Config) -> tuple[str, ...] | None:
    given = config.getini("celery_faults_secrets")
    if given is None:
        return None
    for name in given:
        if not re.fullmatch(r"[\w*?.\[\]!-]+", name):
            raise pytest.UsageError(
                f"celery_faults_secrets: {name!r} is no name of an argument. Write one name on each line, with * for "
                "any characters, such as *password*"
            )
    return tuple(given)


def _report(config: pytest.Config) -> Path | None:
    """Where the report goes; as everywhere in pytest, a path of the command line is seen from where that was given."""
    key, folder = "--celery-faults-report", config.invocation_params.dir
    given = config.getoption(key)
    if given is None:
        key, folder = "celery_faults_report", config.rootpath
        given = str(config.getini(key) or "")
    if not given or any(getattr(config.option, name, False) for name in _RUN_NO_TESTS):
        return None
    path = folder / os.path.expanduser(os.path.expandvars(given))
    if not hasattr(config, "workerinput"):
        try:
            _try_to_write(path)
        except OSError as error:
            raise pytest.UsageError(
                f"{key} = {given!r}: {path} cannot be written: {error.strerror or error}. Name a file, as in "
                "--celery-faults-report=report.html; folders that do not exist are made"
            ) from None
    return path


def _try_to_write(path: Path) -> None:
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8"):
        pass
    if is_new:
        path.unlink()


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
