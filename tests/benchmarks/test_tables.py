"""The tables of docs/benchmarks.md show the results."""

from __future__ import annotations

from benchmarks.consul_load import Cell
from benchmarks.established import Run, summary
from benchmarks.failure_figures import Request, counts
from benchmarks.fleet import Costs, Fleet, load
from benchmarks.results import kept
from benchmarks.tables import DOCUMENT, TABLES, filled, of_connects, rows
from benchmarks.vm.figures import Row
from benchmarks.ways import DIRECT

MACHINE = {"processor": "P", "processors": 2, "virtual": True, "kernel": "6.1", "load": [0.5, 1, 1]}
CHANGE = {"HAProxy": {"added": {"changes": 50, "p50_ms": 5012.34, "p99_ms": 9900, "worst_ms": 10000.0}}}


def test_tables_are_those_of_the_results() -> None:
    """`make bench-plots` would change nothing, and every table has its place, measured or not."""
    document, found = DOCUMENT.read_text(encoding="utf-8"), kept()
    assert filled(document, found) == document
    for name in TABLES:
        assert f"<!-- from {name}.json -->" in document


def test_only_blocks_are_written() -> None:
    """Text around blocks is written by people, as are blocks without a result."""
    blocks = "<!-- from {0}.json -->\nold\n<!-- end -->\n"
    document = f"Before\n{blocks.format('change')}Between\n{blocks.format('scale')}After\n"
    new = filled(document, {"change": {"machine": MACHINE, "measured": CHANGE}})
    assert new.startswith(
        "Before\n<!-- from change.json -->\n[What was measured](../benchmarks/results/change.json) on "
    )
    assert "| HAProxy | added | 50 | 5,012 ms | 9,900 ms | 10,000 ms |\n\n![Median, " in new
    assert "](benchmarks/change.svg)\n<!-- end -->\nBetween\n" in new
    assert new.endswith(f"{blocks.format('scale')}After\n")
    assert filled(new, {"change": {"machine": MACHINE, "measured": CHANGE}}) == new


def test_missing_measurements_are_empty() -> None:
    """A proxy has no connect of its own to compare."""
    (*_, row) = of_connects({"HAProxy, TCP": {"answer_to_direct": 2.578, "per_second": 5851}})
    assert row == "| HAProxy, TCP | | | | | 2.578 | 5,851 |"


def test_a_table_is_markdown() -> None:
    """A table has a line below its heads."""
    assert list(rows(["", "a"], [["x", "1"]])) == ["| | a |", "| --- | --- |", "| x | 1 |"]


def test_saved_results_fill_the_tables() -> None:
    """Each benchmark's results fill all columns of its table."""
    costs = Costs(150, 5, 33, 2)
    cell = Cell(100, 1000, 245, 16, 30, 16, 20, 500, 90, 110)
    requests = summary({DIRECT: [Run(50000, 1000, 2000, 40)]})
    requests[DIRECT] |= {"runs_a_connection": 11, "runs_a_request": 0.0}
    row = Row(9980, 1.0039, 0.0012, 50100, 46442, 2883, 0.001, 75330, 3678, 0.0, (), 0)
    failures = {
        "load": {"per_second": 50, "rounds": 2, "seconds": 40.0, "processors": 0.5},
        "scenes": {"reset": {"none": {"clb-discovery": counts([[Request(9.0, 0.01, answered=True)]])}}},
        "pools": {"clb-discovery": {"connections": 50, "hung": 4, "hanging": 4, "longest_s": 15.0}},
    }
    saved = {
        "failure": failures,
        "established": requests,
        "vm": {"kernel": "6.1", "compiler": "clang", "repeats": 3, "cases": {"clb-discovery": row._asdict()}},
        "consul_load": {"cells": [cell._asdict()], "costs": costs._asdict(), "fleets": [load(costs, Fleet(1000))]},
    }
    for name, measured in saved.items():
        lines = list(TABLES[name](measured))
        assert not any("| |" in line for line in lines if not line.startswith("| |")), lines
    assert "| 1,000 | 20,000 | 388 | 33 | 10 | 2.1 MB/s | 0.1 | 0.6 GiB |" in lines
    assert "0 times for a request." in list(TABLES["established"](requests))[-1]
