"""Evaluation of the machines' results: ratios, spreads, a table, and shortcomings. No I/O.

The clock of a machine counts instructions, so times become instructions here.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

NS_PER_INSTRUCTION: Final = 2
"""QEMU's -icount shift=1: 2**1."""
DIRECT: Final = "direct"
OURS: Final = "clb-discovery"
CASES: Final[dict[str, str]] = {
    DIRECT: "direct",
    OURS: "clb-discovery",
    "ipvs-dr": "IPVS -g, direct routing",
    "ipvs-nat": "IPVS -m, NAT",
    "iptables": "iptables DNAT, -m statistic",
}
"""The names of cases for people."""
LEAST: Final = 0.995
"""The minimum for our requests, relative to a direct connection."""
MOST_SPREAD: Final = 0.005
"""The maximum difference of the runs of a case, relative to their median."""
_NETFILTER: Final = ("nf_", "nft_", "ip_vs", "ip_tables", "iptable_", "x_tables", "xt_")


class Sample(NamedTuple):
    """The results of one machine."""

    per_second: float
    """Requests, over all tests of redis-benchmark, by the clock of the machine."""
    connect: float
    """Instructions of one connect(2)."""
    cycle: float
    """Instructions of a connection from socket(2) to close(2) at both ends, without requests."""
    modules: tuple[str, ...]
    """Netfilter modules in the kernel at the end."""
    programs: int
    """BPF programs in the kernel at the end."""
    runs: float | None
    """Runs of our programs for each request; None without our programs."""


class Row(NamedTuple):
    """The results of all machines of one case: medians, ratios to direct, and spreads."""

    per_second: float
    to_direct: float
    spread: float
    instructions: float
    """Of one request, on both sides."""
    connect: float
    connect_more: float
    """Difference to direct."""
    connect_spread: float
    cycle: float
    cycle_more: float
    runs: float | None
    modules: tuple[str, ...]
    programs: int


def requests_per_second(text: str) -> float:
    """Return the requests per second over all tests of redis-benchmark --csv, which have equal numbers of requests.

    :raises ValueError: if there are none.
    """
    rates = [float(row["rps"]) for row in csv.DictReader(text.splitlines())]
    if not rates:
        raise ValueError("redis-benchmark says nothing")
    return statistics.harmonic_mean(rates)


def runs_per_request(counts: Sequence[tuple[int, int]]) -> float:
    """Return the runs of programs for each request.

    :param counts: requests and runs of two measurements with the same number of connections.
    """
    (few, before), (many, after) = counts
    return (after - before) / (many - few)


def read_sample(document: bytes) -> Sample:
    """Return the results that a machine wrote.

    :raises ValueError: if they are incomplete.
    """
    try:
        found = json.loads(document)
        connect_ns, cycle_ns = found["times"]
        return Sample(
            requests_per_second(found["redis"]),
            connect_ns / NS_PER_INSTRUCTION,
            cycle_ns / NS_PER_INSTRUCTION,
            tuple(sorted(name for name in found["modules"] if name.startswith(_NETFILTER))),
            found["programs"],
            runs_per_request(found["runs"]) if found["runs"] else None,
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"it is not complete: {error!r}") from error


def spread(values: Sequence[float]) -> float:
    """Return the difference of maximum and minimum, relative to the median."""
    return (max(values) - min(values)) / statistics.median(values)


def rows(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Row]:
    """Return the table by case; `direct` has to be among them."""

    def median(case: str, what: str) -> float:
        return float(statistics.median(getattr(sample, what) for sample in samples[case]))

    found = {}
    for case, ones in samples.items():
        per_second = median(case, "per_second")
        found[case] = Row(
            per_second=per_second,
            to_direct=per_second / median(DIRECT, "per_second"),
            spread=spread([one.per_second for one in ones]),
            instructions=1e9 / NS_PER_INSTRUCTION / per_second,
            connect=median(case, "connect"),
            connect_more=median(case, "connect") - median(DIRECT, "connect"),
            connect_spread=spread([one.connect for one in ones]),
            cycle=median(case, "cycle"),
            cycle_more=median(case, "cycle") - median(DIRECT, "cycle"),
            runs=max((one.runs for one in ones if one.runs is not None), default=None),
            modules=tuple(sorted({name for one in ones for name in one.modules})),
            programs=max(one.programs for one in ones),
        )
    return found


def shortcomings(found: Mapping[str, Row]) -> Iterator[str]:
    """Yield each unacceptable result."""
    for case, row in found.items():
        title = CASES[case]
        if max(row.spread, row.connect_spread) > MOST_SPREAD:
            yield f"{title}: runs differ by {max(row.spread, row.connect_spread):.2%}"
        if case in {DIRECT, OURS} and row.modules:
            yield f"{title}: not a clean kernel, it has {', '.join(row.modules)}"
        if case != OURS and row.programs:
            yield f"{title}: not a clean kernel, it has {row.programs} BPF programs"
    if OURS not in found:
        return
    ours = found[OURS]
    if ours.to_direct < LEAST:
        yield f"{CASES[OURS]}: {ours.to_direct:.4f} of direct, less than {LEAST}"
    if ours.runs != 0:
        yield f"{CASES[OURS]}: {ours.runs} program runs for each request"
    for case, row in found.items():
        if case not in {DIRECT, OURS} and row.to_direct >= ours.to_direct:
            yield f"{CASES[OURS]} is not ahead of {CASES[case]}"


_FORMS: Final = {
    "per_second": "{:,.0f}",
    "to_direct": "{:.4f}",
    "spread": "{:.2%}",
    "instructions": "{:,.0f}",
    "connect": "{:,.0f}",
    "connect_more": "{:+,.0f}",
    "connect_spread": "{:.2%}",
    "cycle": "{:,.0f}",
    "cycle_more": "{:+,.0f}",
    "runs": "{:g}",
}


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the fields of a row as text, by their names; nothing for a field that is None."""
    return ["" if row[field] is None else form.format(row[field]) for field, form in _FORMS.items()]


def lines(found: Mapping[str, Row]) -> Iterator[str]:
    """Yield the table for people."""
    heads = (
        "requests/s",
        "to direct",
        "spread",
        "instr.",
        "connect(2)",
        "more",
        "spread",
        "open+close",
        "more",
        "runs",
    )
    yield f"{'':<28}" + "".join(f"{head:>12}" for head in heads)
    for case, row in found.items():
        yield f"{CASES[case]:<28}" + "".join(f"{cell or '-':>12}" for cell in cells(row._asdict()))
