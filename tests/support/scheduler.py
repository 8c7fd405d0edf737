"""The schedulers of bpf/schedule.h, formula by formula, on the slots of one generation.

Random bits, turns and the servers' loads are arguments; the result is the index of a slot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

from clb_discovery.layout.elements import Slot
from tests.support.rfc2782 import shares

TIERS: Final = 16
"""`CLB_TIERS` of bpf/slot.h."""
FEW: Final = 8
"""`CLB_FEW` of bpf/schedule.h."""
OVERLOADED: Final = 1 << 39
"""`CLB_OVERLOADED`: the load of an ejected server."""
_WORD: Final = 1 << 64


class Tier(NamedTuple):
    """The range of a tier's slots."""

    first: int
    size: int


def below(bound: int, random: int, bits: int = 32) -> int:
    """Mirror `clb_below`."""
    return (random * bound) >> bits


def weighted_random(slots: Sequence[Slot], tier: Tier, bits: int) -> int:
    """Mirror `clb_random`.

    :param bits: 32 random ones.
    """
    column, rest = divmod(bits * tier.size, 1 << 32)
    index = tier.first + column
    slot = slots[index]
    passes_on = slot.keep < slot.out_of and rest * slot.out_of >> 32 >= slot.keep
    return slot.alias if passes_on else index


def round_robin(slots: Sequence[Slot], tier: Tier, turn: int) -> int:
    """Mirror `clb_round_robin`.

    :param turn: the number of earlier turns.
    """
    column = turn % tier.size
    index = tier.first + column
    slot = slots[index]
    passes_on = (turn // tier.size + column) * slot.keep % _WORD % slot.out_of >= slot.keep
    return slot.alias if passes_on else index


def weight_of(slot: Slot) -> int:
    """Mirror `clb_weight`."""
    return slot.weight * 256 or 1


def is_less_loaded(a: Slot, load_a: int, b: Slot, load_b: int) -> bool:
    """Mirror `clb_is_less_loaded`.

    :param load_a: active connections, or `OVERLOADED`; load_b as well.
    """
    return load_a * weight_of(b) <= load_b * weight_of(a)


def is_spared(slot: Slot) -> bool:
    """Mirror `clb_is_spared`."""
    return not slot.weight and slot.keep < slot.out_of


def least_of_few(slots: Sequence[Slot], tier: Tier, loads: Sequence[int], bits: int, chances: Sequence[float]) -> int:
    """Mirror `clb_least_of_few`.

    :param loads: of each slot of the pool.
    :param bits: 32 random ones.
    :param chances: a number from 0 to below 1 for each slot of the tier.
    """
    drawn = best = weighted_random(slots, tier, bits)
    total = 0
    for index in range(tier.first, tier.first + tier.size):
        slot = slots[index]
        if index == drawn or is_spared(slot):
            continue
        load, than = loads[index] * weight_of(slots[best]), loads[best] * weight_of(slot)
        if load > than or (load == than and not total):
            continue
        total = total + weight_of(slot) if load == than else weight_of(slot)
        if load < than or chances[index - tier.first] * total < weight_of(slot):
            best = index
    return best


def least_of_two(slots: Sequence[Slot], tier: Tier, loads: Sequence[int], bits: Sequence[int]) -> int:
    """Mirror `clb_least_of_two`.

    :param loads: of each slot of the pool.
    :param bits: three times 32 random ones.
    """
    a, b = (weighted_random(slots, tier, some) for some in bits[:2])
    if a == b:
        b = tier.first + below(tier.size - 1, bits[2])
        b = tier.first + tier.size - 1 if b == a else b
        if is_spared(slots[b]):
            return a
    return a if is_less_loaded(slots[a], loads[a], slots[b], loads[b]) else b


def chances_of(slots: Sequence[Slot], ejected: Collection[int]) -> dict[int, Fraction]:
    """Return the chance of each slot that a connect may be sent to by weight, as in `clb_elsewhere`.

    The tier in use is the lowest with a usable server; if there is none, all servers have the same chance.

    :param ejected: indexes of the slots of ejected servers.
    """
    tier: Tier | None = Tier(0, slots[0].tier)
    while tier and all(index in ejected for index in range(tier.first, tier.first + tier.size)):
        tier = next_tier(slots, tier)
    if tier is None:
        return {index: Fraction(1, len(slots)) for index in range(len(slots))}
    own = range(tier.first, tier.first + tier.size)
    parts = dict(zip(own, shares([slots[index].weight for index in own]), strict=True))
    left = {index: part for index, part in parts.items() if index not in ejected}
    return {index: part / sum(left.values()) for index, part in left.items()}


def next_tier(slots: Sequence[Slot], tier: Tier) -> Tier | None:
    """Return the tier that takes over from this one: the step of `clb_elsewhere`."""
    start = tier.first + tier.size
    return Tier(slots[start].first, slots[start].tier) if start < len(slots) else None
