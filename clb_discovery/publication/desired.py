"""Desired state: the virtual servers that should be installed, rebuilt from scratch each time.

Discovery is not trusted to name every address: servers at unusable addresses are left out here and reported with the
reason, whatever source they come from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import attrgetter, is_, is_not
from typing import Final, NamedTuple, TypeVar

from clb_discovery.model.address import Address, Network, is_ipv4
from clb_discovery.model.answer import Refusal
from clb_discovery.model.servers import MAX_POOL, MAX_TIERS, Endpoint, Pool, Pools, Vip, VirtualServer
from clb_discovery.model.service import Service, vip_addresses
from clb_discovery.model.usable import objection
from clb_discovery.model.zones import NO_FACTS, NO_PLACES, ZoneFacts
from clb_discovery.publication.merge import merge
from clb_discovery.publication.zones import Zoning, zones_of

MAX_REJECTED: Final = 100
"""Most rejected real servers that are reported for one source."""
_NONE: Final = Pools()


class Basis(NamedTuple):
    """The inputs of a desired state."""

    services: tuple[Service, ...]
    known: Mapping[str, Pools]
    real_ranges: tuple[Network, ...]
    vips: frozenset[Address]
    """The addresses of all virtual servers."""
    by_source: Mapping[str, Service]
    """The service of each source."""
    facts: ZoneFacts = NO_FACTS


@dataclass(frozen=True, slots=True)
class Desired:
    """The virtual servers that should be installed, and the real servers that were left out."""

    virtual: Mapping[Vip, VirtualServer]
    rejected: Mapping[str, tuple[Refusal, ...]]
    """Real servers that are not used, by the name of their source; only where there are any."""
    remarks: Mapping[str, str]
    """How pools differ from the answers of their parts, by the name of the pools; only where they do."""
    zones: Mapping[str, Mapping[Endpoint, str]]
    """The known zones of real servers, by the name of the pools; only where pools follow zones."""
    basis: Basis = field(compare=False, repr=False)
    rebuilt: Mapping[Vip, VirtualServer] = field(compare=False, repr=False)
    """Virtual servers that were not taken from an earlier result."""


def desired(
    services: Iterable[Service],
    known: Mapping[str, Pools],
    real_ranges: Sequence[Network],
    before: Desired | None = None,
    facts: ZoneFacts = NO_FACTS,
) -> Desired:
    """Build the virtual servers of all services that are known.

    :param services: no two with a source in common.
    :param known: the real servers of each source that the guard lets through, by name. A source that is not in it has
        had no answer yet. A service of which no source is in it is left out.
    :param real_ranges: `--real-range`. If not empty, addresses outside are rejected; loopback addresses must be inside
        one in any case.
    :param before: an earlier result. If only the servers of some sources have changed since, all other objects are
        taken from it. The result is the same as without it.
    :param facts: what decides about zones.
    """
    services, real_ranges = tuple(services), tuple(real_ranges)
    if before and (before.basis.services, before.basis.real_ranges) == (services, real_ranges):
        basis = before.basis._replace(known=known, facts=facts)
        touched = _touched(before.basis, basis)
        if touched is not None:
            found = _built(basis, touched)
            sources = {part.source for service in touched for part in service.parts}
            names = {service.source for service in touched}
            return Desired(
                {**before.virtual, **found.virtual},
                _without(before.rejected, sources) | found.rejected,
                _without(before.remarks, names) | found.remarks,
                _without(before.zones, names) | found.zones,
                basis,
                found.virtual,
            )
    vips = vip_addresses(services)
    by_source = {part.source: service for service in services for part in service.parts}
    basis = Basis(services, known, real_ranges, vips, by_source, facts)
    found = _built(basis, services)
    return Desired(found.virtual, found.rejected, found.remarks, found.zones, basis, found.virtual)


_Value = TypeVar("_Value")


def _without(found: Mapping[str, _Value], names: Collection[str]) -> dict[str, _Value]:
    return {name: one for name, one in found.items() if name not in names}


def _touched(before: Basis, now: Basis) -> Collection[Service] | None:
    """Return the services whose inputs have changed; None if these may be all."""
    if before.facts.own != now.facts.own:
        return None
    sources = _changed(before.known, now.known)
    places = _changed(before.facts.places, now.facts.places)
    if sources is None or places is None:
        return None
    sources = {*sources, *places, *(before.facts.divided ^ now.facts.divided)}
    touched = {now.by_source[one].source: now.by_source[one] for one in sources if one in now.by_source}
    was, unhealthy = before.facts.unhealthy, now.facts.unhealthy
    pools = {name for name in was.keys() | unhealthy.keys() if was.get(name) != unhealthy.get(name)}
    touched |= {service.source: service for service in now.services if service.source in pools} if pools else {}
    return touched.values()


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> Collection[str] | None:
    """Return the keys whose objects have changed; None if a key is missing."""
    if len(before) == len(now) and all(map(is_, before, now)):  # same order in most cases: ten times as fast
        return set(compress(now, map(is_not, now.values(), before.values())))
    if not before.keys() <= now.keys():
        return None
    return {key for key, found in now.items() if before.get(key) is not found}


class _Built(NamedTuple):
    """The virtual servers of some services; the rest as in `Desired`."""

    virtual: dict[Vip, VirtualServer]
    rejected: dict[str, tuple[Refusal, ...]]
    remarks: dict[str, str]
    zones: dict[str, Mapping[Endpoint, str]]


def _built(basis: Basis, services: Iterable[Service]) -> _Built:
    """Build the virtual servers of some services; one that is there several times is built once."""
    built = _Built({}, {}, {}, {})
    for service in {service.source: service for service in services}.values():
        if not any(part.source in basis.known for part in service.parts):
            continue
        refused: dict[str, list[Refusal]] = {part.source: [] for part in service.parts}
        usable = [_usable(basis, part.source, refused[part.source]) for part in service.parts]
        zones = _zones(basis, service, usable)
        if zones is not None:
            built.zones[service.source] = zones
        pools: dict[bool, Pool] = {}
        for ipv4 in {is_ipv4(vip.address) for vip in service.vips}:
            zoning = None if zones is None else _zoning(basis, service, zones, ipv4=ipv4)
            merged = merge(service.parts, [pool.ipv4 if ipv4 else pool.ipv6 for pool in usable], zoning)
            pools[ipv4], surplus = _bounded(service, merged.pool)
            for place, refusal in surplus:
                refused[service.parts[place].source].append(refusal)
            if merged.folded:
                built.remarks[service.source] = _folded(merged.folded)
        built.rejected.update({source: tuple(own[:MAX_REJECTED]) for source, own in refused.items() if own})
        for vip in service.vips:
            pool = pools[is_ipv4(vip.address)]
            built.virtual[vip] = VirtualServer(
                vip, service.name, service.source, service.algorithm, pool, service.health
            )
    return built


def _usable(basis: Basis, source: str, refused: list[Refusal]) -> Pools:
    """Return the real servers of a source that can be used; add the others to the refused ones."""
    known = basis.known.get(source, _NONE)
    for server in known:
        reason = objection(server.address, basis.vips, basis.real_ranges)
        if reason:
            refused.append(Refusal(server, reason))
    if not refused:
        return known
    unusable = {one.value for one in refused}
    return Pools(*(tuple(one for one in pool if one not in unusable) for pool in (known.ipv4, known.ipv6)))


def _zones(basis: Basis, service: Service, usable: Sequence[Pools]) -> Mapping[Endpoint, str] | None:
    """Return the zones of the real servers of a service; None if its pools do not follow zones."""
    if service.zones is None or basis.facts.own is None:
        return None
    places = [basis.facts.places.get(part.source, NO_PLACES) for part in service.parts]
    return zones_of([tuple(pools) for pools in usable], places, service.zones)


def _zoning(basis: Basis, service: Service, zones: Mapping[Endpoint, str], *, ipv4: bool) -> Zoning | None:
    """Return what decides about the zones of a pool of one family."""
    own, rule = basis.facts.own, service.zones
    if own is None or rule is None:
        return None
    out = [
        {
            endpoint: weight
            for endpoint, weight in basis.facts.places.get(part.source, NO_PLACES).out.items()
            if is_ipv4(endpoint[0]) is ipv4 and objection(endpoint[0], basis.vips, basis.real_ranges) is None
        }
        for part in service.parts
    ]
    unlocated = [
        sum(weight for zone, weight in places.unlocated.values() if zone == own)
        for places in (basis.facts.places.get(part.source, NO_PLACES) for part in service.parts)
    ]
    unhealthy = basis.facts.unhealthy.get(service.source, frozenset())
    divided = [part.source in basis.facts.divided for part in service.parts]
    return Zoning(own, rule, zones, out, unhealthy, unlocated, divided)


def _folded(servers: int) -> str:
    return (
        f"the parts have more than {MAX_TIERS} tiers: {servers} real server{'' if servers == 1 else 's'} of later ones "
        "are in the last one; use fewer priorities"
    )


def _too_many(service: Service) -> str:
    if service.most == MAX_POOL:
        return f"there are more than {MAX_POOL} in the pool; spread them over several services"
    vips = f" behind {len(service.vips)} VIPs" if len(service.vips) > 1 else ""
    return (
        f"there are more than {service.most} in the pool, the most of a service of the catalog{vips}; register fewer "
        "VIPs or servers, or configure the service by name"
    )


def _bounded(service: Service, pool: Pool) -> tuple[Pool, Sequence[tuple[int, Refusal]]]:
    """Return the servers within the limits of a pool, lowest priorities first, and the others.

    The others come with the position of their part, and with the reason.
    """
    tiers = sorted({server.priority for server in pool})[:MAX_TIERS]
    end = bisect_right(pool, tiers[-1], key=attrgetter("priority")) if tiers else 0
    kept = min(end, service.most)
    too_low = f"a pool has at most {MAX_TIERS} priorities, and this server has a higher one; use fewer"
    surplus = [(server.part, Refusal(server, _too_many(service))) for server in pool[kept:end]]
    return pool[:kept], [*surplus, *((server.part, Refusal(server, too_low)) for server in pool[end:])]
