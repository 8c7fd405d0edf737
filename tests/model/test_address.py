"""One form for every address: 16 bytes, IPv4 mapped."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.address import (
    MAPPED_PREFIX,
    Address,
    format_address,
    format_endpoint,
    in_network,
    is_ipv4,
    parse_address,
    parse_network,
)
from clb_discovery.model.servers import Protocol, RealServer, Vip
from tests.support.strategies import ADDRESS, PORT


@given(ADDRESS)
def test_text_and_bytes_are_the_same_address(address: Address) -> None:
    """The text of an address parses to the same 16 bytes."""
    assert len(address) == 16
    assert parse_address(format_address(address)) == address


@given(st.binary(min_size=4, max_size=4).map(ipaddress.IPv4Address))
def test_ipv4_is_mapped(address: ipaddress.IPv4Address) -> None:
    """An IPv4 address, and the same in mapped form, are one address of family IPv4."""
    parsed = parse_address(str(address))
    assert parsed == bytes(10) + b"\xff\xff" + address.packed
    assert parsed == parse_address(f"::ffff:{address}")
    assert is_ipv4(parsed)
    assert format_address(parsed) == str(address)


@given(
    st.binary(min_size=16, max_size=16).filter(lambda packed: packed[:12] != MAPPED_PREFIX).map(ipaddress.IPv6Address)
)
def test_ipv6_is_itself(address: ipaddress.IPv6Address) -> None:
    """An IPv6 address is its 16 bytes, and its text is the shortest one."""
    parsed = parse_address(address.exploded)
    assert parsed == address.packed
    assert not is_ipv4(parsed)
    assert format_address(parsed) == address.compressed


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0", "10.0.0.256", "010.0.0.1", " 10.0.0.1", "10.0.0.1:80", "[fd00::1]", "fd00::1/64", "localhost", "1"],
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    """Names, ports, brackets, blanks and octal digits are rejected."""
    with pytest.raises(ValueError, match="address"):
        parse_address(text)


@pytest.mark.parametrize("text", ["fe80::1%eth0", "fd00::1%1", "::ffff:10.0.0.1%lo"])
def test_a_zone_is_refused(text: str) -> None:
    """An address that means something else on each host cannot be used."""
    with pytest.raises(ValueError, match="zone"):
        parse_address(text)


@given(ADDRESS, PORT)
def test_endpoints_have_brackets_for_ipv6_only(address: Address, port: int) -> None:
    """An endpoint is written as in a URL; port 0 stands for none."""
    text = format_address(address)
    assert format_endpoint(address, 0) == text
    assert format_endpoint(address, port) == (f"{text}:{port}" if is_ipv4(address) else f"[{text}]:{port}")


@pytest.mark.parametrize(
    ("address", "network", "inside"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.9.9.9/8", True),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "0.0.0.0/0", True),
        ("10.1.2.3", "::/0", False),
        ("fd00::1", "::/0", True),
        ("fd00::1", "0.0.0.0/0", False),
        ("fd00::1", "fd00::/8", True),
        ("fe00::1", "fd00::/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "::ffff:10.0.0.0/104", True),
        ("11.1.2.3", "::ffff:10.9.9.9/104", False),
        ("11.1.2.3", "::ffff:0:0/96", True),
        ("10.1.2.3", "::ffff:10.1.2.3", True),
        ("::fffe:0:1", "::fffe:0:0/95", True),
    ],
)
def test_networks_hold_addresses_of_their_own_family(address: str, network: str, inside: bool) -> None:
    """An address is inside a network of its family if its first bits agree; host bits of the network do not count."""
    assert in_network(parse_address(address), parse_network(network)) is inside


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "fd00::/129", "10.0.0.0/8/8", "net"])
def test_what_is_no_network_is_refused(text: str) -> None:
    """A network that cannot be parsed is an error, not an empty network."""
    with pytest.raises(ValueError, match=r"network|address"):
        parse_network(text)


def test_terms_print_as_the_command_line_takes_them() -> None:
    """VIPs and real servers print in the form that options accept."""
    ipv4, ipv6 = parse_address("10.64.0.1"), parse_address("fd00:64::1")
    assert str(Vip(ipv4, 6379, Protocol.TCP)) == "10.64.0.1:6379"
    assert str(Vip(ipv4, 0, Protocol.TCP)) == "10.64.0.1"
    assert str(Vip(ipv6, 53, Protocol.UDP)) == "[fd00:64::1]:53/udp"
    assert str(RealServer(0, ipv6, 31001, 1)) == "[fd00:64::1]:31001"
