"""How `make bench-vm` evaluates the results of its machines, without a machine."""

from __future__ import annotations

import json

import pytest

from benchmarks.vm.figures import (
    CASES,
    DIRECT,
    OURS,
    Sample,
    lines,
    read_sample,
    requests_per_second,
    rows,
    runs_per_request,
    shortcomings,
    spread,
)
from benchmarks.vm.ways import WAYS

SAID = """"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms"
"PING_INLINE","20000.00","4.9","1.0","4.9"
"PING_MBULK","30000.00","3.3","1.0","3.3"
"""
MEASURED = {
    "redis": SAID,
    "times": [40_000, 100_000],
    "modules": ["veth", "nf_conntrack", "ip_vs", "xt_nat", "overlay"],
    "programs": 0,
    "runs": None,
}
PLAIN = Sample(24_000, 20_000, 50_000, (), 0, None)
GOOD_OURS = PLAIN._replace(per_second=23_990, connect=21_000, programs=10, runs=0.0)
GOOD = {
    DIRECT: [PLAIN],
    OURS: [GOOD_OURS],
    "ipvs-dr": [PLAIN._replace(per_second=22_560, connect=23_000, modules=("ip_vs",))],
}


def test_a_sample_is_read_in_instructions() -> None:
    """Two nanoseconds are one instruction, and of the modules only those of netfilter are reported."""
    sample = read_sample(json.dumps(MEASURED).encode())
    assert (sample.connect, sample.cycle) == (20_000, 50_000)
    assert sample.modules == ("ip_vs", "nf_conntrack", "xt_nat")


@pytest.mark.parametrize("missing", MEASURED)
def test_an_incomplete_sample_is_an_error(missing: str) -> None:
    """Any part may be missing."""
    rest = {name: value for name, value in MEASURED.items() if name != missing}
    with pytest.raises(ValueError, match="not complete"):
        read_sample(json.dumps(rest).encode())


def test_rates_are_joined_by_time() -> None:
    """Equal numbers of requests of each kind take the sum of their times; a failed benchmark has no rate."""
    assert requests_per_second(SAID) == pytest.approx(2 / (1 / 20_000 + 1 / 30_000))
    with pytest.raises(ValueError, match="says nothing"):
        requests_per_second("")


def test_runs_for_connects_are_no_runs_for_requests() -> None:
    """Opening and closing connections takes a fixed number of runs, with any number of requests."""
    assert runs_per_request([(2000, 700), (6000, 700)]) == 0
    assert runs_per_request([(2000, 700), (6000, 4700)]) == 1


def test_spread_is_relative() -> None:
    """Spread is relative to the median; a single run has none."""
    assert spread([98, 100, 101]) == pytest.approx(0.03)
    assert spread([7]) == 0


def test_rows_are_compared_with_direct() -> None:
    """Requests are compared by their ratio, connects by their difference."""
    found = rows(GOOD)
    assert found[DIRECT].to_direct == 1
    assert found["ipvs-dr"].to_direct == pytest.approx(0.94)
    assert found[OURS].connect_more == 1000
    assert found[DIRECT].instructions == pytest.approx(500_000_000 / 24_000)
    assert found[OURS].runs == 0


def test_medians_are_taken() -> None:
    """Medians are taken over all machines of a case."""
    samples = [PLAIN._replace(per_second=rate) for rate in (24_000.0, 10.0, 24_100.0)]
    assert rows({DIRECT: samples})[DIRECT].per_second == 24_000


def test_good_results_have_no_shortcomings() -> None:
    """Results of a direct connection alone have none either."""
    assert list(shortcomings(rows(GOOD))) == []
    assert list(shortcomings(rows({DIRECT: [PLAIN]}))) == []


@pytest.mark.parametrize(
    ("of_ours", "objection"),
    [
        (GOOD_OURS._replace(per_second=23_000), "less than 0.995"),
        (GOOD_OURS._replace(per_second=22_000), "not ahead"),
        (GOOD_OURS._replace(runs=0.5), "0.5 program runs"),
        (GOOD_OURS._replace(runs=None), "None program runs"),
        (GOOD_OURS._replace(modules=("nf_conntrack",)), "not a clean kernel"),
    ],
)
def test_shortcomings_are_reported(of_ours: Sample, objection: str) -> None:
    """A case of ours is reported if it costs too much, or was measured in a kernel with foreign programs."""
    assert any(objection in line for line in shortcomings(rows(GOOD | {OURS: [of_ours]})))


def test_differing_and_unclean_runs_are_reported() -> None:
    """Runs that differ too much are reported, and BPF programs that should not be there."""
    differing = {DIRECT: [PLAIN, PLAIN._replace(connect=20_200)]}
    assert list(shortcomings(rows(differing))) == ["direct: runs differ by 1.00%"]
    unclean = {DIRECT: [PLAIN._replace(programs=1)]}
    assert list(shortcomings(rows(unclean))) == ["direct: not a clean kernel, it has 1 BPF programs"]


def test_every_case_is_in_the_table_and_has_a_way() -> None:
    """The cases are in one order, and all columns have the same width."""
    assert list(CASES) == list(WAYS)
    shown = list(lines(rows(GOOD)))
    assert [line[:28].strip() for line in shown] == ["", *(CASES[case] for case in GOOD)]
    assert len({len(line) for line in shown}) == 1
