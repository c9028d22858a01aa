"""What Django has to do with a test of tasks, where the application uses it. It is never imported here."""

from __future__ import annotations

import sys
from typing import Any


def _connections() -> list[Any]:
    """The database connections that this thread has used."""
    database, configuration = sys.modules.get("django.db"), sys.modules.get("django.conf")
    if database is None or configuration is None or not configuration.settings.configured:
        return []
    return list(database.connections.all(initialized_only=True))


def pending_callbacks() -> str:
    """What to say when callbacks of ``transaction.on_commit`` wait for a commit that the test never makes."""
    count = sum(len(connection.run_on_commit) for connection in _connections())
    if not count:
        return ""
    callbacks = "1 callback of transaction.on_commit waits" if count == 1 else f"{count} callbacks of on_commit wait"
    return (
        f"{callbacks} for a commit, which a test in a transaction never makes: use "
        "@pytest.mark.django_db(transaction=True) or django_capture_on_commit_callbacks(execute=True); in a class of "
        "Django's own, TransactionTestCase or captureOnCommitCallbacks(execute=True)."
    )


class Blocks:
    """The blocks of ``transaction.atomic()`` that each fiber is in: one that is killed never leaves them itself."""

    def __init__(self) -> None:
        self._before: list[Any] = []
        self._of: dict[Any, list[Any]] = {}

    def entering(self) -> None:
        self._before = _open_blocks()

    def leaving(self, fiber: Any) -> None:
        now = _open_blocks()
        mine = [block for block in self._of.pop(fiber, ()) if block in now]
        mine += [block for block in now if block not in self._before]
        if mine:
            self._of[fiber] = mine

    def killed(self, fiber: Any) -> None:
        """Roll back, as a database does whose client is gone."""
        for block in reversed(self._of.pop(fiber, ())):
            block.__exit__(SystemExit, SystemExit(), None)


def _open_blocks() -> list[Any]:
    return [block for connection in _connections() for block in connection.atomic_blocks]


def close_connections() -> None:
    """Close those of a thread that ends."""
    for connection in _connections():
        connection.close()
