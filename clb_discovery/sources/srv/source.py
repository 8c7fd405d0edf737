"""DNS SRV as a source: one record name, of which each part is asked again when its TTL runs out.

dnspython resolves; what is ours is the stance around it. An answer is whole or it is an error: SERVFAIL, REFUSED, a
time-out or a malformed message for the SRV records or for any one target fails the round, and the last known answer
stays (RFC 8767 section 4). Only NXDOMAIN and NODATA say "none".
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import dns.name
from dns.exception import DNSException
from dns.rdataclass import IN
from dns.rdatatype import AAAA, SRV, A

from clb_discovery.core.model import Answer
from clb_discovery.errors import SourceError, UsageError
from clb_discovery.sources.base import Query
from clb_discovery.sources.srv.addresses import Question
from clb_discovery.sources.srv.answer import (
    AddressSet,
    SrvRecord,
    SrvSet,
    build_answer,
    is_good,
    next_round,
    pause,
    targets,
)
from clb_discovery.sources.srv.burst import EDNS_PAYLOAD
from clb_discovery.sources.srv.lookup import Found, Lookup, plain, to_text
from clb_discovery.sources.srv.repeat import Repeat
from clb_discovery.sources.srv.resolvers import Resolvers

MAX_READS: Final = 3
"""How often a zone that changes while it is read is read again in one round, the first time included."""
ROUND_TIMEOUT: Final = 60.0
"""Seconds for the SRV records and all their targets."""

_TRIMMED_FROM: Final = EDNS_PAYLOAD * 2 // 3
"""Bytes. What Consul trims ends within one record and its addresses of the buffer size."""
_TCP_TRIMMED_FROM: Final = 64_000
"""Bytes, likewise; over TCP Consul trims to 65,523."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """The SRV records at one time, with the addresses that came along."""

    srv: SrvSet
    """Its TTL is the smallest of all that came in the answer."""
    given: Mapping[Question, AddressSet]
    """Addresses that came along in the additional section; they hold as long as the records."""
    apart: tuple[Question, ...]
    """What else has to be known of the targets."""
    read: float
    """When the answer was there, in seconds of the loop's clock."""
    repeat: Repeat

    def renewed(self, ttl: int, asked: float, read: float) -> _Reading:
        """Return the same, said once more.

        :param ttl: seconds that all of it holds.
        """
        return replace(self, srv=replace(self.srv, ttl=ttl, asked=asked), read=read)


class SrvSource:
    """One SRV record name, such as `_redis._tcp.example`."""

    def __init__(
        self,
        name: str,
        resolvers: Resolvers,
        min_ttl: float = 1.0,
        max_ttl: float = 60.0,
        *,
        rng: random.Random | None = None,
    ) -> None:
        """Check the name; nothing is sent yet.

        :param name: the owner of the SRV records; unless it ends in a dot, search domains of resolv.conf apply.
        :param min_ttl: least seconds between two rounds.
        :param max_ttl: most seconds between two rounds.
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
        self._rng: Final = rng or random.Random()  # noqa: S311 -- jitter, nothing secret
        self.due: float | None = None
        """When it asks again, in seconds of the loop's clock; None for at once."""
        self._tcp_first = False
        self._last: Answer | None = None
        self._reading: _Reading | None = None  # which the last answer is from
        self._built: tuple[object, Answer] | None = None  # the last one that was put together, and what of
        self._query = Query()

    async def next(self) -> Answer:
        """Wait until the first TTL of the last answer is over, then ask; at once the first time and after an error.

        :raises SourceError: if the SRV records or the addresses of any target could not be had.
        """
        return await self._query.run(self._next)

    def hasten(self) -> None:
        """Query DNS at once, whatever TTL is left."""
        self.due = self._reading = None
        self._query.repeat()

    async def _next(self) -> Answer:
        clock = asyncio.get_running_loop().time
        if self.due is not None:
            await asyncio.sleep(self.due - clock())
        self.due = None
        started = clock()
        try:
            async with asyncio.timeout(ROUND_TIMEOUT), Lookup(self.name, self._resolvers.current()) as lookup:
                reading, addresses = await self._find(lookup)
        except TimeoutError:
            raise SourceError(
                f"{self.name}: no complete answer in {ROUND_TIMEOUT:g} s; the DNS server is slow, look at its load"
            ) from None
        answer = self._answer(reading, addresses)
        self._last, self._reading = answer, reading
        self.due = max(
            next_round([reading.srv, *addresses.values()], self._bounds, self._rng.random()),
            started + pause(lookup.questions, self._bounds),
            clock() + self._bounds[0],
        )
        return answer

    async def _find(self, lookup: Lookup) -> tuple[_Reading, Mapping[Question, AddressSet]]:
        """Find the records and the addresses of their targets, all from one version of the zone.

        Addresses that did not come along are from another time, when the zone may have been another, and the port of
        one server would meet the address of the next. So with new records addresses are asked for anew, and what is
        news is read until the records are the same before and after.

        :return: the records, and the addresses that did not come along with them.
        :raises SourceError: if a question got no proper answer. Records that change all the time are taken as they are.
        """
        last = self._reading
        if last is not None and is_good(last.srv, self._bounds, asyncio.get_running_loop().time()):
            reading = last
        else:
            reading = await self._read(lookup, last)
        for _ in range(MAX_READS):
            is_new = last is None or reading.srv.records != last.srv.records
            since = reading.read if is_new else 0.0
            addresses = await self._resolvers.addresses.find(lookup, reading.apart, since, self._bounds)
            if not reading.apart or self._answer(reading, addresses) == self._last:
                break
            last, reading = reading, await self._read(lookup, reading)
            if reading.srv.records == last.srv.records:
                break
        return reading, addresses

    def _answer(self, reading: _Reading, addresses: Mapping[Question, AddressSet]) -> Answer:
        """Build the answer, unless it is of the same records and addresses as the one before; raises as that."""
        known = {**reading.given, **addresses}
        parts = (reading.srv.records, {question: found.addresses for question, found in known.items()})
        if self._built is None or self._built[0] != parts:
            sets: dict[str, list[AddressSet]] = {name: [] for name in targets(reading.srv)}
            for question, found in known.items():
                sets[question.target].append(found)
            self._built = parts, build_answer(reading.srv, sets)
        return self._built[1]

    async def _read(self, lookup: Lookup, last: _Reading | None) -> _Reading:
        """Read the SRV records, with the addresses that come along and are to be believed.

        :param last: what was read before, if anything; asking again may say that it is still so.
        :raises SourceError: if the question got no proper answer, or a record cannot be used.
        """
        clock = asyncio.get_running_loop().time
        asked = clock()
        if last and (ttl := await lookup.again(self._qname, last.repeat)) is not None:
            return last.renewed(ttl, asked, clock())
        asked = clock()
        found = await self._find_srv(lookup)
        repeat = Repeat(found.outline, last.repeat if last else None)
        records = sorted(  # servers rotate them, which is no news
            SrvRecord(record.priority, record.weight, record.port, to_text(record.target))
            for record in found.records or ()
        )
        srv = SrvSet(to_text(found.name), tuple(records), found.ttl, asked)
        names = targets(srv)
        given = _given(found, names, asked)
        srv = replace(srv, ttl=min([srv.ttl, *(along.ttl for along in given.values())]))
        questions = (Question(name, rdtype) for name in names for rdtype in (A, AAAA))
        apart = tuple(question for question in questions if question not in given)
        return _Reading(srv, given, apart, clock(), repeat)

    async def _find_srv(self, lookup: Lookup) -> Found:
        """Find the SRV records, over TCP where UDP may have cut them short without saying so.

        Consul trims an answer over UDP to the buffer size, keeping a random subset, and sets TC only with
        `dns_config.enable_truncate`, which is off by default (Consul's agent/dns.go, trimUDPResponse; HAProxy #1160 is
        what that does to a pool). Its marks are TTL 0, unless `service_ttl` is set, and a size near the buffer's. With
        either we ask again over TCP, and from then on TCP first while the mark is there, so that pools do not flap.
        An answer larger than the buffer came over TCP already, since the one over UDP was marked as truncated.

        :raises SourceError: also if the answer over TCP may be trimmed: DNS cannot carry it whole.
        """
        srv = await lookup.find(self._qname, SRV, tcp=self._tcp_first)
        if not self._tcp_first and _may_be_trimmed(srv) and _size(srv) <= EDNS_PAYLOAD:
            srv = await lookup.find(self._qname, SRV, tcp=True)
        self._tcp_first = _may_be_trimmed(srv)
        if self._tcp_first and _size(srv) > _TCP_TRIMMED_FROM:
            await self._ask_twice(lookup, srv)
        return srv

    async def _ask_twice(self, lookup: Lookup, srv: Found) -> None:
        """Make sure that an answer which fills a message is whole.

        Most servers fill it with addresses, which they may cut short (RFC 2181 section 9). What Consul leaves out is
        another random part of the records each time, with TTL 0 as long as nobody sets another.

        :raises SourceError: if the answer has TTL 0, or is another when asked for again.
        """
        again = await lookup.find(self._qname, SRV, tcp=True)
        if srv.records is None or srv.records.ttl == 0 or again.records != srv.records:
            raise SourceError(
                f"{self.name}: an answer of {_size(srv)} bytes is at the limit of DNS and may lack servers; "
                "use --consul where it is Consul that answers, else a TTL above 0, or split the service"
            )


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


def _given(srv: Found, names: tuple[str, ...], asked: float) -> dict[Question, AddressSet]:
    """Return the addresses that came along and are to be believed."""
    bailiwick = _bailiwick(srv.name)
    if bailiwick is None:
        return {}
    wanted = frozenset(names)
    return {
        Question(name, rrset.rdtype): AddressSet(tuple(record.address for record in rrset), rrset.ttl, asked)
        for rrset in srv.response.additional
        if (rrset.rdclass, rrset.rdtype) in ((IN, A), (IN, AAAA))
        and (name := to_text(rrset.name)) in wanted
        and rrset.name.is_subdomain(bailiwick)
    }


def _bailiwick(owner: dns.name.Name) -> dns.name.Name | None:
    """Return the domain whose addresses an answer for this owner may carry along; None where that is the root.

    Addresses of other domains are not the answering zone's to give (RFC 2181 section 5.4.1), so they are asked for.
    """
    labels = list(owner.labels)
    while labels[0].startswith(b"_"):
        labels.pop(0)
    return dns.name.Name(labels) if len(labels) > 1 else None


def _may_be_trimmed(srv: Found) -> bool:
    """Tell whether an answer bears a mark of what Consul trims; see `SrvSource._find_srv`."""
    return srv.records is not None and (srv.records.ttl == 0 or _size(srv) > _TRIMMED_FROM)


def _size(srv: Found) -> int:
    """Return the bytes of the message on the wire."""
    return len(srv.response.wire or b"")
