"""VIPs on which a program of this host listens: local clients reach a real server instead of that program.

A listener is affected by a VIP if a connect to the VIP from this host would reach it without our programs: it listens
on the address of the VIP; or it listens on every address, and the address of the VIP is local to this host.

The tables are those of proc(5), which any process can read: net/tcp, net/tcp6, net/udp, net/udp6, net/fib_trie and
net/ipv6_route. Their addresses are in the byte order of the host. They do not show whether a socket on every IPv6
address accepts no IPv4 (IPV6_V6ONLY), so it counts as one that accepts both.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from clb_discovery.model.address import MAPPED_PREFIX, Address, Network, format_address, is_ipv4, parse_address
from clb_discovery.model.servers import Protocol, Vip

ANY_IPV4: Final = parse_address("0.0.0.0")
ANY_IPV6: Final = parse_address("::")

_WAITING: Final = {Protocol.TCP: "0A", Protocol.UDP: "07"}
"""The state of a listening TCP socket, and of an unconnected UDP socket (tcp_states.h)."""
_LEAF: Final = re.compile(r"\|-- (?P<address>[0-9.]+)")
_LOCAL_IPV4: Final = re.compile(r"/(?P<length>[0-9]+) host LOCAL")
_RTF_LOCAL: Final = 0x80000000  # linux/ipv6_route.h


class Listener(NamedTuple):
    """The address and port at which a socket waits for connects or datagrams."""

    protocol: Protocol
    address: Address
    port: int

    def __str__(self) -> str:
        """Return `0.0.0.0:6379/tcp`."""
        host = format_address(self.address)
        where = f"{host}:{self.port}" if is_ipv4(self.address) else f"[{host}]:{self.port}"
        return f"{where}/{self.protocol.name.lower()}"


def listeners(protocol: Protocol, table: Iterable[str]) -> Iterator[Listener]:
    """Parse the waiting sockets of a table.

    :param table: the lines of net/tcp, net/tcp6, net/udp or net/udp6. In those of TCP, listening sockets come first, so
        parsing stops after them.
    """
    for line in islice(table, 1, None):
        _, local, _, state, *_ = line.split(maxsplit=4)
        if state == _WAITING[protocol]:
            host, _, port = local.partition(":")
            yield Listener(protocol, _address(host), int(port, 16))
        elif protocol is Protocol.TCP:
            return


def local_networks(fib_trie: Iterable[str], ipv6_route: Iterable[str]) -> Iterator[Network]:
    """Parse the local networks of this host: 127.0.0.0/8, addresses of interfaces, and local routes."""
    address = ""
    for line in fib_trie:
        if leaf := _LEAF.search(line):
            address = leaf["address"]
        elif found := _LOCAL_IPV4.search(line):
            yield ipaddress.IPv4Network(f"{address}/{found['length']}", strict=False)
    for line in ipv6_route:
        target, length, *_, flags, _ = line.split()
        if int(flags, 16) & _RTF_LOCAL:
            yield ipaddress.IPv6Network((bytes.fromhex(target), int(length, 16)), strict=False)


def taken_over(
    vips: Iterable[Vip], found: Iterable[Listener], is_local: Callable[[Address], bool]
) -> dict[Vip, Listener]:
    """Return the VIPs that take over connects to a listener, with one listener of each.

    A VIP for every port does not affect a port for which its address has another VIP. UDP sockets on every address do
    not count for it either, because clients that have sent a datagram look the same.

    :param is_local: tells whether an address is local to this host.
    """
    vips = list(vips)
    exact = {(vip.address, vip.protocol, vip.port) for vip in vips}
    by_address: defaultdict[tuple[Address, Protocol], list[Listener]] = defaultdict(list)
    for listener in found:
        by_address[listener.address, listener.protocol].append(listener)

    def on(address: Address, vip: Vip) -> Iterator[Listener]:
        for listener in by_address.get((address, vip.protocol), ()):
            is_others = (vip.address, vip.protocol, listener.port) in exact and vip.port == 0
            if vip.port in {0, listener.port} and not is_others:
                yield listener

    over = {}
    for vip in vips:
        here = next(on(vip.address, vip), None)
        if here is None and (vip.port or vip.protocol is Protocol.TCP):
            every = (ANY_IPV4, ANY_IPV6) if is_ipv4(vip.address) else (ANY_IPV6,)
            here = next((listener for address in every for listener in on(address, vip) if is_local(vip.address)), None)
        if here is not None:
            over[vip] = here
    return over


def _address(digits: str) -> Address:
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return Address(packed if len(words) > 1 else MAPPED_PREFIX + packed)
