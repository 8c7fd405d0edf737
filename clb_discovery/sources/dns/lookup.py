"""One round of DNS queries: each follows search list and CNAMEs to records, to a negative answer, or to a failure."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass, replace
from typing import Final, Self

import dns.name
import structlog
from dns.message import ChainingResult, QueryMessage
from dns.nameserver import Nameserver
from dns.rdatatype import SOA, RdataType
from dns.rrset import RRset

from clb_discovery.errors import SourceError
from clb_discovery.sources.dns.exchange import QuestionError, Response, Servers, ask
from clb_discovery.sources.dns.nameservers import StreamNameserver
from clb_discovery.sources.dns.resolv_conf import Candidate, candidates

MAX_CNAMES: Final = 8
"""CNAMEs followed from one name, in one answer or over several."""
_SHOWN_CAUSES: Final = 4

_log = structlog.stdlib.get_logger()


class LookupFailedError(SourceError):
    """A query got no valid answer."""

    def __init__(self, what: str, cause: str, *, is_silence: bool = False, is_servfail: bool = False) -> None:
        """Take the parts of the message.

        :param what: type and name of the query, after the name of the source.
        :param cause: one clause that includes the fix.
        """
        super().__init__(f"{what}: {cause}")
        self._what = what
        self.cause = cause
        self.is_silence = is_silence
        """Whether no server answered in time."""
        self.is_servfail = is_servfail
        """Whether the next search domain is tried, as after NXDOMAIN."""

    def explained(self, why: str) -> LookupFailedError:
        """Return the same error with a reason for the query, as one more clause."""
        cause = f"{self.cause}; {why}"
        return LookupFailedError(self._what, cause, is_silence=self.is_silence, is_servfail=self.is_servfail)


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search for records of one type."""

    name: dns.name.Name
    """Owner of the records, or the name without records."""
    records: RRset | None
    """None after NXDOMAIN and NODATA."""
    response: QueryMessage
    """The last response, with its additional section."""
    ttl: int
    """Seconds; the smallest TTL on the way."""
    size: int = 0
    """Bytes of the response on the wire."""
    over_tcp: bool = False
    server: Nameserver | None = None
    """The server that sent the last response."""


class Lookup:
    """The queries of one round: it prefers the server that answered last, counts queries, and formats errors."""

    def __init__(self, label: str, servers: Servers) -> None:
        """Prepare; no query is sent yet.

        :param label: the start of each error: the name of the source.
        """
        self.questions = 0
        self.label = label
        """The name of the source."""
        self._servers = replace(
            servers,
            nameservers=[
                server.opened() if isinstance(server, StreamNameserver) else server for server in servers.nameservers
            ],
        )
        self._preferred: Nameserver | None = None
        servers.memory.turn += 1
        self._turn = servers.memory.turn

    async def __aenter__(self) -> Self:
        """Start the round."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the round, and close its connections."""
        for server in self._servers.nameservers:
            if isinstance(server, StreamNameserver):
                await server.close()

    def start_over(self) -> None:
        """Query the servers in their order again, and not the one that answered last."""
        self._preferred = None

    def candidates(self, name: dns.name.Name) -> list[Candidate]:
        """Return the absolute names that a name may mean, in the order in which to query them."""
        return candidates(name, self._servers.search, self._servers.ndots)

    def meant(self, name: dns.name.Name) -> dns.name.Name | None:
        """Return the candidate for a name that had the records last: no other one counts while it fails."""
        return self._servers.memory.meant(name)

    def means(self, name: dns.name.Name, found: dns.name.Name) -> None:
        """Note the candidate for a name that has the records."""
        if self._servers.search and not name.is_absolute():
            self._servers.memory.means(name, found)

    def search_fault(self, name: dns.name.Name) -> str | None:
        """Return why a name that was not found may still be in a search domain, if so."""
        if name.is_absolute() or not self._servers.bad_search:
            return None
        return f"resolv.conf: {self._servers.bad_search} is not a search domain; correct it, or end the name in a dot"

    async def find(self, name: dns.name.Name, rdtype: RdataType, *, tcp: bool = False) -> Found:
        """Follow CNAMEs to the records, or to the name that has none.

        An authoritative server returns only the CNAME if its target is in another zone, so after an answer that ends in
        a CNAME its target is queried.

        :param name: absolute, or relative to the search domains if there are any.
        :param tcp: query over TCP only; else over UDP, and over TCP if the answer is marked as truncated.
        :raises LookupFailedError: if a query got no valid answer, or there are more than `MAX_CNAMES`.
        """
        shown = to_text(name)
        response = await self._search(name, rdtype, shown, tcp=tcp)
        ttl, hops = None, 0
        while True:
            chain, message = response.chain, response.message
            hops += len(chain.cnames)
            if hops > MAX_CNAMES:
                raise LookupFailedError(
                    self._shown(rdtype, shown),
                    f"is behind more than {MAX_CNAMES} CNAMEs; shorten the chain, or break the loop",
                )
            unfinished = chain.answer is None and response.is_found
            here = _ttl(chain, message, negative=chain.answer is None and not unfinished)
            ttl = here if ttl is None else min(ttl, here)
            if not unfinished:
                _log.debug(
                    "DNS server answered",
                    source=self.label,
                    name=shown,
                    type=rdtype.name,
                    found=chain.answer is not None,
                    ttl=ttl,
                    cnames=hops,
                    server=str(response.server),
                    over_tcp=response.over_tcp,
                    size=response.size,
                )
                size, over_tcp, server = response.size, response.over_tcp, response.server
                return Found(chain.canonical_name, chain.answer, message, ttl, size, over_tcp, server)
            response = await self._ask(chain.canonical_name, rdtype, tcp=tcp)

    async def _search(self, name: dns.name.Name, rdtype: RdataType, text: str, *, tcp: bool) -> Response:
        """Query each name that this one may mean, until one has records (res_search in resolv/res_query.c).

        After SERVFAIL the next name is queried, as after NXDOMAIN and NODATA. After another failure of a name from the
        search list, only the name as it is. Unlike in glibc, a failure on the way is an error if no name has records,
        or the failed name had them last: other names may have other ones.

        :param text: `name` as text.
        :return: the records, else the negative answer with the smallest TTL.
        :raises LookupFailedError: the first failure, if no name has records.
        """
        nothing: list[Response] = []
        failed: LookupFailedError | None = None
        stopped = False
        names, meant = self.candidates(name), self.meant(name)
        shown = text if len(names) == 1 else None
        for candidate, is_listed in names:
            if stopped and is_listed:
                continue
            try:
                response = await self._ask(candidate, rdtype, tcp=tcp, shown=shown)
            except LookupFailedError as error:
                if candidate == meant:
                    raise
                failed = failed or error
                stopped = stopped or (is_listed and not error.is_servfail)
                continue
            if response.is_found:
                self.means(name, candidate)
                return response
            nothing.append(response)
        if failed:
            raise failed
        if fault := self.search_fault(name):
            raise LookupFailedError(self._shown(rdtype, text), fault)
        return min(nothing, key=lambda one: _ttl(one.chain, one.message, negative=True))

    async def _ask(self, name: dns.name.Name, rdtype: RdataType, *, tcp: bool, shown: str | None = None) -> Response:
        """Send one query for an absolute name; NXDOMAIN and NODATA are valid answers.

        :param shown: the name in errors, if different.
        :raises LookupFailedError: if no server gave a valid answer.
        """
        self.questions += 1
        try:
            response = await ask(self._servers, self._order(), name, rdtype, tcp=tcp)
        except QuestionError as error:
            raise self._failed(error, shown or to_text(name)) from None
        self._preferred = response.server
        return response

    def _order(self) -> list[Nameserver]:
        """Return the servers in the order to query them: those that were silent recently come last.

        With `rotate` rounds take turns, and not queries as in glibc: of a server with another version of the zone, no
        part may be combined with those of the others.
        """
        servers, memory = list(self._servers.nameservers), self._servers.memory
        if self._preferred is not None:
            servers.sort(key=lambda server: server is not self._preferred)
        elif self._servers.rotate:
            first = self._turn % len(servers)
            servers = servers[first:] + servers[:first]
        now = asyncio.get_running_loop().time()
        return sorted(servers, key=lambda server: memory.is_silent(server, now))

    def _shown(self, rdtype: RdataType, name: str) -> str:
        """Return a query for messages; the source of SRV records has their name, which is not repeated."""
        query = f"{rdtype.name} of {name}"
        return query if rdtype == RdataType.SRV else f"{self.label}: {query}"

    def _failed(self, error: QuestionError, name: str) -> LookupFailedError:
        causes = list(dict.fromkeys(map(str, error.causes)))
        shown = ", ".join(causes[:_SHOWN_CAUSES]) + (", ..." if len(causes) > _SHOWN_CAUSES else "")
        return LookupFailedError(
            self._shown(error.rdtype, name),
            f"{shown}; repeat the query with: {_dig_command(error)}",
            is_silence=error.is_silence,
            is_servfail=error.is_servfail,
        )


def to_text(name: dns.name.Name) -> str:
    """Return the form that `answer` uses: lower case, unusual bytes escaped (RFC 1035 section 5.1)."""
    return name.canonicalize().to_text()


def _ttl(chain: ChainingResult, response: QueryMessage, *, negative: bool) -> int:
    """Return the TTL of a response: the smallest of its CNAMEs and records, or by RFC 2308 section 5 if it is negative.

    A negative answer without a SOA record must not be cached, so its TTL is 0.
    """
    ttls = [part.ttl for part in (*chain.cnames, chain.answer) if part is not None]
    if negative:
        soas = [rrset for rrset in response.authority if rrset.rdtype == SOA]
        ttls.append(min((min(soa.ttl, soa[0].minimum) for soa in soas), default=0))
    return min(ttls)


def _dig_command(error: QuestionError) -> str:
    """Return the command that repeats the failed query; names come from DNS, so they are quoted for a shell."""
    words = ["dig"]
    if error.causes:
        cause = error.causes[0]
        server = cause.server
        if isinstance(server, StreamNameserver):
            words.append(f"+tls +tls-ca +tls-hostname={server.name}" if server.name else "+tcp")
        elif cause.over != "UDP" and not cause.why:
            words.append("+tcp")
        words.append(f"@{server.answer_nameserver()} -p {server.answer_port()}")
    name = to_text(error.name)
    words.append(shlex.quote(name.removesuffix(".") or name))
    return " ".join([*words, error.rdtype.name])
