"""``celery_faults.outcome(result)``: what has become of a task, group, chord or chain, as a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, overload

from celery.result import EagerResult, ResultBase
from celery.states import EXCEPTION_STATES, READY_STATES

from ..errors import FaultTypeError, FaultValueError, element, hide_ours, safe_repr
from ..recorder import Recorder, SentMessage
from .lost import Snapshot
from .prospects import Prospects
from .table import Line, same

__tracebackhide__ = hide_ours

LOST = "LOST"
TASK, GROUP, CHORD, CHAIN = "task", "group", "chord", "chain"


@dataclass(frozen=True, eq=False)
class Outcome(Sequence["Outcome"]):
    """What has become of a result at one moment.

    ``kind`` is ``"task"``, ``"group"``, ``"chord"`` or ``"chain"``. The elements are the members of a group, the steps
    of a chain, or the header and the body of a chord.

    ``state`` is Celery's (https://docs.celeryq.dev/en/stable/userguide/tasks.html#built-in-states), or ``"LOST"``
    for what is not ready and never will be, for which ``why`` gives the reason. It is ``"SUCCESS"`` or
    ``"FAILURE"`` also for a task whose result is ignored, and ``"IGNORED"`` or ``"REJECTED"`` for one that ended
    so, though Celery stores nothing of these. A chord has the state of its body, a chain that of its last step, a
    group ``"FAILURE"`` or ``"REVOKED"`` as soon as a member has, ``"LOST"`` when it will never be ready, and
    ``"PENDING"`` until all members succeeded.

    Two outcomes are equal when kinds, tasks, states, values and errors (their types and their ``repr()``) are.
    """

    kind: str
    state: str
    task: str | None = None
    value: Any = None
    error: BaseException | None = None
    why: str = ""
    members: tuple[Outcome, ...] = ()
    task_id: str | None = field(default=None, repr=False)
    #: The task's name and ordinal in this test, as in the timeline.
    label: str = field(default="", repr=False)
    #: The value or the error in words that are the same in each run.
    said: str = field(default="", repr=False)
    _tell: Callable[[Any, Any], Any] = field(default=lambda values, table: values, repr=False)

    @property
    def header(self) -> Outcome:
        """The header of a chord."""
        return self._part(0)

    @property
    def body(self) -> Outcome:
        """The body of a chord."""
        return self._part(1)

    def _part(self, number: int) -> Outcome:
        if self.kind != CHORD:
            raise FaultValueError(f"a {self.kind} has neither header nor body, as a chord has:\n{self}")
        return self.members[number]

    @property
    def tasks(self) -> list[Outcome]:
        """The outcomes of all single tasks in it, in the order of the tree."""
        return [self] if self.kind == TASK else [task for member in self.members for task in member.tasks]

    @property
    def states(self) -> Any:
        """The states: of a task its own, of a group a list, of a chain a tuple, of a chord a dict."""
        return self._told(lambda task: task.state)

    @property
    def values(self) -> Any:
        """The results, ``None`` where there is none; in the shape of `states`."""
        return self._told(lambda task: task.value)

    @property
    def errors(self) -> Any:
        """The exceptions, ``None`` where there is none; in the shape of `states`."""
        return self._told(lambda task: task.error)

    def _told(self, of: Callable[[Outcome], Any]) -> Any:
        shaped = self._shaped(of)
        if self.kind != TASK:  # a word or a number could be anybody's
            self._tell(shaped, lambda: Tree(self))
        return shaped

    def _shaped(self, of: Callable[[Outcome], Any]) -> Any:
        if self.kind == TASK:
            return of(self)
        parts = [member._shaped(of) for member in self.members]
        if self.kind == CHORD:
            return {"header": parts[0], "body": parts[1]}
        return tuple(parts) if self.kind == CHAIN else parts

    def _content(self) -> tuple[Any, ...]:
        error = None if self.error is None else (type(self.error), self.said)
        return self.kind, self.task, self.state, self.value, error, self.members

    def __eq__(self, other: object) -> bool:
        return self._content() == other._content() if isinstance(other, Outcome) else NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> list[Outcome]: ...
    def __getitem__(self, index: int | slice) -> Outcome | list[Outcome]:
        return element(list(self.members), index, f"this {self.kind} has", "members")

    def __len__(self) -> int:
        return len(self.members)

    def __bool__(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The tree, a line for each node."""
        return [line for _, line in self.nodes()]

    def nodes(self, indent: str = "", role: str = "") -> Iterator[tuple[Outcome, str]]:
        """The nodes of the tree, each with its line."""
        if self.kind == TASK:
            said = self.why or self.said
            yield self, f"{indent}{role}{self.label or self.task or 'a task'}  {self.state}  {said}".rstrip()
            return
        yield self, f"{indent}{role}{self.kind}  {self.state}"
        roles = ("header: ", "body: ") if self.kind == CHORD else ("",) * len(self.members)
        for member, its_role in zip(self.members, roles, strict=True):
            yield from member.nodes(indent + "  ", its_role)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        what = self.label or self.task or self.kind
        return f"<Outcome of {what}: {self.states!r}>"


class Tree:
    """An outcome as a table: a line for each node."""

    title = "celery_faults.outcome()"

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def lines(self) -> list[Line]:
        return [Line(line) for line in self._outcome.lines()]

    def against(self, values: Any, expected: Any) -> list[Line]:
        """The lines, marked where the values of single tasks are not what was expected."""
        mine, theirs = list(_leaves(values)), list(_leaves(expected))
        if len(mine) != len(theirs):
            return self.lines()
        wrong = {
            id(task): f"<- expected {safe_repr(other)}"
            for task, one, other in zip(self._outcome.tasks, mine, theirs, strict=True)
            if not same(one, other)
        }
        return [
            Line(f"{line}  {wrong[id(node)]}" if id(node) in wrong else line, marked=id(node) in wrong)
            for node, line in self._outcome.nodes()
        ]

    def __str__(self) -> str:
        return "\n".join([self.title, *self._outcome.lines()])


def _leaves(shaped: Any) -> Iterator[Any]:
    if isinstance(shaped, (list, tuple)):
        for part in shaped:
            yield from _leaves(part)
    elif isinstance(shaped, dict) and shaped.keys() == {"header", "body"}:
        yield from _leaves([shaped["header"], shaped["body"]])
    else:
        yield shaped


def outcome_of(
    result: Any, recorder: Recorder, snapshot: Snapshot, stored: Callable[[str], dict[str, Any] | None]
) -> Outcome:
    """What has become of a result.

    Raises:
        FaultTypeError, FaultValueError: it is no result, or one of a task that was not sent in this test.
    """
    if not isinstance(result, ResultBase):
        raise FaultTypeError(f"outcome({safe_repr(result)}): the result of a task, a group, a chord or a chain")
    return _Reader(recorder, snapshot, stored).read(result)


class _Reader:
    """Makes outcomes of results, all at one moment."""

    def __init__(self, recorder: Recorder, snapshot: Snapshot, stored: Callable[[str], dict[str, Any] | None]) -> None:
        self._recorder = recorder
        self._snapshot = snapshot
        self._stored = stored
        self._last = {message.task_id: message for message in recorder.sent}
        self._prospects = Prospects(recorder, snapshot)

    def read(self, result: Any, known: frozenset[str] = frozenset()) -> Outcome:
        """The outcome of a result and of all that came before it, but for what is ``known``."""
        steps = []
        node = result
        while node is not None and _id_of(node) not in known:
            steps.append(node)
            known |= {_id_of(node)}
            node = getattr(node, "parent", None)
        outcomes: list[Outcome] = []
        for step in reversed(steps):
            outcome = self._step(step, known)
            if outcomes and outcomes[-1].kind == GROUP:
                outcomes[-1] = self._made(CHORD, outcome.state, (outcomes[-1], outcome))
            else:
                outcomes.append(outcome)
        if len(outcomes) == 1:
            return outcomes[0]
        return self._made(CHAIN, outcomes[-1].state, tuple(outcomes))

    def _made(self, kind: str, state: str, members: tuple[Outcome, ...]) -> Outcome:
        return Outcome(kind, state, members=members, _tell=self._recorder.tell)

    def _step(self, result: Any, known: frozenset[str]) -> Outcome:
        results = getattr(result, "results", None)
        if results is None:
            return self._task(result)
        members = tuple(self.read(member, known) for member in results)
        return self._made(GROUP, _state_of_group([member.state for member in members]), members)

    def _task(self, result: Any) -> Outcome:
        task_id = result.id
        meta: dict[str, Any] | None
        if isinstance(result, EagerResult):
            meta = {"status": result.state, "result": result.result}
        else:
            meta = self._stored(task_id)
        state = meta["status"] if meta is not None else "PENDING"
        stored = meta["result"] if meta is not None else None
        error, why = (stored if state in EXCEPTION_STATES else None), ""
        message = self._last.get(task_id)
        if state not in READY_STATES:
            if message is not None:
                state, error, why = self._of_unready(message, state, error)
            else:
                state, why = self._of_unsent(task_id, state)
        value = stored if state == "SUCCESS" else None
        said = value if error is None else error
        return Outcome(
            kind=TASK,
            state=state,
            task=message.task
            if message is not None
            else getattr(result, "_name", None) or self._prospects.names.get(task_id),
            value=value,
            error=error,
            why=why,
            task_id=task_id,
            label=self._recorder.timeline.label(message.task, task_id) if message is not None else "",
            said=self._recorder.timeline.readable(safe_repr(said)) if said is not None or state == "SUCCESS" else "",
        )

    def _of_unready(
        self, message: SentMessage, state: str, error: BaseException | None
    ) -> tuple[str, BaseException | None, str]:
        """The state of a task that was sent and has stored no end of it, its exception, and the reason."""
        attempts = self._snapshot.attempts(message)
        last = attempts[-1] if attempts else None
        waits, lost = self._snapshot.waits(message), self._snapshot.lost(message)
        refused = self._snapshot.refused(message)
        if lost and self._prospects.comes_again(message.task_id):
            return state, error, "what has sent it is to be worked again"
        if waits or lost:
            return (LOST if lost else state), error, lost or waits
        if last is not None and last.ended is None:
            return state, error, "it runs"
        if self._recorder.stored.get(message.task_id, -1) > message.index:
            return LOST, error, "its result is not in the backend any more"
        if last is not None and last.state != "RETRY":
            return last.state, last.exception, ""
        return (LOST if refused else state), error, refused

    def _of_unsent(self, task_id: str, state: str) -> tuple[str, str]:
        """The state of a task that was never sent: it is to come after others, or nothing can bring it."""
        if task_id not in self._prospects.names:
            raise FaultValueError(f"outcome(): no task with the id {task_id!r} was sent in this test")
        why = self._prospects.why_never_sent(task_id)
        return (LOST, why) if why else (state, "it comes later")


def _id_of(result: Any) -> Any:
    """What tells a result from others: a set of results has no id of its own."""
    return getattr(result, "id", None) or id(result)


#: The states of a member with which a group will never be ready.
_DEAD_ENDS = (LOST, "IGNORED", "REJECTED")


def _state_of_group(states: list[str]) -> str:
    for state in ("FAILURE", "REVOKED"):
        if state in states:
            return state
    if any(state in _DEAD_ENDS for state in states):
        return LOST
    return "SUCCESS" if all(state == "SUCCESS" for state in states) else "PENDING"
