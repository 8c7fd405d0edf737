"""The kernel in miniature: the maps as dictionaries of bytes, and the decisions of the connect programs on them.

An array always has all its elements: zero elements are left out of its dictionary.

A state is never changed; each operation on one element returns the next state, so that tests can look at every state
that a program can see. The program's look-up is the one of bpf/schedule.h, with every weighted draw carried out: the
outcome is not one real server but the exact probability of each. All schedulers choose by such draws: random takes one,
round-robin comes to the same shares in turn, least-conn takes the better of two, or the first if all are idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import repeat
from typing import Final, NamedTuple

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.chains import chain_of
from clb_discovery.layout.elements import Slot, Virtual
from clb_discovery.layout.installed import DECODED, Installed, decode
from clb_discovery.layout.slots import pool_members
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Pool, RealServer, Vip
from clb_discovery.publication.steps import Delete, GracePeriod, Link, Step, Store, Write
from tests.support.rfc2782 import shares
from tests.support.scheduler import TIERS, Tier

ARRAYS: Final = {
    Map.SERVERS: structs.MAX_SERVERS,
    Map.STEERING: structs.MAX_SERVERS,
    Map.FILTER: 2**structs.FILTER_BITS // 64,
    Map.CHAINS: 2**structs.CHAIN_BITS,
    Map.VIRTUAL: structs.VIRTUAL_ELEMENTS,
    Map.ROWS: structs.ROWS,
}
"""The number of elements of each array."""

State = Mapping[Map, Mapping[bytes, bytes]]
Outcome = bytes | None
"""The packed member that a connect is sent to (or the refusal), or None if the programs do not change the connect."""
Outcomes = Mapping[Outcome, Fraction]
"""The probability of each possible outcome."""

READ: Final = (*DECODED, Map.CHAINS, Map.VIRTUAL, Map.ROWS)
EMPTY: Final[State] = {map_: {} for map_ in (*READ, Map.STEERING)}
_SIZE: Final = b"rows"
"""The key, in place of the record of the loader, of the number of rows that a state has room for."""
PASSES_THROUGH: Final[Outcomes] = {None: Fraction(1)}
_KEYS: Final = tuple(map(elements.pack_index, range(structs.MAX_SERVERS)))
"""Of an array of servers. They are made once, because tests read such an array thousands of times."""


class Put(NamedTuple):
    """One element is inserted or replaced."""

    map: Map
    key: bytes
    value: bytes


class Remove(NamedTuple):
    """One element is deleted; it has to exist."""

    map: Map
    key: bytes


Operation = Put | Link | Remove | GracePeriod


def operations(steps: Iterable[Step]) -> Iterator[Operation]:
    """Split steps into operations on one element: a batch is not atomic."""
    for step in steps:
        match step:
            case Write(map_, items):
                yield from (Put(map_, key, value) for key, value in items)
            case Store(links):
                yield from links
            case Delete(map_, keys):
                yield from (Remove(map_, key) for key in keys)
            case GracePeriod():
                yield step


def carry_out(state: State, operation: Operation) -> State:
    """Return the state after one operation.

    :raises KeyError: if it deletes a missing element.
    :raises ValueError: if a key or value does not have the size of the map, or the element cannot exist.
    """
    if isinstance(operation, GracePeriod):
        return state
    if isinstance(operation, Link):
        operation = _stored(state, operation)
    raw = dict(state[operation.map])
    if isinstance(operation, Put):
        if (len(operation.key), len(operation.value)) != structs.SIZES[operation.map]:
            raise ValueError(f"wrong size for {operation.map}")
        raw[operation.key] = operation.value
        if operation.map in ARRAYS:
            if elements.unpack_index(operation.key) >= (
                rows_in(state) if operation.map is Map.ROWS else ARRAYS[operation.map]
            ):
                raise ValueError(f"no such element of {operation.map}")
            if not any(operation.value):
                del raw[operation.key]
    elif operation.map in ARRAYS:
        raise ValueError(f"{operation.map} is an array")
    else:
        del raw[operation.key]
    return {**state, operation.map: raw}


def history(state: State, steps: Iterable[Step]) -> list[State]:
    """Return all states from before the first operation to after the last."""
    states = [state]
    for operation in operations(steps):
        states.append(carry_out(states[-1], operation))
    return states


def apply(state: State, steps: Iterable[Step]) -> State:
    """Return the state after all steps."""
    return history(state, steps)[-1]


def with_rows(rows: int) -> State:
    """Return empty maps with this number of elements of `clb_rows`."""
    return {**EMPTY, Map.INFO: {_SIZE: elements.pack_index(rows)}}


def rows_in(state: State) -> int:
    """Return the number of elements of `clb_rows`."""
    return elements.unpack_index(state.get(Map.INFO, {}).get(_SIZE, elements.pack_index(structs.ROWS)))


def _stored(state: State, link: Link) -> Put:
    """Return what storing a link does: no other byte of the element changes."""
    key, value = elements.pack_index(link.at), elements.pack_index(link.to)
    if link.map is Map.VIRTUAL:
        old = state[Map.VIRTUAL][key]
        value = old[: elements.NEXT_AT] + value + old[elements.NEXT_AT + 4 :]
    return Put(link.map, key, value)


def read(state: State, rows: int | None = None, *, servers: Iterator[tuple[bytes, bytes]] | None = None) -> Installed:
    """Decode a state as at the start of a sidecar.

    :param rows: the number of elements of `clb_rows`, in place of that of the state.
    :param servers: in place of those of the state.
    """
    raw = {map_: state[map_].items() for map_ in DECODED} | {Map.SERVERS: servers or array(state[Map.SERVERS])}

    rows = rows_in(state) if rows is None else rows

    def values(map_: Map, first: int, count: int) -> bytes:
        size = structs.SIZES[map_][1]
        end = min(first + count, rows if map_ is Map.ROWS else ARRAYS[map_])
        data = bytearray(max(0, end - first) * size)
        for key, value in state[map_].items():
            if first <= (index := elements.unpack_index(key)) < end:
                data[(index - first) * size : (index - first + 1) * size] = value
        return bytes(data)

    return decode(raw, values, rows)


def distinct(states: Sequence[State], *maps: Map) -> list[State]:
    """Return one state for all those in a row that differ only in other maps.

    :param states: in order, from `history`: each operation leaves all maps but one as the same objects.
    """
    return list({tuple(id(state[map_]) for map_ in maps): state for state in states}.values())


def array(raw: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Return all elements of an array in the order of their indexes, as the kernel does."""
    return zip(_KEYS, map(raw.get, _KEYS, repeat(elements.NEW_SERVER)), strict=False)


def connect(state: State, wanted: Vip) -> Outcomes:
    """Return where a connect to `wanted` goes: `clb_schedule`."""
    if not may_be_vip(state, wanted.address):
        return PASSES_THROUGH
    for vip in (wanted, wanted._replace(port=0)):
        published = find(state, elements.pack_vip(vip))
        if published:
            return scheduled(state, published)
    return PASSES_THROUGH


def find(state: State, key: bytes) -> bytes | None:
    """Return the element of `clb_virtual` that a program finds for a packed VIP."""
    for index in followed(state, key):
        element = element_at(state, index)
        if element and elements.unpack_virtual(element).vip == key:
            return element
    return None


def followed(state: State, key: bytes) -> Iterator[int]:
    """Yield the elements of the chain for a packed VIP, as far as a program follows it."""
    index = head(state, chain_of(key))
    for _ in range(structs.CHAIN):
        element = element_at(state, index)
        if element is None:
            return
        yield index
        index = elements.unpack_virtual(element).next


def head(state: State, hashed: int) -> int:
    """Return the first element of a chain; 0 for none."""
    return elements.unpack_index(state[Map.CHAINS].get(elements.pack_index(hashed), bytes(4)))


def element_at(state: State, index: int) -> bytes | None:
    """Return an element of `clb_virtual`; None if a link to it leads nowhere."""
    if not 0 < index < structs.VIRTUAL_ELEMENTS:
        return None
    return state[Map.VIRTUAL].get(elements.pack_index(index), bytes(structs.VIRTUAL.size))


def walks(run: Sequence[State], key: bytes) -> set[bytes | None]:
    """Return everything that programs can find for a packed VIP that follow its chain while the state changes.

    A program reads the head of the chain in one of the states, and each further link in the same or in a later one.
    """
    at: set[int] = set()
    found: set[bytes | None] = set()
    for state in run:
        at.add(head(state, chain_of(key)))
        todo = list(at)
        while todo:
            element = element_at(state, todo.pop())
            virtual = elements.unpack_virtual(element) if element else None
            if virtual is None:
                found.add(None)
            elif virtual.vip == key:
                found.add(without_link(element or b""))
            elif virtual.next not in at:
                at.add(virtual.next)
                todo.append(virtual.next)
    return found


def without_link(element: bytes) -> bytes:
    """Return an element of `clb_virtual` without its link to the next one, which may change."""
    return elements.pack_virtual(elements.unpack_virtual(element)._replace(next=0))


def reachable(state: State) -> dict[bytes, bytes]:
    """Return the elements of `clb_virtual` that programs can find, by packed VIP."""
    vips = {element[: structs.VIP.size] for element in state[Map.VIRTUAL].values()}
    return {vip: element for vip in vips if (element := find(state, vip))}


def connects(states: Sequence[State], wanted: Vip) -> list[Outcomes]:
    """Return where a connect goes in these states, in order, but only once where nothing changed for it.

    :param states: from `history`.
    """
    return [
        connect(state, wanted)
        for state in distinct(states, Map.FILTER, Map.CHAINS, Map.VIRTUAL, Map.ROWS, Map.OVERFLOW)
    ]


def may_be_vip(state: State, address: bytes) -> bool:
    """Return whether the filter lets an address pass: `clb_may_be_vip`."""
    index, bit = divmod(address_filter.bit_of(address), 64)
    bits = state[Map.FILTER].get(elements.pack_index(index), bytes(8))
    return bool(address_filter.unpack_element(bits) >> bit & 1)


def scheduled(state: State, published: bytes) -> Outcomes:
    """Return the outcomes of a program that has read this element of `clb_virtual`, now or earlier: `clb_draw_from`.

    None stands for no slot.
    """
    virtual = elements.unpack_virtual(published)
    return _drawn(state, virtual, Tier(0, virtual.tier))


def failover(state: State, published: bytes) -> list[Outcomes]:
    """Return the outcomes of such a program tier by tier, while all previous ones are ejected: `clb_elsewhere`."""
    virtual = elements.unpack_virtual(published)
    tier = Tier(0, virtual.tier)
    found = []
    for _ in range(TIERS):
        found.append(_drawn(state, virtual, tier))
        start = tier.first + tier.size
        slot = _slot_of(state, virtual, start) if start < virtual.servers else None
        if slot is None:
            break
        tier = Tier(slot.first, slot.tier)
    return found


def lacking(state: State, published: bytes) -> list[tuple[Map, bytes]]:
    """Return the elements of servers that such a program looks for beside the slots and does not find.

    An element that other members use is not found either.
    """
    return [
        (Map.SERVERS, elements.pack_index(index))
        for member, index in servers_of(state, published)
        if state[Map.SERVERS].get(elements.pack_index(index), counted_for(member)) != counted_for(member)
    ]


def servers_of(state: State, published: bytes) -> list[tuple[bytes, int]]:
    """Return the packed members that such a program may use, with their indexes."""
    virtual = elements.unpack_virtual(published)
    slots = [_slot_of(state, virtual, index) for index in range(virtual.servers)]
    return [(elements.refusal(virtual.vip), virtual.refusal), *((slot.member, slot.server) for slot in slots if slot)]


def virtual_of(state: State, generation: int) -> Virtual:
    """Return the virtual server with this generation."""
    found = (elements.unpack_virtual(element) for element in reachable(state).values())
    return next(one for one in found if one.generation == generation)


def slots_of(state: State, generation: int) -> dict[int, Slot]:
    """Return the slots of a generation by index, with any contents."""
    virtual = virtual_of(state, generation)
    return {
        row * structs.ROW_SLOTS + column: slot
        for row in range(elements.rows(virtual.servers))
        for column, slot in enumerate(elements.unpack_row(virtual.vip, _row_of(state, virtual, row)))
    }


def row_key(virtual: Virtual, row: int) -> tuple[Map, bytes]:
    """Return where a row of a virtual server is."""
    if virtual.row == structs.OVERFLOWS:
        return Map.OVERFLOW, elements.pack_place(virtual.generation, row)
    return Map.ROWS, elements.pack_index((virtual.row + row) % 2**32)


def with_slot(state: State, generation: int, index: int, slot: Slot) -> State:
    """Return the state with another slot in an existing row."""
    row, column = divmod(index, structs.ROW_SLOTS)
    map_, key = row_key(virtual_of(state, generation), row)
    at, value = 8 + column * structs.SLOT.size, state[map_][key]
    return carry_out(state, Put(map_, key, value[:at] + elements.pack_slot(slot) + value[at + structs.SLOT.size :]))


def used_indexes(state: State) -> set[tuple[bytes, int]]:
    """Return all packed members that programs may use from now on, with their indexes."""
    return {one for published in reachable(state).values() for one in servers_of(state, published)}


def numbered(key: bytes, pool: Pool) -> dict[bytes, int]:
    """Return the indexes of the servers of a pool and its refusal if there are no others."""
    return {member: index for index, member in enumerate(pool_members(key, pool))}


def counted_for(member: bytes) -> bytes:
    """Return an element with counts that identify its member."""
    return member.ljust(structs.SERVER.size, b"\0")


def counted(state: State) -> State:
    """Return the state after connects to every server, which leave counts in all elements."""
    servers = {elements.pack_index(index): counted_for(member) for member, index in used_indexes(state)}
    return {**state, Map.SERVERS: {**state[Map.SERVERS], **servers}}


def expected(pools: Mapping[Vip, Pool], wanted: Vip) -> Outcomes:
    """Return the outcomes of a connect for these virtual servers, computed without the tables of the layout."""
    for vip in (wanted, wanted._replace(port=0)):
        if vip in pools:
            return served_by(vip, pools[vip])
    return PASSES_THROUGH


def served_by(vip: Vip, pool: Pool) -> Outcomes:
    """Return the share of each real server of a pool's lowest tier; the refusal if it is empty."""
    key = elements.pack_vip(vip)
    if not pool:
        return {elements.refusal(key): Fraction(1)}
    tier = lowest_tier(pool)
    members = (elements.pack_member(key, server) for server in tier)
    return dict(zip(members, shares([server.weight for server in tier]), strict=True))


def served_in_turn(vip: Vip, pool: Pool) -> list[Outcomes]:
    """Return the shares within each tier of a pool, for as many tiers as are tried."""
    priorities = sorted({server.priority for server in pool})[:TIERS]
    tiers = [tuple(server for server in pool if server.priority == priority) for priority in priorities]
    return [served_by(vip, tier) for tier in tiers or [()]]


def lowest_tier(pool: Sequence[RealServer]) -> list[RealServer]:
    """Return the real servers with the lowest priority (RFC 2782)."""
    lowest = min(server.priority for server in pool)
    return [server for server in pool if server.priority == lowest]


def _drawn(state: State, virtual: Virtual, tier: Tier) -> Outcomes:
    found: dict[Outcome, Fraction] = {}
    for index in range(tier.first, tier.first + tier.size):
        for member, probability in _draw(state, virtual, index):
            found[member] = found.get(member, Fraction(0)) + probability / tier.size
    return found


def _draw(state: State, virtual: Virtual, index: int) -> Iterator[tuple[Outcome, Fraction]]:
    slot = _slot_of(state, virtual, index)
    if slot is None:
        yield None, Fraction(1)
        return
    kept = min(Fraction(slot.keep, slot.out_of), Fraction(1))
    if kept:
        yield slot.member, kept
    if kept < 1:
        alias = _slot_of(state, virtual, slot.alias)
        yield (alias.member if alias else None), 1 - kept


def _slot_of(state: State, virtual: Virtual, index: int) -> Slot | None:
    row, column = divmod(index, structs.ROW_SLOTS)
    slots = _unpacked(virtual.vip, _row_of(state, virtual, row))
    slot = slots[column] if column < len(slots) else None
    return slot if slot and slot.out_of else None


def _row_of(state: State, virtual: Virtual, row: int) -> bytes:
    map_, key = row_key(virtual, row)
    return state[map_].get(key, bytes(structs.ROW.size))


@lru_cache(maxsize=4096)
def _unpacked(vip: bytes, row: bytes) -> tuple[Slot, ...]:
    return tuple(elements.unpack_row(vip, row))
