"""Which service gets which VIP: configured services first, then claims of services in a catalog.

A catalog is not trusted to name every VIP: a claimed VIP must lie in a `--vip-range` and must not overlap a VIP of
another service. Two VIPs of one address and protocol overlap if their ports are equal or one of them is for every port;
otherwise a service could take single ports out of the VIP of another. The current holder keeps a VIP, even across
restarts; otherwise an automatic address belongs to its service, and the service with the lower name gets any other VIP.
docs/decisions/0015-catalog-mode.md gives the reasons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from clb_discovery.model.address import Address, Network, in_network
from clb_discovery.model.answer import Claim, Refusal
from clb_discovery.model.servers import Algorithm, Protocol, Vip
from clb_discovery.model.service import Service
from clb_discovery.publication.automatic_vips import settle_automatic

MOST_SERVERS: Final = 4096
"""Most real servers in one pool of a service in a catalog."""
MOST_PLACES: Final = 16384
"""Most real servers of such a service over the pools of all its VIPs: a sixteenth of the kernel's map."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """All services with their VIPs. No two VIPs overlap, except configured ones."""

    services: tuple[Service, ...]
    refused: Mapping[str, tuple[Refusal, ...]]
    """Registrations that are not applied, by the name of the source; only sources with any."""


def resolve(
    configured: Sequence[Service], claims: Iterable[Claim], holders: Mapping[Vip, str], ranges: Sequence[Network]
) -> Resolved:
    """Give claims the VIPs that they can have; the order of the claims does not matter.

    A service whose VIPs are all refused keeps those that it holds: a mistake in a catalog does not take a service away.

    :param configured: services of the configuration; their VIPs are never refused.
    :param holders: the source of each installed VIP; for others, those count that held them before a reboot.
    :param ranges: `--vip-range`, or its default.
    """
    claims = tuple(claims)
    if not claims:
        return Resolved(tuple(configured), {})
    holders = {**{vip: claim.service.source for claim in claims for vip in claim.held}, **holders}
    while True:
        resolving = _Resolving(configured, claims, holders, ranges)
        resolving.claim_declared(held=True)
        resolving.reserve_automatic()
        resolving.claim_declared(held=False)
        resolving.keep_held()
        resolving.claim_automatic()
        given_up = resolving.given_up()
        if not given_up:
            return resolving.result()
        # Others may have them now: they would not be asked again after this publication.
        holders = {vip: source for vip, source in holders.items() if vip not in given_up}


class _Resolving:
    """The claims, with the VIPs and refusals of each so far."""

    def __init__(
        self,
        configured: Sequence[Service],
        claims: Iterable[Claim],
        holders: Mapping[Vip, str],
        ranges: Sequence[Network],
    ) -> None:
        self._configured = configured
        self._claims = {claim.service.source: claim for claim in sorted(claims, key=lambda one: one.service.name)}
        self._holders = holders
        self._ranges = ranges
        self._automatic = _held_automatic(self._claims, holders)
        self._owners = _Owners(configured, self._automatic, holders)
        self._addresses: Mapping[str, Sequence[Address]] = {}
        """The addresses of automatic VIPs, by the name of the service."""
        self._without: Mapping[str, str] = {}
        """As `settle_automatic` returns it."""
        self._found: dict[str, list[Vip]] = {source: [] for source in self._claims}
        self._refused = {source: list(claim.opt_in.refused) for source, claim in self._claims.items()}

    def claim_declared(self, *, held: bool) -> None:
        """Give VIPs that services name, in the order of service names: those that they hold, or all others."""
        for source, claim in self._claims.items():
            for vip in claim.opt_in.vips:
                if (self._holders.get(vip) == source) is held:
                    objection = self._objection(source, vip)
                    if objection:
                        self._refused[source].append(objection)
                    else:
                        self._give(source, vip)

    def reserve_automatic(self) -> None:
        """Keep the addresses of automatic VIPs for their services: no other one can claim them without holding them.

        Otherwise a host that holds nothing, such as a new one, would give them to another service than those that do.
        """
        self._settle()
        for source, claim in self._claims.items():
            for address in self._addresses.get(claim.service.name, ()):
                self._owners.reserve(source, address)

    def _settle(self) -> None:
        names = [claim.service.name for claim in self._claims.values() if claim.opt_in.automatic]
        self._addresses, self._without = settle_automatic(names, self._ranges, self._owners.addresses())

    def keep_held(self) -> None:
        """Let services whose registrations are all refused keep the VIPs that they hold, unless given to others now."""
        for source, claim in self._claims.items():
            if self._refused[source] and not self._found[source] and not claim.opt_in.automatic:
                for vip in sorted(vip for vip, holder in self._holders.items() if holder == source):
                    if self._objection(source, vip) is None:
                        self._give(source, vip)

    def claim_automatic(self) -> None:
        """Give automatic VIPs to the services that register for them."""
        if not self._owners.addresses().isdisjoint(chain.from_iterable(self._addresses.values())):
            self._settle()  # otherwise the result would be the same
        for service, opt_in, _ in self._claims.values():
            if not opt_in.automatic:
                continue
            for vip in (Vip(to, 0, protocol) for protocol in opt_in.automatic for to in self._addresses[service.name]):
                owner = self._owners.overlapping(service.source, vip)
                if owner:
                    self._refused[service.source].append(_clash(vip, owner))
                else:
                    self._give(service.source, vip)
            ranges = self._without.get(service.name)
            if ranges:
                full = f"is not available: every address of {ranges} is taken; give a larger --vip-range"
                self._refused[service.source].append(Refusal(f"automatic VIP of {service.name!r}", full))

    def given_up(self) -> frozenset[Vip]:
        """Return the VIPs that counted as automatic ones of their holders, which have not got them again."""
        return frozenset(vip for vip, source in self._automatic.items() if vip not in self._found[source])

    def result(self) -> Resolved:
        """Return the services with their VIPs, and the refusals."""
        services = [_service(claim, self._found[source]) for source, claim in self._claims.items()]
        refused = {source: tuple(sorted(own)) for source, own in self._refused.items() if own}
        return Resolved((*self._configured, *services), refused)

    def _objection(self, source: str, vip: Vip) -> Refusal | None:
        if not any(in_network(vip.address, network) for network in self._ranges):
            ranges = ", ".join(map(str, self._ranges))
            return Refusal(f"VIP {vip}", f"is outside --vip-range {ranges}; register one inside, or widen the range")
        owner = self._owners.claimed(source, vip)
        return _clash(vip, owner) if owner else None

    def _give(self, source: str, vip: Vip) -> None:
        self._owners.add(source, vip)
        self._found[source].append(vip)


class _Owners:
    """The owners of VIPs so far."""

    def __init__(self, configured: Iterable[Service], automatic: Mapping[Vip, str], holders: Mapping[Vip, str]) -> None:
        self._holders = holders
        self._ports: defaultdict[tuple[Address, Protocol], dict[int, str]] = defaultdict(dict)
        self._automatic: dict[Address, str] = {}
        """Owners of automatic addresses, of which no other service can claim any port."""
        for service in configured:
            for vip in service.vips:
                self.add(service.source, vip)
                if service.automatic:
                    self._automatic[vip.address] = service.source
        for vip, source in automatic.items():
            self._automatic.setdefault(vip.address, source)

    def add(self, source: str, vip: Vip) -> None:
        """Record the owner of a VIP."""
        self._ports[vip.address, vip.protocol][vip.port] = source

    def reserve(self, source: str, address: Address) -> None:
        """Record the owner of an automatic address that has none yet."""
        self._automatic.setdefault(address, source)

    def addresses(self) -> frozenset[Address]:
        """Return the addresses of all VIPs."""
        return frozenset(address for address, _ in self._ports)

    def overlapping(self, source: str, vip: Vip) -> str | None:
        """Return another source that has the VIP or a part of it, or None."""
        ports = self._ports.get((vip.address, vip.protocol), {})
        touched = ports.values() if vip.port == 0 else (ports.get(vip.port), ports.get(0))
        return next((owner for owner in touched if owner and owner != source), None)

    def claimed(self, source: str, vip: Vip) -> str | None:
        """Return another source that owns a VIP which this source names, or None."""
        owner = self.overlapping(source, vip)
        if owner is None and self._holders.get(vip) != source:
            owner = self._automatic.get(vip.address)
        return owner if owner != source else None


def _held_automatic(claims: Mapping[str, Claim], holders: Mapping[Vip, str]) -> dict[Vip, str]:
    """Return the held VIPs that may be automatic ones, with their holders: those that the holders do not name."""
    return {
        vip: source
        for vip, source in holders.items()
        if vip.port == 0 and (claim := claims.get(source)) and claim.opt_in.automatic and vip not in claim.opt_in.vips
    }


def _service(claim: Claim, vips: Sequence[Vip]) -> Service:
    algorithm = claim.service.algorithm if claim.opt_in.algorithm is None else claim.opt_in.algorithm
    active = claim.service.health.active or algorithm is Algorithm.LEAST_CONN
    health = claim.opt_in.health.over(replace(claim.service.health, active=active))
    most = min(MOST_SERVERS, MOST_PLACES // max(1, len(vips)))
    service = replace(claim.service, vips=tuple(vips), algorithm=algorithm, health=health, most=most)
    return service.with_default_check()  # a catalog names no checks


def _clash(vip: Vip, owner: str) -> Refusal:
    return Refusal(f"VIP {vip}", f"belongs to {owner}; register another one")
