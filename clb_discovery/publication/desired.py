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
from typing import Final, NamedTuple

from clb_discovery.model.address import Address, Network, is_ipv4
from clb_discovery.model.answer import Refusal
from clb_discovery.model.servers import MAX_POOL, MAX_TIERS, Pool, Pools, Vip, VirtualServer
from clb_discovery.model.service import Service
from clb_discovery.model.usable import objection

MAX_REJECTED: Final = 100
"""Most rejected real servers that are reported for one service."""


class Basis(NamedTuple):
    """The inputs of a desired state."""

    services: tuple[Service, ...]
    known: Mapping[str, Pools]
    real_ranges: tuple[Network, ...]
    vips: frozenset[Address]
    """The addresses of all virtual servers."""
    by_source: Mapping[str, Service]


@dataclass(frozen=True, slots=True)
class Desired:
    """The virtual servers that should be installed, and the real servers that were left out."""

    virtual: Mapping[Vip, VirtualServer]
    rejected: Mapping[str, tuple[Refusal, ...]]
    """Real servers that are not used, by the name of their source; only where there are any."""
    basis: Basis = field(compare=False, repr=False)
    rebuilt: Mapping[Vip, VirtualServer] = field(compare=False, repr=False)
    """Virtual servers that were not taken from an earlier result."""


def desired(
    services: Iterable[Service],
    known: Mapping[str, Pools],
    real_ranges: Sequence[Network],
    before: Desired | None = None,
) -> Desired:
    """Build the virtual servers of all services that are known.

    :param services: no two of one source.
    :param known: the real servers of each source that the guard lets through, by name. A service whose source is not
        in it has had no answer yet and is left out.
    :param real_ranges: `--real-range`. If not empty, addresses outside are rejected; loopback addresses must be inside
        one in any case.
    :param before: an earlier result. If only the servers of some sources have changed since, all other objects are
        taken from it. The result is the same as without it.
    """
    services, real_ranges = tuple(services), tuple(real_ranges)
    if before and (before.basis.services, before.basis.real_ranges) == (services, real_ranges):
        basis = before.basis._replace(known=known)
        changed = _changed(before.basis.known, known)
        if changed is not None:
            virtual, rejected = _built(basis, changed)
            kept = {source: refusals for source, refusals in before.rejected.items() if source not in changed}
            return Desired({**before.virtual, **virtual}, kept | rejected, basis, virtual)
    vips = frozenset(vip.address for service in services for vip in service.vips)
    basis = Basis(services, known, real_ranges, vips, {service.source: service for service in services})
    virtual, rejected = _built(basis, basis.by_source)
    return Desired(virtual, rejected, basis, virtual)


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> Collection[str] | None:
    """Return the keys whose objects have changed; None if a key is missing."""
    if len(before) == len(now) and all(map(is_, before, now)):  # same order in most cases: ten times as fast
        return set(compress(now, map(is_not, now.values(), before.values())))
    if not before.keys() <= now.keys():
        return None
    return {key for key, found in now.items() if before.get(key) is not found}


def _built(basis: Basis, sources: Iterable[str]) -> tuple[dict[Vip, VirtualServer], dict[str, tuple[Refusal, ...]]]:
    """Return the virtual servers of the services of these sources, and their rejected real servers."""
    virtual: dict[Vip, VirtualServer] = {}
    rejected: dict[str, tuple[Refusal, ...]] = {}
    for service in (basis.by_source[source] for source in sources if source in basis.by_source):
        if service.source not in basis.known:
            continue
        known = basis.known[service.source]
        found = ((server, objection(server.address, basis.vips, basis.real_ranges)) for server in known)
        refused = [Refusal(server, reason) for server, reason in found if reason]
        unusable = {one.value for one in refused}
        pools = {
            ipv4: tuple(server for server in pool if server not in unusable) if unusable else pool
            for ipv4, pool in ((True, known.ipv4), (False, known.ipv6))
        }
        for ipv4 in {is_ipv4(vip.address) for vip in service.vips}:
            pools[ipv4], surplus = _bounded(service, pools[ipv4])
            refused += surplus
        if refused:
            rejected[service.source] = tuple(refused[:MAX_REJECTED])
        for vip in service.vips:
            pool = pools[is_ipv4(vip.address)]
            virtual[vip] = VirtualServer(vip, service.name, service.source, service.algorithm, pool, service.health)
    return virtual, rejected


def _too_many(service: Service) -> str:
    if service.most == MAX_POOL:
        return f"there are more than {MAX_POOL} in the pool; spread them over several services"
    vips = f" behind {len(service.vips)} VIPs" if len(service.vips) > 1 else ""
    return (
        f"there are more than {service.most} in the pool, the most of a service of the catalog{vips}; register fewer "
        "VIPs or servers, or configure the service by name"
    )


def _bounded(service: Service, pool: Pool) -> tuple[Pool, Sequence[Refusal]]:
    """Return the servers within the limits of a pool, lowest priorities first, and the others, each with the reason."""
    tiers = sorted({server.priority for server in pool})[:MAX_TIERS]
    end = bisect_right(pool, tiers[-1], key=attrgetter("priority")) if tiers else 0
    kept = min(end, service.most)
    too_low = f"a pool has at most {MAX_TIERS} priorities, and this server has a higher one; use fewer"
    surplus = [Refusal(server, _too_many(service)) for server in pool[kept:end]]
    return pool[:kept], [*surplus, *(Refusal(server, too_low) for server in pool[end:])]
