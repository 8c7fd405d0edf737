"""Desired state: each family has its own pool, and unusable real servers are rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.address import Address, Network, in_network, parse_address, parse_network
from clb_discovery.model.answer import Refusal
from clb_discovery.model.servers import (
    MAX_POOL,
    MAX_TIERS,
    Algorithm,
    Pool,
    Pools,
    Protocol,
    RealServer,
    Vip,
    VirtualServer,
    pools,
)
from clb_discovery.model.service import Part, Service
from clb_discovery.model.usable import never_usable, objection
from clb_discovery.publication.desired import desired
from tests.support.strategies import ADDRESS, REAL_SERVER, few_real_servers

IPV4: Final = Vip(parse_address("10.64.0.1"), 6379, Protocol.TCP)
IPV6: Final = Vip(parse_address("fd00:64::1"), 6379, Protocol.TCP)
FIX: Final = "register the address that the server itself listens on"
REDIS: Final = Service("redis", "consul:redis", (IPV4, IPV6))

SERVERS: Final = st.lists(few_real_servers(ipv4=True) | few_real_servers(ipv4=False), max_size=12)
RANGES: Final = st.lists(
    st.sampled_from(["10.0.0.0/8", "127.0.0.0/8", "0.0.0.0/0", "fd00::/8", "::1", "::/0"]).map(parse_network),
    max_size=3,
)
AWKWARD: Final = st.sampled_from(
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", "10.64.0.1", "10.0.0.1"),
        *("::", "::1", "fe80::1", "ff02::1", "fd00:64::1", "fd00::1"),
    ]
).map(parse_address)


def server(address: str, port: int = 80, weight: int = 1, priority: int = 0) -> RealServer:
    """Build a real server."""
    return RealServer(priority, parse_address(address), port, weight)


def built(servers: Sequence[RealServer], *ranges: str) -> dict[Vip, Pool]:
    """Return the pools of one service with these real servers in discovery."""
    state = desired([REDIS], {REDIS.source: pools(servers)}, [parse_network(text) for text in ranges])
    return {vip: virtual.pool for vip, virtual in state.virtual.items()}


@given(SERVERS)
def test_families_are_apart(servers: list[RealServer]) -> None:
    """An IPv4 virtual server gets all IPv4 real servers, an IPv6 virtual server all IPv6 real servers."""
    found = pools(servers)
    assert built(servers) == {IPV4: found.ipv4, IPV6: found.ipv6}


@given(
    st.lists(REAL_SERVER | st.builds(RealServer, st.just(0), AWKWARD, st.just(80), st.just(1), st.just(0)), max_size=8),
    RANGES,
)
def test_every_real_server_is_used_or_reported(servers: list[RealServer], ranges: list[Network]) -> None:
    """Every real server is used or reported, and none with an objection is used."""
    state = desired([REDIS], {REDIS.source: pools(servers)}, ranges)
    used = {(one.address, one.port) for virtual in state.virtual.values() for one in virtual.pool}
    rejected = [(one.value, one.reason) for one in state.rejected.get(REDIS.source, ())]
    refused = {(one.address, one.port) for one, _ in rejected if isinstance(one, RealServer)}
    assert used | refused == {(one.address, one.port) for one in servers}
    assert not used & refused
    vips = frozenset({IPV4.address, IPV6.address})
    assert all(objection(address, vips, ranges) is None for address, _ in used)
    assert rejected == [(one, reason) for one in pools(servers) if (reason := objection(one.address, vips, ranges))]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("0.255.255.255", "unspecified"),
        ("::", "unspecified"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("::ffff:224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("169.254.0.1", "link-local"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
    ],
)
@pytest.mark.parametrize("ranges", [(), ("0.0.0.0/0", "::/0")])
def test_what_may_never_be_a_real_server(address: str, reason: str, ranges: tuple[str, ...]) -> None:
    """These are rejected with the reason, and no range allows them."""
    networks = [parse_network(text) for text in ranges]
    assert objection(parse_address(address), frozenset(), networks) == f"it is {reason}; {FIX}"
    assert never_usable(parse_address(address)) == f"it is {reason}"


@pytest.mark.parametrize("address", ["1.0.0.0", "10.0.0.7", "223.255.255.255", "240.64.0.1", "fd00::7", "2001:db8::1"])
def test_what_may_be_a_real_server(address: str) -> None:
    """Without ranges, any other address is allowed."""
    assert objection(parse_address(address), frozenset(), []) is None


@pytest.mark.parametrize(
    ("address", "network"), [("127.0.0.1", "127.0.0.0/8"), ("127.255.255.255", "127.0.0.0/8"), ("::1", "::1/128")]
)
def test_loopback_needs_a_range_that_names_it(address: str, network: str) -> None:
    """Loopback addresses are rejected with the option that allows them, unless a range contains them."""
    parsed = parse_address(address)
    reason = objection(parsed, frozenset(), [])
    allowed = f"loopback addresses are rejected by default; allow with --real-range {network}"
    assert reason == f"{allowed} (then only listed ranges are accepted)"
    assert objection(parsed, frozenset(), [parse_network("10.0.0.0/8")]) == allowed
    assert objection(parsed, frozenset(), [parse_network(address)]) is None


@given(ADDRESS, RANGES.filter(bool))
def test_ranges_are_an_allow_list(address: Address, ranges: list[Network]) -> None:
    """With ranges, no address outside all of them is used."""
    if not any(in_network(address, network) for network in ranges):
        assert objection(address, frozenset(), ranges) is not None


def test_an_address_outside_all_ranges_is_refused_with_the_fix() -> None:
    """The reason names the option that would allow it."""
    reason = objection(parse_address("10.0.0.7"), frozenset(), [parse_network("10.1.0.0/16")])
    assert reason == "it is outside every --real-range; allow with a --real-range that contains it"


@given(ADDRESS, RANGES)
def test_a_vip_is_never_a_real_server(address: Address, ranges: list[Network]) -> None:
    """Connects to a real server at a VIP would loop, so it is rejected whatever the ranges are."""
    assert objection(address, frozenset({address}), ranges) == f"it is a VIP; {FIX}"


def test_vips_of_every_service_are_refused() -> None:
    """A real server at the VIP of another service is rejected on every port, even before that service is known."""
    other = Service("other", "consul:other", (Vip(parse_address("10.64.0.9"), 80, Protocol.TCP),))
    circle = server("10.64.0.9", 9999)
    state = desired([REDIS, other], {REDIS.source: pools([circle, server("10.0.0.1")])}, [])
    assert state.virtual[IPV4].pool == (server("10.0.0.1"),)
    rejected = Refusal(circle, f"it is a VIP; {FIX}")
    assert state.rejected == {"consul:redis": (rejected,)}
    assert str(rejected) == f"real server 10.64.0.9:9999 rejected: it is a VIP; {FIX}"


def test_a_service_that_was_never_answered_for_is_left_out() -> None:
    """A service without an answer has no virtual servers; one with an empty answer has."""
    other = Service("other", "consul:other", (Vip(parse_address("10.64.0.9"), 80, Protocol.TCP),))
    state = desired([REDIS, other], {other.source: pools([])}, [])
    assert state.virtual.keys() == set(other.vips)
    assert state.virtual[other.vips[0]].pool == ()


def test_a_virtual_server_carries_what_its_service_says() -> None:
    """Name, source and scheduler come from the service."""
    state = desired([REDIS], {REDIS.source: pools([server("10.0.0.1")])}, [])
    assert state.virtual[IPV4] == VirtualServer(IPV4, "redis", "consul:redis", Algorithm.RANDOM, (server("10.0.0.1"),))


def test_a_pool_that_is_too_large_is_cut_where_it_matters_least() -> None:
    """Beyond the largest size, servers of the highest priority numbers are left out and reported."""
    base = int.from_bytes(parse_address("10.1.0.0"))
    many = [RealServer(0, Address((base + host).to_bytes(16)), 80, 1) for host in range(MAX_POOL)]
    backups = [server("10.0.0.1", priority=9), server("10.0.0.2", priority=9)]
    state = desired([REDIS], {REDIS.source: pools(backups + many)}, [])
    assert state.virtual[IPV4].pool == tuple(many)
    reason = f"there are more than {MAX_POOL} in the pool; spread them over several services"
    assert state.rejected == {"consul:redis": tuple(Refusal(one, reason) for one in backups)}


PRIORITIES: Final = st.lists(st.integers(0, 24), min_size=1, max_size=40)


@given(PRIORITIES)
def test_a_pool_has_no_more_tiers_than_programs_walk(priorities: list[int]) -> None:
    """The servers of the lowest priorities stay; those of every further priority are rejected with the reason."""
    servers = [server("10.0.0.1", port, priority=priority) for port, priority in enumerate(priorities, 1)]
    state = desired([REDIS], {REDIS.source: pools(servers)}, [])
    last = sorted(set(priorities))[:MAX_TIERS][-1]
    assert set(state.virtual[IPV4].pool) == {one for one in servers if one.priority <= last}
    rejected = state.rejected.get(REDIS.source, ())
    assert {one.value for one in rejected} == {one for one in servers if one.priority > last}
    assert all(f"at most {MAX_TIERS} priorities" in one.reason for one in rejected)


def test_tiers_are_counted_in_each_family() -> None:
    """Sixteen priorities of IPv4 servers and sixteen others of IPv6 servers are two pools that both fit."""
    servers = [server("10.0.0.1", 80 + tier, priority=tier) for tier in range(MAX_TIERS)]
    servers += [server("fd00::1", 80 + tier, priority=100 + tier) for tier in range(MAX_TIERS)]
    assert desired([REDIS], {REDIS.source: pools(servers)}, []).rejected == {}


WEB: Final = Service(
    "web",
    "pool:consul:web + consul:canary",
    (IPV4,),
    parts=(Part("consul:web", share=90), Part("consul:canary", share=10)),
)


def test_parts_share_after_the_unusable_servers_are_left_out() -> None:
    """A rejected server of a part takes nothing of its share, and is reported for its source."""
    known = {
        "consul:web": pools([server("10.0.0.1"), server("127.0.0.1")]),
        "consul:canary": pools([server("10.0.0.2")]),
    }
    state = desired([WEB], known, [])
    assert [(str(one), one.weight, one.part) for one in state.virtual[IPV4].pool] == [
        ("10.0.0.1:80", 9, 0),
        ("10.0.0.2:80", 1, 1),
    ]
    assert {source: [str(one.value) for one in refused] for source, refused in state.rejected.items()} == {
        "consul:web": ["127.0.0.1:80"]
    }


def test_a_part_without_an_answer_is_empty() -> None:
    """A service is there as soon as one of its parts is known."""
    assert desired([WEB], {}, []).virtual == {}
    state = desired([WEB], {"consul:canary": pools([server("10.0.0.2")])}, [])
    assert [one.weight for one in state.virtual[IPV4].pool] == [1]


@given(st.lists(st.tuples(st.sampled_from(["consul:web", "consul:canary", "consul:redis"]), SERVERS), max_size=4))
def test_a_change_of_one_part_rebuilds_its_service(steps: list[tuple[str, list[RealServer]]]) -> None:
    """The result is that of a state from nothing, with all remarks and rejected servers, whatever changed before."""
    redis = Service("redis", "consul:redis", (IPV6,))
    known: dict[str, Pools] = {}
    state = None
    for source, servers in steps:
        known = {**known, source: pools(servers)}
        state = desired([WEB, redis], known, [], state)
        assert state == desired([WEB, redis], known, [])
        assert (state.rejected, state.remarks) == (
            (fresh := desired([WEB, redis], known, [])).rejected,
            fresh.remarks,
        )


def test_tiers_beyond_the_most_are_remarked_on() -> None:
    """Real servers that are in the last tier because there are too many are counted; fewer end the remark."""
    known = {
        "consul:web": pools([server("10.0.0.1", priority=priority, port=1 + priority) for priority in range(20)]),
        "consul:canary": pools([server("10.0.0.2")]),
    }
    state = desired([WEB], known, [])
    assert list(state.remarks) == [WEB.source]
    assert "more than 16 tiers: 4 real servers of later ones are in the last one" in state.remarks[WEB.source]
    assert desired([WEB], {**known, "consul:web": Pools()}, [], state).remarks == {}
