"""A pool in the form that the programs read: one slot per real server, and the element of `clb_virtual`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby, islice
from operator import attrgetter

from clb_discovery.layout import elements, structs
from clb_discovery.layout.alias import alias_table
from clb_discovery.layout.elements import Slot, Virtual
from clb_discovery.model.servers import PassiveHealth, Pool, VirtualServer

_known_table = lru_cache(maxsize=16)(alias_table)  # weights rarely change between publications


def pool_members(vip: bytes, pool: Pool) -> Iterator[bytes]:
    """Yield the packed members that have an element in `clb_servers`: the refusal, then those of the pool in order.

    :param vip: the virtual server's key, packed.
    """
    yield elements.refusal(vip)
    yield from (elements.pack_member(vip, server) for server in pool)


def pool_slots(pool: Pool, servers: Iterable[tuple[bytes, int]]) -> list[Slot]:
    """Return the slots of a pool in the order of their index; for an empty pool, one slot that refuses connects.

    :param servers: each of `pool_members`, in the same order, with its index in `clb_servers`.
    """
    (refusal, index), *members = servers
    if not pool:
        return [Slot(refusal, 0, index, keep=1, out_of=1, alias=0, first=0, tier=1, share=1, weight=0, priority=0)]
    slots: list[Slot] = []
    for rank, (priority, same) in enumerate(groupby(pool, key=attrgetter("priority"))):
        tier = tuple(same)
        weights = tuple(server.weight for server in tier)
        table = _known_table(weights)
        out_of, first, size = table.out_of, len(slots), len(tier)
        own = islice(members, first, first + size)
        # Positional arguments: pools are large, and this takes a third of the time.
        slots += [
            Slot(member, rank, index, keep, out_of, first + alias, first, size, share, weight, priority, part)
            for (_, _, _, weight, part), share, (keep, alias), (member, index) in zip(
                tier, table.shares, table.columns, own, strict=True
            )
        ]
    return slots


def pool_virtual(  # noqa: PLR0913 - what only the caller knows of the structure
    server: VirtualServer, vip: bytes, *, following: int, generation: int, row: int, refusal: int
) -> Virtual:
    """Return the element of `clb_virtual` that refers to the slots of the pool.

    :param vip: its key, packed.
    :param following: index of the next element of its chain; 0 for none.
    :param row: index of the first row in `clb_rows`; OVERFLOWS if the rows are in `clb_overflow`.
    :param refusal: index in `clb_servers` of the refusal.
    """
    health = server.health
    return Virtual(
        vip,
        following,
        generation,
        row,
        max(1, len(server.pool)),
        lowest_tier(server.pool),
        server.algorithm,
        _flags(health),
        health.eject_after,
        health.eject_first_ms,
        health.eject_most_ms,
        refusal,
        health.silent_after_ms,
        health.connect_timeout_ms,
        health.dead_after_ms,
    )


def passive_health_of(virtual: Virtual) -> PassiveHealth | None:
    """Return the settings of passive health; None if the element has flags of a newer version."""
    if virtual.flags & ~(structs.COUNT_ACTIVE | structs.STEERED | structs.SUSPECTS):
        return None
    return PassiveHealth(
        active=bool(virtual.flags & structs.COUNT_ACTIVE),
        eject_after=virtual.eject_after,
        eject_first_ms=virtual.eject_first_ms,
        eject_most_ms=virtual.eject_most_ms,
        silent_after_ms=virtual.silent_after_ms,
        connect_timeout_ms=virtual.connect_timeout_ms,
        dead_after_ms=virtual.dead_after_ms,
        checked=bool(virtual.flags & structs.STEERED),
        suspicion=bool(virtual.flags & structs.SUSPECTS),
    )


def _flags(health: PassiveHealth) -> int:
    chosen = {
        structs.COUNT_ACTIVE: health.active,
        structs.STEERED: health.checked,
        structs.SUSPECTS: health.suspicion,
    }
    return sum(flag for flag, is_set in chosen.items() if is_set)


def lowest_tier(pool: Pool) -> int:
    """Return the number of slots in the lowest tier, which come first; 1 for an empty pool: the slot that refuses."""
    return sum(1 for server in pool if server.priority == pool[0].priority) or 1
