"""The tables of docs/benchmarks.md, only from benchmarks/results: `make bench-plots`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import failure_figures
from benchmarks.charts import percent
from benchmarks.client import CLOSES
from benchmarks.vm import figures, instructions

DOCUMENT: Final = Path(__file__).parent.parent / "docs/benchmarks.md"
_BLOCK: Final = re.compile(r"(<!-- from (\w+)\.json -->\n).*?(<!-- end -->)", re.DOTALL)
Fields = Mapping[str, Any]


def rows(heads: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    for cells in (heads, ["---"] * len(heads), *body):
        yield f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def told(fields: Fields, form: str, *names: str) -> str:
    """Return fields as text, or nothing if one is missing."""
    return form.format(*(fields[name] for name in names)) if all(name in fields for name in names) else ""


def of_connects(measured: Fields) -> Iterator[str]:
    """Yield the table of connects."""
    heads = (
        "",
        "`connect(2)` p50",
        "p99",
        "to direct",
        "quartiles",
        "until the response, to direct",
        "connects a second",
    )
    body = (
        (
            name,
            told(fields, "{:.1f} us", "connect_p50_us"),
            told(fields, "{:.0f} us", "connect_p99_us"),
            told(fields, "{:.3f}", "to_direct"),
            told(fields, "{:.3f} to {:.3f}", "low", "high"),
            told(fields, "{:.3f}", "answer_to_direct"),
            told(fields, "{:,}", "per_second"),
        )
        for name, fields in measured.items()
    )
    yield from rows(heads, body)


def of_connections(measured: Fields) -> Iterator[str]:
    """Yield the table of connections with their close."""
    of_close = ("more than direct", "quartiles", "in programs", "outside")
    heads = (
        "",
        "`connect(2)`",
        "more than direct",
        *(f"{close}: {head}" for close in ("RST", "FIN") for head in of_close),
    )
    body = (
        (
            name,
            told(fields, "{:.1f} us", "connect_us"),
            told(fields, "{:+,} ns", "connect_more_ns"),
            *(
                told(fields, form, *(f"{close}_{what}_ns" for what in names))
                for close in CLOSES
                for form, *names in (
                    ("{:+,} ns", "more"),
                    ("{:+,} to {:+,}", "low", "high"),
                    ("{:,} ns", "inside"),
                    ("{:,} ns", "outside"),
                )
            ),
        )
        for name, fields in measured.items()
    )
    yield from rows(heads, body)


def of_requests(measured: Fields) -> Iterator[str]:
    """Yield the table of requests."""
    heads = ("", "requests a second", "to direct", "quartiles", "p50", "p99", "CPU", "to direct")
    body = (
        (
            name,
            told(fields, "{:,}", "per_second"),
            told(fields, "{:.3f}", "to_direct"),
            told(fields, "{:.3f} to {:.3f}", "low", "high"),
            told(fields, "{:,} us", "p50_us"),
            told(fields, "{:,} us", "p99_us"),
            told(fields, "{:.1f} us", "cpu_us"),
            told(fields, "{:.2f}", "cpu_to_direct"),
        )
        for name, fields in measured.items()
    )
    yield from rows(heads, body)
    yield ""
    for fields in measured.values():
        if "runs_a_request" in fields:
            yield (
                f"Our programs ran {fields['runs_a_connection']:g} times for a connection, from connect to close, and "
                f"{fields['runs_a_request']:g} times for a request."
            )


def of_machines(measured: Fields) -> Iterator[str]:
    """Yield the table of the emulated machines."""
    yield of_kernel(measured, "machines for each case")
    yield ""
    heads = (
        *("", "requests a virtual second", "to direct", "spread", "a request", "`connect(2)`", "more than direct"),
        *("spread", "open and close", "more than direct", "runs of ours a request"),
    )
    yield from rows(heads, ((name, *figures.cells(fields)) for name, fields in measured["cases"].items()))


def of_instructions(measured: Fields) -> Iterator[str]:
    """Yield the tables of the instructions of a connection."""
    yield of_kernel(measured, "machines")
    yield ""
    direct = measured["direct"]
    yield (
        f"A direct connection takes {direct['connect']:,} instructions in `connect(2)`, and {direct['rst']:,} or "
        f"{direct['fin']:,} from `socket` until both ends are closed, by RST or FIN. More than that:"
    )
    yield ""
    heads = ("", "`connect(2)`", "goal", "open and close, RST", "goal", "open and close, FIN", "goal", "spread")
    yield from rows(heads, instructions.costs_and_goals(measured["rows"]))
    yield ""
    yield "Where a connection's instructions go, hook by hook:"
    yield ""
    hooks = (head for hook in ("connect4", "sock_ops", "sock_release") for head in (f"`{hook}` runs", "in", "out"))
    yield from rows(("", *hooks, "rest", "more than direct"), instructions.by_hook(measured["rows"]))


def of_kernel(measured: Fields, machines: str) -> str:
    """Return the sentence with the versions that the numbers of instructions depend on."""
    compiler = told(measured, ", programs by {}", "compiler")
    return f"Debian's {measured['kernel']}{compiler}; {measured['repeats']} {machines}; in instructions:"


def of_changes(measured: Fields) -> Iterator[str]:
    """Yield the table of changes."""
    heads = ("", "", "changes", "p50", "p99", "worst")
    times = ("p50_ms", "p99_ms", "worst_ms")
    body = (
        (name, kind, told(fields, "{}", "changes"), *(told(fields, "{:,.0f} ms", time) for time in times))
        for name, kinds in measured.items()
        for kind, fields in kinds.items()
    )
    yield from rows(heads, body)


def of_fleets(measured: Fields) -> Iterator[str]:
    """Yield the table of the load on Consul."""
    costs = measured["costs"]
    yield (
        f"An answer costs the servers {costs['answer_cpu_us']:,.0f} us of processor time and {costs['answer_kb']:.1f} "
        f"kB, and a watch {costs['watch_kib']:.0f} KiB and {costs['watch_goroutines']:g} goroutines."
    )
    yield ""
    heads = (
        *("sidecars", "watches", "CPU for a change", "traffic for a change"),
        *("received by all, p50", "worst", "memory"),
    )
    body = [
        (
            told(cell, "{:,}", "sidecars"),
            told(cell, "{:,}", "watches"),
            told(cell, "{:.0f} ms", "change_cpu_ms"),
            told(cell, "{:,.0f} kB", "change_kb"),
            told(cell, "{:,.0f} ms", "felt_ms") if cell["sidecars"] else "",
            told(cell, "{:,.0f} ms", "felt_ms_worst") if cell["sidecars"] else "",
            told(cell, "{:.0f} MiB", "memory_mib"),
        )
        for cell in measured["cells"]
    ]
    yield from rows(heads, body)
    yield ""
    of_fleet = (
        *("hosts", "watches", "answers a second, periodic", "for changes"),
        *("followers of a service", "traffic", "processors", "memory"),
    )
    fleets = (
        (
            *(
                told(fleet, "{:,}", name)
                for name in (
                    *("hosts", "watches", "answers_a_second_idle", "answers_a_second_changes"),
                    "followers_of_a_service",
                )
            ),
            told(fleet, "{:,.1f} MB/s", "megabytes_a_second"),
            told(fleet, "{:.1f}", "processors"),
            told(fleet, "{:.1f} GiB", "memory_gib"),
        )
        for fleet in measured["fleets"]
    )
    yield from rows(of_fleet, fleets)


def of_sizes(measured: Iterable[Fields]) -> Iterator[str]:
    """Yield the table of the growth of the sidecar."""
    heads = (
        *("virtual servers", "real servers of each", "sync CPU", "change, median", "worst"),
        *("its CPU", "idle", "peak memory", "maps"),
    )
    body = (
        (
            told(cell, "{:,}", "virtual"),
            told(cell, "{:,}", "real") + (f" in {cell['parts']} parts" if cell["parts"] > 1 else ""),
            told(cell, "{:.2f} s", "sync_cpu_s"),
            told(cell, "{:.1f} ms", "change_ms"),
            told(cell, "{:.1f} ms", "change_ms_most"),
            told(cell, "{:.0f} ms", "change_cpu_ms"),
            told(cell, "{:.2f} %", "idle_cpu_percent"),
            told(cell, "{:.0f} MiB", "peak_mib"),
            told(cell, "{:.0f} MiB", "maps_mib"),
        )
        for cell in measured
    )
    yield from rows(heads, body)


def of_sidecars(measured: Fields) -> Iterator[str]:
    """Yield the table of one sidecar."""
    heads = ("", "first start", "median of five", "its CPU", "memory", "a minute later", "idle")
    body = (
        (
            name,
            told(fields, "{:.2f} s", "first_ready_s"),
            told(fields, "{:.2f} s", "ready_s"),
            told(fields, "{:.2f} s", "ready_cpu_s"),
            told(fields, "{:.0f} MiB", "rss_mib"),
            told(fields, "{:.0f} MiB", "rss_mib_later"),
            told(fields, "{:.2f} %", "idle_cpu_percent"),
        )
        for name, fields in measured.items()
    )
    yield from rows(heads, body)


def of_failures(measured: Fields) -> Iterator[str]:
    """Yield the tables of what clients saw when servers failed."""
    load, scenes = measured["load"], measured["scenes"]
    failed, slow = map(percent, failure_figures.most_noise(scenes))
    yield (
        f"{load['per_second']} requests a second to each system, {load['rounds']} rounds, {load['seconds']:g} s from "
        f"the failure;\nall of this uses {load['processors']:g} processors. Before the failure at most {failed} % of "
        f"requests failed, and {slow} % were slow."
    )
    heads = ["", *failure_figures.systems(scenes)]
    for patience in failure_figures.patiences(scenes):
        for kind in ("failed", "slow"):
            yield from ("", f"Patience {patience}: {kind} requests in percent, in the first ten seconds / after:", "")
            yield from rows(heads, failure_figures.shares(scenes, patience, kind))
        yield from ("", f"Patience {patience}: from the failure to the start of the last request that failed:", "")
        yield from rows(heads, failure_figures.times(scenes, patience))
    yield from ("", "Open connections, without a time-out, when a host vanishes:", "")
    heads = ["", "connections", "hung", "longest, of those that ended", "hanging after 80 s"]
    yield from rows(heads, failure_figures.pools(measured["pools"]))


TABLES: Final[Mapping[str, Callable[[Any], Iterator[str]]]] = {
    "connect": of_connects,
    "connection": of_connections,
    "established": of_requests,
    "vm": of_machines,
    "instructions": of_instructions,
    "change": of_changes,
    "failure": of_failures,
    "consul_load": of_fleets,
    "scale": of_sizes,
    "sidecar": of_sidecars,
}
"""By the names of the results."""


PICTURES: Final[Mapping[str, Mapping[str, str]]] = {
    "connect": {
        "connect": "Time of a connect relative to a direct one, as in the table",
        "answer": "Time from the connect to the first response relative to a direct connection, as in the table",
    },
    "established": {
        "established": "Requests a second relative to direct connections, as in the table",
        "established-cpu": "Processor time of the machine for a request, as in the table",
    },
    "vm": {
        "vm": "Requests a virtual second relative to direct connections, as in the table",
        "vm-connect": "Instructions of a connect beyond those of a direct one, as in the table",
    },
    "change": {"change": "Median, 99th of 100 and worst time until a change takes effect, as in the table"},
    "failure": {
        "failure-first": "Failed requests of clients with 500 ms patience in the first ten seconds, as in the table",
        "failure-after": "Failed requests of clients with 500 ms patience after ten seconds, as in the table",
        "failure-none-first": "Failed or slow requests without a time-out in the first ten seconds, as in the tables",
        "failure-none-after": "Failed or slow requests without a time-out after ten seconds, as in the tables",
    },
    "scale": {
        "scale-cpu": "Processor time of the first synchronisation by the number of servers, as in the table",
        "scale-memory": "Peak memory of the sidecar by the number of servers, as in the table",
    },
}
"""The charts below a table: their names, and descriptions."""


def machine(found: Fields) -> str:
    """Return a description of the machine of a measurement, and of its load."""
    kind = "a virtual machine" if found["virtual"] else "a machine"
    return (
        f"on {kind} with {found['processors']} processors\n({found['processor']}) and Linux {found['kernel']}; "
        f"the load at that time was {found['load'][0]:.1f}:"
    )


def block(name: str, result: Fields) -> str:
    """Return the block of a result in the document."""
    words = f"[What was measured](../benchmarks/results/{name}.json) {machine(result['machine'])}"
    pictures = (f"\n![{alt}](benchmarks/{picture}.svg)" for picture, alt in PICTURES.get(name, {}).items())
    return "\n".join([words, "", *TABLES[name](result["measured"]), *pictures, ""])


def filled(document: str, found: Mapping[str, Fields]) -> str:
    """Return the document with its blocks replaced, for all results."""

    def fresh(match: re.Match[str]) -> str:
        name = match[2]
        return match[1] + block(name, found[name]) + match[3] if name in found else match[0]

    return _BLOCK.sub(fresh, document)
