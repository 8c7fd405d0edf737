"""A pool as the programs read it: one slot per real server, and the element of `clb_virtual` that refers to them."""

from __future__ import annotations

from itertools import groupby

from clb_discovery.core import layout
from clb_discovery.core.alias import alias_table
from clb_discovery.core.layout import Slot, Virtual
from clb_discovery.core.model import Pool, Tracking, VirtualServer


def pool_slots(vip: bytes, pool: Pool) -> list[Slot]:
    """Return the slots of a pool in the order of their index; one that refuses where the pool is empty.

    :param vip: the virtual server's key, packed.
    """
    if not pool:
        return [Slot(layout.refusal(vip), keep=1, out_of=1, alias=0, first=0, tier=1, weight=0, priority=0)]
    slots: list[Slot] = []
    for priority, tier in groupby(pool, key=lambda server: server.priority):
        servers = list(tier)
        table = alias_table([server.weight for server in servers])
        first = len(slots)
        slots += (
            Slot(
                member=layout.pack_member(vip, server),
                keep=column.keep,
                out_of=table.out_of,
                alias=first + column.alias,
                first=first,
                tier=len(servers),
                weight=server.weight,
                priority=priority,
            )
            for server, column in zip(servers, table.columns, strict=True)
        )
    return slots


def pool_virtual(generation: int, server: VirtualServer) -> Virtual:
    """Return the element that refers to the slots of a virtual server's pool."""
    tracking = server.tracking
    return Virtual(
        generation,
        max(1, len(server.pool)),
        lowest_tier(server.pool),
        server.algorithm,
        layout.COUNT_ACTIVE if tracking.active else 0,
        tracking.eject_after,
        tracking.eject_first_ms,
        tracking.eject_most_ms,
    )


def tracking_of(virtual: Virtual) -> Tracking | None:
    """Read back what the kernel keeps track of; None where a newer version's flags say more."""
    if virtual.flags & ~layout.COUNT_ACTIVE:
        return None
    active = bool(virtual.flags & layout.COUNT_ACTIVE)
    return Tracking(active, virtual.eject_after, virtual.eject_first_ms, virtual.eject_most_ms)


def lowest_tier(pool: Pool) -> int:
    """Return how many slots, from the first on, are picked from: the lowest tier, or the one that refuses."""
    return sum(1 for server in pool if server.priority == pool[0].priority) or 1
