"""The charts and tables of docs/benchmarks.md, only from benchmarks/results: `make bench-plots`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import failure_figures, results, tables
from benchmarks.charts import Bar, Column, Series, Span, bars, grid, lines, spans

PICTURES: Final = Path(__file__).parent.parent / "docs/benchmarks"
Measured = Mapping[str, Mapping[str, Any]]
Cells = Sequence[Mapping[str, float]]
Pictures = Iterator[tuple[str, str]]
"""Names and SVG."""
LEFT_OUT: Final = frozenset({"direct again", "clb-discovery, elsewhere", "clb-discovery, lean"})
"""Checks of the measurement, and cases that differ from the shipped state; only the tables have them."""


def is_ours(name: str) -> bool:
    """Return whether this is clb-discovery."""
    return name.startswith("clb-discovery")


def ratios(measured: Measured, value: str, low: str = "", high: str = "") -> list[Bar]:
    """Return bars of all results with this field, with these quartiles."""
    return [
        Bar(name, fields[value], fields.get(low), fields.get(high), is_ours(name))
        for name, fields in measured.items()
        if value in fields and name not in LEFT_OUT
    ]


def growth(cells: Cells, what: str) -> list[Series]:
    """Return a series of a field by the number of real and virtual servers together."""

    def points(wanted: Cells) -> list[tuple[float, float]]:
        whole = (cell for cell in wanted if cell["parts"] == 1)
        return sorted((cell["virtual"] * cell["real"] + cell["virtual"], cell[what]) for cell in whole)

    return [
        Series("n virtual, 10 real each", points([cell for cell in cells if cell["real"] == 10])),
        Series("n virtual, 1 real each", points([cell for cell in cells if cell["real"] == 1])),
        Series("1 virtual, n real", points([cell for cell in cells if cell["virtual"] == 1])),
    ]


def changes(measured: Measured) -> list[Span]:
    """Return a span for each way and kind of change."""

    def span(name: str, kind: str, times: Mapping[str, float]) -> Span:
        return Span(f"{name}: {kind}", times["p50_ms"], times["p99_ms"], times["worst_ms"], is_ours(name))

    return [span(name, kind, fields[kind]) for kind in ("added", "removed") for name, fields in measured.items()]


def of_connects(measured: Measured) -> Pictures:
    """Draw the results of `make bench` for connects."""
    connect = ratios(measured, "to_direct", "low", "high")
    answer = ratios(measured, "answer_to_direct", "answer_low", "answer_high")
    unit = "times that of a direct connection, with quartiles; less is better"
    yield "connect", bars("Time of connect(2)", unit, connect, reference=1)
    yield "answer", bars("From connect(2) to the first response", unit, answer, reference=1)


def of_requests(measured: Measured) -> Pictures:
    """Draw the results of `make bench` for requests on established connections."""
    requests, cpu = ratios(measured, "to_direct", "low", "high"), ratios(measured, "cpu_us")
    unit = "times those of direct connections, with quartiles; more is better"
    yield "established", bars("Requests a second on established connections", unit, requests, reference=1)
    unit = "microseconds of the whole machine; less is better"
    yield "established-cpu", bars("Processor time of a request on an established connection", unit, cpu)


def of_machines(measured: Mapping[str, Any]) -> Pictures:
    """Draw the results of `make bench-vm`."""
    cases: Measured = measured["cases"]
    unit, requests = "times those of direct connections; more is better", ratios(cases, "to_direct")
    yield "vm", bars("Requests a virtual second on established connections", unit, requests, reference=1)
    others = {name: fields for name, fields in cases.items() if fields["connect_more"]}
    unit = "instructions, both ends; less is better"
    yield "vm-connect", bars("connect(2), beyond a direct one", unit, ratios(others, "connect_more"))


def of_changes(measured: Measured) -> Pictures:
    """Draw the results of `make bench-change`."""
    unit = "milliseconds: median / 99th of 100 / worst; less is better"
    yield "change", spans("Time until a change in Consul takes effect", unit, changes(measured))


def of_failures(measured: Mapping[str, Any]) -> Pictures:
    """Draw the results of `make bench-failure`."""
    scenes: Mapping[str, Mapping[str, Measured]] = measured["scenes"]
    columns = [Column(name, is_ours(name)) for name in failure_figures.systems(scenes)]
    for patience, prefix, words, kinds in (
        ("500 ms", "failure", "Requests that fail, clients with 500 ms patience", ("failed",)),
        ("none", "failure-none", "Requests that fail or take more than 100 ms, no time-out", ("failed", "slow")),
    ):
        for period, when in (("first", "the first ten seconds"), ("after", "after ten seconds")):
            shares = {
                scene: [failure_figures.share(fields, period, *kinds) for fields in by_patience[patience].values()]
                for scene, by_patience in scenes.items()
            }
            unit = "percent of all requests; less is better"
            yield f"{prefix}-{period}", grid(f"{words}: {when}", unit, columns, shares)


def of_sizes(cells: Cells) -> Pictures:
    """Draw the results of `make bench-scale`."""
    servers = "real and virtual servers together"
    cpu, memory = growth(cells, "sync_cpu_s"), growth(cells, "peak_mib")
    yield "scale-cpu", lines("First synchronisation of the sidecar", servers, "processor seconds", cpu)
    yield "scale-memory", lines("Peak memory of the sidecar", servers, "MiB", memory)


DRAWN: Final[Mapping[str, Callable[[Any], Pictures]]] = {
    "connect": of_connects,
    "established": of_requests,
    "vm": of_machines,
    "change": of_changes,
    "failure": of_failures,
    "scale": of_sizes,
}
"""By the names of the results."""


def pictures(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the charts of results, by the names of their files."""
    return {
        f"{picture}.svg": svg
        for name, result in found.items()
        if name in DRAWN
        for picture, svg in DRAWN[name](result["measured"])
    }


def main() -> None:
    """Draw and write them all."""
    found = results.kept()
    PICTURES.mkdir(exist_ok=True)
    for name, svg in pictures(found).items():
        (PICTURES / name).write_text(svg, encoding="utf-8")
    tables.DOCUMENT.write_text(tables.filled(tables.DOCUMENT.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
