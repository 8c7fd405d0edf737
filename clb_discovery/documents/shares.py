"""The target share of each real server: the part of a pool's connects that it should get now.

The rules are those of the kernel programs (bpf/choose.h). The lowest tier with a server that is not ejected gets all
connects, and its servers that are not ejected share them by weight. If every server is ejected, all of them are tried
alike, because any may have recovered. Tiers beyond the first MAX_TIERS are not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clb_discovery.layout import elements
from clb_discovery.layout.alias import effective_weights
from clb_discovery.layout.elements import Server
from clb_discovery.layout.health import Health, Words
from clb_discovery.layout.installed import Published
from clb_discovery.model.servers import MAX_TIERS, Pool, RealServer, Vip


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
    tier = next((tier for tier in tiers if tier in usable), None)
    if tier is None:
        shares = [float(member.priority in tiers) for member in pool]
    else:
        shares = [0.0] * len(pool)
        places = [place for place, member in enumerate(pool) if member.priority == tier]
        parts = effective_weights([pool[place].weight for place in places])
        for place, part in zip(places, parts, strict=True):
            shares[place] = 0.0 if pool[place].ejected else float(part)
    total = sum(shares)
    return [share / total for share in shares]


def planned_shares(pool: Pool) -> list[float]:
    """Return the share of each real server while all of them are healthy."""
    return target_shares([Member(server.priority, server.weight, ejected=False) for server in pool])


class Standing(NamedTuple):
    """A real server of a virtual server at one moment."""

    server: RealServer
    counters: Server
    health: Health
    target_share: float


def standings(vip: Vip, published: Published, servers: Mapping[bytes, Server], words: Words) -> list[Standing]:
    """Return the real servers of a virtual server, in the order of its pool.

    :param servers: the counters of real servers.
    :param words: what the sidecar says of them.
    """
    key, pool = elements.pack_vip(vip), published.pool or ()
    packed = [elements.pack_member(key, server) for server in pool]
    found = [servers.get(member) or elements.unpack_server(elements.NEW_SERVER) for member in packed]
    checked = published.health is not None and published.health.checked
    health = [words.health(member, had, checked=checked) for member, had in zip(packed, found, strict=True)]
    members = [Member(one.priority, one.weight, at is not Health.ACTIVE) for one, at in zip(pool, health, strict=True)]
    return [Standing(*one) for one in zip(pool, found, health, target_shares(members), strict=True)]
