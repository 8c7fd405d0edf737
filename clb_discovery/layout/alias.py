"""Weighted random choice in constant time: Walker's alias method (1977) with Vose's linear construction (1991).

All arithmetic is in integers, so every server gets exactly its share. A draw picks a column uniformly; then it picks
the column's own server `keep` times out of `out_of`, and the column's alias otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Final, NamedTuple

MAX_OUT_OF: Final = 0xFFFFFFFF
"""The kernel draws 32 random bits, so finer shares are not possible."""


class Column(NamedTuple):
    """One column of the table; its own server is the one with the column's index."""

    keep: int
    alias: int


class AliasTable(NamedTuple):
    """A table with one column per server."""

    out_of: int
    columns: tuple[Column, ...]
    shares: tuple[int, ...]
    """The effective weight of each server."""


def effective_weights(weights: Sequence[int]) -> list[int]:
    """Turn SRV weights into plain proportions, none of them zero.

    RFC 2782 draws a number from 0 to the sum of the weights, both included, and 0 selects a server of weight 0. So all
    servers of weight 0 together get one part in addition to the sum. If every weight is 0, the shares are equal.

    :param weights: 0 to 65535 each.
    :returns: positive integers with an exact ratio, except that ratios finer than 32 bits are rounded.
    """
    zeros = weights.count(0)
    if zeros == len(weights):
        return [1] * len(weights)
    parts = [weight * zeros if weight else 1 for weight in weights] if zeros else list(weights)
    divisor = gcd(*parts)
    parts = [part // divisor for part in parts]
    total = sum(parts)
    if total > MAX_OUT_OF:
        room = MAX_OUT_OF - len(parts)
        parts = [max(1, part * room // total) for part in parts]
    return parts


def alias_table(weights: Sequence[int]) -> AliasTable:
    """Build the table for the servers of one tier.

    :param weights: one per server, 0 to 65535, at least one server.
    """
    parts = effective_weights(weights)
    count = len(parts)
    if min(parts) == max(parts):
        return AliasTable(1, tuple(Column(1, index) for index in range(count)), tuple(parts))
    out_of = sum(parts)
    # A column has room for out_of; a server's mass is its part times the number of columns. A column whose mass is too
    # small ("poor") is filled up from one with too much ("rich"), which may become poor itself by that.
    mass = [part * count for part in parts]
    poor = [index for index in range(count) if mass[index] < out_of]
    rich = [index for index in range(count) if mass[index] >= out_of]
    keep, alias = [out_of] * count, list(range(count))
    while poor:
        taker = poor.pop()
        giver = rich[-1]
        keep[taker], alias[taker] = mass[taker], giver
        mass[giver] -= out_of - mass[taker]
        if mass[giver] < out_of:
            poor.append(rich.pop())
    return AliasTable(out_of, tuple(map(Column, keep, alias)), tuple(parts))
