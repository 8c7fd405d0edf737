"""Which addresses a real server may have: discovery is not trusted to name every address."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from clb_discovery.model.address import CACHED_ADDRESSES, Address, Network, in_network, is_ipv4

_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122 section 3.2.1.3


@lru_cache(maxsize=CACHED_ADDRESSES)
def never_usable(address: Address) -> str | None:
    """Return why no server can be reached at this address, or None if one can."""
    parsed = _parsed(address)
    if parsed.is_unspecified or parsed in _THIS_NETWORK:
        return "it is unspecified"
    if parsed.is_multicast:
        return "it is multicast"
    if parsed == _BROADCAST:
        return "it is broadcast"
    if parsed.is_link_local:
        return "it is link-local"
    return None


@lru_cache(maxsize=CACHED_ADDRESSES)
def is_loopback(address: Address) -> bool:
    """Tell whether a host reaches only itself at this address: 127.0.0.0/8 or ::1."""
    return _parsed(address).is_loopback


def _parsed(address: Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.IPv4Address(address[12:]) if is_ipv4(address) else ipaddress.IPv6Address(address)


_FIX: Final = "register the address that the server itself listens on"


def objection(address: Address, vips: frozenset[Address], real_ranges: Sequence[Network]) -> str | None:
    """Return why this address may not be a real server, with the fix, or None if it may.

    :param vips: the addresses of all virtual servers. A connect to a real server at one of them would loop.
    """
    if address in vips:
        return f"it is a VIP; {_FIX}"
    never = never_usable(address)
    if never:
        return f"{never}; {_FIX}"
    if real_ranges and any(in_network(address, network) for network in real_ranges):
        return None
    if is_loopback(address):
        others = "" if real_ranges else " (then only listed ranges are accepted)"
        allowed = "127.0.0.0/8" if is_ipv4(address) else "::1/128"
        return f"loopback addresses are rejected by default; allow with --real-range {allowed}{others}"
    return "it is outside every --real-range; allow with a --real-range that contains it" if real_ranges else None
