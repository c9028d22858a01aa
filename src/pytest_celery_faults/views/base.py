"""What the views have in common: they are sequences, and they know which of their elements a test asks for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar, overload

from celery.result import ResultBase

from ..errors import element, hide_ours
from ..recorder import Recorder

__tracebackhide__ = hide_ours

T = TypeVar("T")


class View(Sequence[T]):
    """A sequence of what happened, oldest first; equal to a list of the same elements."""

    #: How a test comes to it, and what its elements are called.
    _name: ClassVar[str]
    _elements: ClassVar[str]

    _recorder: Recorder

    @abstractmethod
    def _present(self) -> Sequence[T]:
        """The elements at this moment."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return element(self._present(), index, f"{self._name} has", self._elements)

    def __iter__(self) -> Iterator[T]:
        return iter(self._looked_at(list(self._present())))

    def _looked_at(self, elements: list[T]) -> list[T]:
        """Remember what the test looks at: it may go on to list an attribute of it, and to compare that."""
        self._recorder.looked_at = (self._name, elements)
        return elements

    def __len__(self) -> int:
        return len(self._present())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (list, tuple, View)):
            return list(self) == list(other)
        return NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self._present())!r}>"


def chosen(which: Any, recorder: Recorder) -> Callable[[str | None, str | None], bool]:
    """Whether something about a task's name and id is about the task, name, id or result that a test gave.

    A result of a group stands for all of its members, as one of a chain does only for its last task.

    Raises:
        FaultValueError, FaultTypeError: it is no task that an application has or that was sent, nor any of the others.
    """
    if isinstance(which, ResultBase):
        ids = set(ids_of(which))
        return lambda task, task_id: task_id in ids
    if isinstance(which, str) and (which in recorder.records or which in recorder.callbacks.to_come()):
        return lambda task, task_id: task_id == which
    name = recorder.name_of(which)
    return lambda task, task_id: task == name


def ids_of(result: Any) -> Iterator[str]:
    """The id of a result, or those of the members of a group's."""
    members = getattr(result, "results", None)
    if members is None:
        yield result.id
    for member in members or ():
        yield from ids_of(member)
