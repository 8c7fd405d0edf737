"""The content of the kernel's maps, decoded from their raw elements.

At a start, the sidecar reads the pinned maps with this module and then takes the regular path: `Installed` is one side
of the diff in `plan`. Elements that no virtual server refers to, which a crash between two steps leaves, are orphans.
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
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Algorithm, PassiveHealth, Pool, Pools, RealServer, Vip, pools
from clb_discovery.model.service import Service

Elements = Iterable[tuple[bytes, bytes]]
"""Raw keys and values of one map."""
DECODED: Final = (Map.FILTER, Map.VIRTUAL, Map.ROWS, Map.SERVERS, Map.LABELS)
"""The maps that `decode` needs."""
READ_AHEAD: Final = 1024
"""If this many elements of `clb_servers` after the last index in use are zero, all further ones are taken as zero."""


@dataclass(frozen=True, slots=True)
class Published:
    """A virtual server in the kernel's maps."""

    generation: int
    rows: Sequence[int]
    """The existing rows of the generation: from 0 on without gaps, unless another program has changed the maps."""
    algorithm: Algorithm | None
    """None for a scheduler that only a newer version knows."""
    pool: Pool | None
    """None if the elements are not a whole pool, which happens only if another program has changed the maps."""
    health: PassiveHealth | None
    """None if `pool` is None, and for flags that only a newer version knows."""
    label: Label | None
    servers: Mapping[bytes, int]
    """Index in `clb_servers` of each packed member: those of the slots, and the refusal. No two members of any virtual
    servers share an index. If another program has broken that, this is empty and the pool is None."""


@dataclass(frozen=True, slots=True)
class Installed:
    """The content of the kernel's maps."""

    virtual: Mapping[Vip, Published] = field(default_factory=dict)
    filter: Mapping[int, int] = field(default_factory=dict)
    """The non-zero elements of `clb_filter`, by index."""
    orphans: Mapping[Map, tuple[bytes, ...]] = field(default_factory=dict)
    """Keys of elements that no virtual server refers to, and keys in `clb_virtual` that no connect can look up."""
    last_generation: int = 0
    """The highest generation of any slot or virtual server."""
    free: tuple[int, ...] = ()
    """Indexes of `clb_servers` that can be given to new servers now."""
    resting: tuple[int, ...] = ()
    """Indexes of removed servers, set to zero; they can be given to new servers after another grace period."""
    top: int = 0
    """This and all higher indexes can be given to new servers: they are unused, and a start outlasts a grace period."""


def decode(raw: Mapping[Map, Elements]) -> Installed:
    """Decode all elements of the maps in `DECODED`.

    :param raw: elements of `clb_servers` in the order of their indexes; they are read only as far as any can be
        non-zero, and missing ones at the end count as zero. Elements of all other maps are in any order.
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
        resting=tuple(sorted(set(range(top)).difference(owned, used))),
        top=top,
    )


def service_names(installed: Installed) -> frozenset[str]:
    """Return the names of the services that have virtual servers, without the self-test."""
    labels = (published.label for published in installed.virtual.values())
    return frozenset(label.service for label in labels if label and not is_own(label.source))


def installed_servers(installed: Installed, services: Sequence[Service]) -> dict[str, Pools]:
    """Return the installed real servers of each source, over all VIPs of its service."""
    servers: defaultdict[str, list[RealServer]] = defaultdict(list)
    for service in services:
        for vip in service.vips:
            published = installed.virtual.get(vip)
            # If another source fed the VIP before, its pool is no answer of this source.
            if (
                published
                and published.pool is not None
                and published.label
                and published.label.source == service.source
            ):
                servers[service.source] += published.pool
    return {source: pools(found) for source, found in servers.items()}


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
        """Yield packed members, each with its claimed index in `clb_servers`."""
        yield from ((slot.member, slot.server) for slot in _slots(self.rows))
        yield elements.refusal(self.key), self.element.refusal


class _Orphans(NamedTuple):
    """Elements of no virtual server."""

    virtual: Sequence[bytes]
    """Keys that no connect can look up."""
    rows: Mapping[int, Rows]
    """By generation."""


def _found(raw: Mapping[Map, Elements]) -> tuple[list[_Found], _Orphans]:
    """Separate the elements of virtual servers from orphans."""
    # Read first, because a sidecar may write meanwhile: rows are deleted after the element that refers to them.
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
    """Return the indexes that no publication assigns: shared by two members, or out of range."""
    members: dict[int, bytes] = {}
    return {
        index
        for one in found
        for member, index in one.named()
        if index >= structs.MAX_SERVERS or members.setdefault(index, member) != member
    }


def _servers(found: _Found, misused: set[int]) -> dict[bytes, int]:
    """Return the indexes of a virtual server's members; empty if one of them is invalid."""
    named = set(found.named())
    servers = dict(named)
    whole = len(servers) == len(named) and misused.isdisjoint(servers.values())
    return servers if whole and all(elements.unpack_member(member)[0] == found.key for member in servers) else {}


def _used(servers: Elements, highest: int) -> set[int]:
    """Return the indexes of servers that are not zero.

    :param highest: the last index that a slot or virtual server refers to. A crash may leave non-zero servers at higher
        indexes nearby.
    """
    used = set()
    last = highest
    for index, (key, value) in enumerate(servers):  # a key is parsed only if its element is not zero
        if value != elements.NEW_SERVER:
            used.add(elements.unpack_index(key))
            last = max(last, index)
        elif index >= last + READ_AHEAD:
            break
    return used


def _vip(key: bytes) -> Vip | None:
    """Parse the key of a virtual server; None if no connect can look it up, so another program must have written it."""
    try:
        vip = elements.unpack_vip(key)
    except ValueError:
        return None
    return vip if elements.pack_vip(vip) == key else None


def _pool(found: _Found, servers: Mapping[bytes, int]) -> Pool | None:
    """Build a pool from its slots; None if they are not exactly as a publication writes them."""
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
    """Return the source of each installed VIP."""
    return {vip: published.label.source for vip, published in installed.virtual.items() if published.label}
