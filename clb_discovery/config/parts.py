"""Read where the real servers of a service come from: its one source, or the parts in `from`.

Every function raises ValueError with a message that names the key, the value and how to fix it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from clb_discovery.config import toml_values, values
from clb_discovery.model.address import is_ipv4, parse_address
from clb_discovery.model.servers import (
    MAX_PRIORITY,
    MAX_WEIGHT,
    Endpoint,
    Protocol,
    RealServer,
    Vip,
)
from clb_discovery.model.service import CONSUL, DNS, MAX_PARTS, SRV, STATIC, Part

KINDS: Final = ("consul", "srv", "dns", "servers")
"""The keys that name a source. Another kind is one more here, and its parser in `_PARSERS` below."""
SELECTION: Final = ("filter", "tags")
"""The keys that select some of Consul's instances."""
_OF_SERVICE: Final = {"filter": ("consul",), "tags": ("consul",), "linger": ("srv", "dns")}
"""The keys of a service that apply to some kinds of sources."""
_OF_PART: Final = (*KINDS, "priority", "share", "datacenter", *SELECTION)
_OF_CONSUL: Final = ("datacenter", *SELECTION)
_SERVER: Final = ("address", "weight", "priority")


def read_parts(name: str, table: Mapping[str, object]) -> tuple[Part, ...]:
    """Return the parts of a service.

    :param name: of the service.
    :param table: its table, whose keys are all known.
    """
    kinds = [kind for kind in (*KINDS, "from") if kind in table]
    if len(kinds) != 1:
        choice = f"{', '.join(KINDS)} or from"
        raise ValueError(f"has {' and '.join(kinds) or 'no source'}; set exactly one of {choice}")
    if kinds == ["from"]:
        return _from(name, table)
    for key, some in _OF_SERVICE.items():
        if key in table and kinds[0] not in some:
            raise ValueError(_misplaced(key, table[key], some))
    return (_PARSERS[kinds[0]](name, table[kinds[0]]),)


def protocol_of(parts: Sequence[Part]) -> Protocol:
    """Return the protocol of VIPs that do not name theirs: UDP if there are SRV records, and all of them of UDP."""
    found = {values.srv_protocol(part.name) for part in parts if part.source.startswith(SRV)}
    return Protocol.UDP if found == {Protocol.UDP} else Protocol.TCP


def selection(table: Mapping[str, object]) -> dict[str, Any]:
    """Read the selection of Consul's instances, as values of the options `--filter` and `--tag`."""
    found: dict[str, Any] = {}
    if "filter" in table:
        found["filter"] = toml_values.parsed("filter", values.parse_text, table["filter"])
    if "tags" in table:
        found["tag"] = tuple(
            toml_values.parsed("tags", values.parse_text, tag) for tag in toml_values.texts("tags", table["tags"])
        )
    return found


def refuse_without_vip(parts: Sequence[Part], vips: Sequence[Vip]) -> None:
    """Make sure that each static part has a real server in the family of a VIP.

    :param vips: empty for automatic ones, which there are in both families.
    """
    families = {is_ipv4(vip.address) for vip in vips}
    for number, part in enumerate(parts, 1):
        own = {is_ipv4(server.address) for server in part.servers}
        if own and families and own.isdisjoint(families):
            version = 4 if own == {True} else 6
            raise ValueError(
                f"from: part {number} has real servers of IPv{version} only, and no VIP is of IPv{version}; add "
                "one, or remove the part"
            )


def _from(name: str, table: Mapping[str, object]) -> tuple[Part, ...]:
    """Read the parts in `from`."""
    for key in SELECTION:
        if key in table:
            raise ValueError(f"{key} = {toml_values.shown(table[key])}: write it into the parts of from that it is for")
    found = table["from"]
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_PARTS:
        what = f"from = {toml_values.shown(found)}"
        raise ValueError(f'{what}: is not a list of 1 to {MAX_PARTS} parts; write from = [{{ consul = "redis" }}]')
    parts: list[Part] = []
    for number, one in enumerate(found, 1):
        try:
            parts.append(_part(name, one, [part.source for part in parts]))
        except ValueError as error:
            raise ValueError(f"from, part {number}: {error}") from None
    _refuse_equal(parts)
    _refuse_uneven(parts)
    if "linger" in table and not any(part.source.startswith((SRV, DNS)) for part in parts):
        raise ValueError(_misplaced("linger", table["linger"], _OF_SERVICE["linger"]))
    return tuple(parts)


def _part(name: str, table: object, others: Sequence[str]) -> Part:
    if not isinstance(table, dict):
        what = toml_values.shown(table)
        raise ValueError(f'{what} is not a part; write {{ consul = "redis" }}')  # noqa: TRY004 - as all
    toml_values.refuse_unknown(table, _OF_PART)
    kinds = [kind for kind in KINDS if kind in table]
    if len(kinds) != 1:
        raise ValueError(f"has {' and '.join(kinds) or 'no source'}; set exactly one of {', '.join(KINDS)}")
    for key in _OF_CONSUL:
        if key in table and kinds != ["consul"]:
            raise ValueError(_misplaced(key, table[key], ("consul",)))
    part = _PARSERS[kinds[0]](name, table[kinds[0]])
    chosen = selection(table)
    datacenter = None
    if "datacenter" in table:
        datacenter = toml_values.parsed("datacenter", values.parse_text, table["datacenter"])
    query = [("dc", datacenter)] if datacenter else []
    query += [("filter", chosen["filter"])] if "filter" in chosen else []
    query += [("tag", tag) for tag in chosen.get("tag", ())]
    source = part.source
    if query:
        source += "?" + "&".join(f"{key}={value}" for key, value in query)
    if source in others and source.startswith(STATIC):  # a static list has no other name than that of the service
        source += f"#{1 + sum(other.startswith(STATIC) for other in others)}"
    return Part(
        source,
        part.name if source != part.source else None,
        part.servers,
        toml_values.number(table, "priority", 0, MAX_PRIORITY),
        toml_values.number(table, "share", 0, MAX_WEIGHT) if "share" in table else None,
        datacenter,
        chosen.get("filter"),
        chosen.get("tag"),
    )


def _misplaced(key: str, value: object, kinds: Sequence[str]) -> str:
    return f"{key} = {toml_values.shown(value)}: applies to {' and '.join(kinds)} only; remove it"


def _refuse_equal(parts: Sequence[Part]) -> None:
    first: dict[object, int] = {}
    for number, part in enumerate(parts, 1):
        other = first.setdefault(part.servers if part.is_static else part.source, number)
        if other != number:
            raise ValueError(f"from: parts {other} and {number} are equal; remove one of them")


def _refuse_uneven(parts: Sequence[Part]) -> None:
    """Make sure that the parts of each priority have all a share, and not all 0, or none."""
    for priority in {part.priority for part in parts}:
        shares = [part.share for part in parts if part.priority == priority]
        given = [share for share in shares if share is not None]
        if given and len(given) != len(shares):
            raise ValueError(
                f"from: only {len(given)} of the {len(shares)} parts of priority {priority} have a share; give each of "
                "them one, or none"
            )
        if given and not any(given):
            raise ValueError(f"from: every share of the parts of priority {priority} is 0; one must be above 0")


def _consul(_: str, value: object) -> Part:
    return Part(CONSUL + toml_values.text("consul", value))


def _srv(_: str, value: object) -> Part:
    return Part(SRV + toml_values.text("srv", value))


def _dns(_: str, value: object) -> Part:
    _, source = toml_values.parsed("dns", values.dns_source, toml_values.text("dns", value))
    return Part(source)


def _static(name: str, value: object) -> Part:
    return Part(STATIC + name, servers=_servers(value))


_PARSERS: Final = {"consul": _consul, "srv": _srv, "dns": _dns, "servers": _static}


def _servers(value: object) -> tuple[RealServer, ...]:
    """Read one server or an array of servers; a repeated one counts once."""
    found: dict[Endpoint, RealServer] = {}
    for one in value if isinstance(value, list) else [value]:
        server = _server(one)
        other = found.setdefault(server.endpoint, server)
        if other != server:
            raise ValueError(f"servers: {server} is listed twice with different weights or priorities; keep one entry")
    return tuple(found.values())


def _server(value: object) -> RealServer:
    table = value if isinstance(value, dict) else {"address": value}
    try:
        toml_values.refuse_unknown(table, _SERVER)
        host, port = values.parse_real_server(toml_values.text("address", table.get("address", "")))
        weight = toml_values.number(table, "weight", 1, MAX_WEIGHT)
        priority = toml_values.number(table, "priority", 0, MAX_PRIORITY)
    except ValueError as error:
        raise ValueError(f"servers: {error}") from None
    return RealServer(priority, parse_address(host), port, weight)
