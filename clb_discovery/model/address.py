"""One form for every IP address: 16 bytes in network byte order, as the kernel maps hold it.

IPv4 is written as an IPv4-mapped IPv6 address, `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2), so that both families
compare, sort and hash as plain bytes, and a dual-stack socket's mapped address is already the key to look up.
Parsing is cached, because discovery repeats the same few addresses in every answer.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final, NewType

Address = NewType("Address", bytes)
"""16 bytes, network byte order; IPv4 as `::ffff:a.b.c.d`."""
MAPPED_PREFIX: Final = bytes(10) + b"\xff\xff"
_MAPPED_BITS: Final = 8 * len(MAPPED_PREFIX)
CACHED_ADDRESSES: Final = 1 << 17
"""Entries of every cache by address: two full pools of 65,536."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=CACHED_ADDRESSES)
def parse_address(text: str) -> Address:
    """Parse an IPv4 or IPv6 literal.

    :param text: `10.0.0.7`, `fd00::7` or `::ffff:10.0.0.7`; no brackets, no zone, no port.
    :raises ValueError: if it is not a literal, or has a zone.
    """
    address = ipaddress.ip_address(text)
    if address.version == 4:
        return Address(MAPPED_PREFIX + address.packed)
    if address.scope_id is not None:
        msg = f"{text!r} carries a zone; only addresses without one can be used"
        raise ValueError(msg)
    return Address(address.packed)


@lru_cache(maxsize=CACHED_ADDRESSES)
def format_address(address: Address) -> str:
    """Return the usual text: dotted for IPv4, compressed (RFC 5952) for IPv6."""
    if is_ipv4(address):
        return ".".join(map(str, address[12:]))
    return str(ipaddress.IPv6Address(address))


def format_endpoint(address: Address, port: int) -> str:
    """Return `10.0.0.7:80` or `[fd00::7]:80`; without the port if it is 0."""
    text = format_address(address)
    if port == 0:
        return text
    return f"{text}:{port}" if is_ipv4(address) else f"[{text}]:{port}"


def is_ipv4(address: Address) -> bool:
    """Tell whether this is an IPv4 address (in mapped form)."""
    return address.startswith(MAPPED_PREFIX)


def parse_network(text: str) -> Network:
    """Parse `10.0.0.0/8` or `fd00::/8`; host bits may be set. `::ffff:10.0.0.0/104` is the first of them, too.

    :raises ValueError: if it is not a network.
    """
    network = ipaddress.ip_network(text, strict=False)
    first = network.network_address.packed
    if network.prefixlen >= _MAPPED_BITS and first.startswith(MAPPED_PREFIX):
        return ipaddress.IPv4Network((first[12:], network.prefixlen - _MAPPED_BITS))
    return network


def in_network(address: Address, network: Network) -> bool:
    """Tell whether the address lies inside the network; families never match each other."""
    if network.version == 4:
        return is_ipv4(address) and ipaddress.IPv4Address(address[12:]) in network
    return not is_ipv4(address) and ipaddress.IPv6Address(address) in network
