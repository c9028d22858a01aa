"""Makes ``docs/performance.md`` of what a run measured, so that no figure in it is written by hand."""

from __future__ import annotations

import statistics
from typing import Any

import more

#: Title, unit, and the goal: at most so much.
GOALS = (
    ("whole test with one task", "whole_test", 0.005),
    ("one `delay().get()`", "round_trip", 0.001),
    ("ten retries over 1023 virtual seconds", "schedule", 0.015),
    ("a chord of three and its body", "chord", 0.006),
)
#: What a test may leave behind: a dict of numbers, and what they are.
BLOCKS = 30

PAGE = """# Performance

Made of one run by `python benchmarks/run.py --show out.json --page docs/performance.md`. What each row is, and how it
is measured: `benchmarks/README.md`. Times are of one machine; ratios are worth more.

{table}

{note}

{machine}

## Goals
{goals}

## What grows, and how
- **Tasks in one test: linearly.** {tasks} All of it is the record of the test (messages, signals, events), which
  `celery_faults` shows and a failing test prints, and goes when the test ends. Waiting for one result looks at nothing
  but that result; draining looks at each message once.
- **Tests in one process: {stays}.** {many} A task that is *killed* (a hard time limit, a crash) stays: its greenlet
  must never be collected, since that would run its `finally`. It costs about 6 kB, and what its stack refers to.
- **Modules in the process**: each is looked into once. Later a clock costs one comparison of addresses, and a turn for
  each place that binds a name of the time.
- **A virtual hour costs what happens in it**, not its seconds: the clock jumps. Ten retries over 1023 s are eleven
  executions, ten of which format a traceback, as Celery does.
- **A run that does not use the plugin** imports what declares its options, marks and fixtures, and no Celery.

## Where the time of a test goes
Most of it is Celery's own worker, which each test starts anew: its blueprint, three broker channels and their queues.
By samples of its stack, more than half of a task is spent in the lines of Celery, kombu, redis-py and the in-memory
Redis, a fifth in those of the plugin, and the rest in Python's own library, most of it on behalf of the former; about a
tenth of all is Python's garbage collector, whose settings are left to the suite. Nothing of Celery's or kombu's is cut
short; what the plugin leaves out is about sockets: commands are not written down as bytes and parsed again, idle
connections are not probed. What it keeps between tests is what cannot change: where modules bind the time, and one copy
of each code object in tracebacks.

Where a goal is not reached, this is what stands against it. A message through Celery and the broker is eighteen
commands of Redis and some thousand calls of Celery, kombu and redis-py, and eager `apply()` is none of that. A retry is
such a message and a formatted traceback. And a worker that is kept from test to test would start no more, but would be
one that has seen another test: `start_worker` in a session fixture gives it to those who want it.
"""


def page(report: dict[str, Any], table: list[str], machine: list[str]) -> str:
    """The page, in Markdown. ``table`` and ``machine`` are the lines that the run prints."""
    growth = {title.strip(): (figure, compared) for title, figure, compared in more.rows(report["more"])}

    def of(*titles: str) -> str:
        found = [
            f"{name}: {figure}{f' ({compared})' if compared else ''}"
            for name, (figure, compared) in growth.items()
            if any(title in name for title in titles)
        ]
        return "; ".join(found) + "."

    return PAGE.format(
        table="\n".join(table),
        note="\\* computed, not measured: by the schedule. Eager execution waits for nothing.",
        machine="  \n".join(machine),
        goals="\n".join(goals(report)),
        stays=_stays(report),
        tasks=of("tasks in one test", "memory that each takes"),
        many=of("tests in one process", "memory that stays", "threads", "descriptors", "greenlets", "names of other"),
    )


def _blocks(report: dict[str, Any]) -> float:
    """Blocks of memory that stay of a test after the first hundred, less those of one without the plugin."""
    growth = report["more"]["growth"]
    stays = []
    for name in ("many", "many_without"):
        first, last = growth[name]["surroundings"]
        stays.append((last["blocks"] - first["blocks"]) / (growth[name]["count"] - 100))
    return stays[0] - stays[1]


def _stays(report: dict[str, Any]) -> str:
    blocks = _blocks(report)
    if blocks > BLOCKS:
        return f"linearly, {blocks:.0f} blocks of memory each beyond pytest's own"
    return "pytest's items and reports, and the few numbers that a report carries to the summary"


def goals(report: dict[str, Any]) -> list[str]:
    """A line for each goal, and whether this run reached it."""
    cells, lines = report["cells"], ["| goal | at most | measured | |", "| --- | --- | --- | --- |"]

    def line(title: str, goal: float, found: float, unit: str = "ms", scale: float = 1000) -> None:
        reached = "reached" if found <= goal else "not reached"
        lines.append(f"| {title} | {goal * scale:g} {unit} | {found * scale:.3g} {unit} | {reached} |")

    for title, row, goal in GOALS:
        line(title, goal, cells[row]["plugin"]["median"])
    trip, eager = cells["round_trip"]["plugin"]["median"], cells["round_trip"]["eager"]["median"]
    line("one `delay().get()`, times eager `apply()`", 15, trip / eager, "x", 1)
    runs = report["more"]["growth"]["tasks"]
    sizes = sorted({run["tasks"] for run in runs})
    few, most = (statistics.median([r["seconds"] / n for r in runs if r["tasks"] == n]) for n in (sizes[0], sizes[-1]))
    line(f"a task of {sizes[-1]:,} in one test, times one of {sizes[0]}", 1.2, most / few, "x", 1)
    line("what a test leaves in the process beyond pytest's own", BLOCKS, _blocks(report), "blocks", 1)
    clock = report["more"]["clock"]
    line(
        f"clock start and stop after the first, {clock['modules']:,} modules",
        0.001,
        statistics.median(clock["plugin"][1:]),
    )
    unused = report["more"]["unused"]
    line(
        "installed and not used, `--collect-only`",
        0.010,
        statistics.median(unused["with"]) - statistics.median(unused["without"]),
    )
    worker = cells["whole_test"]["start_worker"]
    if worker["measured"]:
        ratio = worker["median"] / cells["whole_test"]["plugin"]["median"]
        reached = "reached" if ratio >= 200 else "not reached"
        lines.append(
            f"| `start_worker` on Redis, times a whole test here | at least 200 x | {ratio:.0f} x | {reached} |"
        )
    return lines
