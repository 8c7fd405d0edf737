"""Build an `Answer` from SRV records and addresses, and compute the next query. No I/O, no clock.

Names are absolute, in lower case and in presentation form (RFC 1035 section 5.1), as `lookup.to_text` writes them. So
equal names are equal strings, and unusual bytes in a name are already escaped.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from clb_discovery.errors import SourceError, UnusableError
from clb_discovery.model.address import Address, format_address, is_ipv4, parse_address
from clb_discovery.model.answer import Answer, Refusal
from clb_discovery.model.servers import ALL_MEMBERS, MAX_POOL, MAX_PORT, Endpoint, RealServer, Unread

NO_SERVICE: Final = "."
"""The target that means "decidedly not available at this domain" (RFC 2782, Target)."""
MAX_RECORDS: Final = 65536
JITTER: Final = 0.1
"""The interval is shortened by up to this share, so that many hosts do not query in step."""
QUESTIONS_PER_SECOND: Final = 200
"""Average limit for one name: a TTL of 0 on hundreds of targets would cost a core here and at the server."""


_KEPT: Final = "some addresses cannot be looked up now, so previous ones are kept"


@dataclass(frozen=True, slots=True, order=True)
class SrvRecord:
    """One SRV record, as received (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str

    def __str__(self) -> str:
        """Return the record data in zone file order, as `dig +short` prints it."""
        return f"{self.priority} {self.weight} {self.port} {self.target}"


@dataclass(frozen=True, slots=True)
class SrvSet:
    """All SRV records of one owner; empty if the owner or its records do not exist."""

    owner: str
    records: tuple[SrvRecord, ...]
    ttl: int
    """Seconds; the smallest of the records, the CNAMEs before them and the additional addresses, or of the negative
    answer (RFC 2308)."""
    asked: float
    """When the query was sent, in seconds of the caller's clock; the TTL counts from here."""


@dataclass(frozen=True, slots=True)
class AddressSet:
    """The addresses of one target or other name in one family; empty if it has none."""

    addresses: tuple[str, ...]
    """IPv4 or IPv6 literals."""
    ttl: int
    """Seconds; the smallest of the addresses and the CNAMEs before them, or of the negative answer (RFC 2308)."""
    asked: float
    """When the query was sent, in seconds of the caller's clock; the TTL counts from here."""
    note: str | None = None
    """Why there may be more, if so."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A failed query for the addresses of one target or other name in one family."""

    cause: str
    """One clause that includes the fix."""
    ttl: int
    """Seconds until the query is repeated."""
    asked: float
    """In seconds of the caller's clock, as in `AddressSet`."""
    is_silence: bool = False
    """Whether there was no answer of any kind."""
    is_servfail: bool = False
    """Whether the next search domain is tried, as after NXDOMAIN."""
    is_ipv4: bool = True
    """The family."""


Part = SrvSet | AddressSet | Unavailable
"""A part of an answer, which is queried again on its own."""


def targets(srv: SrvSet) -> tuple[str, ...]:
    """Return the targets whose addresses are needed, each once: those of usable records.

    :raises SourceError: if there are too many records.
    """
    if len(srv.records) > MAX_RECORDS:
        raise SourceError(
            f"SRV {srv.owner}: {len(srv.records)} records, more than the {MAX_RECORDS} of a pool; split the service"
        )
    return tuple(dict.fromkeys(record.target for record in srv.records if is_needed(record)))


def is_needed(record: SrvRecord) -> bool:
    """Return whether the record itself is usable, apart from the addresses of its target."""
    return record.target != NO_SERVICE and _unusable(record) is None


def build_answer(
    srv: SrvSet,
    addresses: Mapping[str, Sequence[AddressSet | Unavailable]],
    known: Collection[tuple[str, int]] = (),
) -> Answer:
    """Join each record with the addresses of its target; priorities and weights are unchanged.

    :param addresses: for each name of `targets(srv)`, its sets, usually one per family. A target without any address
        adds no server, and is reported.
    :param known: target and port of members that had addresses before. A failed query for any other member is reported
        as left out, because that member has no addresses to keep.
    :return: the real servers, sorted, so that the order of records in an answer does not matter.
    :raises SourceError: if there are too many, or no record can be used and at least one of them may have addresses.
    """
    left_out = {Refusal(f"SRV record '{one}'", why): None for one in srv.records if (why := _unusable(one))}
    literals: dict[str, list[Address]] = {}
    lacking: dict[str, list[Unavailable]] = {}
    empty: list[Refusal] = []
    for name in targets(srv):
        sets = addresses[name]
        literals[name], bad = _parse(f"target {name}", [one for one in sets if isinstance(one, AddressSet)])
        left_out |= dict.fromkeys(bad)
        lacking[name] = [one for one in sets if isinstance(one, Unavailable)]
        if not literals[name] and not lacking[name] and not bad:
            empty.append(Refusal(f"target {name}", "has no address; publish A or AAAA records for it"))
    left_out |= dict.fromkeys(empty)
    total = sum(len(literals.get(record.target, ())) for record in srv.records if is_needed(record))
    if total > 2 * MAX_POOL:
        raise SourceError(
            f"SRV {srv.owner}: {total} real servers, more than {MAX_POOL} for each of two families; split the service"
        )
    needed = [record for record in srv.records if is_needed(record)]
    servers = [
        (RealServer(record.priority, address, record.port, record.weight), record.target)
        for record in needed
        for address in literals[record.target]
    ]
    unread = {
        Unread(record.target, record.port, record.priority, record.weight, one.is_ipv4): one.cause
        for record in needed
        for one in lacking[record.target]
    }
    kept: dict[Unread, str] = {}
    for one, cause in unread.items():
        if (one.identity, one.port) in known or literals[one.identity]:
            kept[one] = cause
        else:
            left_out[
                Refusal(
                    f"target {one.identity}",
                    f"has no known address, and its query failed: {_family(one.is_ipv4)}: {cause}",
                )
            ] = None
    if not servers and (unread or len(left_out) > len(empty)):
        cause = _first(unread) if unread else str(min(left_out))
        raise (SourceError if unread else UnusableError)(f"SRV {srv.owner}: no record can be used: {cause}")
    return Answer(
        tuple(sorted(server for server, _ in servers)),
        identities=_identities(servers),
        unread=tuple(sorted(unread)),
        left_out=tuple(sorted(left_out)),
        note=_note(kept),
    )


def build_addresses(name: str, port: int, sets: Sequence[AddressSet | Unavailable]) -> Answer:
    """Make a real server of each address of a name: all have the same port, priority 0 and weight 1.

    :param sets: its sets, one per family.
    :return: the real servers, sorted, so that the order of records in an answer does not matter. A family that cannot
        be read keeps all of its real servers.
    :raises SourceError: if there is no address that can be used, and a query failed or an address is unusable.
    """
    read = [one for one in sets if isinstance(one, AddressSet)]
    addresses, bad = _parse(f"name {name}", read)
    lacking = [one for one in sets if isinstance(one, Unavailable)]
    causes = [f"{_family(one.is_ipv4)} of {name}: {one.cause}" for one in lacking]
    if not addresses and causes:
        raise SourceError(causes[0])
    if not addresses and bad:
        raise UnusableError(str(bad[0]))
    servers = [RealServer(0, address, port, 1) for address in addresses]
    notes = [one.note for one in read if one.note] + [f"{_KEPT}: {cause}" for cause in causes]
    return Answer(
        tuple(sorted(servers)),
        identities={server.endpoint: format_address(server.address) for server in servers},
        unread=tuple(Unread(ALL_MEMBERS, port, 0, 1, one.is_ipv4) for one in lacking),
        left_out=tuple(sorted(bad)),
        note="; ".join(dict.fromkeys(notes)) or None,
    )


def _identities(servers: Iterable[tuple[RealServer, str]]) -> dict[Endpoint, str]:
    """Return the target of each endpoint, the lowest if several have it."""
    found: dict[Endpoint, str] = {}
    for server, target in servers:
        endpoint = server.endpoint
        found[endpoint] = min(target, found.get(endpoint, target))
    return found


def _unusable(record: SrvRecord) -> str | None:
    """Return why a record can never be used, if so; the target `NO_SERVICE` is not an error."""
    if record.target == NO_SERVICE:
        return None
    if not 1 <= record.port <= MAX_PORT:
        return f"has a port that is not 1 to {MAX_PORT}; correct the zone"
    try:
        ipaddress.ip_address(record.target.removesuffix("."))
    except ValueError:
        return None
    return "has an IP address as target, but RFC 2782 requires a host name; publish one with A or AAAA records"


def _first(unread: Mapping[Unread, str]) -> str:
    return next(f"{_family(one.is_ipv4)} of {one.identity}: {cause}" for one, cause in unread.items())


def _family(is_ipv4: bool | None) -> str:
    return "A" if is_ipv4 else "AAAA"


def _note(unread: Mapping[Unread, str]) -> str | None:
    if not unread:
        return None
    count = len({one.identity for one in unread})
    others = f" (and {count - 1} more)" if count > 1 else ""
    return f"{_KEPT}: {_first(unread)}{others}"


def lasts(part: Part, bounds: tuple[float, float], chance: float) -> float:
    """Return the time of the next query for a part of an answer.

    :param bounds: minimum and maximum seconds after the last query; they hold after jitter, too.
    :param chance: 0 to 1: how much of `JITTER` to subtract.
    :return: seconds on the clock of `part.asked`.
    """
    least, most = bounds
    return part.asked + max(least, min(part.ttl, most) * (1 - JITTER * chance))


def is_good(part: Part, bounds: tuple[float, float], now: float) -> bool:
    """Return whether a part may still be used; not in its last tenth, so that one round queries all parts that are due.

    :param bounds: minimum and maximum seconds between queries.
    :param now: seconds on the clock of `part.asked`.
    """
    return now < lasts(part, bounds, 1.0)


def next_round(parts: Iterable[Part], bounds: tuple[float, float], chance: float) -> float:
    """Return the time of the first query for any part of the answer.

    It is put on a grid where jitter allows, so that a sidecar wakes up once for many names.
    Hosts do not query in step, because their clocks do not start at the same time.

    :param parts: at least one.
    :param bounds: minimum and maximum seconds between queries.
    :param chance: a random number, 0 <= chance < 1: how much of `JITTER` to subtract.
    :return: seconds on the clock of the parts.
    """
    distinct = {(part.ttl, part.asked): part for part in parts}.values()
    due, earliest, latest = (min(lasts(part, bounds, share) for part in distinct) for share in (chance, 1.0, 0.0))
    if latest <= earliest:
        return due
    grid = 2.0 ** math.floor(math.log2(latest - earliest))  # the same for similar TTLs
    on_grid = due // grid * grid
    return on_grid if on_grid >= earliest else on_grid + grid


def pause(questions: int, bounds: tuple[float, float]) -> float:
    """Return the minimum seconds from the start of one round to the start of the next.

    :param questions: number of queries in the round; more than `QUESTIONS_PER_SECOND` lengthen the pause.
    :param bounds: minimum and maximum seconds.
    """
    least, most = bounds
    return min(most, max(least, questions / QUESTIONS_PER_SECOND))


def _parse(owner: str, found: Sequence[AddressSet]) -> tuple[list[Address], list[Refusal]]:
    """Return the addresses of one owner, each once, and reports of unusable ones.

    An IPv4-mapped AAAA record is unusable: it would add an IPv6 answer to the pool of IPv4 servers.

    :param owner: for the reports: `target redis-1.example.`.
    """
    parsed, bad = [], []
    for text in dict.fromkeys(text for one in found for text in one.addresses):
        try:
            address = parse_address(text)
        except ValueError:
            bad.append(Refusal(owner, f"has {text[:80]!a} as address, which is none; correct the zone"))
            continue
        if is_ipv4(address) and ":" in text:
            bad.append(Refusal(owner, f"has {text} as AAAA record; publish it as A record"))
        else:
            parsed.append(address)
    return parsed, bad
