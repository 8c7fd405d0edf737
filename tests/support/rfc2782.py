"""RFC 2782's rules for selecting a target, written as plain fractions, to compare tables with."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def shares(weights: Sequence[int]) -> list[Fraction]:
    """Return each server's share of the connects, for the weights of one priority.

    The number drawn is uniform from 0 to the sum, both included, and 0 selects a server of weight 0. Without such
    servers there is nothing for 0 to select, and the weights are plain proportions.
    """
    zeros = weights.count(0)
    if zeros == len(weights):
        return [Fraction(1, len(weights))] * len(weights)
    numbers = sum(weights) + (1 if zeros else 0)
    return [Fraction(weight, numbers) if weight else Fraction(1, numbers * zeros) for weight in weights]
