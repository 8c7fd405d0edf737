"""Zones: where real servers are, and the rule by which a pool keeps connects in the zone of this host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from clb_discovery.model.address import Address, Network, is_ipv4
from clb_discovery.model.servers import Endpoint

AUTO: Final = "auto"
"""In place of the name of a zone: that in the node meta of the agent on this host."""
MAX_ZONE: Final = 64
"""Longest name of a zone, in bytes of UTF-8."""
FORM: Final = f"a zone is 1 to {MAX_ZONE} bytes of printable text"
MOST_LEAST: Final = 1000
"""Highest `zone-min`."""


@lru_cache(maxsize=1024)
def is_zone(name: str) -> bool:
    """Tell whether a text can be the name of a zone."""
    return 1 <= len(name.encode(errors="replace")) <= MAX_ZONE and name.isprintable()


@dataclass(frozen=True, slots=True)
class ZoneRule:
    """How the pools of a service follow zones."""

    least: int = 2
    """With fewer usable real servers in the own zone, it and usable ones of others are one; at least 1."""
    spills: bool = True
    """Whether the own zone leaves connects to usable servers of the others when it has lost capacity."""
    map: tuple[tuple[Network, str], ...] = ()
    """Zones of networks, for real servers whose source names none; the longest prefix counts."""


class Places(NamedTuple):
    """What a source says of its members, beside the real servers that can be used."""

    zones: Mapping[Endpoint, str] = MappingProxyType({})
    """The zone of each member that has one, members that are out included."""
    out: Mapping[Endpoint, int] = MappingProxyType({})
    """Members that are out, each with the weight that it has when it passes."""
    unlocated: Mapping[str, tuple[str, int]] = MappingProxyType({})
    """Zone and weight of members whose addresses are unknown, by identity: they are registered, but get no connects."""


NO_PLACES: Final = Places()


class ZoneFacts(NamedTuple):
    """What the pools of all services depend on if they follow zones."""

    own: str | None = None
    """The zone of this host; None if it has none, or it is not known: then no pool follows zones."""
    places: Mapping[str, Places] = MappingProxyType({})
    """By source. The same object for an equal value saves work."""
    unhealthy: Mapping[str, frozenset[Endpoint]] = MappingProxyType({})
    """Real servers in the pools that are ejected or fail their checks, by the name of the pools; only where there are
    any."""
    divided: frozenset[str] = frozenset()
    """Sources whose servers have the tiers and weights of the kernel, by which their zones are divided already."""


NO_FACTS: Final = ZoneFacts()


def zones_by_network(entries: Iterable[tuple[Network, str]], addresses: Iterable[Address]) -> dict[Address, str]:
    """Return the zone of each address that is inside one of these networks: that of the longest prefix."""
    tables: defaultdict[tuple[bool, int], dict[int, str]] = defaultdict(dict)
    for network, zone in entries:
        host_bits = network.max_prefixlen - network.prefixlen
        tables[network.version == 4, host_bits][int(network.network_address) >> host_bits] = zone
    longest_first = sorted(tables.items(), key=lambda one: one[0][1])
    by_family = {ipv4: [(bits, table) for (of, bits), table in longest_first if of is ipv4] for ipv4 in (True, False)}
    found: dict[Address, str] = {}
    for address in addresses:
        ipv4 = is_ipv4(address)
        number = int.from_bytes(address[12:] if ipv4 else address)
        for bits, table in by_family[ipv4]:
            if number >> bits in table:
                found[address] = table[number >> bits]
                break
    return found
