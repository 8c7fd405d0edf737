"""Evaluation of the machines' results for connections: where their instructions go. No I/O.

A connection is compared with a direct one of the same machine, just before. The kernel's own counts have the time
inside a program; an empty program at the same hook shows what a call costs outside of it. The rest is in no hook:
another destination, and what follows from a flag that a program has set.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from benchmarks.client import CLOSES, RST, Times
from benchmarks.planes import AGAIN, DIRECT
from benchmarks.programs import ON_THE_WAY, Runs
from benchmarks.vm.figures import NS_PER_INSTRUCTION
from benchmarks.vm.goals import CONNECT, GOALS, MEASURES

MOST_SPREAD: Final = 200
"""The maximum difference of the machines, in instructions."""


class Measured(NamedTuple):
    """The results of one machine for connections of one kind, in nanoseconds of its clock."""

    times: Times
    runs: Mapping[str, Runs]
    """Of programs, for one connection."""


By = Mapping[str, Mapping[str, Measured]]
"""Results by the name of what was measured, and by the close."""


class Sample(NamedTuple):
    """The results of one machine."""

    empty: By
    """With an empty program at the hook of the one of ours that has this name."""
    rows: By
    before: By
    """Direct connections just before each of these; for `AGAIN`, before the last of our data planes."""


class Hook(NamedTuple):
    """The cost of a hook for one connection."""

    runs: float
    inside: float
    """Instructions in our program."""
    outside: float
    """Instructions of the kernel for its calls."""


class Row(NamedTuple):
    """The instructions of a connection, beyond those of a direct one: medians of all machines."""

    more: Mapping[str, float]
    """By the names of `MEASURES`."""
    spread: float
    """The largest difference of the machines."""
    hooks: Mapping[str, Mapping[str, Hook]]
    """By the close, and by the name of the program."""

    def rest(self, close: str) -> float:
        """Return the instructions that belong to no hook."""
        return self.more[close] - sum(hook.inside + hook.outside for hook in self.hooks[close].values())


def read_sample(document: bytes) -> Sample:
    """Return the results that a machine wrote.

    :raises ValueError: if they are incomplete.
    """
    try:
        found = json.loads(document)
        sample = Sample(_read(found["empty"]), _read(found["rows"]), _read(found["before"]))
        complete = (
            sample.empty.keys() >= set(ON_THE_WAY)
            and sample.rows.keys() >= {DIRECT, AGAIN, *GOALS}
            and sample.before.keys() >= {AGAIN, *ON_THE_WAY, *GOALS}
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is not complete: {error!r}") from error
    if not complete:
        raise ValueError("it is not complete")
    return sample


def _read(found: Mapping[str, Any]) -> By:
    return {
        name: {
            close: Measured(
                Times(*of_close[close]["times"]),
                {program: Runs(*runs) for program, runs in of_close[close]["runs"].items()},
            )
            for close in CLOSES
        }
        for name, of_close in found.items()
    }


def counts(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Return the instructions of a connection, by the names of `MEASURES`."""
    times = {CONNECT: measured[RST].times.connect, **{close: measured[close].times.whole for close in CLOSES}}
    return {what: nanoseconds / NS_PER_INSTRUCTION for what, nanoseconds in times.items()}


def more(sample: Sample, row: str) -> dict[str, float]:
    """Return the instructions beyond those of a direct connection of the same machine, just before."""
    direct = counts(sample.before[row])
    return {what: count - direct[what] for what, count in counts(sample.rows[row]).items()}


def hook(sample: Sample, row: str, close: str, program: str) -> Hook:
    """Return the cost of a hook for one connection."""
    ours = sample.rows[row][close].runs.get(program, Runs(0, 0))
    empty, direct = sample.empty[program][close], sample.before[program][close]
    calls, reading = empty.runs[program]
    call = (empty.times.whole - direct.times.whole) / calls
    inside = ours.nanoseconds - ours.number * reading / calls
    return Hook(ours.number, inside / NS_PER_INSTRUCTION, ours.number * call / NS_PER_INSTRUCTION)


def rows(samples: Sequence[Sample]) -> dict[str, Row]:
    """Return the table."""
    return {row: _row(samples, row) for row in (*GOALS, AGAIN)}


def _row(samples: Sequence[Sample], row: str) -> Row:
    costs = [more(sample, row) for sample in samples]
    return Row(
        {what: statistics.median(cost[what] for cost in costs) for what in MEASURES},
        max(max(cost[what] for cost in costs) - min(cost[what] for cost in costs) for what in MEASURES),
        {
            close: {
                program: Hook._make(
                    map(statistics.median, zip(*(hook(sample, row, close, program) for sample in samples), strict=True))
                )
                for program in ON_THE_WAY
            }
            for close in CLOSES
        },
    )


def direct(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the instructions of a direct connection: medians of all machines."""
    found = [counts(sample.rows[DIRECT]) for sample in samples]
    return {what: statistics.median(one[what] for one in found) for what in MEASURES}


def shortcomings(found: Mapping[str, Row]) -> Iterator[str]:
    """Yield each result that cannot be trusted."""
    for name, row in found.items():
        if row.spread > MOST_SPREAD:
            yield f"{name}: machines differ by {row.spread:,.0f} instructions"
    for what, count in found[AGAIN].more.items():
        if abs(count) > MOST_SPREAD:
            yield f"{AGAIN}: {MEASURES[what]} takes {count:+,.0f}, so something is left of what was measured before"


def document(found: Mapping[str, Row], straight: Mapping[str, float]) -> dict[str, Any]:
    """Return the results as JSON.

    :param straight: those of `direct`.
    """
    return {
        "direct": {what: round(count) for what, count in straight.items()},
        "rows": {
            name: {
                "more": {what: round(count) for what, count in row.more.items()},
                "spread": round(row.spread),
                "hooks": {
                    close: {
                        program: {field: round(value, 1) for field, value in cost._asdict().items()}
                        for program, cost in hooks.items()
                    }
                    for close, hooks in row.hooks.items()
                },
                "rest": {close: round(row.rest(close)) for close in CLOSES},
            }
            for name, row in found.items()
        },
    }


def costs_and_goals(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the table of costs as text.

    :param found: the rows of a document.
    """
    for name, row in found.items():
        cells = [name]
        for what, count in row["more"].items():
            goal = GOALS.get(name, {}).get(what)
            cells += [f"{count:+,}", f"{goal:+,}" if goal else ""]
        yield [*cells, str(row["spread"])]


def by_hook(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the table of hooks as text.

    :param found: the rows of a document.
    """
    for name, row in found.items():
        for close, hooks in row["hooks"].items():
            if any(cost["runs"] for cost in hooks.values()):
                cells = [f"{cost[field]:,.0f}" for cost in hooks.values() for field in Hook._fields]
                yield [f"{name}, {close.upper()}", *cells, f"{row['rest'][close]:,}", f"{row['more'][close]:+,}"]


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield both tables for people.

    :param found: the rows of a document.
    """
    yield _line("more than direct", *(head for what in MEASURES for head in (what, "goal")), "spread")
    yield from (_line(*cells) for cells in costs_and_goals(found))
    hooks = (f"{program.removeprefix('clb_')} {field}" for program in ON_THE_WAY for field in ("runs", "in", "out"))
    yield _line("by hook", *hooks, "rest", "more")
    yield from (_line(*cells) for cells in by_hook(found))


def _line(name: str, *cells: str) -> str:
    return f"{name:<28}" + "".join(f"{cell or '-':>18}" for cell in cells)
