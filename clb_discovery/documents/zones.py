"""The zones of real servers, for `status` and `plan`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from clb_discovery.documents.names import endpoint
from clb_discovery.model.address import format_endpoint
from clb_discovery.model.servers import Endpoint


class Zones(NamedTuple):
    """The zone of the host, and those of real servers."""

    own: str | None = None
    of: Mapping[str, Mapping[str, Sequence[str]]] = MappingProxyType({})
    """The real servers of each zone, `10.0.0.7:80`, by the names of pools; only of those that follow zones."""


NO_ZONES: Final = Zones()


def by_zone(zones: Mapping[Endpoint, str]) -> dict[str, list[str]]:
    """Return the names of real servers by their zone."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for (address, port), zone in zones.items():
        found[zone].append(format_endpoint(address, port))
    return dict(found)


def add_zones(virtual_servers: Iterable[dict[str, Any]], zones: Zones) -> None:
    """Add the key `zones` to virtual servers whose pools follow zones, and `zone` to their real servers.

    :param virtual_servers: each with its `source` and its `real_servers`.
    """
    for virtual in virtual_servers:
        of_pool = zones.of.get(virtual["source"]) if virtual["source"] and zones.own is not None else None
        if of_pool is not None:
            names = {name: zone for zone, servers in of_pool.items() for name in servers}
            for real in virtual["real_servers"]:
                real["zone"] = names.get(endpoint(real))
            virtual["zones"] = list(_in_order(virtual["real_servers"], zones.own))


def _in_order(reals: Sequence[Mapping[str, Any]], own: str | None) -> Iterator[dict[str, Any]]:
    """Yield the zones of real servers: the own one, the others by name, and those without one."""
    found: defaultdict[str | None, list[Mapping[str, Any]]] = defaultdict(list, {own: []})
    for real in reals:
        found[real["zone"]].append(real)
    for zone in sorted(found, key=lambda zone: (zone != own, zone is None, zone or "")):
        yield {
            "zone": zone,
            "own": zone == own,
            "real_servers": len(found[zone]),
            "tiers": sorted({real["priority"] for real in found[zone]}),
            "target_share": min(1.0, sum(real["target_share"] for real in found[zone])),
        }
