"""Decoding the maps: what virtual servers there are, and what belongs to none of them."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.core import layout
from clb_discovery.core.address import parse_address
from clb_discovery.core.held import DECODED, Held, decode
from clb_discovery.core.layout import Label, Map, Slot, Virtual
from clb_discovery.core.model import Algorithm, Protocol, RealServer, Tracking, Vip, VirtualServer
from clb_discovery.core.plan import plan
from tests.core.junk import damaged
from tests.core.simulator import EMPTY, Put, Remove, State, apply, carry_out, read
from tests.core.strategies import DESIRED

VIP: Final = Vip(parse_address("10.64.0.1"), 6379, Protocol.TCP)
KEY: Final = layout.pack_vip(VIP)
OTHER_KEY: Final = layout.pack_vip(VIP._replace(port=80))
ONE: Final = RealServer(0, parse_address("10.0.0.1"), 31001, 1)
THREE: Final = RealServer(0, parse_address("10.0.0.3"), 31003, 3)
BACKUP: Final = RealServer(7, parse_address("10.0.0.9"), 31009, 5)
POOL: Final = (ONE, THREE, BACKUP)
TRACKING: Final = Tracking(active=True, eject_after=3, eject_first_ms=200, eject_most_ms=900)
PUBLISHED: Final = VirtualServer(VIP, "redis", "consul:redis", Algorithm.LEAST_CONN, POOL, TRACKING)
STATE: Final[State] = apply(EMPTY, plan(Held(), {VIP: PUBLISHED}, complete=True).steps)


def slot(index: int) -> Slot:
    """Return a slot of the published pool."""
    return layout.unpack_slot(STATE[Map.SLOTS][layout.pack_place(1, index)])


def with_slot(index: int, changed: Slot) -> Put:
    """Overwrite a slot of the published pool."""
    return Put(Map.SLOTS, layout.pack_place(1, index), layout.pack_slot(changed))


def with_virtual(**changes: int) -> Put:
    """Overwrite the published element."""
    virtual = layout.unpack_virtual(STATE[Map.VIRTUAL][KEY])._asdict() | changes
    return Put(Map.VIRTUAL, KEY, layout.pack_virtual(Virtual(**virtual)))


def test_empty_maps_hold_nothing() -> None:
    """A data plane that was just loaded has no virtual server, and its first generation is 1."""
    assert read(EMPTY) == Held()
    assert Held().last_generation == 0


def test_a_publication_is_read_as_it_was_meant() -> None:
    """Pool, scheduler, tracking, names, turn and servers come back, and nothing is an orphan."""
    held = read(STATE)
    (published,) = held.virtual.values()
    assert held.virtual.keys() == {VIP}
    assert published.pool == POOL
    assert published.algorithm is Algorithm.LEAST_CONN
    assert published.tracking == TRACKING
    assert published.has_turn
    assert published.label == Label("redis", "consul:redis")
    assert published.generation == held.last_generation == 1
    assert list(published.slots) == [0, 1, 2]
    assert published.members == {layout.refusal(KEY), *(layout.pack_member(KEY, server) for server in POOL)}
    assert held.addresses == {VIP.address}
    assert held.orphans == {}


@given(DESIRED)
def test_any_desired_state_reads_back(desired: dict[Vip, VirtualServer]) -> None:
    """Whatever is published is read as exactly the pools, schedulers and tracking that were desired."""
    held = read(apply(EMPTY, plan(Held(), desired, complete=True).steps))
    assert {vip: (one.pool, one.algorithm, one.tracking) for vip, one in held.virtual.items()} == {
        vip: (one.pool, one.algorithm, one.tracking) for vip, one in desired.items()
    }
    assert held.orphans == {}


@given(damaged(st.just(STATE)))
def test_every_element_is_told_by_exactly_one_name(state: State) -> None:
    """Whatever is in the maps belongs to one virtual server or is an orphan, never both, never neither."""
    held = read(state)
    places = [layout.pack_place(one.generation, index) for one in held.virtual.values() for index in one.slots]
    members = [member for one in held.virtual.values() for member in one.members]
    turns = [layout.pack_vip(vip) for vip, one in held.virtual.items() if one.has_turn]
    labels = [layout.pack_vip(vip) for vip, one in held.virtual.items() if one.label is not None]
    owned = {
        Map.VIRTUAL: [layout.pack_vip(vip) for vip in held.virtual],
        Map.SLOTS: places,
        Map.SERVERS: members,
        Map.TURNS: turns,
        Map.LABELS: labels,
    }
    for map_, keys in owned.items():
        assert sorted([*keys, *held.orphans.get(map_, ())]) == sorted(state[map_])
    assert held.addresses == state[Map.ADDRESSES].keys()


@given(damaged(st.just(STATE)))
def test_the_last_generation_is_above_everything(state: State) -> None:
    """No generation that is in use or left over is higher, so that the next one is fresh."""
    held = read(state)
    known = [layout.unpack_place(key)[0] for key in state[Map.SLOTS]]
    known += [one.generation for one in held.virtual.values()]
    assert held.last_generation >= max(known, default=0)


DAMAGE: Final = {
    "a slot is missing": Remove(Map.SLOTS, layout.pack_place(1, 1)),
    "a slot is too many": Put(Map.SLOTS, layout.pack_place(1, 3), layout.pack_slot(slot(0))),
    "a slot is far away": Put(Map.SLOTS, layout.pack_place(1, 2**32 - 1), layout.pack_slot(slot(0))),
    "a slot belongs to another": with_slot(0, slot(0)._replace(member=layout.pack_member(OTHER_KEY, ONE))),
    "a slot refuses": with_slot(0, slot(0)._replace(member=layout.refusal(KEY))),
    "a share is wrong": with_slot(0, slot(0)._replace(keep=slot(0).keep + 1)),
    "a table cannot be drawn from": with_slot(0, slot(0)._replace(out_of=0)),
    "an alias leads astray": with_slot(0, slot(0)._replace(alias=2)),
    "an alias is counted from its tier": with_slot(2, slot(2)._replace(alias=0)),
    "a tier begins elsewhere": with_slot(2, slot(2)._replace(first=0)),
    "a tier ends elsewhere": with_slot(0, slot(0)._replace(tier=3)),
    "a priority is that of another tier": with_slot(1, slot(1)._replace(priority=7)),
    "a server's record is missing": Remove(Map.SERVERS, layout.pack_member(KEY, ONE)),
    "a server's record is missing in a higher tier": Remove(Map.SERVERS, layout.pack_member(KEY, BACKUP)),
    "the refusal's record is missing": Remove(Map.SERVERS, layout.refusal(KEY)),
    "the element has another generation": with_virtual(generation=9),
    "the element counts fewer": with_virtual(servers=2),
    "the element counts none": with_virtual(servers=0),
    "the element counts very many": with_virtual(servers=2**32 - 1),
    "the tier is too small": with_virtual(tier=1),
    "the tier is too large": with_virtual(tier=3),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_pool_that_is_not_whole_is_none(damage: Put | Remove) -> None:
    """Anything but exactly what a publication writes is no pool, so that the next plan writes it anew."""
    published = read(carry_out(STATE, damage)).virtual[VIP]
    assert published.pool is None
    assert published.tracking is None


def test_what_became_of_connects_is_nobodys_business_here() -> None:
    """Whatever counters and ejections a server's record holds, and whoever's turn it is, the pool is whole."""
    state = carry_out(STATE, Put(Map.SERVERS, layout.pack_member(KEY, ONE), b"\xff" * layout.SERVER.size))
    state = carry_out(state, Put(Map.TURNS, KEY, b"\xff" * layout.TURN_SIZE))
    assert read(state) == read(STATE)


def test_a_missing_turn_is_known() -> None:
    """A virtual server without a turn is whole but for that."""
    published = read(carry_out(STATE, Remove(Map.TURNS, KEY))).virtual[VIP]
    assert not published.has_turn
    assert published.pool == POOL


def test_tracking_of_a_newer_version_is_none() -> None:
    """A flag that this version does not know makes the tracking another, so that the next plan writes it anew."""
    published = read(carry_out(STATE, with_virtual(flags=layout.COUNT_ACTIVE | 1 << 15))).virtual[VIP]
    assert published.tracking is None
    assert published.pool == POOL


def test_a_missing_label_is_none() -> None:
    """A virtual server without names is still one."""
    published = read(carry_out(STATE, Remove(Map.LABELS, KEY))).virtual[VIP]
    assert published.label is None
    assert published.pool == POOL


def test_servers_beside_the_pool_are_orphans() -> None:
    """What counted for a former pool belongs to nobody once the pool is whole without it."""
    gone = layout.pack_member(KEY, RealServer(0, parse_address("10.0.0.2"), 80, 1))
    held = read(carry_out(STATE, Put(Map.SERVERS, gone, layout.NEW_SERVER)))
    assert held.orphans == {Map.SERVERS: (gone,)}
    assert gone not in held.virtual[VIP].members


def test_a_turn_beside_the_virtual_servers_is_an_orphan() -> None:
    """A turn whose virtual server is gone belongs to nobody."""
    held = read(carry_out(STATE, Put(Map.TURNS, OTHER_KEY, layout.NEW_TURN)))
    assert held.orphans == {Map.TURNS: (OTHER_KEY,)}


@pytest.mark.parametrize("end", [bytes([132, 0]), bytes([6, 1]), bytes([0, 0])])
def test_a_key_that_no_connect_can_ask_for_is_an_orphan(end: bytes) -> None:
    """A virtual server with a protocol or padding of nobody's is no virtual server, and no error."""
    key = KEY[:18] + end
    held = read(carry_out(STATE, Put(Map.VIRTUAL, key, STATE[Map.VIRTUAL][KEY])))
    assert held.orphans == {Map.VIRTUAL: (key,)}
    assert held.virtual.keys() == {VIP}
    assert held.virtual[VIP].pool == POOL


@given(st.permutations(range(3)))
def test_the_order_of_the_elements_does_not_matter(order: list[int]) -> None:
    """Maps hand out their elements in any order."""
    elements = {map_: list(STATE[map_].items()) for map_ in DECODED}
    elements[Map.SLOTS] = [elements[Map.SLOTS][index] for index in order]
    elements[Map.SERVERS].reverse()
    assert decode(elements) == read(STATE)
