"""The zones of real servers, for `status` and `plan`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import compress
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


def add_zones(document: dict[str, Any], source: str | None, target_shares: Sequence[float], zones: Zones) -> None:
    """Add the zones to the document of a virtual server, unless its pool does not follow zones.

    :param document: with its real servers.
    :param source: the name of its pool.
    :param target_shares: the share of connects that each real server should get now.
    """
    if source is None or source not in zones.of or zones.own is None:
        return
    names = {name: zone for zone, servers in zones.of[source].items() for name in servers}
    reals = document["real_servers"]
    places = [names.get(endpoint(real)) for real in reals]
    for real, zone in zip(reals, places, strict=True):
        real["zone"] = zone
    document["zones"] = []
    for zone in sorted({*places, zones.own}, key=lambda zone: (zone != zones.own, zone is None, zone or "")):
        own = [place == zone for place in places]
        document["zones"].append(
            {
                "zone": zone,
                "own": zone == zones.own,
                "real_servers": sum(own),
                "tiers": sorted({real["priority"] for real in compress(reals, own)}),
                "target_share": min(1.0, sum(compress(target_shares, own))),
            }
        )
