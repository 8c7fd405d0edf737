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
from clb_discovery.layout.elements import Slot
from clb_discovery.layout.installed import DECODED, Installed, decode
from clb_discovery.layout.slots import pool_members
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Pool, RealServer, Vip
from clb_discovery.publication.plan import Delete, GracePeriod, Step, Write
from tests.support.rfc2782 import shares
from tests.support.scheduler import TIERS, Tier

TRIES: Final = 2
"""`CLB_TRIES` of bpf/schedule.h."""

ARRAYS: Final = {Map.SERVERS: structs.MAX_SERVERS, Map.FILTER: 2**structs.FILTER_BITS // 64}
"""The number of elements of each array."""

State = Mapping[Map, Mapping[bytes, bytes]]
Outcome = bytes | None
"""The packed member that a connect is sent to (or the refusal), or None if the programs do not change the connect."""
Outcomes = Mapping[Outcome, Fraction]
"""The probability of each possible outcome."""

EMPTY: Final[State] = {map_: {} for map_ in DECODED}
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


Operation = Put | Remove | GracePeriod


def operations(steps: Iterable[Step]) -> Iterator[Operation]:
    """Split steps into operations on one element: a batch is not atomic."""
    for step in steps:
        match step:
            case Write(map_, items):
                yield from (Put(map_, key, value) for key, value in items)
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
    raw = dict(state[operation.map])
    if isinstance(operation, Put):
        if (len(operation.key), len(operation.value)) != structs.SIZES[operation.map]:
            raise ValueError(f"wrong size for {operation.map}")
        raw[operation.key] = operation.value
        if operation.map in ARRAYS:
            if elements.unpack_index(operation.key) >= ARRAYS[operation.map]:
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


def distinct(states: Sequence[State], *maps: Map) -> list[State]:
    """Return one state for all those in a row that differ only in other maps.

    :param states: in order, from `history`: each operation leaves all maps but one as the same objects.
    """
    return list({tuple(id(state[map_]) for map_ in maps): state for state in states}.values())


def read(state: State) -> Installed:
    """Decode a state as at the start of a sidecar."""
    return decode({map_: state[map_].items() for map_ in DECODED} | {Map.SERVERS: array(state[Map.SERVERS])})


def array(raw: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Return all elements of an array in the order of their indexes, as the kernel does."""
    return zip(_KEYS, map(raw.get, _KEYS, repeat(elements.NEW_SERVER)), strict=False)


def connect(state: State, wanted: Vip) -> Outcomes:
    """Return where a connect to `wanted` goes: `clb_schedule`."""
    if not may_be_vip(state, wanted.address):
        return PASSES_THROUGH
    keys = [elements.pack_vip(wanted)] * TRIES + [elements.pack_vip(wanted._replace(port=0))] * TRIES
    total: dict[Outcome, Fraction] = {}
    undecided = Fraction(1)
    for key in keys:
        published = state[Map.VIRTUAL].get(key)
        found = scheduled(state, key, published) if published else PASSES_THROUGH
        for outcome, probability in found.items():
            if outcome is not None:
                total[outcome] = total.get(outcome, Fraction(0)) + undecided * probability
        undecided *= found.get(None, Fraction(0))
        if not undecided:
            return total
    return {**total, None: undecided}


def connects(states: Sequence[State], wanted: Vip) -> list[Outcomes]:
    """Return where a connect goes in these states, in order, but only once where nothing changed for it.

    :param states: from `history`.
    """
    return [connect(state, wanted) for state in distinct(states, Map.FILTER, Map.VIRTUAL, Map.ROWS)]


def may_be_vip(state: State, address: bytes) -> bool:
    """Return whether the filter lets an address pass: `clb_may_be_vip`."""
    index, bit = divmod(address_filter.bit_of(address), 64)
    bits = state[Map.FILTER].get(elements.pack_index(index), bytes(8))
    return bool(address_filter.unpack_element(bits) >> bit & 1)


def scheduled(state: State, key: bytes, published: bytes) -> Outcomes:
    """Return the outcomes of a program that has read this element of `clb_virtual`, now or earlier: `clb_draw_from`.

    None stands for no slot: there is none, or it belongs to another virtual server.
    """
    virtual = elements.unpack_virtual(published)
    return _drawn(state, key, virtual.generation, Tier(0, virtual.tier))


def failover(state: State, key: bytes, published: bytes) -> list[Outcomes]:
    """Return the outcomes of such a program tier by tier, while all previous ones are ejected: `clb_elsewhere`."""
    virtual = elements.unpack_virtual(published)
    tier = Tier(0, virtual.tier)
    found = []
    for _ in range(TIERS):
        found.append(_drawn(state, key, virtual.generation, tier))
        start = tier.first + tier.size
        slot = _slot_of(state, key, virtual.generation, start) if start < virtual.servers else None
        if slot is None:
            break
        tier = Tier(slot.first, slot.tier)
    return found


def lacking(state: State, key: bytes, published: bytes) -> list[tuple[Map, bytes]]:
    """Return the elements of servers that such a program looks for beside the slots and does not find.

    An element that other members use is not found either.
    """
    return [
        (Map.SERVERS, elements.pack_index(index))
        for member, index in servers_of(state, key, published)
        if state[Map.SERVERS].get(elements.pack_index(index), counted_for(member)) != counted_for(member)
    ]


def servers_of(state: State, key: bytes, published: bytes) -> list[tuple[bytes, int]]:
    """Return the packed members that such a program may use, with their indexes."""
    virtual = elements.unpack_virtual(published)
    slots = [_slot_of(state, key, virtual.generation, index) for index in range(virtual.servers)]
    return [(elements.refusal(key), virtual.refusal), *((slot.member, slot.server) for slot in slots if slot)]


def slots_of(state: State, generation: int) -> dict[int, Slot]:
    """Return the slots of a generation by index, with any contents."""
    rows = {elements.unpack_place(key): elements.unpack_row(value) for key, value in state[Map.ROWS].items()}
    return {
        row * structs.ROW_SLOTS + column: slot
        for (owner, row), slots in rows.items()
        if owner == generation
        for column, slot in enumerate(slots)
    }


def with_slot(state: State, generation: int, index: int, slot: Slot) -> State:
    """Return the state with another slot in an existing row."""
    row, column = divmod(index, structs.ROW_SLOTS)
    key, at = elements.pack_place(generation, row), column * structs.SLOT.size
    value = state[Map.ROWS][key]
    return carry_out(state, Put(Map.ROWS, key, value[:at] + elements.pack_slot(slot) + value[at + structs.SLOT.size :]))


def used_indexes(state: State) -> set[tuple[bytes, int]]:
    """Return all packed members that programs may use from now on, with their indexes."""
    return {one for key, published in state[Map.VIRTUAL].items() for one in servers_of(state, key, published)}


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


def _drawn(state: State, key: bytes, generation: int, tier: Tier) -> Outcomes:
    found: dict[Outcome, Fraction] = {}
    for index in range(tier.first, tier.first + tier.size):
        for member, probability in _draw(state, key, generation, index):
            found[member] = found.get(member, Fraction(0)) + probability / tier.size
    return found


def _draw(state: State, key: bytes, generation: int, index: int) -> Iterator[tuple[Outcome, Fraction]]:
    slot = _slot_of(state, key, generation, index)
    if slot is None:
        yield None, Fraction(1)
        return
    kept = min(Fraction(slot.keep, slot.out_of), Fraction(1))
    if kept:
        yield slot.member, kept
    if kept < 1:
        alias = _slot_of(state, key, generation, slot.alias)
        yield (alias.member if alias else None), 1 - kept


def _slot_of(state: State, key: bytes, generation: int, index: int) -> Slot | None:
    row, column = divmod(index, structs.ROW_SLOTS)
    slots = _unpacked(state[Map.ROWS].get(elements.pack_place(generation, row), b""))
    slot = slots[column] if column < len(slots) else None
    return slot if slot and elements.unpack_member(slot.member)[0] == key else None


@lru_cache(maxsize=4096)
def _unpacked(row: bytes) -> tuple[Slot, ...]:
    return tuple(elements.unpack_row(row))
