"""Ratios to a direct connection."""

from __future__ import annotations

import pytest

from benchmarks.results import ratio, table


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    """Ratios are taken within a round, so rounds in which the machine was slow for both do not distort them."""
    rounds = [(11, 10), (120, 100), (130, 100), (14, 10), (1500, 1000)]
    assert ratio(rounds) == {"to_direct": 1.3, "low": 1.15, "high": 1.45}


def test_one_round_has_a_ratio() -> None:
    """A short trial run gets a table, too."""
    assert ratio([(3, 2)]) == {"to_direct": 1.5, "low": 1.5, "high": 1.5}


@pytest.mark.parametrize("rounds", [2, 3, 200])
def test_equal_rounds_have_no_spread(rounds: int) -> None:
    """Quartiles are the median if nothing differs."""
    assert ratio([(4, 4)] * rounds) == {"to_direct": 1.0, "low": 1.0, "high": 1.0}


def test_a_table_has_every_field() -> None:
    """Fields are in the order of their first occurrence; a row without one has a dash."""
    lines = list(table({"direct": {"a": 1.5}, "proxy": {"b": 2, "a": 3}}))
    assert [line.split() for line in lines] == [["a", "b"], ["direct", "1.5", "-"], ["proxy", "3", "2"]]
