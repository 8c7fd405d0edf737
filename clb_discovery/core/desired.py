"""Desired state: which virtual servers there should be, rebuilt from nothing each time.

Discovery is not trusted to name any address: what may never be a real server is left out here, whoever says so, and is
reported with the reason.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from operator import is_, is_not
from typing import Final, NamedTuple

from clb_discovery.core.address import CACHED_ADDRESSES, Address, Network, format_address, in_network, is_ipv4
from clb_discovery.core.model import MAX_POOL, Pool, RealServer, Service, Vip, VirtualServer

_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
MAX_REJECTED: Final = 100
"""Most real servers of one service that are reported as left out."""
_WAY_OUT: Final = "register the address that the server itself listens on"
_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122 section 3.2.1.3


class Rejected(NamedTuple):
    """A real server that discovery named and that is not used."""

    service: str
    server: RealServer
    reason: str
    """Why, and the way out."""
    source: str

    def __str__(self) -> str:
        """Return `real server 127.0.0.1:80 refused: it is loopback; …`."""
        return f"real server {self.server} refused: {self.reason}"


class Basis(NamedTuple):
    """What a desired state follows from."""

    services: tuple[Service, ...]
    known: Mapping[str, Sequence[RealServer]]
    real_ranges: tuple[Network, ...]
    vips: frozenset[Address]
    """The addresses of all virtual servers."""
    by_source: Mapping[str, Service]


@dataclass(frozen=True, slots=True)
class Desired:
    """What the kernel should hold, and what was left out."""

    virtual: Mapping[Vip, VirtualServer]
    rejected: tuple[Rejected, ...]
    basis: Basis = field(compare=False, repr=False)
    anew: Mapping[Vip, VirtualServer] = field(compare=False, repr=False)
    """Those that were not taken from an earlier result."""


def desired(
    services: Iterable[Service],
    known: Mapping[str, Sequence[RealServer]],
    real_ranges: Sequence[Network],
    before: Desired | None = None,
) -> Desired:
    """Build the virtual servers of all services that are known.

    :param services: no two of one source.
    :param known: the real servers of each source, by its name, as the guard lets them through. A service whose source
        is not in it has never been answered for, and is left out.
    :param real_ranges: `--real-range`: where not empty, no other address is used; loopback needs it in any case.
    :param before: an earlier result. Where only what some sources say has changed since, the rest is taken from it: the
        very same objects, for the same state as without it.
    """
    services, real_ranges = tuple(services), tuple(real_ranges)
    if before and (before.basis.services, before.basis.real_ranges) == (services, real_ranges):
        basis = before.basis._replace(known=known)
        changed = _changed(before.basis.known, known)
        if changed is not None:
            virtual, rejected = _built(basis, changed)
            kept = [item for item in before.rejected if item.source not in changed]
            return Desired({**before.virtual, **virtual}, (*kept, *rejected), basis, virtual)
    vips = frozenset(vip.address for service in services for vip in service.vips)
    basis = Basis(services, known, real_ranges, vips, {service.source: service for service in services})
    virtual, rejected = _built(basis, basis.by_source)
    return Desired(virtual, tuple(rejected), basis, virtual)


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> Collection[str] | None:
    """Return the keys of objects that are others now, None where a key has gone."""
    if len(before) == len(now) and all(map(is_, before, now)):  # in the same order, as mostly: ten times as fast
        return set(compress(now, map(is_not, now.values(), before.values())))
    if not before.keys() <= now.keys():
        return None
    return {key for key, found in now.items() if before.get(key) is not found}


def _built(basis: Basis, sources: Iterable[str]) -> tuple[dict[Vip, VirtualServer], list[Rejected]]:
    """Return the virtual servers of these sources' services, and what was left out of what they say."""
    virtual: dict[Vip, VirtualServer] = {}
    rejected: list[Rejected] = []
    for service in (basis.by_source[source] for source in sources if source in basis.by_source):
        if service.source not in basis.known:
            continue
        usable: list[RealServer] = []
        refused: list[Rejected] = []
        for server in basis.known[service.source]:
            reason = objection(server.address, basis.vips, basis.real_ranges)
            if reason:
                refused.append(Rejected(service.name, server, reason, service.source))
            else:
                usable.append(server)
        families = {is_ipv4(vip.address) for vip in service.vips}
        pools = {ipv4: _pool(usable, service.most, ipv4=ipv4) for ipv4 in families}
        too_many = _too_many(service)
        for _, surplus in pools.values():
            refused += (Rejected(service.name, server, too_many, service.source) for server in surplus)
        rejected += refused[:MAX_REJECTED]
        for vip in service.vips:
            pool, _ = pools[is_ipv4(vip.address)]
            virtual[vip] = VirtualServer(vip, service.name, service.source, service.algorithm, pool, service.tracking)
    return virtual, rejected


def objection(address: Address, vips: frozenset[Address], real_ranges: Sequence[Network]) -> str | None:
    """Return why this address may not be a real server, and the way out; or None if it may.

    :param vips: the addresses of all virtual servers: a real server there would send a connect round in a circle.
    """
    if address in vips:
        return f"it is a VIP; {_WAY_OUT}"
    never = never_usable(address)
    if never:
        return f"{never}; {_WAY_OUT}"
    if real_ranges and any(in_network(address, network) for network in real_ranges):
        return None
    if _is_loopback(address):
        others = "" if real_ranges else ", beside one for every other server: all else is refused then"
        return f"it is loopback; --real-range {format_address(address)} allows it{others}"
    return f"it is in no --real-range; --real-range {format_address(address)} allows it" if real_ranges else None


@lru_cache(maxsize=CACHED_ADDRESSES)
def never_usable(address: Address) -> str | None:
    """Return why no server can be reached at this address, whoever says so, or None if one may."""
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
def _is_loopback(address: Address) -> bool:
    return _parsed(address).is_loopback


def _parsed(address: Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.IPv4Address(address[12:]) if is_ipv4(address) else ipaddress.IPv6Address(address)


def _too_many(service: Service) -> str:
    if service.most == MAX_POOL:
        return f"there are more than {MAX_POOL} in the pool; spread them over several services"
    vips = f" behind {len(service.vips)} VIPs" if len(service.vips) > 1 else ""
    return (
        f"there are more than {service.most} in the pool, the most of a service of the catalog{vips}; register fewer "
        "VIPs or servers, or configure the service by name"
    )


def _pool(servers: Iterable[RealServer], most: int, *, ipv4: bool) -> tuple[Pool, Pool]:
    """Return the pool of a family, and what is past its greatest size.

    Of two entries with one address and port the lower priority wins, then the higher weight.
    """
    merged: dict[tuple[Address, int], RealServer] = {}
    for server in servers:
        if is_ipv4(server.address) is not ipv4:
            continue
        endpoint = (server.address, server.port)
        other = merged.get(endpoint)
        if other is None or (server.priority, -server.weight) < (other.priority, -other.weight):
            merged[endpoint] = server
    pool = tuple(sorted(merged.values()))
    return pool[:most], pool[most:]
