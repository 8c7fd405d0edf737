"""A name in DNS as a source: a round of queries when the first TTL of the last answer expires.

dnspython sends the queries; the rules are ours, and the same for SRV records and for plain addresses. An answer is
complete or an error: after SERVFAIL, REFUSED, a time-out or a malformed message the last known answer stays (RFC 8767
section 4), and only NXDOMAIN and NODATA mean "none". A part whose query fails keeps its last addresses, and the other
parts count.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

import dns.name
import structlog
from dns.exception import DNSException
from dns.rdatatype import AAAA, A, RdataType

from clb_discovery.errors import SourceError, UnusableError, UsageError
from clb_discovery.model.address import is_ipv4
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import RealServer
from clb_discovery.sources.dns.answer import Part, next_round, pause
from clb_discovery.sources.dns.exchange import plain
from clb_discovery.sources.dns.linger import Linger
from clb_discovery.sources.dns.lookup import Lookup
from clb_discovery.sources.dns.resolvers import Resolvers

ROUND_TIMEOUT: Final = 60.0
"""Seconds for all queries of one round."""
BOTH: Final = (True, False)
"""IPv4 and IPv6."""

_log = structlog.stdlib.get_logger()


class Bounds(NamedTuple):
    """Seconds between two rounds; they hold whatever the TTLs are."""

    least: float = 1.0
    most: float = 60.0


class Member(NamedTuple):
    """What lingers: a record, with everything that it stands for."""

    identity: str
    """The target of an SRV record, or an address."""
    port: int


Servers = tuple[RealServer, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one round."""

    answer: Answer
    """Without records that linger."""
    is_new: bool
    """Whether records were read, and not only known ones used again."""
    unread_families: Collection[bool] = ()
    """Families of which nothing was read, True for IPv4: all of their real servers stay as they are."""


class Reader(Protocol):
    """Reads the records of one name: all that distinguishes SRV records from addresses."""

    @property
    def parts(self) -> Sequence[Part]:
        """All parts that the last round was built from, usable or not; at least one."""

    async def read(self, lookup: Lookup, since: float) -> Round:
        """Query all parts that are due.

        :param since: answers to queries from before this time do not count, in seconds of the loop's clock.
        :raises SourceError: if there is no complete answer; an UnusableError if it cannot be used.
        """

    def members(self, last: Callable[[Member], Servers | None]) -> Mapping[Member, Servers]:
        """Return the records of the last round with their real servers; for a failed query, the last known servers.

        :param last: returns the last known servers of a record.
        """

    async def why_empty(self, lookup: Lookup) -> str | None:
        """Query why there are no real servers; raises SourceError if a query failed."""


class DnsSource:
    """One name in DNS: a `sources.base.Explaining`."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        name: str,
        reader: Reader,
        resolvers: Resolvers,
        bounds: Bounds,
        *,
        linger: float | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        :param name: of the source, such as `srv:_redis._tcp.example`.
        :param linger: seconds that records stay after they were last seen; None to derive it from how much the server
            varies its answers, see `Linger`.
        :param rng: random numbers for jitter.
        :raises UsageError: if the bounds cross.
        """
        self.name: Final = name
        if not 0 < bounds.least <= bounds.most:
            raise UsageError(
                f"--min-ttl {bounds.least:g} and --max-ttl {bounds.most:g}: give times above 0, --min-ttl at most "
                "--max-ttl"
            )
        self._reader: Final = reader
        self._resolvers: Final = resolvers
        self._bounds: Final = bounds
        self._rng: Final = rng or random.Random()  # noqa: S311 -- jitter, nothing secret
        self.due: float | None = None
        """When the next round starts, in seconds of the loop's clock; None for at once."""
        self._linger: Final = Linger[Member, Servers](linger, identity=attrgetter("identity"))
        self._answered = 0.0  # when the last round ended with an answer
        self._unread: Collection[bool] = ()  # families of which the last round read nothing
        self._hastened = asyncio.Event()
        self._since = 0.0  # when it was hastened: rounds that begin after it use no earlier answers

    def hasten(self) -> None:
        """Query at once, or once more after a round that is running."""
        self._since = asyncio.get_running_loop().time()
        self._hastened.set()

    async def next(self) -> Answer:
        """Wait until the first TTL of the last answer expires, then query; the first time and after an error, at once.

        :raises SourceError: if there is no complete answer; an UnusableError if it cannot be used, whose TTL counts.
        """
        if self.due is not None:
            try:
                async with asyncio.timeout_at(self.due):
                    await self._hastened.wait()
                _log.debug("wait was cut short; DNS is queried at once", source=self.name)
            except TimeoutError:
                pass
        self.due = None
        self._hastened.clear()
        return await self._round()

    async def _round(self) -> Answer:
        """Query all parts that are due, and set the time of the next round; raises as `next`."""
        clock = asyncio.get_running_loop().time
        started = clock()
        unread, self._unread = self._unread, BOTH  # until there is an answer
        try:
            async with asyncio.timeout(ROUND_TIMEOUT), Lookup(self.name, self._resolvers.current()) as lookup:
                found = await self._reader.read(lookup, self._since)
        except TimeoutError:
            raise SourceError(
                f"{self.name}: no complete answer in {ROUND_TIMEOUT:g} s; check the load of the DNS server"
            ) from None
        except UnusableError:
            self._schedule(started, lookup.questions)
            raise
        now = clock()
        self._skip_unanswered(now, {*unread, *found.unread_families})
        self._answered, self._unread = now, found.unread_families
        due = self._schedule(started, lookup.questions)
        ttl = min(part.ttl for part in self._reader.parts)
        _log.debug(
            "answer is complete",
            source=self.name,
            servers=len(found.answer.servers),
            ttl=ttl,
            clamped_ttl=min(max(ttl, self._bounds.least), self._bounds.most),
            min_ttl=self._bounds.least,
            max_ttl=self._bounds.most,
            queries=lookup.questions,
            next_query_in=round(due - now, 1),
        )
        asked = min(started, *(part.asked for part in self._reader.parts))
        return replace(self._with_lingering(found, now), asked=asked)

    def _schedule(self, started: float, questions: int) -> float:
        """Set the time of the next round by the TTLs of this one, and return it.

        :param started: when this round started.
        :param questions: number of its queries.
        """
        self.due = max(
            next_round(self._reader.parts, self._bounds, self._rng.random()),
            started + pause(questions, self._bounds),
            asyncio.get_running_loop().time() + self._bounds.least,
        )
        return self.due

    def _skip_unanswered(self, now: float, families: Collection[bool]) -> None:
        """Let records stay for as long as nothing was read of them: an error is no answer without them.

        :param families: those of which this round or the one before read nothing.
        """
        if families:
            self._linger.skip(
                now - self._answered, lambda servers: all(is_ipv4(one.address) in families for one in servers)
            )

    def _with_lingering(self, found: Round, now: float) -> Answer:
        """Add records that stay although this round lacks them, if the server varies its answers."""
        linger, answer = self._linger, found.answer
        members = self._reader.members(linger.last)
        if found.is_new:
            linger.read(members, now)
        else:
            linger.update(members)
        if not linger.stays:
            return answer
        present = {server.endpoint for server in answer.servers}
        identities = dict(answer.identities)
        stay: list[RealServer] = []
        for member, servers in linger.lingering(now).items():
            for server in servers:
                if server.endpoint not in present and is_ipv4(server.address) not in found.unread_families:
                    stay.append(server)
                    present.add(server.endpoint)
                    identities[server.endpoint] = member.identity
        ended = {
            server.endpoint
            for servers in linger.ended(now).values()
            for server in servers
            if is_ipv4(server.address) not in found.unread_families
        } - present
        if stay or ended:
            _log.debug(
                "records that the answer lacks linger",
                source=self.name,
                servers=len(stay),
                ended=len(ended),
                seconds=round(linger.stays, 1),
                fixed=linger.is_fixed,
            )
        end = linger.next_end(now)
        if end is not None and self.due is not None:
            self.due = min(self.due, max(end, now + self._bounds.least))
        note = None
        if stay:
            lacks = f"lacks stay for {round(linger.stays, 1):g} s after they were last seen"
            note = f"the DNS server varies its answers: real servers that one {lacks}"
            if linger.is_fixed:
                note = f"--linger: real servers that an answer {lacks}"
        return replace(
            answer,
            servers=tuple(sorted([*answer.servers, *stay])),
            identities=identities,
            out=tuple(sorted(ended)),
            note=joined(answer.note, note),
        )

    async def why_empty(self) -> str | None:
        """Query why there are no real servers."""
        async with Lookup(self.name, self._resolvers.current()) as lookup:
            return await self._reader.why_empty(lookup)


def record_types(families: Collection[bool]) -> tuple[RdataType, ...]:
    """Return the types of address records of these families, True for IPv4."""
    return tuple(A if is_ipv4 else AAAA for is_ipv4 in BOTH if is_ipv4 in families)


def parse_name(option: str, text: str, example: str) -> dns.name.Name:
    """Parse a name; it is relative unless it ends in a dot.

    :param option: the option that has it, for messages.
    :param example: the end of a sentence that begins with `give`.
    :raises UsageError: if it is empty, not a DNS name (RFC 1035 section 2.3.4), or not printable.
    """
    try:
        if not text.isprintable():
            raise ValueError("A character is not printable.")  # noqa: TRY301  -- handled below, with the others
        name = dns.name.from_text(text, None)
        absolute = name.derelativize(dns.name.root)
    except (DNSException, ValueError, struct.error) as error:  # struct.error: an escape above \255, up to dnspython 2.7
        raise UsageError(f"{option} {text[:300]!r}: {plain(str(error))}; give {example}") from None
    if absolute == dns.name.root:
        raise UsageError(f"{option} {text!r}: has no name; give {example}")
    return name


def joined(*notes: str | None) -> str | None:
    """Return notes as one; None if there are none."""
    return "; ".join(note for note in notes if note) or None
