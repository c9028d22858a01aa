"""Which fault strikes where.

A task's life has named points, and each comes to `Injector.strike`: ``publish``, ``receive`` and ``ack`` from the
broker, ``start`` (before the body, inside Celery's autoretry wrapper), ``return`` (after the body) and the call of a
named function inside it from the task, ``store`` and ``stored`` from the result backend. What a fault does there is
said by `effects`, and for messages by the broker, which is given the fault that fired.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any

from celery._state import get_current_task

from .effects import Effects, length_of
from .errors import FaultNeverFiredError, FaultTypeError, FaultValueError, hide_ours, nearest
from .faults import (
    FUNCTION,
    LIMITS,
    POINTS,
    Crash,
    Fault,
    Raise,
    Sleep,
    as_fault,
    check_point,
)
from .messages import decode_arguments, headers_of, identity_of
from .recorder import Recorder
from .secrets import Secrets
from .simulation import TASK_RANK, Fiber, Simulation
from .targets import Target, find_target
from .timeline import Event

__tracebackhide__ = hide_ours

ARGUMENTS = ("task", "times", "skip", "every", "at", "when", "probability", "then", "required")


@dataclass(frozen=True)
class Execution:
    """The execution that a fault may strike; at ``publish`` and ``receive`` the message of one.

    ``task`` is ``None`` for a message to a task that no application of the test has.
    """

    name: str
    task: Any
    task_id: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    retries: int
    queue: str
    redelivered: bool
    headers: Mapping[str, Any]
    #: Whether it stands for a message: at ``publish``, ``receive`` and ``ack``.
    is_message: bool = False
    time_limits: Mapping[str, float | None] = field(default_factory=lambda: dict.fromkeys(LIMITS))
    #: What is masked. Nothing here may lead to the harness: the stack of a killed task stays, an execution in it.
    secrets: Secrets = field(default_factory=Secrets, compare=False)

    def __repr__(self) -> str:
        words = self.secrets.words(self.task, self.args, self.kwargs, self.headers)
        retry = f", retry {self.retries}" if self.retries else ""
        redelivered = ", redelivered" if self.redelivered else ""
        return f"<Execution {self.name}({', '.join(words)}) from {self.queue!r}{retry}{redelivered}>"


@dataclass(frozen=True)
class Plan:
    """What a marker or a call of ``inject()`` asks for, checked."""

    fault: Fault
    tasks: tuple[str, ...] | None = None
    times: int | None = 1
    skip: int = 0
    every: int = 1
    at: str | Target = ""
    when: Callable[[Execution], object] | None = None
    probability: float = 1.0
    then: Callable[[Execution], object] | None = None
    required: bool = True

    def __str__(self) -> str:
        where = f" into {', '.join(self.tasks)}" if self.tasks is not None else ""
        point = f" at {self.at}" if self.at != self.fault.points[0] else ""
        often = "" if self.times == 1 else ", every time" if self.times is None else f", {self.times} times"
        return f"{self.fault!r}{where}{point}{often}"


def plan(args: Sequence[Any], options: Mapping[str, Any], hook: Any = None) -> Plan:
    """Check the arguments of ``inject``. ``hook`` is pytest's, for plugins with faults of their own.

    Raises:
        FaultTypeError, FaultValueError: what is wrong, and what is possible.
    """
    unknown = [name for name in options if name not in (*ARGUMENTS, "fault")]
    if unknown:
        raise FaultTypeError(
            f"inject() has no argument {unknown[0]!r}{nearest(unknown[0], ARGUMENTS)} It takes: {', '.join(ARGUMENTS)}"
        )
    if len(args) > 1:
        raise FaultTypeError("inject() takes one fault; for several write several markers")
    if args and "fault" in options:
        raise FaultTypeError("inject() got two faults, one by position and one by name")
    if not args and "fault" not in options:
        raise FaultTypeError("inject() needs a fault: an exception class, an exception, or Sleep(30)")
    fault = as_fault(args[0] if args else options["fault"], hook)
    times = options.get("times", 1)
    probability = _probability(options.get("probability", 1.0))
    required = options.get("required", probability == 1)
    if not isinstance(required, bool):
        raise FaultTypeError(f"required={required!r}: True or False")
    return Plan(
        fault=fault,
        tasks=_task_names(options.get("task")),
        times=None if times is None else _count("times", times, 1, ", or None for every matching execution"),
        skip=_count("skip", options.get("skip", 0), 0),
        every=_count("every", options.get("every", 1), 1),
        at=_point(options.get("at"), fault),
        when=_callable("when", options.get("when")),
        probability=probability,
        then=_callable("then", options.get("then")),
        required=required,
    )


def _count(name: str, value: object, least: int, otherwise: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise FaultTypeError(f"{name}={value!r}: a whole number from {least} up{otherwise}")
    if value < least:
        raise FaultValueError(f"{name}={value!r}: a whole number from {least} up{otherwise}")
    return value


def _probability(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FaultTypeError(f"probability={value!r}: a number from 0 to 1")
    if not 0 <= value <= 1:
        raise FaultValueError(f"probability={value!r}: a number from 0 to 1")
    return value


def _callable(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise FaultTypeError(f"{name}={value!r}: a function that is given the execution")
    return value


def _point(value: object, fault: Fault) -> str | Target:
    if value is None and fault.points[0] == FUNCTION:
        raise FaultValueError(f"{fault!r} strikes at a function: name it, such as at='shop.client.fetch'")
    if value is None:
        return fault.points[0]
    if isinstance(value, str):
        if value in POINTS:
            check_point(fault, value)
            return value
        if "." not in value:
            points = [point for point in fault.points if point != FUNCTION]
            raise FaultValueError(
                f"at={value!r}: choose one of {', '.join(points)}{nearest(value, points)} "
                "A function is named with its module: at='shop.client.fetch'"
            )
    target = find_target(value)
    check_point(fault, FUNCTION)
    return target


def _task_names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    # A task of an app that is not finalized yet is a proxy that claims to be anything, an iterable among others.
    one = isinstance(value, str) or hasattr(value, "delay") or not isinstance(value, Iterable)
    values = [value] if one else list(value)
    names = []
    for item in values:
        name = item if isinstance(item, str) else getattr(item, "name", None)
        if not isinstance(name, str) or not name:
            raise FaultTypeError(f"task={item!r}: a task, its name, a pattern such as 'shop.*', or a list of them")
        names.append(name)
    if not names:
        raise FaultValueError("task=[]: name at least one task, or leave it out for all of the application's")
    return tuple(names)


class Injection(AbstractContextManager["Injection"]):
    """A fault that waits for its executions; what ``celery_faults.inject()`` returns.

    As a context manager it ends with the block, and fails there if it was required and never fired.
    """

    def __init__(self, what: Plan, injector: Injector) -> None:
        self.plan = what
        #: Its place among the injections of the test.
        self.number: int = next(injector.numbers)
        self._injector = injector
        self._active = True
        self._in_block = False
        self._chance = random.Random(random.getrandbits(64)) if what.probability < 1 else random.Random(0)
        # How often a task that it concerns came to its point, and how often without the limit to go beyond.
        self._reached = self._without_limit = 0
        # How often another fault, which is nearer, struck a task that it concerns at its point.
        self.shadowed = 0
        # How often each task had run before.
        self._ran_before = Counter(injector.executed)
        #: How many executions it matched, those that were let through included.
        self.matched: int = 0
        #: How often it fired.
        self.fired = 0
        #: The timeline's events of its firings.
        self.events: list[Event] = []

    @property
    def remaining(self) -> int | None:
        """How often it may still fire; ``None``: without end."""
        if not self._active:
            return 0
        return None if self.plan.times is None else self.plan.times - self.fired

    def cancel(self) -> None:
        """Fire no more. A required fault that was cancelled before it fired is no failure."""
        if self._active:
            self._active = False
            self._injector.injections.remove(self)

    def concerns(self, task: str) -> bool:
        """Whether it may strike a task of that name."""
        if self.plan.tasks is None:
            return not task.startswith("celery.")
        return any(task == pattern or fnmatchcase(task, pattern) for pattern in self.plan.tasks)

    def matches(self, execution: Execution, point: str | Target) -> bool:
        what = self.plan
        if what.at != point or self.remaining == 0 or not self.concerns(execution.name):
            return False
        self._reached += 1
        fault = what.fault
        if isinstance(fault, Sleep) and fault.beyond and execution.time_limits[fault.beyond] is None:
            self._without_limit += 1
            return False
        return what.when is None or bool(what.when(execution))

    def is_its_turn(self) -> bool:
        """Whether a match is one of those at which it fires; counts it."""
        what = self.plan
        self.matched += 1
        turn = self.matched - what.skip
        if turn < 1 or (turn - 1) % what.every:
            return False
        return what.probability == 1 or self._chance.random() < what.probability

    def what_ran(self) -> Counter[str]:
        """How often each task has run since the fault was injected."""
        return self._injector.executed - self._ran_before

    def near_miss(self) -> str:
        """How near it came to firing."""
        what = self.plan
        executed = self.what_ran()
        ran = [name for name in executed if self.concerns(name)]
        if self.matched:
            return f"It matched {_times(self.matched)}, and skip, every or probability let it through."
        if self.shadowed:
            return f"Another fault struck first {_times(self.shadowed)}."
        if self._reached > self._without_limit:
            return f"`when` said no {_times(self._reached - self._without_limit)}."
        if self._without_limit:
            assert isinstance(what.fault, Sleep)
            return f"{', '.join(ran)} has no {what.fault.beyond}."
        if isinstance(what.at, Target) and not what.at.is_in_place():
            return f"{what.at} was replaced after the fault was put there, by a fixture perhaps: replace what it calls."
        if ran and isinstance(what.at, Target):
            return f"{', '.join(ran)} did not call {what.at}."
        if ran:
            return f"{', '.join(ran)} did not come to the point {what.at!r}."
        if what.tasks is not None:
            return " ".join(f"{task} did not run{nearest(task, executed)}" for task in what.tasks)
        return ""

    def __enter__(self) -> Injection:
        self._in_block = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
        if value is None and self.plan.required and not self.fired:
            raise FaultNeverFiredError(self._injector.why_not_fired([self]))

    def __repr__(self) -> str:
        return f"<Injection {self.plan}: fired {self.fired} times>"


class Injector:
    """Holds the injections of a test and strikes at the points of a task's life."""

    def __init__(
        self,
        recorder: Recorder,
        simulation: Simulation,
        limits: Callable[[], tuple[Any, Any]],
        effects: Effects,
    ) -> None:
        self.injections: list[Injection] = []
        self.numbers: itertools.count[int] = itertools.count()
        self._recorder = recorder
        self._simulation = simulation
        self._default_limits = limits
        self._effects = effects
        #: How often each task has run.
        self.executed: Counter[str] = Counter()
        self._in_body: dict[Fiber, Execution] = {}
        self._targets: dict[Target, ExitStack] = {}

    def add(self, what: Plan) -> Injection:
        injection = Injection(what, self)
        if isinstance(what.at, Target) and what.at not in self._targets:
            self._targets[what.at] = what.at.replace(self._strike_at_call)
        self.injections.append(injection)
        return injection

    def check_tasks(self, what: Plan, known: Iterable[str]) -> None:
        """Raise when a plan names tasks that no app knows, or a limit that none of them has."""
        names = list(known)
        for pattern in what.tasks or ():
            if not any(name == pattern or fnmatchcase(name, pattern) for name in names):
                users = sorted(name for name in names if not name.startswith("celery."))
                raise FaultValueError(
                    f"inject({what.fault!r}, task={pattern!r}): no such task{nearest(pattern, users)} "
                    f"The application's tasks: {', '.join(users) or 'none'}"
                )

    def check_limits(self, what: Plan, tasks: Mapping[str, Any]) -> None:
        """Raise when ``beyond`` names a limit that none of the named tasks has."""
        fault = what.fault
        if not isinstance(fault, Sleep) or fault.beyond is None or what.tasks is None:
            return
        default = dict(zip(LIMITS, self._default_limits(), strict=True))[fault.beyond]
        named = [
            task
            for name, task in tasks.items()
            if any(name == pattern or fnmatchcase(name, pattern) for pattern in what.tasks)
        ]
        if default is None and all(getattr(task, fault.beyond, None) is None for task in named):
            raise FaultValueError(
                f"inject({fault!r}): {', '.join(what.tasks)} has no {fault.beyond}, so there is nothing to go beyond"
            )

    def wrap(self, task: Any) -> None:
        """Make the points ``start`` and ``return`` of a task's body reachable."""
        name = "_orig_run" if hasattr(task, "_orig_run") else "run"
        body = getattr(task, name)
        if getattr(body, "_celery_faults_body", None) is not None:
            return
        simulation = self._simulation

        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            request = task.request
            if request.called_directly or request.is_eager or simulation.current.rank != TASK_RANK:
                return body(*args, **kwargs)
            execution = self._execution(task, args, kwargs)
            self.executed[task.name] += 1
            self.strike("start", execution)
            fiber = simulation.current
            self._in_body[fiber] = execution
            try:
                result = body(*args, **kwargs)
            finally:
                self._in_body.pop(fiber, None)
            self.strike("return", execution)
            self._recorder.callbacks.returned()
            return result

        run._celery_faults_body = body  # type: ignore[attr-defined]
        setattr(task, name, run)

    def _execution(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Execution:
        request = task.request
        info = request.delivery_info or {}
        hard, soft = request.timelimit or (None, None)
        default_hard, default_soft = self._default_limits()
        return Execution(
            name=task.name,
            task=task,
            task_id=request.id,
            args=args,
            kwargs=kwargs,
            retries=request.retries or 0,
            queue=self._recorder.queue_of(request.id) or info.get("routing_key") or "",
            redelivered=bool(info.get("redelivered")),
            headers=request.headers or {},
            time_limits={
                "time_limit": hard or task.time_limit or default_hard,
                "soft_time_limit": soft or task.soft_time_limit or default_soft,
            },
            secrets=self._recorder.shown.secrets,
        )

    def strike(
        self, point: str | Target, execution: Execution, but: Sequence[int] = (), in_coroutine: bool = False
    ) -> Injection | None:
        """Let the first injection that matches at this point fire, those of the numbers ``but`` excepted.

        In a coroutine a sleep is left to the coroutine itself.
        """
        self._recorder.passed(str(point), execution.name, execution.task_id, execution.retries)
        injections = [injection for injection in self.injections if injection.number not in but]
        for position, injection in enumerate(injections):
            try:
                fires = injection.matches(execution, point) and injection.is_its_turn()
            except Exception as error:  # the test's own `when` is wrong, not the task
                self._effects.fail_test(error)
                return None
            if fires:
                for other in injections[position + 1 :]:
                    other.shadowed += other.plan.at == point and other.concerns(execution.name)
                self._fire(injection, execution, in_coroutine)
                return injection
        return None

    def strike_message(
        self, point: str, queue: str, payload: Mapping[str, Any], but: Sequence[int]
    ) -> tuple[Fault, int] | None:
        """A task message comes to one of the points ``publish``, ``receive`` and ``ack``."""
        headers = headers_of(payload)
        name, task_id = identity_of(payload)
        assert name is not None
        assert task_id is not None
        retries = headers.get("retries") or 0
        if not any(injection.plan.at == point for injection in self.injections):
            self._recorder.passed(point, name, task_id, retries)
            return None
        args, kwargs = decode_arguments(payload)
        info = (payload.get("properties") or {}).get("delivery_info") or {}
        execution = Execution(
            name=name,
            task=self._recorder.tasks().get(name),
            task_id=task_id,
            args=args,
            kwargs=kwargs,
            retries=retries,
            queue=queue or info.get("routing_key") or "",
            redelivered=bool(info.get("redelivered")),
            headers=headers,
            is_message=True,
            secrets=self._recorder.shown.secrets,
        )
        fired = self.strike(point, execution, but)
        return None if fired is None else (fired.plan.fault, fired.number)

    def strike_at_store(self, point: str, task_id: str) -> None:
        """The final state of a task is about to be stored, or was, by the process that ran it."""
        if point == "stored":
            self._recorder.stored[task_id] = len(self._recorder.timeline)
        task = get_current_task()
        if self._simulation.current.rank != TASK_RANK or task is None or task.request.is_eager:
            return
        if task.request.id == task_id:
            self.strike(point, self._execution(task, task.request.args or (), task.request.kwargs or {}))

    def _strike_at_call(self, target: Target, in_coroutine: bool) -> float:
        """A named function is called: by the body of a task, or by somebody else, whom it does not concern.

        Returns for how long its coroutine has to sleep.
        """
        if not self._simulation.here:
            return 0
        fiber = self._simulation.current
        helpers: Mapping[Fiber, Fiber] = getattr(fiber.data, "helpers", {})
        execution = self._in_body.get(helpers.get(fiber, fiber))
        fired = self.strike(target, execution, in_coroutine=in_coroutine) if execution is not None else None
        if fired is None or execution is None or not in_coroutine or not isinstance(fired.plan.fault, Sleep):
            return 0
        return length_of(fired.plan.fault, execution)

    def begin(self) -> None:
        """Another test begins: the faults of the one before strike no more."""
        self.close()
        self.injections.clear()
        self.executed.clear()

    def close(self) -> None:
        """Give the named functions back."""
        while self._targets:
            self._targets.popitem()[1].close()

    def _then(self, injection: Injection, execution: Execution) -> None:
        if injection.plan.then is not None:
            try:
                injection.plan.then(execution)
            except Exception as error:
                self._effects.fail_test(error)

    def _fire(self, injection: Injection, execution: Execution, in_coroutine: bool) -> None:
        fault = injection.plan.fault
        injection.fired += 1
        self._recorder.fault_fired(fault.kind, execution.name, execution.task_id, repr(fault))
        injection.events.append(self._recorder.timeline[-1])
        self._effects.before(fault, execution)
        if isinstance(fault, Raise):
            exception = fault.make()
            self._recorder.injected.append(exception)
            self._then(injection, execution)
            self._effects.after(fault, execution)
            raise exception
        if isinstance(fault, Crash):  # nothing comes after it
            self._then(injection, execution)
            self._effects.after(fault, execution)
            self._effects.crash()
        if not (in_coroutine and isinstance(fault, Sleep)):
            self._effects.strike(fault, execution)
        self._then(injection, execution)
        self._effects.after(fault, execution)

    def unfired(self) -> list[Injection]:
        """The required injections that never fired, those of blocks excepted: they were judged there."""
        return [i for i in self.injections if i.plan.required and not i.fired and not i._in_block]

    def why_not_fired(self, injections: Sequence[Injection]) -> str:
        """A sentence for each fault that never fired, with what did run."""
        lines = []
        for injection in injections:
            ran = ", ".join(f"{name} ({_times(count)})" for name, count in injection.what_ran().items())
            sentence = f"inject({injection.plan}) never fired. What ran: {ran or 'no task at all'}."
            lines.append(f"{sentence} {injection.near_miss()}".rstrip())
        return "\n".join(lines)


def _times(count: int) -> str:
    return f"{count} time{'' if count == 1 else 's'}"
