"""Zones: connects stay in the own zone while it has capacity; what it lacks goes to the others in an exact ratio."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from ipaddress import ip_address, ip_network
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.documents.shares import Member, target_shares
from clb_discovery.model.address import parse_address, parse_network
from clb_discovery.model.servers import MAX_TIERS, MAX_WEIGHT, Endpoint, Pool, RealServer
from clb_discovery.model.service import Part
from clb_discovery.model.zones import MAX_ZONE, Places, ZoneRule, is_zone, zones_by_network
from clb_discovery.publication.merge import Merged, merge
from clb_discovery.publication.zones import Zoning, zones_of

OWN: Final = "eu-1a"
CONSUL: Final = [Part("consul:web")]
FACTOR: Final = Fraction(7, 5)


def server(host: int, weight: int = 1, priority: int = 0) -> RealServer:
    """Return the real server 10.ZONE.0.HOST:80, where the zone is the thousands of the host."""
    return RealServer(priority, parse_address(f"10.{host // 1000}.0.{host % 1000}"), 80, weight)


def zone(number: int, size: int, weight: int = 1, priority: int = 0) -> tuple[RealServer, ...]:
    """Return real servers of a zone: 0 is the own one."""
    return tuple(server(1000 * number + 1 + one, weight, priority) for one in range(size))


def zoning(
    pools: Sequence[Pool],
    *,
    rule: ZoneRule = ZoneRule(),  # noqa: B008 - immutable
    out: Sequence[RealServer] = (),
    unhealthy: Collection[Endpoint] = (),
) -> Zoning:
    """Return the zones of servers by their addresses; members that are out belong to the first part."""
    members = {one.endpoint for one in (*out, *(one for pool in pools for one in pool))}
    zones = {endpoint: OWN if endpoint[0][13] == 0 else f"eu-{endpoint[0][13]}" for endpoint in members}
    first = {one.endpoint: one.weight for one in out}
    return Zoning(OWN, rule, zones, [first, *({} for _ in pools[1:])], unhealthy)


def weights(found: Merged, zones: Zoning, *, near: bool, tier: int = 0) -> list[int]:
    """Return the weights of the usable real servers of a tier in the own zone, or in the others."""
    return [
        one.weight
        for one in found.pool
        if one.priority == tier
        and (zones.zones.get(one.endpoint) == OWN) is near
        and one.endpoint not in zones.unhealthy
    ]


def tiers(found: Merged) -> list[tuple[int, str, int]]:
    """Return tier, address and weight of each real server."""
    return [(one.priority, str(one).removesuffix(":80"), one.weight) for one in found.pool]


def test_the_own_zone_is_the_first_tier() -> None:
    """All servers of the own zone are usable: others are the next tier, with the weights that they have."""
    pool = (*zone(0, 2, 3), *zone(1, 1, 5), *zone(2, 1, 7))
    found = merge(CONSUL, [pool], zoning([pool]))
    assert tiers(found) == [(0, "10.0.0.1", 3), (0, "10.0.0.2", 3), (1, "10.1.0.1", 5), (1, "10.2.0.1", 7)]
    assert found.folded == 0


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([1, 2, 3, 97, MAX_WEIGHT]),
)
def test_the_own_zone_keeps_what_it_can_take(usable: int, others: int, out: int, ejected: int, weight: int) -> None:
    """Usable servers have 1.4 times their part of what is registered, at most all; by weight no other has more."""
    near, far = zone(0, usable + ejected, weight), zone(1, others, 3)
    lost = tuple(server(100 + number, weight) for number in range(out))
    zones = zoning([(*near, *far)], out=lost, unhealthy={one.endpoint for one in near[usable:]})
    found = merge(CONSUL, [(*near, *far)], zones)
    assert [one.endpoint for one in sorted(found.pool, key=lambda one: one.endpoint)] == [
        one.endpoint for one in (*near, *far)
    ]
    by_weight = Fraction(usable * weight, usable * weight + others * 3)
    kept = min(Fraction(1), max(FACTOR * usable / (usable + ejected + out), by_weight))
    if usable < 2:
        assert {(one.priority, one.weight) for one in found.pool} == {(0, weight), (0, 3)}
    elif kept == 1:
        assert [one.priority for one in found.pool] == [0] * len(near) + [1] * others
    else:
        assert {one.priority for one in found.pool} == {0}
        own, rest = sum(weights(found, zones, near=True)), sum(weights(found, zones, near=False))
        assert Fraction(own, own + rest) == kept
    units = {one.weight for one in found.pool if zones.zones[one.endpoint] == OWN}
    assert len(units) == 1  # also of those that are ejected


@given(st.integers(2, 40), st.integers(1, 60), st.sampled_from([1, 7, 1000]))
def test_what_the_own_zone_keeps_only_falls_while_it_loses_servers(size: int, others: int, weight: int) -> None:
    """Each further server that is lost leaves it the same part or less, until all zones are one."""
    pool = (*zone(0, size, weight), *zone(1, others, weight))
    kept = []
    for lost in range(size - 1):
        zones = zoning([pool], unhealthy={one.endpoint for one in pool[:lost]})
        kept.append(_share(merge(CONSUL, [pool], zones), zones))
    assert all(one >= other for one, other in pairwise(kept))
    assert kept[0] == 1


def _share(found: Merged, zones: Zoning) -> float:
    """Return the share of connects that the own zone gets."""
    members = [Member(one.priority, one.weight, one.endpoint in zones.unhealthy) for one in found.pool]
    targets = zip(found.pool, target_shares(members), strict=True)
    return round(sum(share for one, share in targets if zones.zones.get(one.endpoint) == OWN), 9)


SIZE: Final = st.integers(2, 30)


@given(SIZE, SIZE, SIZE, st.integers(0, 29))
def test_no_server_gets_much_more_than_its_fair_share(own: int, second: int, third: int, lost: int) -> None:
    """Each zone has clients in proportion to its servers, and one loses some servers.

    If the zone had at most 72 % of all servers, no server of another zone has more than 1.25 times its fair share. If
    it had at least 25 %, none of its own has more than 1.3 times its fair share, and never 1.4 times.
    """
    sizes, left = (own, second, third), max(1, own - lost)
    loads = _loads([(own, left), (second, second), (third, third)])
    if own <= 0.72 * sum(sizes):
        assert max(loads[1:]) <= 1.25 + 1e-9
    most = 1.3 if 4 * own >= sum(sizes) else 1.4
    assert loads[0] <= most + 1e-9


def _loads(zones: Sequence[tuple[int, int]]) -> list[float]:
    """Return the load of a usable server of each zone, in fair shares.

    :param zones: registered and usable servers of each; clients are in proportion to the registered ones.
    """
    registered = [zone(number, size) for number, (size, _) in enumerate(zones)]
    usable = [servers[:left] for servers, (_, left) in zip(registered, zones, strict=True)]
    out = {one.endpoint: 1 for servers, (_, left) in zip(registered, zones, strict=True) for one in servers[left:]}
    pool = tuple(one for servers in usable for one in servers)
    load = dict.fromkeys((one.endpoint for one in pool), 0.0)
    for number, (size, _) in enumerate(zones):
        own = {one.endpoint: OWN if at == number else "x" for at, servers in enumerate(registered) for one in servers}
        found = merge(CONSUL, [pool], Zoning(OWN, ZoneRule(), own, [out], ())).pool
        shares = target_shares([Member(one.priority, one.weight, ejected=False) for one in found])
        for one, share in zip(found, shares, strict=True):
            load[one.endpoint] += size * share
    fair = sum(size for size, _ in zones) / len(pool)
    return [load[servers[0].endpoint] / fair for servers in usable]


LOSSY: Final = st.tuples(SIZE, st.integers(1, 30)).map(lambda sizes: (sizes[0], min(sizes)))


@given(st.lists(LOSSY, min_size=2, max_size=4))
def test_no_server_gets_twice_its_fair_share(zones: list[tuple[int, int]]) -> None:
    """Whatever the sizes of zones are, and however many of their servers each of them loses."""
    assert max(_loads(zones)) <= 2 + 1e-9


@given(LOSSY, st.lists(SIZE, min_size=1, max_size=3))
def test_a_small_zone_is_not_buried_by_a_large_one(large: tuple[int, int], others: list[int]) -> None:
    """By weight, it gets no more of the connects that leave a zone than the servers which that zone still has."""
    assert max(_loads([large, *((size, size) for size in others)])) <= 1 + 5 / 7 + 1e-9


def test_a_zone_that_is_known_to_be_down_gets_no_connects() -> None:
    """Its servers are behind the own zone, which keeps all, however many of its own it has lost."""
    near, far = zone(0, 10), zone(1, 20)
    down = {one.endpoint for one in far}
    for lost in range(10):
        left = near[lost:]
        zones = zoning([(*left, *far)], out=near[:lost], unhealthy=down)
        assert [one.priority for one in merge(CONSUL, [(*left, *far)], zones).pool] == [0] * len(left) + [1] * 20
    all_down = zoning([(*near, *far)], unhealthy=down | {one.endpoint for one in near})
    assert {one.priority for one in merge(CONSUL, [(*near, *far)], all_down).pool} == {0}


@pytest.mark.parametrize(("lost", "kept"), [(5, Fraction(7, 10)), (9, Fraction(1, 4))])
def test_only_usable_servers_of_another_zone_take_what_leaves_the_own_one(lost: int, kept: Fraction) -> None:
    """The others of that zone are behind them all, whether the own zone spills or has too few servers."""
    near, far = zone(0, 10), zone(1, 6)
    pool = (*near[lost:], *far)
    zones = zoning([pool], out=near[:lost], unhealthy={one.endpoint for one in far[3:]})
    found = merge(CONSUL, [pool], zones)
    assert [one.endpoint for one in found.pool if one.priority] == [one.endpoint for one in far[3:]]
    own, rest = weights(found, zones, near=True), weights(found, zones, near=False)
    assert (len(own), len(rest)) == (10 - lost, 3)
    assert Fraction(sum(own), sum(own + rest)) == kept


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_each_server_is_in_one_tier_and_usable_ones_come_first(members: list[tuple[bool, bool, int]]) -> None:
    """Of other zones; also servers of two parts, of which one lists a server as out."""
    both: list[RealServer] = []
    pools: tuple[list[RealServer], ...] = ([], [])
    out: tuple[dict[Endpoint, int], ...] = ({}, {})
    unhealthy: set[Endpoint] = set()
    for number, (is_far, is_unhealthy, where) in enumerate(members):
        one = server(1000 * is_far + number + 1)
        both.append(one)
        unhealthy |= {one.endpoint} if is_unhealthy else set()
        for place in range(2):
            if where in {place, 2, 3}:
                pools[place].append(one)
        if where == 3:
            out[0][one.endpoint] = 1
    parts = [Part("consul:a"), Part("consul:b")]
    zones = Zoning(OWN, ZoneRule(), {one.endpoint: OWN for one in both if one.address[13] == 0}, out, unhealthy)
    found = merge(parts, [tuple(pool) for pool in pools], zones).pool
    assert sorted(one.endpoint for one in found) == [one.endpoint for one in sorted(both)]
    if any(one.endpoint not in unhealthy for one in found):
        far = [one for one in found if zones.zones.get(one.endpoint) != OWN]
        usable = [one.priority for one in far if one.endpoint not in unhealthy]
        others = [one.priority for one in far if one.endpoint in unhealthy]
        assert all(tier == 1 for tier in others)
        assert len({*usable}) <= 1


def test_below_the_least_number_all_zones_are_one() -> None:
    """One usable server in the own zone is too few, or as many as `zone-min` demands; weights stay as they are."""
    pool = (*zone(0, 2, 5), *zone(1, 2, 7))
    gone = {pool[0].endpoint}
    assert {one.priority for one in merge(CONSUL, [pool], zoning([pool], unhealthy=gone)).pool} == {0}
    assert [one.weight for one in merge(CONSUL, [pool], zoning([pool], unhealthy=gone)).pool] == [5, 5, 7, 7]
    enough = zoning([pool], unhealthy=gone, rule=ZoneRule(least=1, spills=False))
    assert [one.priority for one in merge(CONSUL, [pool], enough).pool] == [0, 0, 1, 1]
    far = zone(1, 3)
    assert [one.priority for one in merge(CONSUL, [far], zoning([far])).pool] == [0, 0, 0]


@pytest.mark.parametrize("source", ["srv:web", "dns:web:80", "static:web"])
def test_without_a_list_of_members_that_are_out_the_zone_keeps_all(source: str) -> None:
    """Such a source says nothing about capacity, so only the number of usable servers counts."""
    pool = (*zone(0, 9), *zone(1, 1))
    found = merge([Part(source)], [pool], zoning([pool], unhealthy={one.endpoint for one in pool[:7]}))
    assert [one.priority for one in found.pool] == [0] * 9 + [1]
    found = merge([Part(source)], [pool], zoning([pool], unhealthy={one.endpoint for one in pool[:8]}))
    assert {one.priority for one in found.pool} == {0}


def test_tiers_are_compared_by_part_then_record_then_zone() -> None:
    """A server of another zone comes before all servers of a record, or of a part, with a higher priority."""
    parts = [Part("srv:a"), Part("srv:b", priority=1)]
    pools = [(*zone(0, 2), *zone(1, 1), *zone(2, 1, priority=9)), (*zone(3, 1), server(50), server(51))]
    found = merge(parts, pools, zoning(pools))
    order = [(one.priority, one.part, one.address[13]) for one in found.pool]
    assert order == [(0, 0, 0), (0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 1, 0), (3, 1, 0), (4, 1, 3)]


def test_more_tiers_than_the_programs_have_are_the_last_one() -> None:
    """Eight priorities with two zones fill the tiers, and those of the ninth are in the last one."""
    pool = tuple(
        one
        for priority in range(9)
        for one in (server(10 * priority, 1, priority), server(1010 + 10 * priority, 1, priority))
    )
    found = merge([Part("static:web")], [pool], zoning([pool], rule=ZoneRule(least=1)))
    assert [one.priority for one in found.pool] == [*range(MAX_TIERS), MAX_TIERS - 1, MAX_TIERS - 1]
    assert found.folded == 2


def shared(*shares: int) -> list[Part]:
    """Return parts with these shares."""
    return [Part(f"consul:{number}", share=share) for number, share in enumerate(shares)]


def of_parts(found: Merged, zones: Zoning) -> dict[tuple[int, bool], float]:
    """Return the share of connects of each part in the own zone, and in others."""
    members = [Member(one.priority, one.weight, one.endpoint in zones.unhealthy) for one in found.pool]
    shares: dict[tuple[int, bool], float] = {}
    for one, share in zip(found.pool, target_shares(members), strict=True):
        key = one.part, zones.zones.get(one.endpoint) == OWN
        shares[key] = shares.get(key, 0.0) + share
    return {key: round(share, 9) for key, share in shares.items()}


def test_a_canary_gets_its_share_wherever_its_servers_are() -> None:
    """Each part follows zones by itself: one without servers in the own zone gets its share in the others."""
    pools = [(*zone(0, 3), *zone(1, 3)), zone(2, 2)]
    zones = zoning(pools)
    assert of_parts(merge(shared(90, 10), pools, zones), zones) == {(0, True): 0.9, (0, False): 0, (1, False): 0.1}
    pools = [(*zone(0, 3), *zone(1, 3)), (*zone(2, 2), server(70), server(71))]
    zones = zoning(pools)
    expected = {(0, True): 0.9, (0, False): 0, (1, True): 0.1, (1, False): 0}
    assert of_parts(merge(shared(90, 10), pools, zones), zones) == expected


def test_a_part_that_lacks_capacity_leaves_connects_to_its_own_servers_elsewhere() -> None:
    """Half of a part is ejected: 1.4 times the half stays, and the share of the other part does not change."""
    pools = [(*zone(0, 4), *zone(1, 3)), (server(70), server(71), server(1070))]
    zones = zoning(pools, unhealthy={one.endpoint for one in pools[0][:2]})
    found = of_parts(merge(shared(90, 10), pools, zones), zones)
    assert found == {(0, True): 0.63, (0, False): 0.27, (1, True): 0.1, (1, False): 0}


def test_a_part_with_a_share_of_zero_never_takes_over() -> None:
    """It is not in the tier of the other zones either, where it would be alone."""
    pools = [zone(0, 3), zone(1, 3)]
    assert {one.part for one in merge(shared(1, 0), pools, zoning(pools)).pool} == {0}


def test_parts_without_shares_are_one() -> None:
    """The capacity of a zone is that of all parts together, and members of a part that are all out count."""
    parts = [Part("consul:a"), Part("consul:b")]
    pools = [zone(1, 2), (*zone(0, 2), *zone(2, 1))]
    lost = [server(100 + number) for number in range(2)]
    zones = zoning(pools, out=lost)
    assert _share(merge(parts, pools, zones), zones) == 0.7


def test_a_server_in_two_parts_is_in_its_lowest_tier() -> None:
    """It is in another zone: one part keeps all connects at home, the other one has none there."""
    both = server(1001)
    pools = [(*zone(0, 2), both), (both, server(1002))]
    found = merge(shared(50, 50), pools, zoning(pools))
    assert [(one.priority, one.part) for one in found.pool] == [(0, 0), (0, 0), (0, 1), (0, 1)]
    assert len({one.endpoint for one in found.pool}) == 4


def test_members_that_are_out_and_still_served_are_not_usable() -> None:
    """Nobody of a part passes, so that its critical members stay for the hold."""
    pool = (*zone(0, 3), *zone(1, 3))
    zones = zoning([pool], out=pool)
    assert {one.priority for one in merge(CONSUL, [pool], zones).pool} == {0}
    zones = zoning([pool], out=pool[:1])
    assert _share(merge(CONSUL, [pool], zones), zones) == pytest.approx(14 / 15 * 1.0, abs=0.1)


ADDRESSES: Final = st.sampled_from(["10.1.2.3", "10.1.3.3", "10.2.0.1", "192.0.2.1", "fd00::1", "fd00:1::1"])
NETWORKS: Final = ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "::/0", "fd00::/32")


@given(ADDRESSES, st.permutations(NETWORKS), st.integers(0, len(NETWORKS)))
def test_the_longest_prefix_counts(address: str, networks: Sequence[str], most: int) -> None:
    """Of the networks that an address is in, whatever their order; families never match each other."""
    entries = [(parse_network(text), text) for text in networks[:most]]
    parsed = parse_address(address)
    inside = [text for text in networks[:most] if ip_address(address) in ip_network(text)]
    expected = max(inside, key=lambda text: int(text.partition("/")[2]), default=None)
    assert zones_by_network(entries, [parsed]).get(parsed) == expected


def test_networks_name_the_zones_that_sources_do_not() -> None:
    """A source's own word counts first, then that of another part, then the network."""
    one, two, three = (server(host).endpoint for host in (1, 2, 1003))
    pools = [(server(1),), (server(1), server(2), server(1003))]
    places = [Places({one: "a"}), Places({one: "b", two: "b"})]
    rule = ZoneRule(map=((parse_network("10.0.0.0/8"), "net"),))
    assert zones_of(pools, places, rule) == {one: "a", two: "b", three: "net"}
    assert zones_of(pools, places, ZoneRule()) == {one: "a", two: "b"}


@pytest.mark.parametrize(
    ("name", "valid"),
    [("eu-1a", True), ("é" * 32, True), ("é" * 33, False), ("a" * MAX_ZONE, True), ("", False), ("a\n", False)],
)
def test_names_of_zones(name: str, valid: bool) -> None:
    """Printable and not too long."""
    assert is_zone(name) is valid
