"""The schedulers of bpf/schedule.h, formula by formula, on the slots of one generation.

Random bits, turns taken and the servers' loads are handed in; what comes out is the index of a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from clb_discovery.core.layout import Slot

TIERS: Final = 4
"""`CLB_TIERS` of bpf/slot.h."""
OVERLOADED: Final = 1 << 39
"""`CLB_OVERLOADED`: the load of a server that is kept away."""
_WORD: Final = 1 << 64


class Tier(NamedTuple):
    """Where the slots of a tier are."""

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

    :param turn: how many were taken before.
    """
    column = turn % tier.size
    index = tier.first + column
    slot = slots[index]
    passes_on = (turn // tier.size + column) * slot.keep % _WORD % slot.out_of >= slot.keep
    return slot.alias if passes_on else index


def is_less_loaded(a: Slot, load_a: int, b: Slot, load_b: int) -> bool:
    """Mirror `clb_is_less_loaded`.

    :param load_a: active connections, or `OVERLOADED`; load_b as well.
    """
    return load_a * (b.weight * 256 or 1) <= load_b * (a.weight * 256 or 1)


def next_tier(slots: Sequence[Slot], tier: Tier) -> Tier | None:
    """Return the tier that takes over from this one: the step of `clb_elsewhere`."""
    start = tier.first + tier.size
    return Tier(slots[start].first, slots[start].tier) if start < len(slots) else None
