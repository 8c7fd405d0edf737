"""What the kernel's maps hold, decoded from their raw elements.

A start reads the pinned maps through this and then takes the regular path: held is one side of the diff in `plan`.
What no virtual server refers to (left by a crash between two steps) is kept apart as orphans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from clb_discovery.core import layout
from clb_discovery.core.layout import Label, Map, Slot
from clb_discovery.core.model import Algorithm, Pool, RealServer, Vip

Elements = Sequence[tuple[bytes, bytes]]
"""Raw keys and values of one map."""

DECODED: Final = (Map.ADDRESSES, Map.VIRTUAL, Map.SLOTS, Map.COUNTERS, Map.LABELS)
"""The maps that `decode` wants."""


@dataclass(frozen=True, slots=True)
class Published:
    """A virtual server as the kernel holds it."""

    generation: int
    slots: int
    """How many slots of the generation there are, from index 0 on."""
    algorithm: Algorithm | None
    """None for a scheduler of a newer version."""
    pool: Pool | None
    """None where the elements are not a whole pool, as only a foreign hand leaves them."""
    label: Label | None
    counters: frozenset[bytes]
    """The packed members that have a counter."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the kernel's maps hold."""

    virtual: Mapping[Vip, Published] = field(default_factory=dict)
    addresses: frozenset[bytes] = frozenset()
    """Keys of `clb_addresses`."""
    orphans: Mapping[Map, tuple[bytes, ...]] = field(default_factory=dict)
    """Keys that no virtual server refers to."""
    last_generation: int = 0
    """The highest generation of any slot or virtual server."""


def decode(elements: Mapping[Map, Elements]) -> Held:
    """Decode all elements of the maps in `DECODED`, in any order."""
    slots: defaultdict[int, dict[int, Slot]] = defaultdict(dict)
    for key, value in elements[Map.SLOTS]:
        generation, index = layout.unpack_place(key)
        slots[generation][index] = layout.unpack_slot(value)
    counters: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for member, _ in elements[Map.COUNTERS]:
        counters[layout.unpack_member(member)[0]].add(member)
    labels = {key: layout.unpack_label(value) for key, value in elements[Map.LABELS]}
    last_generation = max(slots, default=0)

    virtual = {}
    for key, value in elements[Map.VIRTUAL]:
        published = layout.unpack_virtual(value)
        last_generation = max(last_generation, published.generation)
        own = slots.pop(published.generation, {})
        own_counters = frozenset(counters.pop(key, ()))
        virtual[layout.unpack_vip(key)] = Published(
            generation=published.generation,
            slots=max(own, default=-1) + 1,
            algorithm=layout.algorithm_of(published.algorithm),
            pool=_pool(key, published.servers, own, own_counters),
            label=labels.pop(key, None),
            counters=own_counters,
        )
    orphans = {
        Map.SLOTS: tuple(layout.pack_place(generation, index) for generation in slots for index in slots[generation]),
        Map.COUNTERS: tuple(member for members in counters.values() for member in members),
        Map.LABELS: tuple(labels),
    }
    return Held(
        virtual=virtual,
        addresses=frozenset(address for address, _ in elements[Map.ADDRESSES]),
        orphans={map_: keys for map_, keys in orphans.items() if keys},
        last_generation=last_generation,
    )


def _pool(vip: bytes, servers: int, slots: Mapping[int, Slot], counters: frozenset[bytes]) -> Pool | None:
    """Put a pool together from its slots; None where they are not what a publication leaves."""
    if len(slots) != servers or set(slots) != set(range(servers)) or layout.refusal(vip) not in counters:
        return None
    pool = []
    for index in range(servers):
        slot = slots[index]
        owner, address, port = layout.unpack_member(slot.member)
        if owner != vip or slot.member not in counters:
            return None
        if port:
            pool.append(RealServer(slot.priority, address, port, slot.weight))
    return tuple(pool)
