"""From SRV records and the addresses of their targets to an `Answer`, and when to ask again. No I/O, no clock.

Names are absolute, in lower case and in presentation form (RFC 1035 section 5.1), as `srv` writes them, so that
equal names are equal strings and odd bytes in a name are already escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from clb_discovery.core.address import Address, is_ipv4, parse_address
from clb_discovery.core.model import MAX_POOL, MAX_PORT, Answer, RealServer
from clb_discovery.errors import SourceError

NO_SERVICE: Final = "."
"""The target that says "decidedly not available at this domain" (RFC 2782, Target)."""
MAX_RECORDS: Final = 65536
JITTER: Final = 0.1
"""Up to this share of the interval is taken off, so that many hosts do not ask in step."""
QUESTIONS_PER_SECOND: Final = 200
"""What one name may ask on average: a TTL of 0 on hundreds of targets would cost a core here and at the server."""


@dataclass(frozen=True, slots=True, order=True)
class SrvRecord:
    """One SRV record, as it came off the wire (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str

    def __str__(self) -> str:
        """Return the record data in zone file order, the way `dig +short` prints it."""
        return f"{self.priority} {self.weight} {self.port} {self.target}"


@dataclass(frozen=True, slots=True)
class SrvSet:
    """All SRV records of one owner; none where the owner or its records do not exist."""

    owner: str
    records: tuple[SrvRecord, ...]
    ttl: int
    """Seconds; the smallest of the records, the CNAMEs before them and what came along, or of the negative answer
    (RFC 2308)."""
    asked: float
    """Seconds on the caller's clock: when the question was sent, which is what the TTL counts from."""


@dataclass(frozen=True, slots=True)
class AddressSet:
    """The addresses of one target in one family; none where it has none."""

    addresses: tuple[str, ...]
    """IPv4 or IPv6 literals."""
    ttl: int
    """Seconds; the smallest of the addresses and the CNAMEs before them, or of the negative answer (RFC 2308)."""
    asked: float
    """Seconds on the caller's clock: when the question was sent, which is what the TTL counts from."""


def targets(srv: SrvSet) -> tuple[str, ...]:
    """Check the records and return the names whose addresses are needed, each once, without `NO_SERVICE`.

    :raises SourceError: if there are too many records, or one cannot be used; it names the record.
    """
    if len(srv.records) > MAX_RECORDS:
        raise SourceError(
            f"SRV {srv.owner}: {len(srv.records)} records, more than the {MAX_RECORDS} of a pool; split the service"
        )
    wanted = [record for record in srv.records if record.target != NO_SERVICE]
    for record in wanted:
        if not 1 <= record.port <= MAX_PORT:
            raise SourceError(
                f"SRV {srv.owner}: the port of record '{record}' is not 1 to {MAX_PORT}; correct the zone"
            )
    return tuple(dict.fromkeys(record.target for record in wanted))


def build_answer(srv: SrvSet, addresses: Mapping[str, Sequence[AddressSet]]) -> Answer:
    """Join each record with the addresses of its target; priorities and weights are carried as they are.

    :param addresses: for each name of `targets(srv)`, its sets, usually one a family. A target without any address
        contributes nothing.
    :return: the real servers, sorted, so that the order of records in an answer does not matter.
    :raises SourceError: if an address or a record cannot be used, or there are too many.
    """
    literals = {name: _parse(srv, name, addresses[name]) for name in targets(srv)}
    total = sum(len(literals.get(record.target, ())) for record in srv.records)
    if total > 2 * MAX_POOL:
        raise SourceError(
            f"SRV {srv.owner}: {total} real servers, more than {MAX_POOL} for each of two families; split the service"
        )
    servers = (
        RealServer(record.priority, address, record.port, record.weight)
        for record in srv.records
        for address in literals.get(record.target, ())
    )
    return Answer(tuple(sorted(servers)))


def lasts(part: SrvSet | AddressSet, bounds: tuple[float, float], chance: float) -> float:
    """Return the time at which a part of an answer is asked for again.

    :param bounds: least and most seconds after the question; they hold after jitter too.
    :param chance: 0 to 1: how much of `JITTER` to take off.
    :return: seconds on the clock of `part.asked`.
    """
    least, most = bounds
    return part.asked + max(least, min(part.ttl, most) * (1 - JITTER * chance))


def is_good(part: SrvSet | AddressSet, bounds: tuple[float, float], now: float) -> bool:
    """Tell whether a part may be used once more; not in its last tenth, so that one round asks for all that is due.

    :param bounds: least and most seconds between questions.
    :param now: seconds on the clock of `part.asked`.
    """
    return now < lasts(part, bounds, 1.0)


def next_round(parts: Iterable[SrvSet | AddressSet], bounds: tuple[float, float], chance: float) -> float:
    """Return the time at which the first part of the answer is asked for again.

    Within what jitter leaves it is on a grid, so that a sidecar wakes up once for many names.
    Hosts stay apart: their clocks do not begin at the same time.

    :param parts: at least one.
    :param bounds: least and most seconds between questions.
    :param chance: a random number, 0 <= chance < 1: how much of `JITTER` to take off.
    :return: seconds on the clock of the parts.
    """
    distinct = {(part.ttl, part.asked): part for part in parts}.values()
    due, earliest, latest = (min(lasts(part, bounds, share) for part in distinct) for share in (chance, 1.0, 0.0))
    if latest <= earliest:
        return due
    grid = 2.0 ** math.floor(math.log2(latest - earliest))  # the same for TTLs that are about the same
    on_grid = due // grid * grid
    return on_grid if on_grid >= earliest else on_grid + grid


def pause(questions: int, bounds: tuple[float, float]) -> float:
    """Return the seconds from the start of one round to that of the next, at least.

    :param questions: how many the round took; more than `QUESTIONS_PER_SECOND` lengthen the pause.
    :param bounds: least and most seconds.
    """
    least, most = bounds
    return min(most, max(least, questions / QUESTIONS_PER_SECOND))


def _parse(srv: SrvSet, target: str, found: Sequence[AddressSet]) -> list[Address]:
    """Return the addresses of one target, each once; an IPv4-mapped AAAA record would be in the wrong pool."""
    parsed = []
    for text in dict.fromkeys(text for one in found for text in one.addresses):
        try:
            address = parse_address(text)
        except ValueError:
            raise SourceError(f"SRV {srv.owner}: {text!r} is no address of target {target}; correct the zone") from None
        if is_ipv4(address) and ":" in text:
            raise SourceError(f"SRV {srv.owner}: target {target} has {text} as AAAA record; publish it as A record")
        parsed.append(address)
    return parsed
