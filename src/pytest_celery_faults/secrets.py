"""Keeps what is secret out of what people read: arguments are masked by their names.

The attributes that a test asserts on have the real values. Celery's own ``argsrepr`` and ``kwargsrepr``, with which an
application says how its arguments are to be shown, go first:
https://docs.celeryq.dev/en/stable/userguide/tasks.html#hiding-sensitive-information-in-arguments.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .errors import safe_repr

#: Names that are secret in every application, as globs; case, dashes and underscores make no difference.
DEFAULT = (
    "*password*", "*passwd*", "*passphrase*", "*secret*", "*token", "*token_*", "*api_key*", "*apikey*",
    "*private_key*", "*credential*", "*authorization*", "*cookie*", "*session_id*", "*card_number*", "*credit_card*",
    "*cvv*", "*cvc*",
)  # fmt: skip
# Deeper than that nobody looks either.
_DEPTH = 10
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
#: What Celery says of a value whose ``repr()`` raises.
_UNREPRESENTABLE = "<Unrepresentable "


class _Mask:
    def __repr__(self) -> str:
        return "***"


MASK = _Mask()


class Secrets:
    """What is masked: values with a name that one of the globs matches."""

    def __init__(self, patterns: Iterable[str] = DEFAULT) -> None:
        self._pattern = _compiled(tuple(patterns))

    def has(self, name: object) -> bool:
        """Whether a name is that of a secret."""
        return self._pattern is not None and isinstance(name, str) and bool(self._pattern.match(_plain(name)))

    def masked(self, value: Any, depth: int = _DEPTH) -> Any:
        """The value, with `MASK` for what has a secret's name in the mappings within it."""
        if depth and isinstance(value, Mapping):
            return {name: MASK if self.has(name) else self.masked(within, depth - 1) for name, within in value.items()}
        if depth and type(value) in (list, tuple):
            return type(value)(self.masked(within, depth - 1) for within in value)
        return value

    def arguments(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call, masked; of positional ones the names are those in the task's signature."""
        names = _parameters(task)
        shown = [
            MASK if position < len(names) and self.has(names[position]) else self.masked(value)
            for position, value in enumerate(args)
        ]
        return shown, self.masked(kwargs)

    def words(
        self,
        task: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any] | None = None,
        text_of: Callable[[object], str] = safe_repr,
    ) -> list[str]:
        """The arguments of a message, each in the words in which it may be shown.

        Args:
            task: what is called; ``None``: nobody knows it.
            args, kwargs: what it is called with.
            headers: of the message, with Celery's ``argsrepr`` and ``kwargsrepr``.
            text_of: says one value.
        """
        shown, named = self.arguments(task, args, kwargs)
        told = headers or {}
        positional = _own_words(told.get("argsrepr"), args, shown, "()[]")
        keywords = _own_words(told.get("kwargsrepr"), kwargs, named, "{}")
        return [
            *(map(text_of, shown) if positional is None else positional),
            *((f"{name}={text_of(value)}" for name, value in named.items()) if keywords is None else keywords),
        ]


class Shown:
    """How the arguments of a test's messages are shown."""

    def __init__(self, secrets: Secrets, tasks: Callable[[], Mapping[str, Any]]) -> None:
        self.secrets: Secrets = secrets
        self._tasks = tasks

    def words(
        self,
        task: str | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any] | None = None,
        text_of: Callable[[object], str] = safe_repr,
    ) -> list[str]:
        """The arguments of a message to the task of that name, as `Secrets.words`."""
        return self.secrets.words(self._tasks().get(task) if task else None, args, kwargs, headers, text_of)


def _own_words(said: object, values: Any, masked: Any, brackets: str) -> list[str] | None:
    """How the application wants its arguments shown; ``None``: as they are.

    Where its words are not Celery's own of these values. Celery's are of all values, also where what came back from the
    message looks different, so that no words with a secret in them count.
    """
    if not isinstance(said, str) or not values or _ADDRESS.sub("", said) in _celerys_words(values):
        return None
    if _UNREPRESENTABLE in said:
        return None
    hidden = values.items() if isinstance(values, Mapping) else enumerate(values)
    if any(masked[place] != value and (str(value) in said or safe_repr(value) in said) for place, value in hidden):
        return None
    return [said.strip(brackets)]


def _celerys_words(values: Any) -> list[str]:
    from celery.utils.saferepr import saferepr

    kinds = [dict] if isinstance(values, Mapping) else [tuple, list]
    return [_ADDRESS.sub("", saferepr(kind(values), 1024)) for kind in kinds]


def _parameters(task: Any) -> list[str]:
    run = getattr(task, "run", None)
    try:
        parameters = inspect.signature(run).parameters.values() if run is not None else ()
    except (TypeError, ValueError):
        return []
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


@functools.cache  # each test of a run has the same
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    globs = [fnmatch.translate(_plain(pattern)) for pattern in patterns]
    return re.compile("|".join(globs)) if globs else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
