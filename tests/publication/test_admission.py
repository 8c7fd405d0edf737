"""Admission rejects only virtual servers that do not fit; slices bound a round, and services take turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from clb_discovery.layout import elements, structs
from clb_discovery.layout.chains import chain_of
from clb_discovery.layout.elements import Label
from clb_discovery.layout.gaps import Range
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.layout.structs import Map
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, Protocol, RealServer, Vip, VirtualServer
from clb_discovery.publication.admission import OF_CATALOG, OVERHEAD, PATIENCE, SHARE, SIZES, admit, choose
from clb_discovery.publication.plan import is_installed, plan
from tests.publication.test_plan import PRIOR, TARGETS, Desired, fresh, pools_of, shape
from tests.support.simulator import PASSES_THROUGH, State, connect, connects, expected, history, read
from tests.support.strategies import DESIRED

FIRST: Final = int.from_bytes(parse_address("10.64.0.0"))
REALS: Final = [
    RealServer(0, Address((int.from_bytes(parse_address("10.1.0.0")) + host).to_bytes(16)), 80, 1)
    for host in range(70_000)
]
CONFIGURED: Final = {"srv:mine": 0, "srv:second": 1}


class Many(Mapping[bytes, int]):
    """A number of servers, without contents."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def __getitem__(self, key: bytes) -> int:
        raise KeyError(key)


def vip(number: int, port: int = 80) -> Vip:
    """Return a VIP by number."""
    return Vip(Address((FIRST + number).to_bytes(16)), port, Protocol.TCP)


def server(number: int, size: int, source: str = "consul:a", port: int = 80) -> VirtualServer:
    """Build a virtual server with this many real servers."""
    name = source.partition(":")[2]
    return VirtualServer(vip(number, port), name, source, Algorithm.RANDOM, tuple(REALS[:size]))


def published(size: int, source: str = "consul:a") -> Published:
    """Build an installed virtual server with this many real servers."""
    label = Label(source.partition(":")[2], source)
    rows = range(-(-size // 8) or 1)
    return Published(1, 1, 0, rows, Algorithm.RANDOM, (), PassiveHealth(), label, Many(size + 1))


def holding(*virtual: tuple[int, Published]) -> Installed:
    """Build an installed state, by the numbers of VIPs."""
    return Installed({vip(number): one for number, one in virtual}, top=sum(len(one.servers) for _, one in virtual))


def test_what_does_not_fit_is_refused_alone() -> None:
    """A pool without room takes nothing from the others, and is reported with the cause and the fix."""
    installed = holding((0, published(150_000)), (1, published(10)))
    large, small, grown = server(2, 65_536, "consul:b"), server(3, 10, "consul:c"), server(1, 20)
    found = admit(installed, [large, small, grown], (), CONFIGURED)
    assert set(found.changes) == {small, grown}
    (refused,) = found.refused
    assert (refused.vip, refused.service, refused.source) == (large.vip, "b", "consul:b")
    assert refused.reason == (
        "no room: at most 262144 real and virtual servers together are possible, three quarters of them for services "
        "of the catalog; use fewer VIPs or real servers, or a second --instance for some services"
    )


def test_what_is_held_stays_where_its_successor_does_not_fit() -> None:
    """No installed pool is removed because of missing room, and shrinking is always possible."""
    installed = holding((0, published(190_000)), (1, published(5_000, "consul:b")))
    found = admit(installed, [server(1, 60_000, "consul:b"), server(2, 6_000, "consul:c")], (), CONFIGURED)
    assert [one.vip for one in found.refused] == [vip(1), vip(2)]
    assert "its pool stays as large as it is" in found.refused[0].reason
    shrunk = admit(installed, [server(2, 6_000, "consul:c"), server(0, 60_000)], (), CONFIGURED)
    assert not shrunk.refused


def test_servers_that_are_gone_leave_a_pool_that_may_not_grow() -> None:
    """With a full map, a pool is replaced by one of the same size: low priorities first, then installed servers."""
    old = replace(published(4, "consul:b"), pool=tuple(REALS[10:14]))
    installed = holding((0, published(OF_CATALOG.servers - 5, "consul:a")), (1, old))
    backup = RealServer(1, REALS[10].address, 80, 1)
    wanted = replace(server(1, 0, "consul:b"), pool=(*REALS[:2], *REALS[12:15], backup))
    found = admit(installed, [wanted], (), CONFIGURED)
    assert [one.vip for one in found.refused] == [vip(1)]
    (cut,) = found.changes
    assert cut.pool == (*REALS[:2], *REALS[12:14])
    now = replace(installed, virtual={**installed.virtual, vip(1): replace(old, pool=cut.pool)})
    again = admit(now, [wanted], (), CONFIGURED)
    assert (again.changes, again.refused) == ([], found.refused)


def test_configured_services_come_first_then_holders_then_names() -> None:
    """The same virtual servers are rejected in every order of changes."""
    installed = holding((0, published(OF_CATALOG.servers - 25_000, "consul:z")))
    pools = [
        server(1, 10_000, "consul:b"),
        server(2, 10_000, "consul:c"),
        server(3, 10_000, "consul:z"),
        server(4, 40_000, "srv:second"),
        server(5, 20_000, "srv:mine"),
    ]
    for order in (pools, pools[::-1]):
        found = admit(installed, order, (), CONFIGURED)
        assert [one.source for one in found.changes] == ["srv:mine", "srv:second", "consul:z", "consul:b"]
        assert [one.source for one in found.refused] == ["consul:c"]


def test_the_catalog_leaves_room_for_the_configuration() -> None:
    """A quarter of each map is always left for services of the configuration."""
    installed = holding((0, published(OF_CATALOG.servers - 100)))
    found = admit(installed, [server(1, 200), server(2, 60_000, "srv:mine")], (), CONFIGURED)
    assert [one.source for one in found.changes] == ["srv:mine"]


def test_virtual_servers_are_counted() -> None:
    """The number of VIPs is limited, even if they have few real servers."""
    installed = Installed({vip(number): published(0, "srv:mine") for number in range(SIZES.virtual - 1)})
    new = [server(70_000, 1, "srv:mine"), server(70_001, 1, "srv:second")]
    found = admit(installed, new, (), CONFIGURED)
    assert [one.source for one in found.changes] == ["srv:mine"]
    assert "at most 65536 virtual servers are possible" in found.refused[0].reason
    assert not admit(installed, new, [vip(0)], CONFIGURED).refused


def colliding(count: int) -> list[VirtualServer]:
    """Return virtual servers whose VIPs have the hash of the first VIP."""
    wanted = chain_of(elements.pack_vip(vip(0)))
    found = (n for n in range(1, 2**32) if chain_of(elements.pack_vip(vip(n))) == wanted)
    return [server(n, 1, f"consul:{n}") for n in islice(found, count)]


def test_a_chain_that_would_be_too_long_refuses_one_virtual_server() -> None:
    """Programs follow a chain only so far; all others are admitted, and room in the chain is used."""
    new = colliding(structs.CHAIN + 1)
    others = [server(1, 1), server(2, 1)]
    found = admit(Installed(), [*new, *others], (), CONFIGURED)
    (refused,) = found.refused
    assert refused.vip in {one.vip for one in new}
    assert refused.reason == "the VIPs of too many virtual servers have the same hash; use another VIP"
    assert len(found.changes) == structs.CHAIN + 2
    full = plan(Installed(), {one.vip: one for one in new[:-1]}, complete=True).result
    assert [one.vip for one in admit(full, [new[-1]], (), CONFIGURED).refused] == [new[-1].vip]
    assert not admit(full, [new[-1]], [new[0].vip], CONFIGURED).refused
    assert not admit(full, [replace(new[0], pool=())], (), CONFIGURED).refused


def test_a_chain_is_not_too_long_while_it_changes() -> None:
    """A virtual server takes the place of another one in its chain in the round after that is withdrawn."""
    new = colliding(structs.CHAIN + 1)
    installed = plan(Installed(), {one.vip: one for one in new[:-1]}, complete=True).result
    found = choose(installed, [new[-1]], [new[0].vip], {}, budget=None)
    assert (found.publish, found.withdraw, set(found.left)) == ({}, [new[0].vip], {new[-1].vip})
    installed = plan(installed, found.publish, complete=True, gone=frozenset(found.withdraw)).result
    assert choose(installed, [new[-1]], (), {}, budget=None).publish == {new[-1].vip: new[-1]}


def test_old_and_new_virtual_servers_share_a_map() -> None:
    """As many virtual servers are replaced in a round as have room beside the others."""
    installed = replace(holding((0, published(10)), (1, published(10))), free_virtual=(Range(7, 8),))
    found = choose(installed, [server(0, 5), server(1, 5)], (), {}, budget=None)
    assert len(found.publish) == 1
    assert len(found.left) == 1


def test_old_and_new_need_room_at_once() -> None:
    """A pool that needs the room of another one waits until that is gone; one that can never fit is rejected alone."""
    installed = holding((0, published(200_000, "srv:mine")))
    new, small = server(1, 65_000, "srv:second"), server(2, 10, "consul:a")
    found = choose(installed, [new, small], [vip(0)], {}, budget=None)
    assert (set(found.publish), found.withdraw, set(found.left)) == ({vip(2)}, [vip(0)], {vip(1)})
    alone = choose(installed, [new], (), {}, budget=None)
    assert not alone.publish
    assert not alone.left
    assert "no room for the old and the new pool side by side" in alone.cramped[0].reason


def test_small_changes_do_not_wait_for_large_ones() -> None:
    """A service that changes 16 pools of 1,024 takes turns with one that changes a pool of ten."""
    large = [server(number, 1024, "consul:a") for number in range(16)]
    small = server(99, 10, "consul:b")
    found = choose(Installed(), [*large, small], (), {}, budget=2048)
    assert next(iter(found.publish)) == small.vip
    assert sum(len(one.pool) for one in found.publish.values()) <= 2048
    assert len(found.publish) + len(found.left) == 17


def test_two_large_services_take_turns() -> None:
    """Each of them gets half of a round."""
    both = [server(number, 200, f"consul:{'ab'[number % 2]}") for number in range(40)]
    found = choose(Installed(), both, (), {}, budget=2048)
    sources = [one.source for one in found.publish.values()]
    assert abs(sources.count("consul:a") - sources.count("consul:b")) <= 1


def test_what_has_waited_for_long_comes_first() -> None:
    """Small changes that never end do not starve a large one."""
    large = server(0, 4000, "consul:a")
    waited: Mapping[Vip, int] = {}
    for turn in range(PATIENCE + 2):
        changes = [large, *(server(1 + 50 * turn + number, 100, f"consul:{number}") for number in range(30))]
        found = choose(Installed(), changes, (), waited, budget=2048)
        if large.vip in found.publish:
            break
        waited = found.left
    assert turn == PATIENCE


def test_one_that_is_larger_than_a_round_has_one_of_its_own() -> None:
    """A round is bounded by its budget or by a single virtual server."""
    found = choose(Installed(), [server(0, 60_000), server(1, 50_000)], (), {}, budget=2048)
    assert list(found.publish) == [vip(1)]


@settings(max_examples=150)
@given(PRIOR, DESIRED, st.integers(1, 40))
def test_slices_come_to_what_one_round_comes_to(state: State, desired: Desired, budget: int) -> None:
    """In every round, each connect has the whole old or the whole new pool, and in the end the desired one."""
    installed = read(state)
    old = {one: of.pool for one, of in installed.virtual.items() if of.pool is not None}
    first = {target: connect(state, target) for target in TARGETS}
    while True:
        changes = [one for one in desired.values() if not is_installed(installed, one)]
        gone = installed.virtual.keys() - desired.keys()
        found = choose(installed, changes, gone, {}, budget=budget)
        assert not found.cramped
        written = sum(len(one.pool) + OVERHEAD for one in found.publish.values())
        units = {(one.address, one.protocol) for one in (*found.publish, *found.withdraw)}
        assert written <= max(budget, sum(len(one.pool) + OVERHEAD for one in changes) // SHARE) or len(units) == 1
        made = plan(installed, found.publish, complete=True, gone=frozenset(found.withdraw))
        states = history(state, made.steps)
        new = pools_of(desired)
        for target in TARGETS:
            outcomes = connects(states, target)
            allowed = [outcomes[0], outcomes[-1], expected(old, target), expected(new, target)]
            assert all(outcome in allowed for outcome in outcomes)
            if PASSES_THROUGH not in (first[target], expected(new, target)):
                assert PASSES_THROUGH not in outcomes
        state, installed = states[-1], made.result
        if not found.left:
            break
    assert shape(state) == shape(fresh(desired))
    assert not read(state).orphans.get(Map.OVERFLOW)
