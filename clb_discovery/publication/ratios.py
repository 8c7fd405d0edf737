"""Divide a tier between blocks of real servers in an exact ratio, by integer weights.

The weights of each block are scaled by an integer. Where weights above 65535 were needed, the sums are as large as
fits, and each block divides its own by largest remainders: the sums still have the exact ratio, or, if even the ratio
itself needs larger numbers, are off by less than one. A block with more real servers than its part leaves for them gets
more, because each server gets a weight of 1 at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import compress
from math import gcd, lcm
from typing import NamedTuple

from clb_discovery.layout.alias import effective_weights
from clb_discovery.model.servers import MAX_WEIGHT


class Block(NamedTuple):
    """Real servers that together get a part of a tier."""

    ratio: Fraction
    """Its part beside the other blocks; above 0."""
    weights: Sequence[int]
    """Of its servers, 0 to 65535; at least one."""
    counts: Sequence[bool] | None = None
    """Which of them get connects now, so that their weights have the ratio; None for all. The others keep a weight in
    the same unit."""


def divided(blocks: Sequence[Block]) -> list[Sequence[int]]:
    """Return the weights of the servers of each block in a common tier."""
    if len(blocks) == 1:
        return [blocks[0].weights]
    own = [effective_weights(block.weights) for block in blocks]
    sums = [_counted(weights, block.counts) for weights, block in zip(own, blocks, strict=True)]
    ratio = _integers([block.ratio for block in blocks])
    multiple = lcm(*(total // gcd(total, part) for total, part in zip(sums, ratio, strict=True)))
    factors = [multiple * part // total for part, total in zip(ratio, sums, strict=True)]
    divisor = gcd(*(factor * gcd(*weights) for factor, weights in zip(factors, own, strict=True)))
    both = list(zip(own, factors, strict=True))
    if all(max(weights) * factor // divisor <= MAX_WEIGHT for weights, factor in both):
        return [[weight * factor // divisor for weight in weights] for weights, factor in both]
    most = min(
        Fraction(MAX_WEIGHT * total, part * max(weights)) for total, part, weights in zip(sums, ratio, own, strict=True)
    )
    unit = Fraction(int(most)) if most >= 1 else most
    return [
        _rounded(max(1, round(part * unit)), weights, total, block.counts)
        for part, weights, total, block in zip(ratio, own, sums, blocks, strict=True)
    ]


def _counted(weights: Sequence[int], counts: Sequence[bool] | None) -> int:
    """Return the sum of the weights that count; of all if none does."""
    return (0 if counts is None else sum(compress(weights, counts))) or sum(weights)


def _integers(ratio: Sequence[Fraction]) -> list[int]:
    """Return a ratio in the smallest integers."""
    common = lcm(*(part.denominator for part in ratio))
    parts = [part.numerator * (common // part.denominator) for part in ratio]
    divisor = gcd(*parts)
    return [part // divisor for part in parts]


def _rounded(total: int, weights: Sequence[int], whole: int, counts: Sequence[bool] | None) -> list[int]:
    """Divide a total in the ratio of weights into integers of 1 to MAX_WEIGHT, by largest remainders.

    :param whole: the sum of the weights that count, whose servers get the total.
    """
    places = range(len(weights))
    there = list(places if counts is None else compress(places, counts)) or list(places)
    found = [max(1, min(total * weight // whole, MAX_WEIGHT)) for weight in weights]
    for place, weight in zip(there, _by_largest_remainders(total, [weights[place] for place in there]), strict=True):
        found[place] = weight
    return found


def _by_largest_remainders(total: int, weights: Sequence[int]) -> list[int]:
    whole = sum(weights)
    found = [total * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % whole))
    for place in order[: total - sum(found)]:
        found[place] += 1
    lacking = found.count(0)
    if lacking:
        found = [max(1, weight) for weight in found]
        for place in sorted(range(len(found)), key=lambda place: -found[place]):
            taken = min(lacking, found[place] - 1)
            found[place] -= taken
            lacking -= taken
    return [min(weight, MAX_WEIGHT) for weight in found]
