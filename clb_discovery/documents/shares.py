"""Which share of the connects each real server of a pool should get now.

The kernel's own rules (bpf/choose.h): the lowest tier with a server that is not ejected, by weight among those of its
servers that are not; if all are ejected, the lowest tier as if none were. Servers beyond MAX_TIERS tiers are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clb_discovery.layout.alias import effective_weights
from clb_discovery.model.servers import MAX_TIERS


class Member(NamedTuple):
    """What counts of a real server."""

    priority: int
    weight: int
    ejected: bool


def target_shares(pool: Sequence[Member]) -> list[float]:
    """Return the share of each member, 0 to 1; together they are 1 unless the pool is empty."""
    if not pool:
        return []
    tiers = sorted({member.priority for member in pool})[:MAX_TIERS]
    usable = {member.priority for member in pool if not member.ejected}
    everybody_is_out = usable.isdisjoint(tiers)
    tier = next((tier for tier in tiers if tier in usable), tiers[0])
    places = [place for place, member in enumerate(pool) if member.priority == tier]
    parts = effective_weights([pool[place].weight for place in places])
    shares = [0.0] * len(pool)
    for place, part in zip(places, parts, strict=True):
        shares[place] = float(part) if everybody_is_out or not pool[place].ejected else 0.0
    total = sum(shares)
    return [share / total for share in shares]
