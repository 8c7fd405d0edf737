"""Decoding the maps: virtual servers, and orphans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.chains import chain_of
from clb_discovery.layout.elements import Label, Slot, Virtual
from clb_discovery.layout.gaps import Range, count
from clb_discovery.layout.installed import READ_AHEAD, Installed
from clb_discovery.layout.structs import Map
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, Pool, Protocol, RealServer, Vip, VirtualServer
from clb_discovery.publication.plan import plan
from tests.support.junk import damaged
from tests.support.simulator import (
    EMPTY,
    Put,
    Remove,
    State,
    apply,
    array,
    carry_out,
    numbered,
    read,
    slots_of,
    with_slot,
)
from tests.support.strategies import DESIRED

VIP: Final = Vip(parse_address("10.64.0.1"), 6379, Protocol.TCP)
KEY: Final = elements.pack_vip(VIP)
OTHER_KEY: Final = elements.pack_vip(VIP._replace(port=80))
ONE: Final = RealServer(0, parse_address("10.0.0.1"), 31001, 1)
THREE: Final = RealServer(0, parse_address("10.0.0.3"), 31003, 3)
BACKUP: Final = RealServer(7, parse_address("10.0.0.9"), 31009, 5)
POOL: Final = (ONE, THREE, BACKUP)
TRACKING: Final = PassiveHealth(active=True, eject_after=3, eject_first_ms=200, eject_most_ms=900)
PUBLISHED: Final = VirtualServer(VIP, "redis", "consul:redis", Algorithm.LEAST_CONN, POOL, TRACKING)
STATE: Final[State] = apply(EMPTY, plan(Installed(), {VIP: PUBLISHED}, complete=True).steps)
"""The refusal has index 0; those of the pool follow."""
OTHER: Final = replace(PUBLISHED, vip=VIP._replace(port=80))
BOTH: Final[State] = apply(STATE, plan(read(STATE), {VIP: PUBLISHED, OTHER.vip: OTHER}, complete=True).steps)
"""With a second virtual server, of generation 2 and with indexes from 4 on."""
FIRST: Final = elements.pack_index(1)
"""The key of the published element."""
CHAIN: Final = elements.pack_index(chain_of(KEY))
ROW: Final = elements.pack_index(0)
NO_SLOT: Final = Slot(KEY + bytes(20), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
COUNTED: Final = b"\xff" * structs.SERVER.size


def slot(index: int) -> Slot:
    """Return a slot of the published pool."""
    return slots_of(STATE, 1)[index]


def in_row(index: int, changed: Slot) -> Put:
    """Overwrite a slot of the published pool, which is in one row."""
    return Put(Map.ROWS, ROW, with_slot(STATE, 1, index, changed)[Map.ROWS][ROW])


def with_virtual(**changes: int) -> Put:
    """Overwrite the published element."""
    virtual = elements.unpack_virtual(STATE[Map.VIRTUAL][FIRST])._asdict() | changes
    return Put(Map.VIRTUAL, FIRST, elements.pack_virtual(Virtual(**virtual)))


def in_overflow(*pools: Pool) -> State:
    """Return the state with these pools in `clb_overflow`, because no row is free elsewhere."""
    desired = {
        VIP._replace(port=port): replace(PUBLISHED, vip=VIP._replace(port=port), pool=pool)
        for port, pool in enumerate(pools, 1)
    }
    return apply(EMPTY, plan(Installed(free_rows=()), desired, complete=True).steps)


OVERFLOWING: Final = in_overflow(POOL)


def test_empty_maps_hold_nothing() -> None:
    """A data plane that was just loaded has no virtual servers, and its first generation will be 1."""
    assert read(EMPTY) == Installed()
    assert Installed().last_generation == 0


def test_a_publication_is_read_as_it_was_meant() -> None:
    """Pool, scheduler, passive health, names and servers are read back, and nothing is an orphan."""
    installed = read(STATE)
    (published,) = installed.virtual.values()
    assert installed.virtual.keys() == {VIP}
    assert published.pool == POOL
    assert published.algorithm is Algorithm.LEAST_CONN
    assert published.health == TRACKING
    assert published.label == Label("redis", "consul:redis")
    assert published.generation == installed.last_generation == 1
    assert list(published.rows) == [0]
    assert published.servers == numbered(KEY, POOL)
    assert (installed.free, installed.resting, installed.top) == ((), (), 4)
    assert installed.filter == address_filter.elements(frozenset({VIP.address}))
    assert installed.orphans == {}


@given(DESIRED)
def test_any_desired_state_reads_back(desired: dict[Vip, VirtualServer]) -> None:
    """Any published state is read as exactly the desired pools, schedulers and passive health."""
    installed = read(apply(EMPTY, plan(Installed(), desired, complete=True).steps))
    assert {vip: (one.pool, one.algorithm, one.health) for vip, one in installed.virtual.items()} == {
        vip: (one.pool, one.algorithm, one.health) for vip, one in desired.items()
    }
    assert installed.orphans == {}


@given(damaged(st.just(STATE) | st.just(OVERFLOWING)))
def test_every_element_is_told_by_exactly_one_name(state: State) -> None:
    """Every element of the maps belongs to one virtual server or is an orphan, never both, never neither.

    Zero elements of an array that belong to no virtual server are resting.
    """
    installed = read(state)
    places = [
        elements.pack_place(one.generation, row)
        for one in installed.virtual.values()
        for row in one.rows
        if one.row == structs.OVERFLOWS
    ]
    indexes = [index for one in installed.virtual.values() for index in one.servers.values()]
    labels = [elements.pack_vip(vip) for vip, one in installed.virtual.items() if one.label is not None]
    owned = {Map.OVERFLOW: places, Map.LABELS: labels}
    for map_, keys in owned.items():
        assert sorted([*keys, *installed.orphans.get(map_, ())]) == sorted(state[map_])
    reached = {index for chain in installed.chains.values() for index in chain}
    strays = {index for chain in installed.broken.values() for index in chain}
    assert reached == {one.index for one in installed.virtual.values()}
    assert not any(start <= index < end for start, end in installed.free_virtual for index in reached | strays)
    assert count(installed.free_virtual) + len(reached | strays) == structs.VIRTUAL_ELEMENTS - 1
    rows = [one.row + row for one in installed.virtual.values() for row in one.rows if one.row != structs.OVERFLOWS]
    assert len(set(rows)) == len(rows)
    assert not any(start <= row < end for start, end in installed.free_rows for row in rows)
    raw = {elements.unpack_index(key): address_filter.unpack_element(bits) for key, bits in state[Map.FILTER].items()}
    assert installed.filter == {index: bits for index, bits in raw.items() if bits}
    orphans = list(map(elements.unpack_index, installed.orphans.get(Map.SERVERS, ())))
    assert sorted([*indexes, *orphans, *installed.resting]) == list(range(installed.top))
    counted = set(map(elements.unpack_index, state[Map.SERVERS]))
    assert counted <= {*indexes, *orphans}


@given(damaged(st.just(STATE)))
def test_the_last_generation_is_above_everything(state: State) -> None:
    """No generation in use or left over is higher, so that the next one is new."""
    installed = read(state)
    known = [elements.unpack_place(key)[0] for key in state[Map.OVERFLOW]]
    known += [one.generation for one in installed.virtual.values()]
    assert installed.last_generation >= max(known, default=0)


DAMAGE: Final = {
    "a slot is missing": in_row(1, NO_SLOT),
    "a slot is too many": in_row(3, slot(0)),
    "a slot is apart": in_row(7, slot(0)),
    "the row is of another generation": Put(Map.ROWS, ROW, bytes([9]) + STATE[Map.ROWS][ROW][1:]),
    "the row is empty": Put(Map.ROWS, ROW, bytes(structs.ROW.size)),
    "a slot refuses": in_row(0, slot(0)._replace(member=elements.refusal(KEY))),
    "a slot has another rank": in_row(2, slot(2)._replace(rank=0)),
    "a weight counts more": in_row(0, slot(0)._replace(share=2)),
    "a slot is of a zone": in_row(0, slot(0)._replace(zone=1)),
    "a slot is in a zone": in_row(0, slot(0)._replace(zone=1)),
    "a share is wrong": in_row(0, slot(0)._replace(keep=slot(0).keep + 1)),
    "a table cannot be drawn from": in_row(0, slot(0)._replace(out_of=0)),
    "an alias leads astray": in_row(0, slot(0)._replace(alias=2)),
    "an alias is counted from its tier": in_row(2, slot(2)._replace(alias=0)),
    "a tier begins elsewhere": in_row(2, slot(2)._replace(first=0)),
    "a tier ends elsewhere": in_row(0, slot(0)._replace(tier=3)),
    "a priority is that of another tier": in_row(1, slot(1)._replace(priority=7)),
    "a server has another's index": in_row(0, slot(0)._replace(server=2)),
    "a server has the refusal's index": in_row(0, slot(0)._replace(server=0)),
    "a server has an index that is not there": in_row(2, slot(2)._replace(server=structs.MAX_SERVERS)),
    "the refusal has a server's index": with_virtual(refusal=3),
    "the refusal has an index that is not there": with_virtual(refusal=2**32 - 1),
    "the element has another generation": with_virtual(generation=9),
    "the element counts fewer": with_virtual(servers=2),
    "the element counts none": with_virtual(servers=0),
    "the element counts very many": with_virtual(servers=2**32 - 1),
    "the element leads to other rows": with_virtual(row=1),
    "the element leads to no rows": with_virtual(row=structs.ROWS),
    "the element leads to the other map": with_virtual(row=structs.OVERFLOWS),
    "the tier is too small": with_virtual(tier=1),
    "the tier is too large": with_virtual(tier=3),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_pool_that_is_not_whole_is_none(damage: Put | Remove) -> None:
    """Any difference from the elements that a publication writes gives no pool, so that the next plan rewrites it."""
    published = read(carry_out(STATE, damage)).virtual[VIP]
    assert published.pool is None
    assert published.health is None


def test_what_became_of_connects_is_nobodys_business_here() -> None:
    """The pool is whole whatever the counters and ejections of a server are."""
    state = carry_out(STATE, Put(Map.SERVERS, elements.pack_index(1), COUNTED))
    assert read(state) == read(STATE)


def test_tracking_of_a_newer_version_is_none() -> None:
    """An unknown flag changes the settings of passive health, so that the next plan rewrites the element."""
    published = read(carry_out(STATE, with_virtual(flags=structs.COUNT_ACTIVE | 1 << 15))).virtual[VIP]
    assert published.health is None
    assert published.pool == POOL


def test_a_missing_label_is_none() -> None:
    """A virtual server without names is still a virtual server."""
    published = read(carry_out(STATE, Remove(Map.LABELS, KEY))).virtual[VIP]
    assert published.label is None
    assert published.pool == POOL


def test_servers_beside_the_pool_are_orphans() -> None:
    """A server with counters of a former pool is an orphan; a zero one is resting."""
    gone = elements.pack_index(6)
    installed = read(carry_out(STATE, Put(Map.SERVERS, gone, COUNTED)))
    assert installed.orphans == {Map.SERVERS: (gone,)}
    assert installed.virtual == read(STATE).virtual
    assert (installed.free, installed.resting, installed.top) == ((), (4, 5), 7)


def test_a_server_that_an_orphan_names_rests() -> None:
    """The index in a slot without a virtual server is not given away as an unused one."""
    orphan = slot(0)._replace(server=5)
    installed = read(carry_out(STATE, Put(Map.OVERFLOW, elements.pack_place(7, 0), elements.pack_rows(7, [orphan])[0])))
    assert (installed.resting, installed.top) == ((4, 5), 6)
    assert installed.orphans == {Map.OVERFLOW: (elements.pack_place(7, 0),)}


def test_servers_are_read_as_far_as_there_may_be_some() -> None:
    """Elements far after the last index in use are not read, and missing elements are zero."""
    far = {elements.pack_index(3 + READ_AHEAD): COUNTED, elements.pack_index(4 + 2 * READ_AHEAD): COUNTED}
    asked: list[bytes] = []

    def servers() -> Iterator[tuple[bytes, bytes]]:
        for key, value in array(far):
            asked.append(key)
            yield key, value

    installed = read({**STATE, Map.SERVERS: far}, servers=servers())
    assert installed == read({**STATE, Map.SERVERS: far})
    assert installed.orphans == {Map.SERVERS: (elements.pack_index(3 + READ_AHEAD),)}
    assert asked == list(map(elements.pack_index, range(4 + 2 * READ_AHEAD)))
    assert read(STATE, servers=iter(())) == read(STATE)


@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("damage", ["slot", "refusal"])
def test_an_index_of_two_virtual_servers_is_neithers(shared: int, damage: str) -> None:
    """Both are republished with indexes of their own; a third one stays as it is."""
    desired = {one.vip: one for one in (PUBLISHED, OTHER, replace(PUBLISHED, vip=VIP._replace(port=53)))}
    state = apply(BOTH, plan(read(BOTH), desired, complete=True).steps)
    if damage == "slot":
        state = with_slot(state, 2, 1, slots_of(state, 2)[1]._replace(server=shared))
    else:
        other = elements.pack_index(2)
        virtual = elements.unpack_virtual(state[Map.VIRTUAL][other])._replace(refusal=shared)
        state = carry_out(state, Put(Map.VIRTUAL, other, elements.pack_virtual(virtual)))
    installed = read(state)
    assert [(installed.virtual[vip].pool, installed.virtual[vip].servers) for vip in (VIP, OTHER.vip)] == [
        (None, {})
    ] * 2
    made = plan(installed, desired, complete=True)
    assert made.changed == (VIP, OTHER.vip)
    indexes = [index for one in made.result.virtual.values() for index in one.servers.values()]
    assert sorted(indexes) == list(range(8, 20))
    assert sorted(made.result.free + made.result.resting) == list(range(8))


@pytest.mark.parametrize("end", [bytes([132, 0]), bytes([6, 1]), bytes([0, 0])])
def test_a_key_that_no_connect_can_ask_for_is_passed_over(end: bytes) -> None:
    """A key with an unknown protocol or with padding is no virtual server, and no error; the next plan unlinks it."""
    element = elements.unpack_virtual(STATE[Map.VIRTUAL][FIRST])._replace(vip=KEY[:18] + end, next=1)
    state = carry_out(STATE, Put(Map.VIRTUAL, elements.pack_index(7), elements.pack_virtual(element)))
    state = carry_out(state, Put(Map.CHAINS, CHAIN, elements.pack_index(7)))
    installed = read(state)
    assert installed.broken == {chain_of(KEY): frozenset({7})}
    assert installed.chains == {chain_of(KEY): (1,)}
    assert installed.free_virtual == (Range(2, 7), Range(8, structs.VIRTUAL_ELEMENTS))
    assert installed.virtual[VIP].pool == POOL
    made = plan(installed, {VIP: PUBLISHED}, complete=False)
    repaired = read(apply(state, made.steps))
    assert made.changed == ()
    assert repaired == read(STATE)
    assert made.result.free_virtual == repaired.free_virtual


@pytest.mark.parametrize("to", [1, structs.VIRTUAL_ELEMENTS, 2**32 - 1, 5])
def test_a_link_to_nowhere_ends_a_chain(to: int) -> None:
    """A chain that leads back, out of the map or to an element of zeros is followed no further, and repaired."""
    state = carry_out(STATE, with_virtual(next=to))
    installed = read(state)
    assert installed.virtual == read(STATE).virtual
    assert installed.broken.keys() == {chain_of(KEY)}
    assert read(apply(state, plan(installed, {VIP: PUBLISHED}, complete=False).steps)) == read(STATE)


def test_a_chain_that_is_too_long_is_read_as_far_as_programs_follow_it() -> None:
    """The elements after that are free, because no program reads them."""
    state = STATE
    for index in range(2, 20):  # of other chains
        element = elements.unpack_virtual(STATE[Map.VIRTUAL][FIRST])._replace(vip=OTHER_KEY, next=index - 1)
        state = carry_out(state, Put(Map.VIRTUAL, elements.pack_index(index), elements.pack_virtual(element)))
    state = carry_out(state, Put(Map.CHAINS, CHAIN, elements.pack_index(19)))
    installed = read(state)
    assert installed.virtual == {}
    assert installed.broken == {chain_of(KEY): frozenset(range(4, 20))}
    assert read(apply(state, plan(installed, {VIP: PUBLISHED}, complete=False).steps)).virtual.keys() == {VIP}


def test_rows_of_two_virtual_servers_are_neithers() -> None:
    """Both are republished in other rows, which no virtual server refers to."""
    element = elements.unpack_virtual(BOTH[Map.VIRTUAL][elements.pack_index(2)])._replace(row=0)
    state = carry_out(BOTH, Put(Map.VIRTUAL, elements.pack_index(2), elements.pack_virtual(element)))
    installed = read(state)
    assert [(one.pool, one.rows) for one in installed.virtual.values()] == [(None, ())] * 2
    assert installed.free_rows == (Range(1, structs.ROWS),)
    made = plan(installed, {VIP: PUBLISHED, OTHER.vip: OTHER}, complete=True)
    assert made.changed == (VIP, OTHER.vip)
    assert read(apply(state, made.steps)).free_rows == (Range(0, 1), Range(3, structs.ROWS))


def test_rows_end_where_the_map_ends() -> None:
    """The number of rows is that of the map, which may be smaller or larger than the default."""
    assert read(STATE, 5).free_rows == (Range(1, 5),)
    assert read(EMPTY, 20000).free_rows == (Range(0, 20000),)


def test_pools_in_the_overflow_read_back() -> None:
    """Each pool has all of its rows there, and none in the array."""
    large = tuple(ONE._replace(port=port) for port in range(1, 2 * structs.ROW_SLOTS + 2))
    installed = read(in_overflow(POOL, large))
    found = [one for _, one in sorted(installed.virtual.items())]
    assert [one.pool for one in found] == [POOL, large]
    assert [(one.row, list(one.rows)) for one in found] == [
        (structs.OVERFLOWS, [0]),
        (structs.OVERFLOWS, [0, 1, 2]),
    ]
    assert installed.free_rows == (Range(0, structs.ROWS),)
    assert installed.orphans == {}


@pytest.mark.parametrize(
    "damage",
    [
        Remove(Map.OVERFLOW, elements.pack_place(1, 1)),
        Put(Map.OVERFLOW, elements.pack_place(1, 3), bytes(structs.ROW.size)),
        Put(Map.OVERFLOW, elements.pack_place(1, 2**32 - 1), bytes(structs.ROW.size)),
    ],
)
def test_a_pool_that_is_not_whole_in_the_overflow_is_none(damage: Put | Remove) -> None:
    """A missing row, or one too many, gives no pool."""
    state = in_overflow(tuple(ONE._replace(port=port) for port in range(1, 2 * structs.ROW_SLOTS + 2)))
    (published,) = read(carry_out(state, damage)).virtual.values()
    assert published.pool is None


@given(st.permutations(range(3)))
def test_the_order_of_the_elements_does_not_matter(order: list[int]) -> None:
    """Hash maps return elements in any order, also the rows of one pool."""
    state = in_overflow(tuple(ONE._replace(port=port) for port in range(1, 2 * structs.ROW_SLOTS + 2)))
    rows = list(state[Map.OVERFLOW].items())
    installed = read({**state, Map.OVERFLOW: dict(rows[index] for index in order)})
    assert installed == read(state)
    assert next(iter(installed.virtual.values())).pool is not None
