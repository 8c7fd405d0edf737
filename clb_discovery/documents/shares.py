"""The target share of each real server: the part of a pool's connects that it should get now.

The rules are those of the kernel programs (bpf/choose.h). The lowest tier with a server that is not ejected gets all
connects, and its servers that are not ejected share them by weight. If every server is ejected, the lowest tier is used
as if none were. Tiers beyond the first MAX_TIERS are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clb_discovery.layout.alias import effective_weights
from clb_discovery.model.servers import MAX_TIERS


class Member(NamedTuple):
    """The facts about a real server that its share depends on."""

    priority: int
    weight: int
    ejected: bool
    """Whether it is ejected or suspect."""


def target_shares(pool: Sequence[Member]) -> list[float]:
    """Return the share of each member, 0 to 1; together they are 1 unless the pool is empty."""
    if not pool:
        return []
    tiers = sorted({member.priority for member in pool})[:MAX_TIERS]
    usable = {member.priority for member in pool if not member.ejected}
    all_ejected = usable.isdisjoint(tiers)
    tier = next((tier for tier in tiers if tier in usable), tiers[0])
    places = [place for place, member in enumerate(pool) if member.priority == tier]
    parts = effective_weights([pool[place].weight for place in places])
    shares = [0.0] * len(pool)
    for place, part in zip(places, parts, strict=True):
        shares[place] = float(part) if all_ejected or not pool[place].ejected else 0.0
    total = sum(shares)
    return [share / total for share in shares]
