"""DNS SRV as a source: one record name, of which each part is asked again when its TTL runs out.

dnspython resolves; what is ours is the stance around it. The SRV records are whole or an error: SERVFAIL, REFUSED, a
time-out or a malformed message keeps the last known answer (RFC 8767 section 4), and only NXDOMAIN and NODATA mean
"none". A target that cannot be had now keeps what it had, and the others count.
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
from clb_discovery.sources.dns.reading import Reading, given_along
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.target_cache import Question
from clb_discovery.sources.dns.whole import WholeSrv

MAX_READS: Final = 3
"""How often a zone that changes while it is read is read again in one round, the first time included."""
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
        :param min_ttl: least seconds between two rounds.
        :param max_ttl: most seconds between two rounds.
        :param families: those that addresses are needed of: True for IPv4, False for IPv6.
        :param linger: seconds that records stay after they were last seen; None for as long as the server's way of
            varying its answers makes necessary, see `Linger`.
        :param rng: where jitter comes from.
        :raises UsageError: if the name is not a DNS name, or the bounds cross.
        """
        self.name: Final = f"srv:{name}"
        self._qname: Final = _parse_name(name)
        if not 0 < min_ttl <= max_ttl:
            raise UsageError(
                f"--min-ttl {min_ttl:g} and --max-ttl {max_ttl:g}: give seconds above 0, the first not above the second"
            )
        self._bounds: Final = (min_ttl, max_ttl)
        self._resolvers: Final = resolvers
        self._rdtypes: Final = tuple(A if is_ipv4 else AAAA for is_ipv4 in BOTH if is_ipv4 in families)
        self._rng: Final = rng or random.Random()  # noqa: S311 -- jitter, nothing secret
        self.due: float | None = None
        """When it asks again, in seconds of the loop's clock; None for at once."""
        self._whole: Final = WholeSrv(self.name, self._qname)
        self._linger: Final = Linger[_Member, tuple[RealServer, ...]](linger, identity=itemgetter(0))
        self._hastened = asyncio.Event()
        self._since = 0.0  # when it was hastened: nothing that was asked before counts
        self._reading: Reading | None = None  # which the last answer is from
        self._last: Answer | None = None  # of that reading alone, without records that linger
        self._built: tuple[object, Answer] | None = None  # the last one that was put together, and what of
        self._members: frozenset[_Member] = frozenset()  # those that had addresses

    def hasten(self) -> None:
        """Ask at once; the answer that follows is of questions that were sent after this call."""
        self._since = asyncio.get_running_loop().time()
        self._hastened.set()

    async def next(self) -> Answer:
        """Wait until the first TTL of the last answer is over, then ask; at once the first time and after an error.

        :raises SourceError: if the SRV records could not be had, or nobody in them can be used.
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
        """Ask for what is due, and set when to ask again; raises as `next`."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(ROUND_TIMEOUT), Lookup(self.name, self._resolvers.current()) as lookup:
                reading, addresses = await self._find(lookup, self._since)
        except TimeoutError:
            raise SourceError(
                f"{self.name}: no complete answer in {ROUND_TIMEOUT:g} s; the DNS server is slow, look at its load"
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

        Addresses that did not come along are from another time, when the zone may have been another, and the port of
        one server would meet the address of the next. So with new records addresses are asked for again, and news is
        read until the records are the same before and after. Where they never are the last reading counts as it is.

        :param since: nothing that was asked before this time counts, in seconds of the loop's clock.
        :return: the records, and the addresses that did not come along with them.
        :raises SourceError: if the records could not be had.
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
        """Return whether this is the answer of the last round; where nobody can be used the zone may be another now."""
        try:
            return self._last is not None and self._answer(reading, addresses).servers == self._last.servers
        except SourceError:
            return False

    def _answer(self, reading: Reading, addresses: Mapping[Question, _Set]) -> Answer:
        """Build the answer, unless it is of the same records and addresses as the one before; raises as that."""
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
            try:
                answer = build_answer(reading.srv, sets, self._members)
            except SourceError as error:
                raise type(error)(f"{self.name}: {error}") from None
            self._members = frozenset(
                [(answer.identities[server.address, server.port], server.port) for server in answer.servers]
                + [(one.identity, one.port or 0) for one in answer.unread if (one.identity, one.port) in self._members]
            )
            self._built = parts, replace(answer, note=_joined(reading.note, answer.note))
        return self._built[1]

    def _with_lingering(self, reading: Reading, answer: Answer, now: float, *, is_read: bool) -> Answer:
        """Add the records that stay although this reading lacks them, where the server varies its answers.

        :param is_read: whether the reading is a new one.
        """
        linger = self._linger
        members = self._with_addresses(reading, answer)
        if is_read:
            linger.read(members, now)
        else:
            linger.update(members)
        if not linger.stays:
            return answer
        present = {(server.address, server.port) for server in answer.servers}
        identities = dict(answer.identities)
        stay: list[RealServer] = []
        for (target, _), servers in linger.lingering(now).items():
            for server in servers:
                if (server.address, server.port) not in present:
                    stay.append(server)
                    present.add((server.address, server.port))
                    identities[server.address, server.port] = target
        ended = {
            (server.address, server.port) for servers in linger.ended(now).values() for server in servers
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
        """Return the records of a reading with their real servers, of families that cannot be had now the last ones."""
        members: dict[_Member, list[RealServer]] = {
            (record.target, record.port): [] for record in reading.srv.records if is_needed(record)
        }
        for server in answer.servers:
            members[answer.identities[server.address, server.port], server.port].append(server)
        for one in answer.unread:
            member = one.identity, one.port or 0
            known = self._linger.last(member) or ()
            members[member] += [server for server in known if is_ipv4(server.address) is one.is_ipv4]
        return {member: tuple(dict.fromkeys(servers)) for member, servers in members.items()}

    async def _read(self, lookup: Lookup) -> Reading:
        """Read the SRV records, with the addresses that come along and are to be believed.

        :raises SourceError: if the question got no proper answer, or there are too many records.
        """
        clock = asyncio.get_running_loop().time
        async with self._resolvers.places:
            asked = clock()
            found, note = await self._whole.find(lookup)
        records = sorted(  # servers rotate them, which is no news
            SrvRecord(record.priority, record.weight, record.port, to_text(record.target))
            for record in found.records or ()
        )
        srv = SrvSet(to_text(found.name), tuple(records), found.ttl, asked)
        try:
            names = targets(srv)
        except SourceError as error:
            raise type(error)(f"{self.name}: {error}") from None
        wanted = [Question(name, rdtype) for name in names for rdtype in self._rdtypes]
        along = given_along(found, frozenset(wanted), asked)
        given = self._believed(along)
        if len(given) < len(along):
            count = len(along) - len(given)
            _log.debug("additional addresses differ from those known; querying them", source=self.name, addresses=count)
        srv = replace(srv, ttl=min([srv.ttl, *(one.ttl for one in given.values())]))
        apart = tuple(question for question in wanted if question not in given)
        return Reading(srv, given, apart, clock(), note)

    def _believed(self, given: Mapping[Question, AddressSet]) -> Mapping[Question, AddressSet]:
        """Return the addresses that came along and are the same as those known; others are asked for.

        A server may cut short what it adds (RFC 2181 section 9), another part each time.
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
    """Read a record name.

    :raises UsageError: if it is empty, not a DNS name (RFC 1035 section 2.3.4), or would break a line of the log.
    """
    try:
        if not text.isprintable():
            raise ValueError("A character is not printable.")  # noqa: TRY301  -- worded below, with the others
        name = dns.name.from_text(text, None)
        absolute = name.derelativize(dns.name.root)
    except (DNSException, ValueError, struct.error) as error:  # struct.error: an escape above \255, to dnspython 2.7
        reason = plain(str(error))
        raise UsageError(f"--srv {text[:300]!r}: {reason}; give a record name such as _redis._tcp.example") from None
    if absolute == dns.name.root:
        raise UsageError(f"--srv {text!r}: names no record; give a record name such as _redis._tcp.example")
    return name


def _joined(*notes: str | None) -> str | None:
    return "; ".join(note for note in notes if note) or None
