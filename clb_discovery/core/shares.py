"""Which share of the connects each real server of a pool should get now.

The kernel's own rules (bpf/schedule.h): the lowest tier that has anybody left, by weight among those who are not
ejected; where nobody at all is left, the lowest tier as if nobody were ejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clb_discovery.core.alias import effective_weights


class Member(NamedTuple):
    """What counts of a real server."""

    priority: int
    weight: int
    ejected: bool


def target_shares(pool: Sequence[Member]) -> list[float]:
    """Return the share of each member, 0 to 1; together they are 1 unless the pool is empty."""
    if not pool:
        return []
    everybody_is_out = all(member.ejected for member in pool)
    tier = min(member.priority for member in pool if everybody_is_out or not member.ejected)
    places = [place for place, member in enumerate(pool) if member.priority == tier]
    parts = effective_weights([pool[place].weight for place in places])
    shares = [0.0] * len(pool)
    for place, part in zip(places, parts, strict=True):
        shares[place] = float(part) if everybody_is_out or not pool[place].ejected else 0.0
    total = sum(shares)
    return [share / total for share in shares]
