"""Pearson's chi-square test of counts against weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import erfc, sqrt
from statistics import NormalDist


def p_value(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Return how likely counts at least this far from the weights' proportions are, if the proportions hold.

    Exact for two counts; for more by the transformation of Wilson and Hilferty (1931), good to three digits.
    """
    assert len(counts) == len(weights) >= 2, "one count always has its proportion"
    total, parts = sum(counts), sum(weights)
    expected = [total * weight / parts for weight in weights]
    assert min(expected) >= 5, "too few to tell"
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    freedom = len(counts) - 1
    if freedom == 1:
        return erfc(sqrt(statistic / 2))
    spread = 2 / (9 * freedom)
    return 1 - NormalDist().cdf(((statistic / freedom) ** (1 / 3) - (1 - spread)) / sqrt(spread))
