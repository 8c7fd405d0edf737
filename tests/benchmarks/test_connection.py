"""How `make bench` evaluates whole connections, without making any."""

from __future__ import annotations

import pytest

from benchmarks.client import CLOSES, FIN, RST, Times
from benchmarks.connection import difference, inside, summary
from benchmarks.planes import DIRECT, LEAN
from benchmarks.programs import Runs


def test_a_difference_is_the_median_of_the_rounds() -> None:
    """Rounds in which the machine was slow for both do not count more than others; one round has no quartiles."""
    assert difference([11, 110, 13, 14], [10, 100, 10, 10]) == pytest.approx((1.5, 3.5, 8.5))
    assert difference([3], [2]) == (1, 1, 1)


def test_time_in_programs_is_without_the_reading_of_the_clock() -> None:
    """An empty program takes 25 ns a run, which is the kernel's reading of the clock."""
    empty = {"clb_sock_ops": Runs(5, 125), "clb_connect4": Runs(1, 30)}
    assert inside({"clb_sock_ops": Runs(10, 400), "clb_connect4": Runs(1, 130)}, empty) == 250
    assert inside({}, empty) == 0


def test_all_costs_of_a_connection_are_reported() -> None:
    """What a connection takes more than a direct one is either in our programs or outside of them."""
    measured = {
        DIRECT: {close: [Times(10_000, 30_000), Times(20_000, 40_000)] for close in CLOSES},
        LEAN: {
            RST: [Times(10_500, 31_000), Times(20_700, 41_200)],
            FIN: [Times(10_500, 32_000), Times(20_700, 42_200)],
        },
    }
    found = summary(measured, {LEAN: {RST: 400.4, FIN: 450}})
    assert found[DIRECT]["rst_more_ns"] == 0
    assert "rst_inside_ns" not in found[DIRECT]
    lean = found[LEAN]
    assert (lean["connect_us"], lean["connect_more_ns"]) == (15.6, 600)
    assert (lean["rst_more_ns"], lean["rst_inside_ns"], lean["rst_outside_ns"]) == (1100, 400, 700)
    assert (lean["fin_more_ns"], lean["fin_inside_ns"], lean["fin_outside_ns"]) == (2100, 450, 1650)
