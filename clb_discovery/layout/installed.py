"""The content of the kernel's maps, decoded from their raw elements.

At a start, the sidecar reads the pinned maps with this module and then takes the regular path: `Installed` is one side
of the diff in `plan`. A crash between two steps leaves elements that no virtual server refers to. In `clb_virtual` and
`clb_rows` these are free, because no link leads there and a start outlasts a grace period. In other maps they are
orphans.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.chains import Chains, Values, read_chains
from clb_discovery.layout.elements import Label, Slot, Virtual
from clb_discovery.layout.gaps import Gaps, Range, between
from clb_discovery.layout.slots import lowest_tier, passive_health_of, pool_members, pool_slots
from clb_discovery.layout.structs import Map
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Algorithm, PassiveHealth, Pool, Pools, RealServer, Vip, pools
from clb_discovery.model.service import Service

Elements = Iterable[tuple[bytes, bytes]]
"""Raw keys and values of one map."""
DECODED: Final = (Map.FILTER, Map.OVERFLOW, Map.SERVERS, Map.LABELS)
"""The maps of which `decode` needs all elements; it reads others as far as links lead."""
_NO_VIP: Final = bytes(structs.VIP.size)
READ_AHEAD: Final = 1024
"""If this many elements of `clb_servers` after the last index in use are zero, all further ones are taken as zero."""


@dataclass(frozen=True, slots=True)
class Published:
    """A virtual server in the kernel's maps."""

    generation: int
    index: int
    """Its element of `clb_virtual`."""
    row: int
    """Its first row in `clb_rows`, or OVERFLOWS."""
    rows: Sequence[int]
    """The rows of the generation: from 0 on without gaps, unless another program has changed the maps. Then rows of
    `clb_overflow` may be missing, and rows of `clb_rows` that are not its own, or that do not exist, do not count."""
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
    chains: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """The indexes in `clb_virtual` of each chain that has virtual servers, by hash."""
    broken: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Chains with other links than these, which only another program stores, by hash: each with the indexes of elements
    that no connect can look up."""
    free_virtual: Gaps = (Range(1, structs.VIRTUAL_ELEMENTS),)
    """Elements of `clb_virtual` that can be written now."""
    free_rows: Gaps = (Range(0, structs.ROWS),)
    """Rows of `clb_rows` that can be written now."""
    filter: Mapping[int, int] = field(default_factory=dict)
    """The non-zero elements of `clb_filter`, by index."""
    filtered: bool = field(default=False, compare=False)
    """Whether the filter is known to let the addresses of all VIPs pass, as it does after a plan."""
    orphans: Mapping[Map, tuple[bytes, ...]] = field(default_factory=dict)
    """Keys of elements that no virtual server refers to."""
    last_generation: int = 0
    """The highest generation of any virtual server, or of any row in `clb_overflow`."""
    free: tuple[int, ...] = ()
    """Indexes of `clb_servers` that can be given to new servers now."""
    resting: tuple[int, ...] = ()
    """Indexes of removed servers, set to zero; they can be given to new servers after another grace period."""
    top: int = 0
    """This and all higher indexes can be given to new servers: they are unused, and a start outlasts a grace period."""

    def index_of(self, member: bytes) -> int | None:
        """Return the index in `clb_servers` of a packed member; None if it is in no pool."""
        published = self.virtual.get(elements.unpack_vip(member[: structs.VIP.size]))
        return published.servers.get(member) if published else None


def decode(raw: Mapping[Map, Elements], values: Values, rows: int = structs.ROWS) -> Installed:
    """Decode the maps.

    :param raw: all elements of the maps in `DECODED`, which are read after the others. Those of `clb_servers` are in
        the order of their indexes; they are read only as far as any can be non-zero, and missing ones at the end count
        as zero. Elements of all other maps are in any order.
    :param values: reads the other maps.
    :param rows: the number of elements of `clb_rows`.
    """
    # Links are read first, because a sidecar may write meanwhile: what they lead to stays for a grace period.
    chains = read_chains(values)
    in_array = _in_array(chains, rows)
    free_rows = between(Range(0, rows), in_array.claims.values())
    found, orphans = _found(chains, in_array, _read_rows(values, free_rows, rows), raw[Map.OVERFLOW])
    labels = {key: elements.unpack_label(value) for key, value in raw[Map.LABELS]}
    misused = _misused(found)
    virtual = {one.vip: _published(one, misused, label=labels.pop(one.key, None)) for one in found}
    reached = {index for chain in (*chains.chains.values(), *chains.broken.values()) for index in chain}

    named = {index for one in found for _, index in one.named() if index < structs.MAX_SERVERS}
    left = {slot.server for own in orphans.values() for slot in _slots(own) if slot.server < structs.MAX_SERVERS}
    highest = max(named | left, default=-1)
    used = _used(raw[Map.SERVERS], highest) | named
    owned = {index for published in virtual.values() for index in published.servers.values()}
    top = max(highest, max(used, default=-1)) + 1
    keys = {
        Map.OVERFLOW: tuple(elements.pack_place(number, row) for number, own in orphans.items() for row in own),
        Map.SERVERS: tuple(elements.pack_index(index) for index in sorted(used - owned)),
        Map.LABELS: tuple(labels),
    }
    return Installed(
        virtual=virtual,
        chains=chains.chains,
        broken=chains.broken,
        free_virtual=between(Range(1, structs.VIRTUAL_ELEMENTS), (Range(index, index + 1) for index in reached)),
        free_rows=free_rows,
        filter={
            elements.unpack_index(key): address_filter.unpack_element(bits)
            for key, bits in raw[Map.FILTER]
            if any(bits)
        },
        orphans={map_: orphaned for map_, orphaned in keys.items() if orphaned},
        last_generation=max([*orphans, *(one.element.generation for one in found)], default=0),
        resting=tuple(sorted(set(range(top)).difference(owned, used))),
        top=top,
    )


def service_names(installed: Installed) -> frozenset[str]:
    """Return the names of the services that have virtual servers, without the self-test."""
    labels = (published.label for published in installed.virtual.values())
    return frozenset(label.service for label in labels if label and not is_own(label.source))


def installed_servers(installed: Installed, services: Sequence[Service]) -> dict[str, Pools]:
    """Return the installed real servers of each source, over all VIPs of its service.

    If the servers of one part alone fill the pools of a service, nothing is known of its other parts: their servers
    may be the same.
    """
    found: dict[str, Pools] = {}
    for service in services:
        published = (installed.virtual.get(vip) for vip in service.vips)
        # If other sources fed the VIP before, its pool is no answer of these sources.
        own = [
            one.pool
            for one in published
            if one and one.pool is not None and one.label and one.label.source == service.source
        ]
        servers = [server for pool in own for server in pool]
        for place, part in enumerate(service.parts if own else ()):
            of_part = [server._replace(part=0) if place else server for server in servers if server.part == place]
            if of_part or not servers:
                found[part.source] = pools(of_part)
    return found


Rows = Mapping[int, Sequence[Slot]]
"""The slots of one generation, by row."""


def _slots(rows: Rows) -> Iterator[Slot]:
    """Yield the slots of a generation in order."""
    for row in sorted(rows):
        yield from rows[row]


class _Found(NamedTuple):
    """A virtual server's own elements."""

    vip: Vip
    at: int
    """The index of the element."""
    element: Virtual
    owned: Sequence[int]
    """The rows that it alone refers to."""
    rows: Rows

    @property
    def key(self) -> bytes:
        """The packed VIP."""
        return self.element.vip

    def named(self) -> Iterator[tuple[bytes, int]]:
        """Yield packed members, each with its claimed index in `clb_servers`."""
        yield from ((slot.member, slot.server) for slot in _slots(self.rows))
        yield elements.refusal(self.key), self.element.refusal


class _InArray(NamedTuple):
    """The rows of `clb_rows` that virtual servers refer to."""

    claims: Mapping[int, Range]
    """By index of the virtual server; as far as these rows exist."""
    shared: AbstractSet[int]
    """The virtual servers with rows that do not exist or that others refer to, too."""


def _in_array(chains: Chains, rows: int) -> _InArray:
    claims, shared = {}, set()
    for index, element in chains.virtual.values():
        if element.row != structs.OVERFLOWS:
            end = element.row + elements.rows(element.servers)
            if element.row < min(end, rows):
                claims[index] = Range(element.row, min(end, rows))
            if end > rows:
                shared.add(index)
    last, until = 0, 0
    for index, (start, end) in sorted(claims.items(), key=itemgetter(1)):
        if start < until:
            shared |= {index, last}
        if end > until:
            last, until = index, end
    return _InArray(claims, shared)


def _read_rows(values: Values, free: Gaps, rows: int) -> Callable[[int], bytes]:
    """Read all rows that are not free; return a function that returns one of them."""
    runs = between(Range(0, rows), free)
    data = [values(Map.ROWS, start, end - start) for start, end in runs]
    starts = [start for start, _ in runs]

    def row(index: int) -> bytes:
        run = bisect_right(starts, index) - 1
        at = (index - starts[run]) * structs.ROW.size
        return data[run][at : at + structs.ROW.size]

    return row


def _found(
    chains: Chains, in_array: _InArray, row: Callable[[int], bytes], overflow: Elements
) -> tuple[list[_Found], Mapping[int, Rows]]:
    """Return the elements of virtual servers, and the rows in `clb_overflow` of other generations."""
    beside: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
    for key, value in overflow:
        generation, number = elements.unpack_place(key)
        beside[generation][number] = value
    found = []
    for vip, (index, element) in chains.virtual.items():
        if element.row == structs.OVERFLOWS:
            raw = beside.pop(element.generation, {})
            owned: Sequence[int] = range(len(raw)) if raw.keys() == set(range(len(raw))) else sorted(raw)
        else:
            start, end = in_array.claims.get(index, Range(0, 0))
            numbers = range(end - start)
            raw = {number: row(element.row + number) for number in numbers}
            owned = numbers if index not in in_array.shared else ()
        rows = {
            number: elements.unpack_row(element.vip, value)
            for number, value in raw.items()
            # Another one has the row now: a sidecar has written since we read the link.
            if elements.generation_of(value) == element.generation
        }
        found.append(_Found(vip, index, element, owned, rows))
    orphans = {
        number: {row: elements.unpack_row(_NO_VIP, value) for row, value in own.items()}
        for number, own in beside.items()
    }
    return found, orphans


def _published(found: _Found, misused: set[int], *, label: Label | None) -> Published:
    servers = _servers(found, misused)
    pool = _pool(found, servers)
    return Published(
        generation=found.element.generation,
        index=found.at,
        row=found.element.row,
        rows=found.owned,
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
    return servers if whole else {}


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


def _pool(found: _Found, servers: Mapping[bytes, int]) -> Pool | None:
    """Build a pool from its slots; None if they are not exactly as a publication writes them."""
    published, in_order = found.element, list(_slots(found.rows))
    numbers = set(range(elements.rows(len(in_order))))
    if len(in_order) != published.servers or not found.rows.keys() == set(found.owned) == numbers:
        return None
    decoded = ((slot, *elements.unpack_member(slot.member)) for slot in in_order)
    pool = tuple(
        RealServer(slot.priority, address, port, slot.weight, slot.part) for slot, _, address, port in decoded if port
    )
    members = list(pool_members(found.key, pool))
    if servers.keys() != set(members):
        return None
    slots = pool_slots(pool, ((member, servers[member]) for member in members))
    whole = in_order == slots and published.tier == lowest_tier(pool)
    return pool if whole else None


def holders(installed: Installed) -> dict[Vip, str]:
    """Return the source of each installed VIP."""
    return {vip: published.label.source for vip, published in installed.virtual.items() if published.label}
