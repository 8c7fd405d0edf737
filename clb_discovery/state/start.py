"""How the state of each part begins: with nothing, or with what the kernel and the disk have of it at a start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from clb_discovery.layout.installed import Installed
from clb_discovery.model.servers import Endpoint, Pools, RealServer, pools
from clb_discovery.model.service import Service
from clb_discovery.model.zones import NO_PLACES, Places
from clb_discovery.state.guard import Identities, as_named, endpoints
from clb_discovery.state.last_good import LastGood
from clb_discovery.state.service import ServiceState

_NOTHING_ELSE: Final[tuple[int | None, Identities, Places]] = (None, MappingProxyType({}), NO_PLACES)
"""When a source answered, identities and places, if the disk has nothing of it."""


class Recalled(NamedTuple):
    """The state of one part at a start, before its source has answered."""

    state: ServiceState
    only_on_disk: bool
    """Whether the kernel has nothing of it."""


def initial_states(services: Iterable[Service]) -> Iterator[ServiceState]:
    """Yield the state of each part of each service before anything is known of it."""
    for service in services:
        yield from (ServiceState(service, place) for place in range(len(service.parts)))


def recalled(state: ServiceState, installed: Mapping[str, Pools], stored: Mapping[str, LastGood]) -> Recalled | None:
    """Return a part with its last known set: that of the kernel, else that of the disk; None if neither has one.

    :param installed: real servers by source.
    """
    last = stored.get(state.source)
    own, numbered = _installed(state, installed, stored)
    servers = own if own is not None else last.servers if last else None
    if servers is None:
        return None
    answered, identities, places = (last.answered, last.identities, last.places) if last else _NOTHING_ELSE
    return Recalled(state.seeded(servers, answered, identities, places, numbered=numbered), own is None)


def _installed(
    state: ServiceState, installed: Mapping[str, Pools], stored: Mapping[str, LastGood]
) -> tuple[Pools | None, bool]:
    """Return the installed real servers of a part, if there are any, as its source has named them if the disk has that.

    :returns: and whether they have numbers of tiers as priorities.
    """
    service, last, own = state.service, stored.get(state.source), installed.get(state.source)
    if not service.is_composed or not last:
        return own, service.is_composed
    there = _endpoints_of(service, installed)
    is_off = state.part.share == 0  # then the kernel may lack its servers, or has those of other parts only
    if service.zones and there and not _is_of_disk(service, installed, stored):
        return (own if own is not None or is_off else Pools()), own is not None
    numbered = not endpoints(own or ()) <= endpoints(last.servers)
    if own or not is_off:
        shared = last.servers if is_off else [one for one in last.servers if one.endpoint in there]
        own = _of_part(own or Pools(), last.servers, shared) or own
    return own, numbered


def _endpoints_of(service: Service, installed: Mapping[str, Pools]) -> frozenset[Endpoint]:
    return endpoints(server for part in service.parts for server in installed.get(part.source, ()))


def _is_of_disk(service: Service, installed: Mapping[str, Pools], stored: Mapping[str, LastGood]) -> bool:
    """Tell whether the disk has the same real servers as the kernel, so that it has the answers that divided them."""
    there = _endpoints_of(service, installed)
    for part in service.parts:
        named = endpoints(stored[part.source].servers) if part.source in stored else frozenset()
        if not endpoints(installed.get(part.source, ())) <= named or (part.share != 0 and not named <= there):
            return False
    return True


def _of_part(own: Pools, named: Pools, shared: Iterable[RealServer]) -> Pools:
    """Return the installed real servers of a part, as its source has named them as far as that is known.

    The kernel has other priorities and weights, and a server of several parts only for the first of them.

    :param own: those that the kernel has for this part.
    :param named: the part's last set on disk.
    :param shared: those of `named` that belong to the pool, although the kernel may not have them for this part.
    """
    known = endpoints(own)
    others = [server for server in shared if server.endpoint not in known]
    return pools([*as_named(own.ipv4, named), *as_named(own.ipv6, named), *others])


def is_of_others(service: Service, installed: Installed) -> bool:
    """Tell whether VIPs of a service have real servers from other sources."""
    published = (installed.virtual.get(vip) for vip in service.vips)
    return any(one.pool and one.label and one.label.source != service.source for one in published if one)
