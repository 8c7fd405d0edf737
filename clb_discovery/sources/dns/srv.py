"""SRV records as a source: a name with the priorities, weights, ports and targets of its real servers.

The SRV records are complete or an error. A target whose query fails keeps its last addresses, and the other targets
count.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

import dns.name
import structlog
from dns.rdatatype import SRV

from clb_discovery.errors import SourceError
from clb_discovery.model.address import is_ipv4
from clb_discovery.model.answer import Answer
from clb_discovery.model.servers import RealServer
from clb_discovery.sources.dns.answer import (
    AddressSet,
    Part,
    SrvRecord,
    SrvSet,
    Unavailable,
    build_answer,
    is_good,
    is_needed,
    targets,
)
from clb_discovery.sources.dns.lookup import Lookup, to_text
from clb_discovery.sources.dns.reading import Reading, additional_addresses
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.source import (
    BOTH,
    Bounds,
    DnsSource,
    Member,
    Round,
    Servers,
    joined,
    parse_name,
    record_types,
)
from clb_discovery.sources.dns.target_cache import Question
from clb_discovery.sources.dns.varying import Varying, varying_note
from clb_discovery.sources.dns.whole import Whole

MAX_READS: Final = 3
"""Maximum reads of a zone in one round, if it changes while it is read."""

_log = structlog.stdlib.get_logger()

_Set = AddressSet | Unavailable


class SrvSource(DnsSource):
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
        :param linger: as for `DnsSource`.
        :param rng: random numbers for jitter.
        :raises UsageError: if the name is not a DNS name, or the bounds cross.
        """
        label, bounds = f"srv:{name}", Bounds(min_ttl, max_ttl)
        qname = parse_name("--srv", name, "a record name such as _redis._tcp.example")
        reader = SrvReader(label, qname, resolvers, bounds, families, lingers=linger != 0)
        super().__init__(label, reader, resolvers, bounds, linger=linger, rng=rng)


class SrvReader:
    """Reads the SRV records of one name, and the addresses of their targets: a `Reader`."""

    def __init__(  # noqa: PLR0913 - what is read, and how
        self,
        label: str,
        name: dns.name.Name,
        resolvers: Resolvers,
        bounds: Bounds,
        families: Collection[bool],
        *,
        lingers: bool = True,
    ) -> None:
        """Prepare; no query is sent yet.

        :param label: the name of the source.
        :param name: owner of the records.
        :param families: families whose addresses are needed: True for IPv4, False for IPv6.
        :param lingers: whether addresses of a target may stay, if its server varies them.
        """
        self._label: Final = label
        self._bounds: Final = bounds
        self._resolvers: Final = resolvers
        self._rdtypes: Final = record_types(families)
        self._whole: Final = Whole(name, SRV)
        self._varying: Final = Varying[Question, str](enabled=lingers)
        self.parts: Sequence[Part] = ()
        self._reading: Reading | None = None  # the one that the last answer was built from
        self._last: Answer | None = None  # of that reading
        self._built: tuple[object, Answer] | None = None  # the last answer that was built, and its parts
        self._members: frozenset[Member] = frozenset()  # members that had addresses

    async def read(self, lookup: Lookup, since: float) -> Round:
        """Query the records if they are due, and all addresses that are: see `Reader.read`.

        :raises SourceError: if the query of the records failed, or none of them can be used.
        """
        try:
            reading, addresses = await self._find(lookup, since)
        except BaseException:
            self._varying.missed()
            raise
        self.parts = [reading.srv, *addresses.values()]
        answer = self._answer(reading, addresses)
        is_new = reading is not self._reading
        self._last, self._reading = answer, reading
        return Round(answer, is_new)

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
            _log.debug("SRV records are within their TTL; only addresses are queried", source=self._label)
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
            _log.debug("records changed while addresses were queried; querying again", source=self._label, reads=reads)
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
        known, note = self._completed({**reading.given, **addresses})
        parts = (
            reading.srv.records,
            reading.note,
            note,
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
                [Member(answer.identities[server.endpoint], server.port) for server in answer.servers]
                + [member for one in answer.unread if (member := Member(one.identity, one.port or 0)) in self._members]
            )
            self._built = parts, replace(answer, note=joined(reading.note, answer.note, note))
        return self._built[1]

    def _completed(self, found: Mapping[Question, _Set]) -> tuple[Mapping[Question, _Set], str | None]:
        """Add the addresses that stay because a server varies them; return a note if there are any."""
        now = asyncio.get_running_loop().time()
        self._varying.keep(found.keys())
        known: dict[Question, _Set] = {}
        stays: dict[str, float] = {}
        for question, one in found.items():
            known[question] = one
            if isinstance(one, Unavailable):
                self._varying.missed(question)
                continue
            addresses = self._varying.completed(question, one.addresses, one.asked, now)
            if addresses is not one.addresses:
                known[question] = replace(one, addresses=tuple(addresses))
                stays[question.target] = max(self._varying.stays(question, now), stays.get(question.target, 0.0))
        return known, varying_note(stays)

    def members(self, last: Callable[[Member], Servers | None]) -> Mapping[Member, Servers]:
        """Return the records of the last reading with their real servers: see `Reader.members`."""
        reading, answer = self._reading, self._last
        if reading is None or answer is None:
            return {}
        members: dict[Member, list[RealServer]] = {
            Member(record.target, record.port): [] for record in reading.srv.records if is_needed(record)
        }
        for server in answer.servers:
            members[Member(answer.identities[server.endpoint], server.port)].append(server)
        for one in answer.unread:
            member = Member(one.identity, one.port or 0)
            known = last(member) or ()
            members[member] += [server for server in known if is_ipv4(server.address) is one.is_ipv4]
        return {member: tuple(dict.fromkeys(servers)) for member, servers in members.items()}

    async def why_empty(self, lookup: Lookup) -> str:
        """Query whether the name exists at all."""
        if (why := await self._whole.why_absent(lookup)) is not None:
            return why
        return "its SRV records name no server: the target is '.'"

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
            _log.debug(
                "additional addresses differ from those known; querying them", source=self._label, addresses=count
            )
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
