"""DNS SRV as a source: one record name; each part of its answer is queried again when its TTL expires.

dnspython sends the queries; the rules are ours. The SRV records are complete or an error: after SERVFAIL, REFUSED, a
time-out or a malformed message the last known answer stays (RFC 8767 section 4), and only NXDOMAIN and NODATA mean
"none". A target whose query fails keeps its last addresses, and the other targets count.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Collection, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Final

import dns.name
import structlog
from dns.exception import DNSException
from dns.rdatatype import AAAA, A

from clb_discovery.errors import SourceError, UsageError
from clb_discovery.model.address import is_ipv4
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import RealServer
from clb_discovery.sources.dns.answer import (
    AddressSet,
    SrvRecord,
    SrvSet,
    Unavailable,
    build_answer,
    is_good,
    is_needed,
    next_round,
    pause,
    targets,
)
from clb_discovery.sources.dns.exchange import plain
from clb_discovery.sources.dns.linger import Linger
from clb_discovery.sources.dns.lookup import Lookup, to_text
from clb_discovery.sources.dns.reading import Reading, additional_addresses
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.target_cache import Question
from clb_discovery.sources.dns.whole import WholeSrv

MAX_READS: Final = 3
"""Maximum reads of a zone in one round, if it changes while it is read."""
ROUND_TIMEOUT: Final = 60.0
"""Seconds for the SRV records and all their targets."""
BOTH: Final = (True, False)
"""IPv4 and IPv6."""

_log = structlog.stdlib.get_logger()

_Set = AddressSet | Unavailable
_Member = tuple[str, int]
"""Target and port."""


class SrvSource:
    """One SRV record name, such as `_redis._tcp.example`."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        name: str,
        resolvers: Resolvers,
        min_ttl: float = 1.0,
        max_ttl: float = 60.0,
        *,
        families: Collection[bool] = BOTH,
        linger: float | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Check the name; nothing is sent yet.

        :param name: the owner of the SRV records; unless it ends in a dot, search domains of resolv.conf apply.
        :param min_ttl: minimum seconds between two rounds.
        :param max_ttl: maximum seconds between two rounds.
        :param families: families whose addresses are needed: True for IPv4, False for IPv6.
        :param linger: seconds that records stay after they were last seen; None to derive it from how much the server
            varies its answers, see `Linger`.
        :param rng: random numbers for jitter.
        :raises UsageError: if the name is not a DNS name, or the bounds cross.
        """
        self.name: Final = f"srv:{name}"
        self._qname: Final = _parse_name(name)
        if not 0 < min_ttl <= max_ttl:
            raise UsageError(
                f"--min-ttl {min_ttl:g} and --max-ttl {max_ttl:g}: give times above 0, --min-ttl at most --max-ttl"
            )
        self._bounds: Final = (min_ttl, max_ttl)
        self._resolvers: Final = resolvers
        self._rdtypes: Final = tuple(A if is_ipv4 else AAAA for is_ipv4 in BOTH if is_ipv4 in families)
        self._rng: Final = rng or random.Random()  # noqa: S311 -- jitter, nothing secret
        self.due: float | None = None
        """When the next round starts, in seconds of the loop's clock; None for at once."""
        self._whole: Final = WholeSrv(self.name, self._qname)
        self._linger: Final = Linger[_Member, tuple[RealServer, ...]](linger, identity=itemgetter(0))
        self._hastened = asyncio.Event()
        self._since = 0.0  # when it was hastened: answers to earlier queries do not count
        self._reading: Reading | None = None  # the one that the last answer was built from
        self._last: Answer | None = None  # of that reading alone, without lingering records
        self._built: tuple[object, Answer] | None = None  # the last answer that was built, and its parts
        self._members: frozenset[_Member] = frozenset()  # members that had addresses

    def hasten(self) -> None:
        """Query at once; the next answer comes from queries that were sent after this call."""
        self._since = asyncio.get_running_loop().time()
        self._hastened.set()

    async def next(self) -> Answer:
        """Wait until the first TTL of the last answer expires, then query; the first time and after an error, at once.

        :raises SourceError: if the query of the SRV records failed, or none of them can be used.
        """
        clock = asyncio.get_running_loop().time
        if self.due is not None:
            try:
                async with asyncio.timeout_at(self.due):
                    await self._hastened.wait()
                _log.debug("wait was cut short; DNS is queried at once", source=self.name)
            except TimeoutError:
                pass
        self.due = None
        while True:
            self._hastened.clear()
            answer = await self._round(clock())
            if not self._hastened.is_set():
                return answer

    async def _round(self, started: float) -> Answer:
        """Query all parts that are due, and set the time of the next round; raises as `next`."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(ROUND_TIMEOUT), Lookup(self.name, self._resolvers.current()) as lookup:
                reading, addresses = await self._find(lookup, self._since)
        except TimeoutError:
            raise SourceError(
                f"{self.name}: no complete answer in {ROUND_TIMEOUT:g} s; check the load of the DNS server"
            ) from None
        answer = self._answer(reading, addresses)
        is_read = reading is not self._reading
        self._last, self._reading = answer, reading
        now = clock()
        self.due = max(
            next_round([reading.srv, *addresses.values()], self._bounds, self._rng.random()),
            started + pause(lookup.questions, self._bounds),
            now + self._bounds[0],
        )
        ttl, (min_ttl, max_ttl) = reading.srv.ttl, self._bounds
        _log.debug(
            "answer is complete",
            source=self.name,
            servers=len(answer.servers),
            srv_ttl=ttl,
            clamped_ttl=min(max(ttl, min_ttl), max_ttl),
            min_ttl=min_ttl,
            max_ttl=max_ttl,
            queries=lookup.questions,
            next_query_in=round(self.due - now, 1),
        )
        return self._with_lingering(reading, answer, now, is_read=is_read)

    async def _find(self, lookup: Lookup, since: float) -> tuple[Reading, Mapping[Question, _Set]]:
        """Find the records of one response, and the addresses of exactly those records.

        Addresses that did not come with the records are of another time, when the zone may have been different. The
        port of one server could then meet the address of another. So if the records are new, their addresses are
        queried again, and the records are read again until they are the same before and after the addresses. If
        they never are, the last reading counts.

        :param since: answers to queries from before this time do not count, in seconds of the loop's clock.
        :return: the records, and the addresses that did not come with them.
        :raises SourceError: if the query of the records failed.
        """
        last = self._reading
        now = asyncio.get_running_loop().time()
        if last is not None and last.srv.asked >= since and is_good(last.srv, self._bounds, now):
            reading = last
            _log.debug("SRV records are within their TTL; only addresses are queried", source=self.name)
        else:
            reading = await self._read(lookup)
        for reads in range(1, MAX_READS + 1):
            is_new = last is None or reading.srv.records != last.srv.records
            earliest = max(since, reading.read if is_new else 0.0)
            addresses = await self._resolvers.addresses.find(lookup, reading.apart, earliest, self._bounds)
            if not reading.apart or reads == MAX_READS or self._is_known(reading, addresses):
                break
            again = await self._read(lookup)
            if again.srv.records == reading.srv.records:
                break
            _log.debug("records changed while addresses were queried; querying again", source=self.name, reads=reads)
            last, reading = reading, again
        return reading, addresses

    def _is_known(self, reading: Reading, addresses: Mapping[Question, _Set]) -> bool:
        """Return whether this is the answer of the last round; without usable records the zone may have changed."""
        try:
            return self._last is not None and self._answer(reading, addresses).servers == self._last.servers
        except SourceError:
            return False

    def _answer(self, reading: Reading, addresses: Mapping[Question, _Set]) -> Answer:
        """Build the answer, or return the last one if records and addresses are the same; raises as `build_answer`."""
        known: dict[Question, _Set] = {**reading.given, **addresses}
        parts = (
            reading.srv.records,
            reading.note,
            {
                question: found.addresses if isinstance(found, AddressSet) else found.cause
                for question, found in known.items()
            },
        )
        if self._built is None or self._built[0] != parts:
            sets: dict[str, list[_Set]] = {name: [] for name in targets(reading.srv)}
            for question, found in known.items():
                sets[question.target].append(found)
            answer = build_answer(reading.srv, sets, self._members)
            self._members = frozenset(
                [(answer.identities[server.endpoint], server.port) for server in answer.servers]
                + [(one.identity, one.port or 0) for one in answer.unread if (one.identity, one.port) in self._members]
            )
            self._built = parts, replace(answer, note=_joined(reading.note, answer.note))
        return self._built[1]

    def _with_lingering(self, reading: Reading, answer: Answer, now: float, *, is_read: bool) -> Answer:
        """Add records that stay although this reading lacks them, if the server varies its answers.

        :param is_read: whether the reading is new.
        """
        linger = self._linger
        members = self._with_addresses(reading, answer)
        if is_read:
            linger.read(members, now)
        else:
            linger.update(members)
        if not linger.stays:
            return answer
        present = {server.endpoint for server in answer.servers}
        identities = dict(answer.identities)
        stay: list[RealServer] = []
        for (target, _), servers in linger.lingering(now).items():
            for server in servers:
                if server.endpoint not in present:
                    stay.append(server)
                    present.add(server.endpoint)
                    identities[server.endpoint] = target
        ended = {server.endpoint for servers in linger.ended(now).values() for server in servers} - present
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
            self.due = min(self.due, max(end, now + self._bounds[0]))
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
            note=_joined(answer.note, note),
        )

    def _with_addresses(self, reading: Reading, answer: Answer) -> Mapping[_Member, tuple[RealServer, ...]]:
        """Return the records of a reading with their real servers; for a failed query, the last known servers."""
        members: dict[_Member, list[RealServer]] = {
            (record.target, record.port): [] for record in reading.srv.records if is_needed(record)
        }
        for server in answer.servers:
            members[answer.identities[server.endpoint], server.port].append(server)
        for one in answer.unread:
            member = one.identity, one.port or 0
            known = self._linger.last(member) or ()
            members[member] += [server for server in known if is_ipv4(server.address) is one.is_ipv4]
        return {member: tuple(dict.fromkeys(servers)) for member, servers in members.items()}

    async def why_empty(self) -> str | None:
        """Query whether the name exists at all: a `sources.base.Explaining`."""
        async with Lookup(self.name, self._resolvers.current()) as lookup:
            return await self._whole.why_empty(lookup)

    async def _read(self, lookup: Lookup) -> Reading:
        """Read the SRV records, with the trustworthy addresses of the same response.

        :raises SourceError: if the query failed, or there are too many records.
        """
        clock = asyncio.get_running_loop().time
        async with self._resolvers.places:
            asked = clock()
            found, note = await self._whole.find(lookup)
        records = sorted(  # sorted, because servers rotate them
            SrvRecord(record.priority, record.weight, record.port, to_text(record.target))
            for record in found.records or ()
        )
        srv = SrvSet(to_text(found.name), tuple(records), found.ttl, asked)
        names = targets(srv)
        wanted = [Question(name, rdtype) for name in names for rdtype in self._rdtypes]
        along = additional_addresses(found, frozenset(wanted), asked)
        given = self._trusted(along)
        if len(given) < len(along):
            count = len(along) - len(given)
            _log.debug("additional addresses differ from those known; querying them", source=self.name, addresses=count)
        srv = replace(srv, ttl=min([srv.ttl, *(one.ttl for one in given.values())]))
        apart = tuple(question for question in wanted if question not in given)
        return Reading(srv, given, apart, clock(), note)

    def _trusted(self, given: Mapping[Question, AddressSet]) -> Mapping[Question, AddressSet]:
        """Return the additional addresses that equal the known ones; the others are queried.

        A server may leave out additional records (RFC 2181 section 9), different ones each time.
        """
        addresses = self._resolvers.addresses
        before = self._reading.given if self._reading else {}
        return {
            question: along
            for question, along in given.items()
            if (known := addresses.last(question) or before.get(question)) is None
            or set(known.addresses) == set(along.addresses)
        }


def _parse_name(text: str) -> dns.name.Name:
    """Parse a record name.

    :raises UsageError: if it is empty, not a DNS name (RFC 1035 section 2.3.4), or not printable.
    """
    try:
        if not text.isprintable():
            raise ValueError("A character is not printable.")  # noqa: TRY301  -- handled below, with the others
        name = dns.name.from_text(text, None)
        absolute = name.derelativize(dns.name.root)
    except (DNSException, ValueError, struct.error) as error:  # struct.error: an escape above \255, up to dnspython 2.7
        reason = plain(str(error))
        raise UsageError(f"--srv {text[:300]!r}: {reason}; give a record name such as _redis._tcp.example") from None
    if absolute == dns.name.root:
        raise UsageError(f"--srv {text!r}: has no name; give a record name such as _redis._tcp.example")
    return name


def _joined(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note) or None
