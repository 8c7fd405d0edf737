"""Decoding the maps: virtual servers, and orphans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.elements import Label, Slot, Virtual
from clb_discovery.layout.installed import DECODED, READ_AHEAD, Installed, decode
from clb_discovery.layout.structs import Map
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, Protocol, RealServer, Vip, VirtualServer
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
ROW: Final = elements.pack_place(1, 0)
NO_SLOT: Final = Slot(bytes(40), 0, 0, 0, 0, 0, 0, 0, 0)
COUNTED: Final = b"\xff" * structs.SERVER.size


def slot(index: int) -> Slot:
    """Return a slot of the published pool."""
    return slots_of(STATE, 1)[index]


def in_row(index: int, changed: Slot) -> Put:
    """Overwrite a slot of the published pool, which is in one row."""
    return Put(Map.ROWS, ROW, with_slot(STATE, 1, index, changed)[Map.ROWS][ROW])


def with_virtual(**changes: int) -> Put:
    """Overwrite the published element."""
    virtual = elements.unpack_virtual(STATE[Map.VIRTUAL][KEY])._asdict() | changes
    return Put(Map.VIRTUAL, KEY, elements.pack_virtual(Virtual(**virtual)))


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


@given(damaged(st.just(STATE)))
def test_every_element_is_told_by_exactly_one_name(state: State) -> None:
    """Every element of the maps belongs to one virtual server or is an orphan, never both, never neither.

    Zero elements of an array that belong to no virtual server are resting.
    """
    installed = read(state)
    places = [elements.pack_place(one.generation, row) for one in installed.virtual.values() for row in one.rows]
    indexes = [index for one in installed.virtual.values() for index in one.servers.values()]
    labels = [elements.pack_vip(vip) for vip, one in installed.virtual.items() if one.label is not None]
    owned = {
        Map.VIRTUAL: [elements.pack_vip(vip) for vip in installed.virtual],
        Map.ROWS: places,
        Map.LABELS: labels,
    }
    for map_, keys in owned.items():
        assert sorted([*keys, *installed.orphans.get(map_, ())]) == sorted(state[map_])
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
    known = [elements.unpack_place(key)[0] for key in state[Map.ROWS]]
    known += [one.generation for one in installed.virtual.values()]
    assert installed.last_generation >= max(known, default=0)


DAMAGE: Final = {
    "a slot is missing": in_row(1, NO_SLOT),
    "a slot is too many": in_row(3, slot(0)),
    "a slot is apart": in_row(7, slot(0)),
    "the row is missing": Remove(Map.ROWS, ROW),
    "a row is too many": Put(Map.ROWS, elements.pack_place(1, 1), STATE[Map.ROWS][ROW]),
    "a row is empty": Put(Map.ROWS, elements.pack_place(1, 1), bytes(structs.ROW.size)),
    "a row is far away": Put(Map.ROWS, elements.pack_place(1, 2**32 - 1), STATE[Map.ROWS][ROW]),
    "a slot belongs to another": in_row(0, slot(0)._replace(member=elements.pack_member(OTHER_KEY, ONE))),
    "a slot refuses": in_row(0, slot(0)._replace(member=elements.refusal(KEY))),
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
    installed = read(carry_out(STATE, Put(Map.ROWS, elements.pack_place(7, 0), elements.pack_rows([orphan])[0])))
    assert (installed.resting, installed.top) == ((4, 5), 6)


def test_servers_are_read_as_far_as_there_may_be_some() -> None:
    """Elements far after the last index in use are not read, and missing elements are zero."""
    far = {elements.pack_index(3 + READ_AHEAD): COUNTED, elements.pack_index(4 + 2 * READ_AHEAD): COUNTED}
    state = {**STATE, Map.SERVERS: far}
    asked: list[bytes] = []

    def servers() -> Iterator[tuple[bytes, bytes]]:
        for key, value in array(far):
            asked.append(key)
            yield key, value

    raw = {map_: list(STATE[map_].items()) for map_ in DECODED}
    installed = decode(raw | {Map.SERVERS: servers()})
    assert installed == read(state)
    assert installed.orphans == {Map.SERVERS: (elements.pack_index(3 + READ_AHEAD),)}
    assert asked == list(map(elements.pack_index, range(4 + 2 * READ_AHEAD)))
    assert decode(raw) == read(STATE)


@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("damage", ["slot", "refusal"])
def test_an_index_of_two_virtual_servers_is_neithers(shared: int, damage: str) -> None:
    """Both are republished with indexes of their own; a third one stays as it is."""
    desired = {one.vip: one for one in (PUBLISHED, OTHER, replace(PUBLISHED, vip=VIP._replace(port=53)))}
    state = apply(BOTH, plan(read(BOTH), desired, complete=True).steps)
    if damage == "slot":
        state = with_slot(state, 2, 1, slots_of(state, 2)[1]._replace(server=shared))
    else:
        virtual = elements.unpack_virtual(state[Map.VIRTUAL][OTHER_KEY])._replace(refusal=shared)
        state = carry_out(state, Put(Map.VIRTUAL, OTHER_KEY, elements.pack_virtual(virtual)))
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
def test_a_key_that_no_connect_can_ask_for_is_an_orphan(end: bytes) -> None:
    """A key with an unknown protocol or with padding is no virtual server, and no error."""
    key = KEY[:18] + end
    installed = read(carry_out(STATE, Put(Map.VIRTUAL, key, STATE[Map.VIRTUAL][KEY])))
    assert installed.orphans == {Map.VIRTUAL: (key,)}
    assert installed.virtual.keys() == {VIP}
    assert installed.virtual[VIP].pool == POOL


@given(st.permutations(range(3)))
def test_the_order_of_the_elements_does_not_matter(order: list[int]) -> None:
    """Hash maps return elements in any order, also the rows of one pool."""
    pool = tuple(ONE._replace(port=port) for port in range(1, 2 * structs.ROW_SLOTS + 2))
    state = apply(EMPTY, plan(Installed(), {VIP: replace(PUBLISHED, pool=pool)}, complete=True).steps)
    raw = {map_: list(state[map_].items()) for map_ in DECODED}
    raw[Map.ROWS] = [raw[Map.ROWS][index] for index in order]
    installed = decode(raw)
    assert installed == read(state)
    assert installed.virtual[VIP].pool == pool
