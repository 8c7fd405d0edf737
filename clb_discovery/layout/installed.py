"""What the kernel's maps hold, decoded from their raw elements.

A start reads the pinned maps through this and then takes the regular path: held is one side of the diff in `plan`.
What no virtual server refers to (left by a crash between two steps) is kept apart as orphans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.elements import Label, Slot, Virtual
from clb_discovery.layout.slots import lowest_tier, passive_health_of, pool_members, pool_slots
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Algorithm, PassiveHealth, Pool, RealServer, Vip
from clb_discovery.model.service import Service

Elements = Iterable[tuple[bytes, bytes]]
"""Raw keys and values of one map."""
DECODED: Final = (Map.FILTER, Map.VIRTUAL, Map.ROWS, Map.SERVERS, Map.LABELS)
"""The maps that `decode` wants."""
READ_AHEAD: Final = 1024
"""Elements of `clb_servers` that have to be zero, behind all that anything names, for the rest to count as zero too."""


@dataclass(frozen=True, slots=True)
class Published:
    """A virtual server as the kernel holds it."""

    generation: int
    rows: Sequence[int]
    """The generation's rows that are there: from 0 on, unless a foreign hand was there too."""
    algorithm: Algorithm | None
    """None for a scheduler of a newer version."""
    pool: Pool | None
    """None where the elements are not a whole pool, as only a foreign hand leaves them."""
    health: PassiveHealth | None
    """None where the pool is, and for flags of a newer version."""
    label: Label | None
    servers: Mapping[bytes, int]
    """The packed members and the indexes of their servers: those of the slots and the refusal. No two members have the
    same index, in whatever virtual servers; it is empty where a foreign hand made it so, and then the pool is None."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What the kernel's maps hold."""

    virtual: Mapping[Vip, Published] = field(default_factory=dict)
    filter: Mapping[int, int] = field(default_factory=dict)
    """Elements of `clb_filter` that are not 0, by index."""
    orphans: Mapping[Map, tuple[bytes, ...]] = field(default_factory=dict)
    """Keys that no virtual server refers to, and of virtual servers that no connect can ask for."""
    last_generation: int = 0
    """The highest generation of any slot or virtual server."""
    free: tuple[int, ...] = ()
    """Indexes of `clb_servers` that new servers may have."""
    resting: tuple[int, ...] = ()
    """Indexes of servers that have left, which are zero; new servers may have them after another grace period."""
    top: int = 0
    """New servers may have this index and all above: nothing of them is known, and a start takes longer than a rest."""


def decode(raw: Mapping[Map, Elements]) -> Installed:
    """Decode all elements of the maps in `DECODED`.

    Those of `clb_servers` are in the order of their indexes; they are taken as far as there may be something, and what
    is missing at the end is zero. All others are in any order.
    """
    found, orphans = _found(raw)
    labels = {key: elements.unpack_label(value) for key, value in raw[Map.LABELS]}
    misused = _misused(found)
    virtual = {one.vip: _published(one, misused, label=labels.pop(one.key, None)) for one in found}

    named = {index for one in found for _, index in one.named() if index < structs.MAX_SERVERS}
    left = {slot.server for own in orphans.rows.values() for slot in _slots(own) if slot.server < structs.MAX_SERVERS}
    highest = max(named | left, default=-1)
    used = _used(raw[Map.SERVERS], highest) | named
    owned = {index for published in virtual.values() for index in published.servers.values()}
    top = max(highest, max(used, default=-1)) + 1
    keys = {
        Map.VIRTUAL: tuple(orphans.virtual),
        Map.ROWS: tuple(elements.pack_place(number, row) for number, own in orphans.rows.items() for row in own),
        Map.SERVERS: tuple(elements.pack_index(index) for index in sorted(used - owned)),
        Map.LABELS: tuple(labels),
    }
    return Installed(
        virtual=virtual,
        filter={
            elements.unpack_index(key): address_filter.unpack_element(bits)
            for key, bits in raw[Map.FILTER]
            if any(bits)
        },
        orphans={map_: orphaned for map_, orphaned in keys.items() if orphaned},
        last_generation=max([*orphans.rows, *(one.element.generation for one in found)], default=0),
        resting=tuple(index for index in range(top) if index not in owned and index not in used),
        top=top,
    )


def installed_servers(installed: Installed, services: Sequence[Service]) -> dict[str, list[RealServer]]:
    """Return the real servers that the kernel holds for each source, over all VIPs of its service."""
    servers: defaultdict[str, dict[RealServer, None]] = defaultdict(dict)
    for service in services:
        for vip in service.vips:
            published = installed.virtual.get(vip)
            # A VIP that another source fed before says nothing about this one.
            if (
                published
                and published.pool is not None
                and published.label
                and published.label.source == service.source
            ):
                servers[service.source].update(dict.fromkeys(published.pool))
    return {source: list(found) for source, found in servers.items()}


Rows = Mapping[int, Sequence[Slot]]
"""The slots of one generation, by row."""


def _slots(rows: Rows) -> Iterator[Slot]:
    """Yield the slots of a generation in order."""
    for row in sorted(rows):
        yield from rows[row]


class _Found(NamedTuple):
    """A virtual server's own elements."""

    vip: Vip
    key: bytes
    element: Virtual
    rows: Rows

    def named(self) -> Iterator[tuple[bytes, int]]:
        """Yield packed members and the indexes of the servers that they are said to have."""
        yield from ((slot.member, slot.server) for slot in _slots(self.rows))
        yield elements.refusal(self.key), self.element.refusal


class _Orphans(NamedTuple):
    """Elements of no virtual server."""

    virtual: Sequence[bytes]
    """Keys that no connect can ask for."""
    rows: Mapping[int, Rows]
    """By generation."""


def _found(raw: Mapping[Map, Elements]) -> tuple[list[_Found], _Orphans]:
    """Tell what belongs to virtual servers from what does not."""
    # First, since status reads while a sidecar may write: rows stay longer than the element that refers to them.
    virtual = [(_vip(key), key, elements.unpack_virtual(value)) for key, value in raw[Map.VIRTUAL]]
    rows: defaultdict[int, dict[int, list[Slot]]] = defaultdict(dict)
    for key, value in raw[Map.ROWS]:
        generation, row = elements.unpack_place(key)
        rows[generation][row] = elements.unpack_row(value)
    found = [
        _Found(vip, key, element, rows.pop(element.generation, {})) for vip, key, element in virtual if vip is not None
    ]
    return found, _Orphans([key for vip, key, _ in virtual if vip is None], rows)


def _published(found: _Found, misused: set[int], *, label: Label | None) -> Published:
    servers = _servers(found, misused)
    pool = _pool(found, servers)
    return Published(
        generation=found.element.generation,
        rows=range(len(found.rows)) if found.rows.keys() == set(range(len(found.rows))) else sorted(found.rows),
        algorithm=elements.algorithm_of(found.element.algorithm),
        pool=pool,
        health=passive_health_of(found.element) if pool is not None else None,
        label=label,
        servers=servers,
    )


def _misused(found: Iterable[_Found]) -> set[int]:
    """Return the indexes that no publication gives to members: one of two members, or one that is not there."""
    members: dict[int, bytes] = {}
    return {
        index
        for one in found
        for member, index in one.named()
        if index >= structs.MAX_SERVERS or members.setdefault(index, member) != member
    }


def _servers(found: _Found, misused: set[int]) -> dict[bytes, int]:
    """Return the indexes of a virtual server's members; none where one of them cannot be right."""
    named = set(found.named())
    servers = dict(named)
    whole = len(servers) == len(named) and misused.isdisjoint(servers.values())
    return servers if whole and all(elements.unpack_member(member)[0] == found.key for member in servers) else {}


def _used(servers: Elements, highest: int) -> set[int]:
    """Return the indexes of servers that are not zero.

    :param highest: the last index that is named by anything. A crash may leave some behind it, close by.
    """
    used = set()
    last = highest
    for key, value in servers:
        index = elements.unpack_index(key)
        if value != elements.NEW_SERVER:
            used.add(index)
            last = max(last, index)
        elif index >= last + READ_AHEAD:
            break
    return used


def _vip(key: bytes) -> Vip | None:
    """Read the key of a virtual server; None where no connect could ask for it, as only a foreign hand writes it."""
    try:
        vip = elements.unpack_vip(key)
    except ValueError:
        return None
    return vip if elements.pack_vip(vip) == key else None


def _pool(found: _Found, servers: Mapping[bytes, int]) -> Pool | None:
    """Put a pool together from its slots; None where they are not exactly what a publication leaves."""
    published, in_order = found.element, list(_slots(found.rows))
    if len(in_order) != published.servers or found.rows.keys() != set(range(elements.rows(published.servers))):
        return None
    decoded = ((slot, *elements.unpack_member(slot.member)) for slot in in_order)
    pool = tuple(RealServer(slot.priority, address, port, slot.weight) for slot, _, address, port in decoded if port)
    members = list(pool_members(found.key, pool))
    if servers.keys() != set(members):
        return None
    slots = pool_slots(pool, ((member, servers[member]) for member in members))
    whole = in_order == slots and published.tier == lowest_tier(pool)
    return pool if whole else None


def holders(installed: Installed) -> dict[Vip, str]:
    """Return the source of each VIP that the kernel balances."""
    return {vip: published.label.source for vip, published in installed.virtual.items() if published.label}
