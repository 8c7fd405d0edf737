"""Automatic VIPs: one address per family for each service without a configured VIP, derived from its name.

The result depends only on the set of names and the ranges: not on the order in which services appear, nor on previous
holders of an address. docs/decisions/0014-automatic-vips.md gives the reasons and the drawbacks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final

from clb_discovery.model.address import Address, Network, is_ipv4, parse_address, parse_network
from clb_discovery.model.servers import Vip
from clb_discovery.model.service import Service
from clb_discovery.model.usable import never_usable

DEFAULT_RANGES: Final[tuple[Network, ...]] = (
    ipaddress.IPv4Network("240.64.0.0/10"),  # in 240.0.0.0/4, which is not routed (RFC 1112 section 4)
    ipaddress.IPv6Network(
        "fd0b:8432:cc5a::/64"
    ),  # unique local (RFC 4193); the digits are the beginning of SHA-256 of "clb-discovery"
)
"""The ranges of automatic VIPs without `--vip-range`."""


def parse_vip_range(text: str) -> Network:
    """Parse a range for automatic VIPs.

    :raises ValueError: if it is not a network, or if the address at one of its ends can never be a VIP.
    """
    try:
        network = parse_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a network: write 240.64.0.0/10 or fd00:64::/64") from None
    for end in (network[0], network[-1]):
        address = parse_address(str(end))
        if end.version == 6 and is_ipv4(address):
            raise ValueError(f"{text!r} is an IPv4 range in IPv6 form; write it as IPv4, such as 240.64.0.0/10")
        reason = never_usable(address)
        if reason:
            raise ValueError(f"{text!r} cannot be a range of VIPs: {end}: {reason}; use an unused private range")
    return network


def with_automatic_vips(services: Iterable[Service], ranges: Sequence[Network]) -> list[Service]:
    """Give each service with automatic VIPs one in each family of the ranges, for every port.

    :returns: all services, in order.
    :raises ValueError: if there is no free address for a service.
    """
    services = list(services)
    names = {service.name for service in services if service.automatic}
    taken = frozenset(vip.address for service in services for vip in service.vips)
    addresses = automatic_addresses(names, ranges, taken)
    return [
        replace(service, vips=service.vips + tuple(Vip(to, 0, service.automatic) for to in addresses[service.name]))
        if service.automatic
        else service
        for service in services
    ]


def automatic_addresses(
    names: Iterable[str], ranges: Sequence[Network], taken: Collection[Address] = ()
) -> dict[str, tuple[Address, ...]]:
    """Give each name an address in each family of the ranges; IPv4 comes first.

    :param names: case does not matter, as in DNS.
    :param ranges: in any order; they may overlap.
    :param taken: addresses that must not be given.
    :raises ValueError: if there is no free address for a name.
    """
    found, without = settle_automatic(names, ranges, taken)
    if without:
        name, network = min(without.items())
        raise ValueError(
            f"{name!r} gets no VIP: every address of {network} is taken; give a larger --vip-range, "
            "or a VIP, such as NAME=10.64.0.1"
        )
    return found


def settle_automatic(
    names: Iterable[str], ranges: Sequence[Network], taken: Collection[Address] = ()
) -> tuple[dict[str, tuple[Address, ...]], dict[str, str]]:
    """Give addresses as `automatic_addresses` does, but report names without a free address.

    :returns: the addresses of each name; and for each name without an address in some family, the ranges of it as text.
    """
    names = list(names)
    families = [places for version in (4, 6) if (places := _Places(ranges, version)).count]
    found = [_settle({name.lower() for name in names}, places, taken) for places in families]
    without = {
        name: str(places)
        for places, addresses in zip(families, found, strict=True)
        for name in names
        if name.lower() not in addresses
    }
    given = {name: tuple(addresses[name.lower()] for addresses in found if name.lower() in addresses) for name in names}
    return given, without


class _Places:
    """The addresses of one family that can be given, numbered from 0."""

    def __init__(self, ranges: Sequence[Network], version: int) -> None:
        own = sorted({network for network in ranges if network.version == version}, key=_order)
        # Two networks are disjoint, or one contains the other and comes first.
        self.networks: list[Network] = []
        for network in own:
            if not self.networks or int(network[0]) > int(self.networks[-1][-1]):
                self.networks.append(network)
        self.count = sum(_size(network) for network in self.networks)

    def __getitem__(self, number: int) -> Address:
        for network in self.networks:
            if number < _size(network):
                # Without the first and the last address of a network: its own address and its broadcast address.
                return parse_address(str(network[number + _margin(network)]))
            number -= _size(network)
        raise IndexError(number)

    def home(self, name: str) -> int:
        """Return the preferred number of a name: the same on all hosts, and uniformly distributed."""
        return int.from_bytes(sha256(name.encode()).digest()[:16]) % self.count

    def __str__(self) -> str:
        return ", ".join(map(str, self.networks))


def _order(network: Network) -> tuple[int, int]:
    return int(network[0]), network.prefixlen


def _margin(network: Network) -> int:
    return 1 if network.num_addresses > 2 else 0


def _size(network: Network) -> int:
    return network.num_addresses - 2 * _margin(network)


def _settle(names: Collection[str], places: _Places, taken: Collection[Address]) -> dict[str, Address]:
    """Give every name its preferred address ("home") in the first round; in each next round, try the next address.

    If several names try one address in a round, the lowest name gets it. So a name at its home loses it only to a lower
    name with the same home, regardless of all other names.
    """
    found: dict[str, Address] = {}
    given: set[Address] = set()
    homes = {name: places.home(name) for name in sorted(names)}
    for attempt in range(places.count):
        if not homes:
            break
        for name, home in list(homes.items()):
            address = places[(home + attempt) % places.count]
            if address not in given and address not in taken and not never_usable(address):
                given.add(address)
                found[name] = address
                del homes[name]
    return found
