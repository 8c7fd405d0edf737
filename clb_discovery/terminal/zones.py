"""The zones of a pool that follows zones, a line each, and the zone of the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from clb_discovery.text import printable

_MOST: Final = 8  # at most so many lines of one virtual server
_WIDEST: Final = 16
"""Longest zone in a column, in characters; a longer one is cut."""


def zone_lines(server: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each zone in the document of a virtual server: none if its pool does not follow zones.

    The first one may be `zone eu-1a (own)  3 real servers in tier 0  100.0% of connects`.
    """
    zones = server.get("zones", [])
    for zone in zones[:_MOST]:
        name = "without a zone" if zone["zone"] is None else f"zone {zone['zone']}{' (own)' if zone['own'] else ''}"
        count = zone["real_servers"]
        if not count:
            yield f"{name}  no real servers"
            continue
        tiers = f"tier{'' if len(zone['tiers']) == 1 else 's'} {', '.join(map(str, zone['tiers']))}"
        words = [name, f"{count:,} real server{'' if count == 1 else 's'} in {tiers}"]
        yield "  ".join([*words, f"{zone['target_share']:.1%} of connects"])
    if len(zones) > _MOST:
        yield f"and {len(zones) - _MOST} more zones"


def cell(real: Mapping[str, Any]) -> str:
    """Return the zone of a real server for a column."""
    zone = printable(real.get("zone") or "-")
    return zone if len(zone) <= _WIDEST else f"{zone[: _WIDEST - 1]}…"


def own(zone: Mapping[str, Any]) -> str:
    """Return the zone of the host."""
    name = zone["name"] or "not known, pools do not follow zones"
    return f"{name}, of the Consul agent" if zone["auto"] and zone["name"] else name
