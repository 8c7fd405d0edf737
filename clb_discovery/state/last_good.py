"""The last good sets in their form on disk, so that a start while discovery is down has something to serve.

One JSON document: `{"version": 1, "sources": {NAME: {"answered": SECONDS, "servers": [[PRIORITY, ADDRESS, PORT,
WEIGHT], ...]}}}`. Where identities of real servers are known, `"identities": [TEXT or null, ...]` has one for each of
`servers`, so that a start can tell a replacement from a removal. If the service follows zones, `"zones": [TEXT or null,
...]` has those of `servers`, `"out": [[ADDRESS, PORT, WEIGHT, TEXT or null], ...]` the members that are out, and
`"unlocated": [[IDENTITY, ZONE, WEIGHT], ...]` the members without any known address. If the zone of the host is the
agent's, `"zone"` beside `"sources"` has it. A service of a catalog also has `"opt_in": {"vips": [VIP, ...],
"automatic": [PROTOCOL, ...], "algorithm": NAME}` and the fields of `HealthClaim`. A file on disk may hold anything, so
every value is checked.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from clb_discovery.model.address import format_address, parse_address
from clb_discovery.model.answer import OptIn
from clb_discovery.model.servers import (
    MAX_PORT,
    MAX_PRIORITY,
    MAX_WEIGHT,
    Endpoint,
    HealthClaim,
    Pools,
    Protocol,
    RealServer,
    pools,
)
from clb_discovery.model.text_forms import HEALTH, parse_algorithm, parse_vip
from clb_discovery.model.zones import NO_PLACES, Places, is_zone

VERSION: Final = 1
MAX_BYTES: Final = 64 << 20
"""Longest document that is written or read: as long as one answer of discovery may be."""

MAX_IDENTITY: Final = 1024
"""Longest identity that is kept, in characters; a node's name and a service id of Consul have 255 and 512 at most."""

_LAST_SECOND: Final = 253402300799  # of the year 9999, where calendars end
_SHOWN_LENGTH: Final = 80
_OUT_FIELDS: Final = 4
_UNLOCATED_FIELDS: Final = 3


class LastGood(NamedTuple):
    """The last set of one source that counted."""

    servers: Pools
    """As the guard let them through."""
    answered: int | None = None
    """When the source last answered, in seconds since 1970 (UTC); None if that is not known."""
    opt_in: OptIn | None = None
    """Of a service from a catalog: its opt-in, without refused parts; on disk, with the VIPs that it has got."""
    identities: Mapping[Endpoint, str] = MappingProxyType({})
    """The known identities of real servers."""
    places: Places = NO_PLACES
    """The zones of members, those that are out, and those without known addresses, if zones are needed."""


def encode(sets: Mapping[str, LastGood], zone: str | None = None) -> bytes:
    """Return the document; raises ValueError if it would be longer than `MAX_BYTES` even without identities and zones.

    :param zone: of the host, if the agent has named it.
    """
    for identities in (True, False):
        sources = {name: _source(one, identities=identities) for name, one in sets.items()}
        found = {"version": VERSION, "sources": sources} | ({"zone": zone} if zone else {})
        document = json.dumps(found, separators=(",", ":")).encode()
        if len(document) <= MAX_BYTES:
            return document
    raise ValueError(f"{len(document)} bytes are more than {MAX_BYTES}")


class Decoded(NamedTuple):
    """The content of a document."""

    sets: dict[str, LastGood]
    zone: str | None
    """The zone of the host, if the agent had named it."""


def decode(document: bytes) -> Decoded:
    """Read a document of `encode`; raises ValueError, and no other error, with a short reason in one line."""
    if len(document) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES} bytes")
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ValueError(f"it is not of version {VERSION}")
    sources, zone = found.get("sources"), found.get("zone")
    if not isinstance(sources, dict):
        raise ValueError("it has no sources")  # noqa: TRY004 - no caller of ours is wrong
    if zone is not None and not _is_zone(zone):
        raise ValueError(f"{_shown(zone)} is not a zone")
    return Decoded({name: _last_good(one) for name, one in sources.items()}, zone)


def _source(one: LastGood, *, identities: bool) -> dict[str, Any]:
    known = [_bounded(one.identities.get(server.endpoint)) for server in one.servers]
    return {
        "answered": one.answered,
        "servers": [_written_server(server) for server in one.servers],
        **({"identities": known} if identities and any(known) else {}),
        **(_written_places(one) if identities else {}),
        **({"opt_in": _written(one.opt_in)} if one.opt_in else {}),
    }


def _written_places(one: LastGood) -> dict[str, Any]:
    zones, out, unlocated = one.places
    found = [zones.get(server.endpoint) for server in one.servers]
    written = [[format_address(at[0]), at[1], weight, zones.get(at)] for at, weight in out.items()]
    lost = [[identity, *member] for identity, member in unlocated.items() if _bounded(identity)]
    parts = {"zones": found if any(found) else [], "out": written, "unlocated": lost}
    return {key: value for key, value in parts.items() if value}


def _written_server(server: RealServer) -> list[object]:
    return [server.priority, format_address(server.address), server.port, server.weight]


def _bounded(identity: str | None) -> str | None:
    return identity if identity and len(identity) <= MAX_IDENTITY else None


def _last_good(found: Any) -> LastGood:  # noqa: ANN401 - anything is what a disk may hold
    if not isinstance(found, dict) or not isinstance(found.get("servers"), list):
        raise ValueError(f"{_shown(found)} is not a set of real servers")  # noqa: TRY004 - as above
    answered = found.get("answered")
    if answered is not None and not _is_number(answered, 0, _LAST_SECOND):
        raise ValueError(f"{_shown(answered)} is not a time")
    opt_in = _opt_in(found["opt_in"]) if "opt_in" in found else None
    servers = [_real_server(item) for item in found["servers"]]
    identities = _of_each(found.get("identities", []), servers, "identities")
    known = {endpoint: identity for endpoint, identity in identities.items() if _bounded(identity)}
    return LastGood(pools(servers), answered, opt_in, known, _places(found, servers))


def _of_each(found: Any, servers: Sequence[RealServer], what: str) -> dict[Endpoint, str]:  # noqa: ANN401 - as above
    """Return the texts that belong to real servers; some may have none."""
    if not isinstance(found, list) or not all(item is None or isinstance(item, str) for item in found):
        raise ValueError(f"{_shown(found)} is not a list of {what}")
    if found and len(found) != len(servers):
        raise ValueError(f"there are {len(found)} {what} of {len(servers)} real servers")
    return {server.endpoint: text for server, text in zip(servers, found, strict=False) if text}


def _places(found: Mapping[str, Any], servers: Sequence[RealServer]) -> Places:
    """Return what is written of members, beside the real servers; earlier files have less."""
    zones, out = _of_each(found.get("zones", []), servers, "zones"), found.get("out", [])
    if not isinstance(out, list):
        raise ValueError(f"{_shown(out)} is not a list of members that are out")  # noqa: TRY004 - as above
    weights: dict[Endpoint, int] = {}
    for one in out:
        if not isinstance(one, list) or len(one) != _OUT_FIELDS:
            raise ValueError(f"{_shown(one)} is not a member that is out")
        member = _real_server([0, *one[:3]])
        weights[member.endpoint] = member.weight
        if one[3] is not None:
            zones[member.endpoint] = one[3]
    for zone in zones.values():
        if not _is_zone(zone):
            raise ValueError(f"{_shown(zone)} is not a zone")
    unlocated = _unlocated(found.get("unlocated", []))
    return Places(zones, weights, unlocated) if zones or weights or unlocated else NO_PLACES


def _unlocated(found: Any) -> dict[str, tuple[str, int]]:  # noqa: ANN401 - as above
    """Return the zones and weights of members without known addresses."""
    if not isinstance(found, list):
        raise ValueError(f"{_shown(found)} is not a list of members without addresses")  # noqa: TRY004 - as above
    members: dict[str, tuple[str, int]] = {}
    for one in found:
        if not isinstance(one, list) or len(one) != _UNLOCATED_FIELDS:
            raise ValueError(f"{_shown(one)} is not a member without addresses")
        identity, zone, weight = one
        if not (isinstance(identity, str) and _bounded(identity) and _is_zone(zone)):
            raise ValueError(f"{_shown(one)} is not a member without addresses")
        if not _is_number(weight, 0, MAX_WEIGHT):
            raise ValueError(f"{_shown(weight)} is not a weight")
        members[identity] = zone, weight
    return members


def _is_zone(found: Any) -> bool:  # noqa: ANN401 - as above
    return isinstance(found, str) and is_zone(found)


def _written(opt_in: OptIn) -> dict[str, Any]:
    return {
        "vips": [str(vip) for vip in opt_in.vips],
        "automatic": [protocol.name.lower() for protocol in opt_in.automatic],
        "algorithm": None if opt_in.algorithm is None else str(opt_in.algorithm),
        **opt_in.health._asdict(),
    }


def _opt_in(found: Any) -> OptIn:  # noqa: ANN401 - as above
    try:
        return OptIn(
            tuple(parse_vip(text) for text in found["vips"]),
            tuple(Protocol[name.upper()] for name in found["automatic"]),
            None if found["algorithm"] is None else parse_algorithm(found["algorithm"]),
            health=_health(found),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{_shown(found)} is not an opt-in") from None


def _health(found: Any) -> HealthClaim:  # noqa: ANN401 - as above
    """Return what a service has registered about its health; earlier files have less."""
    named = {name: found[name] for name in HEALTH if found.get(name) is not None}
    return HealthClaim(**{name: HEALTH[name](_text_of(name, value)) for name, value in named.items()})


def _text_of(name: str, value: Any) -> str:  # noqa: ANN401 - as above
    """Return a setting as an operator would write it."""
    if type(value) is not int:
        raise ValueError(f"{_shown(value)} is not a number")
    if name.endswith("_ms"):
        return f"{value}ms" if value else "off"
    return str(value)


def _real_server(found: Any) -> RealServer:  # noqa: ANN401 - as above
    try:
        priority, text, port, weight = found
        limits = zip((priority, port, weight), (0, 1, 0), (MAX_PRIORITY, MAX_PORT, MAX_WEIGHT), strict=True)
        address = parse_address(text) if isinstance(text, str) and all(_is_number(*one) for one in limits) else None
    except (TypeError, ValueError):
        address = None
    if address is None:
        raise ValueError(f"{_shown(found)} is not a real server")
    return RealServer(priority, address, port, weight)


def _is_number(found: Any, least: int, most: int) -> bool:  # noqa: ANN401 - as above
    return type(found) is int and least <= found <= most  # True is an int, too


def _shown(found: Any) -> str:  # noqa: ANN401 - as above
    return reprlib.repr(found)[:_SHOWN_LENGTH]  # which goes a few levels deep, and no further
