"""Automatic VIPs: a function of the set of names, distinct, inside the range, and stable while others change."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.address import Address, Network, format_address, in_network, parse_address
from clb_discovery.model.servers import Protocol
from clb_discovery.model.service import Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.automatic_vips import (
    DEFAULT_RANGES,
    automatic_addresses,
    parse_vip_range,
    with_automatic_vips,
)

NAMES = st.text("abAB-.ö", min_size=1, max_size=4)
SMALL: tuple[Network, ...] = (ipaddress.IPv4Network("10.0.0.0/28"), ipaddress.IPv6Network("fd00::/124"))
"""Fourteen addresses of each family, so that names often have the same home."""


def sets(most: int) -> st.SearchStrategy[frozenset[str]]:
    """Return sets of names that differ in more than case."""
    return st.frozensets(NAMES.map(str.lower), max_size=most)


def text(found: Mapping[str, tuple[Address, ...]]) -> dict[str, list[str]]:
    """Return addresses as text."""
    return {name: [format_address(address) for address in addresses] for name, addresses in found.items()}


def test_addresses_are_what_they_have_always_been() -> None:
    """Hosts use these addresses: a change of the hash, the default range or the rules would move them."""
    assert text(automatic_addresses(["redis", "web"], DEFAULT_RANGES)) == {
        "redis": ["240.127.30.225", "fd0b:8432:cc5a:0:d848:9334:2caf:6b57"],
        "web": ["240.64.13.84", "fd0b:8432:cc5a:0:9a57:ed0b:e9f1:1808"],
    }


@given(sets(14).flatmap(lambda names: st.tuples(st.permutations(sorted(names)), st.permutations(sorted(names)))))
def test_order_does_not_matter(orders: tuple[list[str], list[str]]) -> None:
    """Two hosts with the same names agree, whatever the order of names and ranges."""
    assert automatic_addresses(orders[0], SMALL) == automatic_addresses(orders[1], SMALL[::-1])


@given(sets(14), st.sampled_from([SMALL, DEFAULT_RANGES]))
def test_addresses_are_apart_and_inside(names: frozenset[str], ranges: tuple[Network, ...]) -> None:
    """Every name has its own address in each family, in the range but at neither of its ends."""
    found = automatic_addresses(names, ranges)
    assert found.keys() == names
    for number, network in enumerate(ranges):
        addresses = [own[number] for own in found.values()]
        assert len(set(addresses)) == len(addresses)
        ends = {parse_address(str(network[0])), parse_address(str(network[-1]))}
        assert all(in_network(address, network) and address not in ends for address in addresses)


@given(sets(13), NAMES.map(str.lower))
def test_a_name_that_comes_or_goes_moves_nobody_without_a_clash(names: frozenset[str], other: str) -> None:
    """A name moves only if a new name takes its address, directly or through other moves."""
    without, joined = automatic_addresses(names - {other}, SMALL), automatic_addresses(names | {other}, SMALL)
    for number in range(len(SMALL)):
        occupied = {addresses[number]: name for name, addresses in joined.items()}
        for name, addresses in without.items():
            if joined[name][number] != addresses[number]:
                assert occupied[addresses[number]] != name
                assert addresses[number] in occupied


@given(sets(10), sets(10))
def test_large_ranges_move_nobody(names: frozenset[str], others: frozenset[str]) -> None:
    """With the default ranges, each of a few names has the address that it would have alone."""
    found = automatic_addresses(names | others, (DEFAULT_RANGES[1],))
    assert all(automatic_addresses([name], (DEFAULT_RANGES[1],))[name] == found[name] for name in names)


def test_lower_name_keeps_what_two_want() -> None:
    """Of two names with one home, the lower one gets it, and the other gets the next address."""
    ranges = [ipaddress.IPv4Network("10.0.0.0/28")]
    alone = {name: automatic_addresses([name], ranges)[name] for name in map("s{:02}".format, range(20))}
    low, high = next((a, b) for a in alone for b in alone if a < b and alone[a] == alone[b])
    found = automatic_addresses([high, low], ranges)
    assert found[low] == alone[low]
    assert found[high] != alone[high]


def test_case_is_no_difference() -> None:
    """Redis and redis are one name, as they are in DNS."""
    found = automatic_addresses(["Redis", "redis"], SMALL)
    assert found["Redis"] == found["redis"]


@pytest.mark.parametrize(
    ("ranges", "count"), [(["10.0.0.0/30"], 2), (["10.0.0.0/31"], 2), (["10.0.0.0/32"], 1), (["fd00::/126"], 2)]
)
def test_every_address_of_a_range_is_used(ranges: list[str], count: int) -> None:
    """A range gives all its addresses, and then reports that it is full."""
    names = [f"service-{number}" for number in range(count)]
    networks = [parse_vip_range(text) for text in ranges]
    assert len(set(automatic_addresses(names, networks).values())) == count
    with pytest.raises(
        ValueError, match=rf"gets no VIP: every address of {ranges[0]} is taken; give a larger --vip-range"
    ):
        automatic_addresses([*names, "one-more"], networks)


def test_ranges_add_up() -> None:
    """Addresses come from all ranges of a family; one inside another adds nothing."""
    networks = [parse_vip_range(text) for text in ("10.0.1.0/30", "10.0.0.0/24", "10.0.0.0/28", "10.0.0.0/24")]
    names = [f"service-{number}" for number in range(254 + 2)]
    found = {format_address(address) for (address,) in automatic_addresses(names, networks).values()}
    assert found == {f"10.0.0.{host}" for host in range(1, 255)} | {"10.0.1.1", "10.0.1.2"}


def test_family_without_a_range_gets_no_vip() -> None:
    """Ranges of one family give VIPs of that family alone."""
    assert len(automatic_addresses(["redis"], SMALL[:1])["redis"]) == 1


def test_services_get_vips_beside_those_that_have_them() -> None:
    """Automatic VIPs are for every port, and avoid configured VIPs."""
    home = automatic_addresses(["redis"], SMALL[:1])["redis"][0]
    named = Service("web", "srv:web", (parse_vip(format_address(home)),))
    redis = Service("redis", "srv:redis", (), automatic=Protocol.TCP)
    dns = Service("redis", "srv:dns", (), automatic=Protocol.UDP)
    first, tcp, udp = with_automatic_vips([named, redis, dns], SMALL[:1])
    assert first == named
    assert [vip.port for vip in (*tcp.vips, *udp.vips)] == [0, 0]
    assert [vip.protocol for vip in (*tcp.vips, *udp.vips)] == [Protocol.TCP, Protocol.UDP]
    assert tcp.vips[0].address == udp.vips[0].address != home


@pytest.mark.parametrize(
    ("given_text", "reason"),
    [
        ("10.0.0.0/33", "is not a network: write 240"),
        ("redis", "is not a network: write 240"),
        ("fe80::/10", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("0.0.0.0/0", "unspecified"),
        ("240.0.0.0/4", "broadcast"),
        ("::fffe:0:0/95", "IPv4 range in IPv6 form"),
    ],
)
def test_range_without_vips_is_refused(given_text: str, reason: str) -> None:
    """A range that cannot contain VIPs is rejected with the reason."""
    with pytest.raises(ValueError, match=reason) as error:
        parse_vip_range(given_text)
    assert repr(given_text) in str(error.value)
