"""Services that opt in: which ones are followed, how a start restores them, and when they are left.

Consul ignores the case of a name when it returns instances, but lists each form that is registered. Names that differ
in case only are one service, which is followed by one of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType

from clb_discovery.layout.installed import Installed, Published, holders
from clb_discovery.model.answer import Claim, OptIn
from clb_discovery.model.servers import HealthClaim, Vip
from clb_discovery.model.service import CATALOG, CONSUL, MAX_SERVICES, Service, consul_objection
from clb_discovery.state.last_good import LastGood
from clb_discovery.state.service import ServiceState


def joined(
    services: Sequence[Service], names: Iterable[str], followed: Mapping[str, ServiceState], most: int = MAX_SERVICES
) -> dict[str, ServiceState]:
    """Return the new services to follow for these names in the catalog, the lowest first, by source.

    :param services: those of the configuration.
    :param followed: services that are followed already, by source.
    :param most: at most so many services of the catalog are followed, including these.
    """
    pattern = next((service for service in services if service.source == CATALOG), None)
    if pattern is None:
        return {}
    new = _not_among(followed, names)
    room = max(0, most - sum(one.from_catalog for one in followed.values()))
    found = (_service(pattern, name) for name in islice(new, room))
    return {service.source: ServiceState(service, from_catalog=True) for service in found}


def _not_among(followed: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names of services that are not followed by any form of their name: of each the lowest form, sorted."""
    taken = {source.lower() for source in followed}
    lowest: dict[str, str] = {}
    for name in sorted(names):
        lowest.setdefault(name.lower(), name)
    return [name for folded, name in lowest.items() if CONSUL + folded not in taken]


def _service(pattern: Service, name: str) -> Service:
    source = CONSUL + name
    return replace(pattern, name=name, source=source, parts=(replace(pattern.parts[0], source=source),))


def unfollowed(states: Mapping[str, ServiceState]) -> tuple[str, ...]:
    """Return the names in the catalog that may opt in but have no place, sorted."""
    catalog = states.get(CATALOG)
    return tuple(_not_among(states, catalog.listed)) if catalog else ()


def _claimed(vips: Sequence[Vip], published: Published) -> OptIn:
    """Return what a balanced service has claimed, as far as the kernel shows it."""
    health = published.health
    claimed = HealthClaim(*(getattr(health, name) for name in HealthClaim._fields)) if health else HealthClaim()
    return OptIn(tuple(sorted(vips)), (), published.algorithm, health=claimed)


def restored(
    services: Sequence[Service],
    installed: Installed,
    stored: Mapping[str, LastGood],
    followed: Mapping[str, ServiceState],
    most: int = MAX_SERVICES,
) -> dict[str, ServiceState]:
    """Return the services that `joined` may follow because the kernel balances them, or else the disk has them."""
    vips: defaultdict[str, list[Vip]] = defaultdict(list)
    for vip, source in holders(installed).items():
        if source.startswith(CONSUL) and "?" not in source:  # else it was a part of a configured service
            vips[source].append(vip)
    claims = {source: _claimed(own, installed.virtual[own[0]]) for source, own in vips.items()}
    remembered = {source: last.opt_in for source, last in stored.items() if last.opt_in and source.startswith(CONSUL)}
    found: dict[str, ServiceState] = {}
    for sources in (claims.keys(), remembered.keys()):  # balanced services have a place first
        names = (source.removeprefix(CONSUL) for source in sources)
        askable = [name for name in names if consul_objection(name) is None]
        found |= joined(services, askable, {**followed, **found}, most)
    claims = {**remembered, **claims}
    return {source: state._replace(opt_in=claims[source]) for source, state in found.items()}


def claimed(states: Iterable[ServiceState]) -> list[Service]:
    """Return the services of a catalog with all VIPs that they claim, granted or not."""
    return [replace(one.service, vips=one.opt_in.vips) for one in states if one.opt_in]


def left(states: Mapping[str, ServiceState]) -> list[str]:
    """Return the sources that need not be followed any more: they neither opt in nor may do so."""
    leaving = [source for source, one in states.items() if one.from_catalog and one.leaving and not one.opt_in]
    catalog = states.get(CATALOG)
    listed = {CONSUL + name.lower() for name in catalog.listed} if leaving and catalog else ()
    return [source for source in leaving if source.lower() not in listed]


def claims(states: Iterable[ServiceState], held: Mapping[str, tuple[Vip, ...]] = MappingProxyType({})) -> list[Claim]:
    """Return the claims of the services of a catalog, for `resolve`.

    :param held: the VIPs that services had before the start, by source.
    """
    return [
        Claim(one.service, one.opt_in, held.get(one.source, ())) for one in states if one.from_catalog and one.opt_in
    ]


def granted(last: LastGood, vips: Iterable[Vip]) -> LastGood:
    """Return a set with the VIPs that its service has got in place of those that it claims.

    Otherwise a reboot, after which the kernel holds nothing, would give its VIPs to another service that claims them.
    """
    if last.opt_in is None:
        return last
    named = last.opt_in.vips
    own = [vip for vip in vips if vip in named] if last.opt_in.automatic else vips
    return last._replace(opt_in=replace(last.opt_in, vips=tuple(sorted(own))))
