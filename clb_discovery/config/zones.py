"""Read the values that operators write for zones.

Every function raises ValueError with a message that names the value and how to fix it. The caller adds the option.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from clb_discovery.model.address import Network, parse_network
from clb_discovery.model.zones import AUTO, FORM, MOST_LEAST, is_zone

_SPILLS: Final = {"capacity": True, "none": False}
_LONGEST_KEY: Final = 128  # that of a key of meta in Consul


def parse_zone(text: str) -> str:
    """Read the name of a zone, or `auto`."""
    if not is_zone(text):
        raise ValueError(f"{text!r} is not a zone: write its name, or auto; {FORM}")
    return text


def parse_zone_key(text: str) -> str:
    """Read the name of the meta that has the zone."""
    if not (1 <= len(text) <= _LONGEST_KEY and text.isprintable()):
        raise ValueError(f"{text!r} is not the key of a meta: write 1 to {_LONGEST_KEY} printable characters, as zone")
    return text


def parse_least(text: str) -> int:
    """Read how many usable real servers a zone needs, 1 to 1000."""
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MOST_LEAST):
        raise ValueError(f"{text!r} is not a number from 1 to {MOST_LEAST}")
    return int(text)


def parse_spill(text: str) -> bool:
    """Read `capacity` or `none`; return whether a zone that lacks capacity leaves connects to the others."""
    if text not in _SPILLS:
        raise ValueError(f"{text!r} is neither capacity nor none")
    return _SPILLS[text]


def parse_zone_of_network(text: str) -> tuple[Network, str]:
    """Read `CIDR=ZONE`, `10.1.0.0/16=eu-1a`."""
    network, equals, zone = text.partition("=")
    form = "write CIDR=ZONE, such as 10.1.0.0/16=eu-1a"
    if not equals:
        raise ValueError(f"{text!r} has no zone: {form}")
    if not is_zone(zone) or zone == AUTO:
        raise ValueError(f"{text!r} has no valid zone: {form}; {FORM}, and not {AUTO}")
    try:
        return parse_network(network), zone
    except ValueError:
        raise ValueError(f"{text!r} has no network: {form}") from None


def zone_map(entries: Iterable[tuple[Network, str]]) -> tuple[tuple[Network, str], ...]:
    """Return the zones of networks, each network once; two zones of one network are an error."""
    found: dict[Network, str] = {}
    for network, zone in entries:
        other = found.setdefault(network, zone)
        if other != zone:
            raise ValueError(f"{network} is in zone {other!r} and in zone {zone!r}; keep one of them")
    return tuple(found.items())
