"""VIPs on which a program of this host listens: exactly the listeners that a connect to the VIP would reach."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.datapath.sockets.listeners import ANY_IPV4, ANY_IPV6, Listener, listeners, local_networks, taken_over
from clb_discovery.model.address import Address, in_network, parse_address, parse_network
from clb_discovery.model.servers import Protocol, Vip
from clb_discovery.model.text_forms import parse_vip

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
REST = "00000000:00000000 00:00000000 00000000     0        0 1060 1 00000000d4b85630 100 0 0 10 0"
LOCAL = [parse_network("127.0.0.0/8"), parse_network("10.1.0.1/32"), parse_network("fd01::1/128")]


def is_local(address: Address) -> bool:
    """Tell whether an address is local, for these tests."""
    return any(in_network(address, network) for network in LOCAL)


def listener(text: str) -> Listener:
    """Return a listener from the form of a VIP, which may also have the address 0.0.0.0 or ::."""
    for every, address in (("0.0.0.0", ANY_IPV4), ("[::]", ANY_IPV6)):
        if text.startswith(f"{every}:"):
            vip = parse_vip(text.replace(every, "10.9.9.9", 1))
            return Listener(vip.protocol, address, vip.port)
    vip = parse_vip(text)
    return Listener(vip.protocol, vip.address, vip.port)


@pytest.mark.parametrize(
    ("vips", "listening", "found"),
    [
        (["10.64.0.1:80"], ["10.64.0.1:80"], {"10.64.0.1:80": "10.64.0.1:80/tcp"}),
        (["10.64.0.1:80"], ["10.64.0.1:81", "10.64.0.2:80", "10.64.0.1:80/udp", "[fd00::1]:80"], {}),
        (["10.64.0.1:80"], ["0.0.0.0:80", "[::]:80"], {}),  # the VIP is not a local address
        (["10.1.0.1:80"], ["0.0.0.0:80"], {"10.1.0.1:80": "0.0.0.0:80/tcp"}),
        (["127.0.0.5:80"], ["0.0.0.0:80"], {"127.0.0.5:80": "0.0.0.0:80/tcp"}),
        (["127.0.0.5:80"], ["[::]:80"], {"127.0.0.5:80": "[::]:80/tcp"}),
        (["127.0.0.5:80"], ["127.0.0.1:80", "0.0.0.0:81", "0.0.0.0:80/udp"], {}),
        (["[fd01::1]:80"], ["[::]:80"], {"[fd01::1]:80": "[::]:80/tcp"}),
        (["[fd01::1]:80"], ["0.0.0.0:80"], {}),
        (["127.0.0.1:80"], ["0.0.0.0:80", "127.0.0.1:80"], {"127.0.0.1:80": "127.0.0.1:80/tcp"}),
        (["10.64.0.1"], ["10.64.0.1:9"], {"10.64.0.1": "10.64.0.1:9/tcp"}),
        (["127.0.0.5"], ["0.0.0.0:22"], {"127.0.0.5": "0.0.0.0:22/tcp"}),
        (["127.0.0.5", "127.0.0.5:22"], ["0.0.0.0:22"], {"127.0.0.5:22": "0.0.0.0:22/tcp"}),
        (["127.0.0.5", "127.0.0.6:22"], ["127.0.0.5:22"], {"127.0.0.5": "127.0.0.5:22/tcp"}),
        (["127.0.0.5:53/udp"], ["0.0.0.0:53/udp"], {"127.0.0.5:53/udp": "0.0.0.0:53/udp"}),
        (["127.0.0.5/udp"], ["0.0.0.0:40000/udp"], {}),  # may be a client
        (["127.0.0.5/udp"], ["127.0.0.5:53/udp"], {"127.0.0.5/udp": "127.0.0.5:53/udp"}),
    ],
)
def test_listener_that_a_connect_would_reach_is_found(
    vips: list[str], listening: list[str], found: dict[str, str]
) -> None:
    """It listens on the address and port of the VIP, or on every address if that of the VIP is local."""
    over = taken_over(map(parse_vip, vips), map(listener, listening), is_local)
    assert {str(vip): str(where) for vip, where in over.items()} == found


_ADDRESSES = st.sampled_from([parse_address(text) for text in ("127.0.0.5", "10.64.0.1", "fd01::1", "fd00::1")])
_VIPS = st.builds(Vip, _ADDRESSES, st.integers(0, 2), st.sampled_from(Protocol))
_LISTENERS = st.builds(
    Listener, st.sampled_from(Protocol), _ADDRESSES | st.sampled_from([ANY_IPV4, ANY_IPV6]), st.integers(1, 2)
)


@given(st.lists(_VIPS, max_size=4), st.lists(_LISTENERS, max_size=4))
def test_order_and_other_listeners_do_not_matter(vips: list[Vip], found: list[Listener]) -> None:
    """A VIP is found with all listeners if and only if it is found with one of them; ports are not mixed up."""

    def over(listening: Iterable[Listener]) -> frozenset[Vip]:
        result = taken_over(vips, listening, is_local)
        assert all(vip.port in {0, one.port} and vip.protocol is one.protocol for vip, one in result.items())
        return frozenset(result)

    assert over(found) == over(reversed(found)) == frozenset().union(*(over([one]) for one in found))


def test_tables_of_sockets_are_read() -> None:
    """Listening TCP sockets, which come first, and UDP sockets without a peer, on little-endian hosts."""
    tcp = [
        HEAD,
        f"   0: 0100007F:1F90 00000000:0000 0A {REST}",
        f"   1: 00000000:0016 00000000:0000 0A {REST}",
        f"   2: 0100007F:1F90 0100007F:AD5E 01 {REST}",
        "which is not read",
    ]
    assert list(map(str, listeners(Protocol.TCP, tcp))) == ["127.0.0.1:8080/tcp", "0.0.0.0:22/tcp"]
    udp = [
        HEAD,
        f"  1: 0100007F:0035 0100007F:AD5E 01 {REST}",
        f"  2: 000000000000000000000000010000FD:0035 {'0' * 32}:0000 07 {REST}",
        f"  3: 0000000000000000FFFF00000100007F:0036 {'0' * 32}:0000 07 {REST}",
    ]
    assert list(map(str, listeners(Protocol.UDP, udp))) == ["[::fd00:1]:53/udp", "127.0.0.1:54/udp"]
    assert list(listeners(Protocol.TCP, [])) == []


def test_own_addresses_are_read() -> None:
    """Local networks such as 127.0.0.0/8, single addresses, and local routes of IPv6."""
    trie = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
           |-- 10.99.0.0
              /32 host LOCAL
              /24 host LOCAL
           |-- 192.0.2.0
              /24 link UNICAST"""
    zero = "0" * 32
    route = [
        f"fd000000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0",
        f"fd000000000000000000000000000002 80 {zero} 00 {zero} 00000000 00000003 00000000 80200001     eth0",
        f"fd640000000000000000000000000000 20 {zero} 00 {zero} 00000000 00000003 00000000 80200001       lo",
    ]
    found = list(map(str, local_networks(trie.splitlines(), route)))
    assert found == ["127.0.0.0/8", "10.99.0.0/32", "10.99.0.0/24", "fd00::2/128", "fd64::/32"]
