"""Ratios to a direct connection."""

from __future__ import annotations

import pytest

from benchmarks.results import ratio


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    """Of ratios within a round: rounds in which the machine was slow for both weigh no more than others."""
    rounds = [(11, 10), (120, 100), (130, 100), (14, 10), (1500, 1000)]
    assert ratio(rounds) == {"to_direct": 1.3, "low": 1.15, "high": 1.45}


def test_one_round_has_a_ratio() -> None:
    """Somebody who only wants to see it run gets a table."""
    assert ratio([(3, 2)]) == {"to_direct": 1.5, "low": 1.5, "high": 1.5}


@pytest.mark.parametrize("rounds", [2, 3, 200])
def test_equal_rounds_have_no_spread(rounds: int) -> None:
    """Quartiles are the median where nothing differs."""
    assert ratio([(4, 4)] * rounds) == {"to_direct": 1.0, "low": 1.0, "high": 1.0}
