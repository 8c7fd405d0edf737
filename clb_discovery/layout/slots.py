"""A pool as the programs read it: one slot per real server, and the element of `clb_virtual` that refers to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby, islice
from operator import attrgetter

from clb_discovery.layout import elements, structs
from clb_discovery.layout.alias import alias_table
from clb_discovery.layout.elements import Slot, Virtual
from clb_discovery.model.servers import PassiveHealth, Pool, VirtualServer

_known_table = lru_cache(maxsize=16)(alias_table)  # who changes seldom changes the weights of a pool


def pool_members(vip: bytes, pool: Pool) -> Iterator[bytes]:
    """Yield the packed members that have a server: the refusal, then the pool's in its order.

    :param vip: the virtual server's key, packed.
    """
    yield elements.refusal(vip)
    yield from (elements.pack_member(vip, server) for server in pool)


def pool_slots(pool: Pool, servers: Iterable[tuple[bytes, int]]) -> list[Slot]:
    """Return the slots of a pool in the order of their index; one that refuses where the pool is empty.

    :param servers: each of `pool_members`, in their order, with its index in `clb_servers`.
    """
    (refusal, index), *members = servers
    if not pool:
        return [Slot(refusal, keep=1, out_of=1, alias=0, first=0, tier=1, weight=0, priority=0, server=index)]
    slots: list[Slot] = []
    for priority, tier in groupby(pool, key=attrgetter("priority")):
        weights = tuple(server.weight for server in tier)
        table = _known_table(weights)
        first = len(slots)
        own = islice(members, first, first + len(weights))
        # By position: pools are large, and so each of these is made in a third of the time.
        slots += [
            Slot(member, keep, table.out_of, first + alias, first, len(weights), weight, priority, index)
            for weight, (keep, alias), (member, index) in zip(weights, table.columns, own, strict=True)
        ]
    return slots


def pool_virtual(generation: int, server: VirtualServer, refusal: int) -> Virtual:
    """Return the element that refers to the slots of a virtual server's pool.

    :param refusal: index of the server that stands for the refusal.
    """
    health = server.health
    return Virtual(
        generation,
        max(1, len(server.pool)),
        lowest_tier(server.pool),
        server.algorithm,
        structs.COUNT_ACTIVE if health.active else 0,
        health.eject_after,
        health.eject_first_ms,
        health.eject_most_ms,
        refusal,
    )


def passive_health_of(virtual: Virtual) -> PassiveHealth | None:
    """Read back what the kernel keeps track of; None where a newer version's flags say more."""
    if virtual.flags & ~structs.COUNT_ACTIVE:
        return None
    active = bool(virtual.flags & structs.COUNT_ACTIVE)
    return PassiveHealth(active, virtual.eject_after, virtual.eject_first_ms, virtual.eject_most_ms)


def lowest_tier(pool: Pool) -> int:
    """Return how many slots, from the first on, are picked from: the lowest tier, or the one that refuses."""
    return sum(1 for server in pool if server.priority == pool[0].priority) or 1
