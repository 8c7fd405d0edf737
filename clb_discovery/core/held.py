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
from clb_discovery.core.layout import Label, Map, Slot, Virtual
from clb_discovery.core.model import Algorithm, Pool, RealServer, Tracking, Vip
from clb_discovery.core.slots import lowest_tier, pool_slots, tracking_of

Elements = Sequence[tuple[bytes, bytes]]
"""Raw keys and values of one map."""

DECODED: Final = (Map.ADDRESSES, Map.VIRTUAL, Map.SLOTS, Map.SERVERS, Map.TURNS, Map.LABELS)
"""The maps that `decode` wants."""


@dataclass(frozen=True, slots=True)
class Published:
    """A virtual server as the kernel holds it."""

    generation: int
    slots: Sequence[int]
    """The indexes of the generation's slots that are there: from 0 on, unless a foreign hand was there too."""
    algorithm: Algorithm | None
    """None for a scheduler of a newer version."""
    pool: Pool | None
    """None where the elements are not a whole pool, as only a foreign hand leaves them."""
    tracking: Tracking | None
    """None where the pool is, and for flags of a newer version."""
    label: Label | None
    has_turn: bool
    """Whether it has an element in `clb_turns`."""
    members: frozenset[bytes]
    """The packed members in `clb_servers`: those of the pool and the refusal, or all there are where it is None."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the kernel's maps hold."""

    virtual: Mapping[Vip, Published] = field(default_factory=dict)
    addresses: frozenset[bytes] = frozenset()
    """Keys of `clb_addresses`."""
    orphans: Mapping[Map, tuple[bytes, ...]] = field(default_factory=dict)
    """Keys that no virtual server refers to, and of virtual servers that no connect can ask for."""
    last_generation: int = 0
    """The highest generation of any slot or virtual server."""


def decode(elements: Mapping[Map, Elements]) -> Held:
    """Decode all elements of the maps in `DECODED`, in any order."""
    slots: defaultdict[int, dict[int, Slot]] = defaultdict(dict)
    for key, value in elements[Map.SLOTS]:
        generation, index = layout.unpack_place(key)
        slots[generation][index] = layout.unpack_slot(value)
    servers: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for member, _ in elements[Map.SERVERS]:
        servers[layout.unpack_member(member)[0]].add(member)
    turns = {key for key, _ in elements[Map.TURNS]}
    labels = {key: layout.unpack_label(value) for key, value in elements[Map.LABELS]}
    last_generation = max(slots, default=0)

    virtual = {}
    strange = []
    for key, value in elements[Map.VIRTUAL]:
        vip = _vip(key)
        if vip is None:
            strange.append(key)
            continue
        published = layout.unpack_virtual(value)
        last_generation = max(last_generation, published.generation)
        own = slots.pop(published.generation, {})
        members = frozenset(servers.pop(key, ()))
        pool = _pool(key, published, own, members)
        if pool is not None:
            needed = frozenset((layout.refusal(key), *(slot.member for slot in own.values())))
            servers[key] = set(members - needed)  # of a pool before it, or of one that never came to be
            members = needed
        virtual[vip] = Published(
            generation=published.generation,
            slots=range(len(own)) if own.keys() == set(range(len(own))) else sorted(own),
            algorithm=layout.algorithm_of(published.algorithm),
            pool=pool,
            tracking=tracking_of(published) if pool is not None else None,
            label=labels.pop(key, None),
            has_turn=key in turns,
            members=members,
        )
        turns.discard(key)
    orphans = {
        Map.VIRTUAL: tuple(strange),
        Map.SLOTS: tuple(layout.pack_place(generation, index) for generation in slots for index in slots[generation]),
        Map.SERVERS: tuple(member for members in servers.values() for member in members),
        Map.TURNS: tuple(turns),
        Map.LABELS: tuple(labels),
    }
    return Held(
        virtual=virtual,
        addresses=frozenset(address for address, _ in elements[Map.ADDRESSES]),
        orphans={map_: keys for map_, keys in orphans.items() if keys},
        last_generation=last_generation,
    )


def _vip(key: bytes) -> Vip | None:
    """Read the key of a virtual server; None where no connect could ask for it, as only a foreign hand writes it."""
    try:
        vip = layout.unpack_vip(key)
    except ValueError:
        return None
    return vip if layout.pack_vip(vip) == key else None


def _pool(vip: bytes, published: Virtual, slots: Mapping[int, Slot], members: frozenset[bytes]) -> Pool | None:
    """Put a pool together from its slots; None where they are not exactly what a publication leaves."""
    if len(slots) != published.servers or slots.keys() != set(range(published.servers)):
        return None
    in_order = [slots[index] for index in range(published.servers)]
    decoded = ((slot, *layout.unpack_member(slot.member)) for slot in in_order)
    pool = tuple(RealServer(slot.priority, address, port, slot.weight) for slot, _, address, port in decoded if port)
    if in_order != pool_slots(vip, pool) or published.tier != lowest_tier(pool):
        return None
    whole = layout.refusal(vip) in members and all(slot.member in members for slot in in_order)
    return pool if whole else None
