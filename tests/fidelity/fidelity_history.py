"""What both sides wrote down, made comparable, and compared.

Compared
    for each task, named by its name and ordinal (``scenario_app.add#2``): what happened to it in the worker's main
    process, in order, with how and when its messages were settled (ack, reject, requeue) and Celery's events, which
    a monitor reads; what happened to it in a child, in order; both in one order where that is determined; what was
    stored, the exception's type, module and arguments and the traceback's functions included; what the caller got.
    For all tasks together: what each role published, in order; Celery's warnings and errors of each role; what is
    left in the queues and in ``unacked``, the whole messages; the keys left in the result backend and in how many
    hours they expire. In a child, where one task runs at a time, and in the client, the order of all that happens
    to all tasks; where one task is there at a time, in the main process too, and all processes in one order. For
    each signal its sender and the names of its arguments, and which process sends it.

Not compared, and why
    ids, process ids, host names, addresses, dates, a message's ``origin``, the job number in ``WorkerLostError``: they
    differ from run to run.
    The order of main process and child while a task is retried or replaced: the child publishes the message and
    goes on with its signals, while the main process already receives it, so that its events mix too. Nor while one
    is terminated or cancelled: the child unwinds while the main process writes down the new state; nor while one
    leaves: the child says so before it goes. The order of an early ack and the loss of the child, which may die at
    once. The order of "sent" and anything of another process: ``after_task_publish`` comes after the message has
    left. The order of events of two tasks in the main process: what it receives races with what its children
    report. The order of ``worker_ready`` and a child's start, of ``Request.on_accepted`` and what the child does,
    of when the caller gets a result and anything else. The pool that is the sender of
    ``worker_before_create_process``: here it is one of another class. How long a worker takes to start, to stop and
    to replace a child.
    Times: an event is at most a second later in the real run than planned, a retry never earlier than it asked for. A
    caller that waits for a group may get it half a second earlier, and any result a second later: see `POLL`, `MISSED`.
    How long it takes to replace a child that is gone: a real worker looks every five seconds. Here it is there at
    once, so what comes after a child is lost may happen as much later.
    How much a child still does between the SIGTERM and the SIGKILL of a hard time limit: a tenth of a second's worth,
    a part of what the scenario declares, and never nothing.
    A traceback's lines: only its functions.
    A log record's arguments: they hold ids, times and process ids. Records below WARNING.
    What the caller gets where Celery stores two ends of a task, one right after the other. Which failure it gets
    where both the task and one before it have failed, as of a chord's body and its header: it looks for both by
    turns. That it is one of them is compared, and which there are.
    ``KeyboardInterrupt`` in a task: here it ends the test, by design. A task that kills its own process would kill
    the test.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fidelity_expected import Difference
from scenario_app import app

if TYPE_CHECKING:
    from fidelity_scenarios import Scenario

Record = dict[str, Any]

# How much later than planned a real event may be; and how much earlier, since tasks sent in one instant of virtual
# time are sent some milliseconds apart in reality, which shortens the later one's wait for the earlier one.
LATE, EARLY = 1.0, 0.15
# A caller that waits for a group looks at all its results at once, and again after each half second: what it finds at
# the first look depends on how far the worker has got meanwhile.
POLL = 0.5
# One that waits for a result looks once a second for what it may have missed, and so may get each a second later.
MISSED = 1.0
# A real worker looks once a second whether it is to end.
NOTICES_SIGNALS_WITHIN = 1.0

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VARYING = (
    (re.compile(r"0x[0-9a-f]+"), "0x..."),
    (re.compile(r"Job: \d+"), "Job: N"),
    (re.compile(r"connecting to (?:the \w+|[\d.]+:\d+)\."), "connecting to <address>."),
    (re.compile(r"(?:datetime\.datetime|FakeDatetime)\([^()]*\)"), "<date>"),
)
_WAIT = re.compile(r"(Retry\(Retry\(\.\.\.\), .*, )\d+\)")
_PLUGIN = "pytest_celery_faults"
_NOTHING = Difference("")
_NOT_COMPARED = ("at", "id", "role", "task", "signal")
_NO_TASK = "no task"
#: When a worker is up, these say that a child or itself is replaced, or that it ends.
_LOSSES = ("worker_before_create_process", "celeryd_init", "worker_shutting_down", "worker_shutdown")


@dataclass
class Raw:
    """What one side wrote down in one scenario."""

    hostnames: tuple[str, ...]
    records: list[Record] = field(default_factory=list)
    #: Ids that the scenario named, in that order.
    tracked: list[str] = field(default_factory=list)
    #: What the sender saw: of a result (with its id), or anything else.
    seen: list[tuple[str | None, Any]] = field(default_factory=list)
    #: For a result that the sender waited for: its own failure, and those of what came before it.
    failures: dict[str, list[str]] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)
    queues: dict[str, list[Any]] = field(default_factory=dict)
    unacked: list[Any] = field(default_factory=list)
    #: The backend's keys, and in how many seconds each expires, -1 for never.
    keys: dict[str, int] = field(default_factory=dict)
    #: How often the sender waited, and for a group.
    waits: int = 0
    waits_for_groups: int = 0


class History:
    """The comparable form, without what ``apart`` says of this side."""

    def __init__(self, raw: Raw, apart: Difference | None = None, jitter: Sequence[float] = ()) -> None:
        self._raw = raw
        self._apart = apart or _NOTHING
        self.jitter = jitter
        self.waits, self.waits_for_groups = raw.waits, raw.waits_for_groups
        #: Lines of ``apart`` that did not happen.
        self.missing: list[str] = []
        self._label_ids()
        self.by_role: dict[str, list[str]] = defaultdict(list)
        self.merged: dict[str, list[str]] = defaultdict(list)
        self.published: dict[str, list[str]] = defaultdict(list)
        self.logs: dict[str, list[str]] = defaultdict(list)
        #: Celery's events, which a monitor reads, of each task and of the worker, in each role.
        self.events: dict[str, list[str]] = defaultdict(list)
        #: How the worker settled the messages of each task.
        self.settled: dict[str, list[str]] = defaultdict(list)
        #: All of that which the main process did with each task, in order.
        self.in_main: dict[str, list[str]] = defaultdict(list)
        self.in_role: dict[str, list[str]] = defaultdict(list)
        self.in_all: list[str] = []
        #: What signals came with, and in which role.
        self.signals: set[str] = set()
        self.offsets: dict[str, list[float]] = defaultdict(list)
        #: Whether a child or the worker was lost before, for each of the offsets.
        self.after_loss: dict[str, list[bool]] = defaultdict(list)
        self.retried: set[str] = set()
        #: Functions of the plugin in each traceback that was stored.
        self.own_frames: list[tuple[str, ...]] = []
        #: Where child and main process go on at the same time: see above.
        self.racing: set[str] = set()
        self.starts: dict[str, list[float]] = defaultdict(list)
        self.planned: dict[str, list[float]] = defaultdict(list)
        self._sort_records()
        self.seen = [(self._plain(one), self._plain(self._any_failure(one, value))) for one, value in raw.seen]
        self.stored = {label: self._stored(raw.stored.get(one)) for one, label in self.labels.items()}
        self.queues = {queue: [self._message(one) for one in held] for queue, held in raw.queues.items()}
        self.unacked = sorted(str(self._message(one)) for one in raw.unacked)
        self.keys = sorted(f"{self._plain(key)}{_expiry(ttl)}" for key, ttl in raw.keys.items())

    def _any_failure(self, one: str | None, value: Any) -> Any:
        failures = self._raw.failures.get(one or "", [])
        return f"one of: {', '.join(failures)}" if len(failures) > 1 and value in failures else value

    def _label_ids(self) -> None:
        names: dict[str, str] = {}
        order = list(dict.fromkeys(self._raw.tracked))
        for record in self._raw.records:
            one = record["id"]
            if one is None:
                continue
            if record.get("task"):
                names.setdefault(one, record["task"])
            if one not in order:
                order.append(one)
        counts: dict[str, int] = defaultdict(int)
        self.labels: dict[str, str] = {}
        for one in order:
            name = names.get(one, "unknown")
            counts[name] += 1
            self.labels[one] = f"{name.removeprefix('scenario_app.')}#{counts[name]}"

    def _sort_records(self) -> None:
        first: dict[str, float] = {}
        taken = self._take_apart()
        loss = self._loss()
        for position, record in enumerate(self._raw.records):
            if position in taken:
                continue
            role, kind, at = record["role"], record["kind"], record["at"]
            label = self.labels.get(record["id"], _NO_TASK)
            details = self._details(record)
            text = self._text(record)
            if kind == "log":
                self.logs[role].append(text)
                continue
            if role == "main":
                self.in_main[label].append(text)
            if kind == "event":
                self.events[f"{label} in {role}"].append(text)
                continue
            if kind in ("ack", "reject", "requeue"):
                self.settled[label].append(text)
                self.offsets[f"settling of {label}"].append(at - first.setdefault(label, at))
                self.after_loss[f"settling of {label}"].append(position >= loss)
                continue
            if "signal" in record:
                self.signals.add(f"{role}: {self._plain(record['signal'])}")
            self.in_role[role].append(f"{label}: {text}")
            if kind in ("publishing", "sent") and role == "child" and label in self.starts:
                self.racing.add(label)
            if kind == "sent":
                self.published[role].append(f"{label} {self._plain(details)}")
                continue
            self.by_role[f"{label} in {role}"].append(text)
            if label != _NO_TASK:
                first.setdefault(label, at)
                self.offsets[f"{label} in {role}"].append(at - first[label])
                self.after_loss[f"{label} in {role}"].append(position >= loss)
            if kind not in ("worker_ready", "on_accepted", "got"):
                self.merged[label].append(f"{role}: {text}")
                self.in_all.append(f"{role}: {label}: {text}")
            if (kind == "revoked" and record["terminated"]) or (kind == "retry" and role == "main"):
                self.racing.add(label)
            elif kind == "retry":
                self.retried.add(label)
                self.planned[label].append(float(record["when"] or 0))
            if kind == "postrun" and record["state"] is None:
                self.racing.add(label)
            if kind == "prerun":
                self.starts[label].append(at)

    def _loss(self) -> int:
        """The first record that was written when a child or the worker was lost: then real ones take a while."""
        records = self._raw.records
        struck = next((n for n, record in enumerate(records) if "Hard time limit" in str(record.get("text"))), None)
        if struck is not None:
            return struck + 1
        ready = next((n for n, record in enumerate(records) if record["kind"] == "worker_ready"), -1)
        lost = next((record for record in records[ready + 1 :] if record["kind"] in _LOSSES), None)
        if lost is None:
            return len(records)
        return next(n for n, record in enumerate(records) if record["at"] >= lost["at"])

    def _details(self, record: Record) -> dict[str, Any]:
        details = {name: value for name, value in record.items() if name not in (*_NOT_COMPARED, "kind")}
        if record["kind"] == "retry" and self.jitter:
            bound = dict(enumerate(self.jitter)).get(len(self.planned[self.labels[record["id"]]]), 0)
            wait = float(details["when"])
            details["when"] = f"0 to {bound:g} s" if 0 <= wait <= bound else wait
        if self.jitter:
            # A delay of 0 seconds is none: the message has no ETA.
            details.pop("eta", None)
            if isinstance(details.get("fields"), dict):
                details["fields"] = {name: value for name, value in details["fields"].items() if name != "eta"}
        return details

    def _text(self, record: Record) -> str:
        details = self._details(record)
        return f"{record['kind']} {self._plain(details)}" if details else str(record["kind"])

    def _line(self, record: Record) -> str:
        return f"{record['role']} {self.labels.get(record['id'], _NO_TASK)} {self._text(record)}"

    def _take_apart(self) -> set[int]:
        """Positions of the records that are meant to be on this side only."""
        taken: set[int] = set()
        lines = [self._line(record) for record in self._raw.records]
        struck = next((n for n, line in enumerate(lines) if "'Hard time limit (%ss) exceeded" in line), len(lines))
        unwinding = self._apart.unwinding
        if unwinding:
            role, task, _ = unwinding[0].split(" ", 2)
            heads = (f"{role} {task} ", f"{role} {_NO_TASK} ")
            own = [n for n in range(struck, len(lines)) if lines[n].startswith(heads)]
            # SIGKILL may come before the last of them, never before the first.
            for n, line in zip(own, unwinding, strict=False):
                if lines[n] != line:
                    break
                taken.add(n)
            if not taken:
                self.missing.append(unwinding[0])
        position = 0
        for line in self._apart.real:
            found = next((n for n in range(position, len(lines)) if lines[n] == line), None)
            if found is None:
                self.missing.append(line)
            else:
                taken.add(found)
                position = found + 1
        return taken

    def count(self, text: str) -> int:
        """How often something happened, to any task."""
        return sum(text in line for lines in self.merged.values() for line in lines)

    def place(self, role: str, text: str) -> int:
        """When something first happened in that role, to any task."""
        return next(n for n, line in enumerate(self.in_role[role]) if text in line)

    def _stored(self, text: Any) -> Any:
        if text is None:
            return None
        meta = json.loads(text)
        meta.pop("date_done", None)
        if meta.get("traceback"):
            frames = re.findall(r'File "(.*?)", line \d+, in (\w+)\n', meta["traceback"])
            own = tuple(f"{Path(file).stem}.{function}" for file, function in frames if _PLUGIN in file)
            # What kills a child of the real side around here stands in its tracebacks.
            ours = (_PLUGIN, "store_result_or_die")
            foreign = [name for file, name in frames if not any(part in f"{file} {name}" for part in ours)]
            if own:
                self.own_frames.append(own)
            real_frames = self._apart.real_frames
            if real_frames:
                if tuple(foreign[-len(real_frames) :]) == real_frames:
                    del foreign[-len(real_frames) :]
                else:
                    self.missing.append(f"the frames {real_frames}")
            meta["traceback"] = foreign
        if meta.get("status") == "STARTED":
            meta["result"] = sorted(meta["result"])
        meta["children"] = [child[0][0] for child in meta.get("children") or ()]
        return self._plain(meta)

    def _message(self, message: Any) -> Any:
        """All of it but who made it, and dates, of which only that they are there."""
        headers = {name: value for name, value in (message.get("headers") or {}).items() if name != "origin"}
        headers.update({name: headers[name] is not None for name in ("eta", "expires") if name in headers})
        properties = message.get("properties") or {}
        body = message.get("body")
        if properties.get("body_encoding") == "base64":
            body = b64decode(body).decode(errors="replace")
        return self._plain({**message, "headers": headers, "properties": properties, "body": body})

    def _plain(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {str(self._plain(key)): self._plain(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(one) for one in value]
        if not isinstance(value, str):
            return value
        for one, label in self.labels.items():
            value = value.replace(one, label)
        value = _UUID.sub("<id>", value)
        for name in self._raw.hostnames:
            value = value.replace(name, "<host>")
        if self.jitter:
            value = _WAIT.sub(r"\1that long)", value)
        for pattern, replacement in _VARYING:
            value = pattern.sub(replacement, value)
        return value

    def __str__(self) -> str:
        lines = []
        for record in self._raw.records:
            label = self.labels.get(record["id"], "-")
            details = {name: self._plain(value) for name, value in record.items() if name not in _NOT_COMPARED}
            at = record["at"] - self._raw.records[0]["at"]
            lines.append(f"  {at:7.3f} {record['role']:5} {label:20} {details.pop('kind'):12} {details or ''}")
        lines += [f"  stored  {label}: {meta}" for label, meta in self.stored.items()]
        lines += [f"  seen    {label}: {value}" for label, value in self.seen]
        lines += [f"  left    {name}: {value}" for name, value in self.queues.items()]
        lines += [f"  unacked {self.unacked}", f"  keys    {self.keys}"]
        return "\n".join(lines)


def differences(real: History, here: History, scenario: Scenario) -> list[str]:
    """Where the two differ otherwise than expected, one entry each; none when all is as it should be.

    An expected difference that is not there is one of them.
    """
    expected = scenario.difference or _NOTHING
    found = [f"expected, and no longer so, on the real side: {line}" for line in real.missing]
    found += [f"expected, and no longer so, here: {line}" for line in here.missing]
    expected_values = dict(expected.values)

    def compare(what: str, first: Any, second: Any) -> None:
        if what in expected_values:
            wanted = expected_values.pop(what)
            if (first, second) != wanted:
                found.append(f"{what}, expected to differ:\n    real {first!r}\n    here {second!r}\n  not {wanted!r}")
        elif first != second:
            found.append(f"{what}:\n    real {first!r}\n    here {second!r}")

    racing = real.racing | here.racing
    for label in racing:
        for side in (real, here):
            side.events[f"{label} in main"].sort()
            if label in side.retried:
                side.by_role[f"{label} in main"].sort()
    for attribute in ("by_role", "published", "logs", "events", "settled", "stored", "queues"):
        one, other = getattr(real, attribute), getattr(here, attribute)
        for key in sorted({*one, *other}):
            compare(f"{attribute} {key}", one.get(key), other.get(key))
    for label in sorted({*real.merged, *here.merged} - racing):
        compare(f"order of processes of {label}", real.merged.get(label), here.merged.get(label))
    for label in sorted({*real.in_main, *here.in_main} - {_NO_TASK}):
        lines = [side.in_main[label] for side in (real, here)]
        if label in racing:
            lines = [_settled_and_said(one) for one in lines]
        if _lost_soon_after_its_ack(label, lines[0]):
            lines = [[line for line in one if line != "ack"] for one in lines]
        compare(f"order in main of {label}", *lines)
    for role in ("client", *(["child"] if scenario.workers == 1 else []), *(["main"] if scenario.alone else [])):
        compare(f"order in {role}", real.in_role.get(role), here.in_role.get(role))
    if scenario.alone and not racing:
        compare("order of all", real.in_all, here.in_all)
    for attribute in (*([] if scenario.stored_twice else ["seen"]), "unacked", "keys"):
        compare(attribute, getattr(real, attribute), getattr(here, attribute))
    compare("signals", sorted(real.signals), sorted(here.signals))
    frames = {one for one in (expected.frames, expected.more_frames) if one}
    if set(here.own_frames) != frames:
        found.append(f"the plugin's frames in tracebacks: expected {sorted(frames)}, found {here.own_frames}")
    if real.own_frames:
        found.append(f"the plugin's frames in the real side's tracebacks: {real.own_frames}")
    found += [f"expected to differ, and not there at all: {what}" for what in expected_values]
    found += _late_or_early(real, here, EARLY + sum(real.jitter), scenario.tolerance)
    return found


def _lost_soon_after_its_ack(label: str, lines: Sequence[str]) -> bool:
    """The loop calls the early ack in its next turn; a child that dies at once is noticed in this one, or later."""
    task = app.tasks.get(f"scenario_app.{label.partition('#')[0]}")
    return task is not None and not task.acks_late and any("WorkerLostError" in line for line in lines)


def _expiry(seconds: int) -> str:
    return "" if seconds < 0 else f" expires in {round(seconds / 3600)} h"


def _settled_and_said(lines: Sequence[str]) -> list[str]:
    """Acks and events without those of a reception, which races with what is said of the attempt before."""
    kinds = ("ack", "reject", "requeue", "event")
    return [line for line in lines if line.split()[0] in kinds and "'task-received'" not in line]


def _late_or_early(real: History, here: History, early: float, late: float) -> list[str]:
    found = []
    for key in real.offsets:
        one, other = real.offsets[key], here.offsets.get(key, [])
        sooner = early + POLL * real.waits_for_groups if key.endswith(" in client") else early
        lates = [
            LATE + sum(real.jitter) + (late + NOTICES_SIGNALS_WITHIN) * lost for lost in here.after_loss.get(key, [])
        ]
        if len(one) == len(other) and not all(
            b - sooner <= a < b + more for a, b, more in zip(one, other, lates, strict=True)
        ):
            found.append(f"times of {key}, in seconds:\n    real {_rounded(one)}\n    here {_rounded(other)}")
    for label in real.retried & here.retried:
        for side, history, allowed in (("real", real, LATE), ("here", here, 1e-5)):
            starts, planned = history.starts[label], history.planned[label]
            waits = [later - earlier for earlier, later in pairwise(starts)]
            # A float of the epoch resolves 0.24 microseconds. The last one may have expired.
            if not all(p - 1e-6 <= w < p + allowed for p, w in zip(planned, waits, strict=False)):
                found.append(f"waits of {label}, {side}: planned {planned}, waited {_rounded(waits)}")
    return found


def _rounded(times: list[float]) -> list[float]:
    return [round(one, 3) for one in times]
