"""Send one query to DNS servers in turn, by dnspython, until one of them returns a valid answer."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

import dns.asyncbackend
import dns.message
import dns.name
import structlog
from dns.exception import DNSException, Timeout
from dns.flags import AA, RA, TC
from dns.message import ChainingResult, QueryMessage, Truncated
from dns.nameserver import Nameserver
from dns.rcode import BADVERS, FORMERR, NOERROR, NOTIMP, NXDOMAIN, SERVFAIL, YXDOMAIN, Rcode
from dns.rdatatype import NS, SOA, RdataType

from clb_discovery.sources.dns.memory import GUESSED, REMEMBERED, Memory

EDNS_PAYLOAD: Final = 1232
"""Maximum bytes of an answer over UDP: one packet on every IPv6 path, so no answer is fragmented (flag day 2020)."""

_OLD: Final = frozenset({FORMERR, NOTIMP, BADVERS})
"""Response codes of servers that do not support EDNS (RFC 6891 section 7)."""
_SHOWN_LENGTH: Final = 100

_log = structlog.stdlib.get_logger()


@dataclass(slots=True)
class Servers:
    """The DNS servers, and how to query them."""

    nameservers: Sequence[Nameserver]
    waits: Sequence[float]
    """Seconds to wait for each server at every attempt; the last value holds for all further servers."""
    attempts: int = 2
    """Passes through the list."""
    lifetime: float = 5.0
    """Seconds for one query over all servers and attempts."""
    search: tuple[dns.name.Name, ...] = ()
    bad_search: str = ""
    """A search domain behind the others that is not a DNS name. With it, no name is certain to be in no domain."""
    ndots: int = 1
    rotate: bool = False
    memory: Memory = field(default_factory=Memory)

    def wait(self, place: int) -> float:
        """Return the seconds to wait for one server, so that time is left for each of the others.

        :param place: index in `nameservers`.
        """
        share = self.lifetime / (self.attempts * max(1, len(self.nameservers)))
        return min(share, self.waits[min(place, len(self.waits) - 1)])


class Cause(NamedTuple):
    """Why one server returned no valid answer."""

    server: Nameserver
    what: str
    """Such as `SERVFAIL` or `no answer`."""
    over: str
    """`UDP`, `TCP` or `TLS`."""
    why: str = ""
    """Why the query used TCP, if the server caused it."""
    is_silence: bool = False
    is_servfail: bool = False

    def __str__(self) -> str:
        """Return `SERVFAIL from 10.0.0.53@53 (UDP)`."""
        return f"{self.what} from {self.server.answer_nameserver()}@{self.server.answer_port()} ({self.over}){self.why}"


class QuestionError(Exception):
    """No server returned a valid answer."""

    def __init__(self, name: dns.name.Name, rdtype: RdataType, causes: Iterable[Cause]) -> None:
        """Take the query, and each server's cause in the order of the attempts."""
        super().__init__()
        self.name = name
        self.rdtype = rdtype
        self.causes = tuple(dict.fromkeys(causes))

    @property
    def is_silence(self) -> bool:
        """Whether there was no answer of any kind."""
        return all(cause.is_silence for cause in self.causes)

    @property
    def is_servfail(self) -> bool:
        """Whether the last response was SERVFAIL, after which glibc continues with the search list."""
        return any(cause.is_servfail for cause in [one for one in self.causes if not one.is_silence][-1:])


class Response(NamedTuple):
    """A valid answer, possibly negative."""

    message: QueryMessage
    chain: ChainingResult
    server: Nameserver
    size: int
    """Bytes on the wire."""
    over_tcp: bool

    @property
    def is_found(self) -> bool:
        """Whether there are records, or a CNAME to follow."""
        return self.message.rcode() == NOERROR and (self.chain.answer is not None or bool(self.chain.cnames))


async def ask(
    servers: Servers, order: Sequence[Nameserver], name: dns.name.Name, rdtype: RdataType, *, tcp: bool = False
) -> Response:
    """Query each server in turn, and silent ones once more, until one returns a valid answer.

    The repeated query is without EDNS over UDP, unless the server has answered one with EDNS before. If a query needs
    TCP, servers that did not answer over TCP lately come after the others: each would use up its whole time.

    :param order: the servers, in the order to query them.
    :param name: absolute.
    :param tcp: query over TCP only.
    :raises QuestionError: if no server returns a valid answer within the lifetime.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + servers.lifetime
    causes: list[Cause] = []
    left = list(order)
    memory = servers.memory
    for attempt in range(servers.attempts):
        queue, deferred = list(enumerate(order)), set[int]()
        for place, server in queue:  # which gets longer on the way
            now = clock()
            if server not in left or now >= end:
                continue
            edns = memory.knows_edns(server, now)
            is_udp = not tcp and not server.is_always_max_size()
            is_guess = edns and is_udp and attempt > 0 and not memory.is_edns_certain(server)
            wait = min(servers.wait(place), end - now)
            may_tcp = place in deferred or len(left) == 1 or memory.knows_tcp(server, now)
            try:
                response = await _one(
                    memory, server, name, rdtype, wait, tcp=tcp, edns=edns and not is_guess, may_tcp=may_tcp
                )
            except _NeedsTcpError:
                deferred.add(place)
                queue.append((place, server))
            except _NoAnswerError as error:
                causes.append(error.cause)
                _log.debug(
                    "DNS server returned no valid answer",
                    name=name.to_text(),
                    type=rdtype.name,
                    cause=str(error.cause),
                    attempt=attempt + 1,
                )
                if error.cause.is_silence:
                    _remember_silence(memory, error.cause, clock())
                else:
                    left.remove(server)
            else:
                memory.answered(server)
                if is_guess:
                    _log.debug("DNS server responds only without EDNS", server=str(server), seconds=GUESSED)
                    memory.cannot_edns(server, clock(), GUESSED)
                return response
    raise QuestionError(name, rdtype, causes)


def _remember_silence(memory: Memory, cause: Cause, now: float) -> None:
    server = cause.server
    if cause.over != "TCP" or server.is_always_max_size():
        memory.was_silent(server, now)
    elif seconds := memory.was_silent_over_tcp(server, now):  # it may answer over UDP
        _log.debug("DNS server does not respond over TCP", server=str(server), seconds=seconds)


class _NeedsTcpError(Exception):
    """The query needs TCP, which the server did not answer over lately."""


class _NoAnswerError(Exception):
    def __init__(self, cause: Cause) -> None:
        super().__init__()
        self.cause = cause


async def _one(  # noqa: PLR0913 - one query has that many settings
    memory: Memory,
    server: Nameserver,
    name: dns.name.Name,
    rdtype: RdataType,
    wait: float,
    *,
    tcp: bool,
    edns: bool,
    may_tcp: bool,
) -> Response:
    """Query one server: over UDP first, over TCP if the answer is marked as truncated, without EDNS if necessary.

    :raises _NeedsTcpError: if TCP is necessary, and it may not be used.
    :raises _NoAnswerError: if it returns no valid answer.
    """
    clock = asyncio.get_running_loop().time
    stream = server.is_always_max_size()
    if tcp and not may_tcp:
        raise _NeedsTcpError
    over = (server.kind().upper() if stream else "TCP") if tcp or stream else "UDP"
    why = ""
    try:
        try:
            message = await _exchange(server, name, rdtype, wait, tcp=tcp or stream, edns=edns)
            if edns and message.rcode() in _OLD:
                edns = False
                message = await _exchange(server, name, rdtype, wait, tcp=tcp or stream, edns=False)
                if message.rcode() not in _OLD:
                    _log.debug("DNS server does not support EDNS", server=str(server), seconds=REMEMBERED)
                    memory.cannot_edns(server, clock())
        except Truncated:
            if not may_tcp:
                raise _NeedsTcpError from None
            _log.debug(
                "UDP answer is truncated; the query is repeated over TCP",
                name=name.to_text(),
                type=rdtype.name,
                server=str(server),
            )
            over, why = "TCP", ", after a UDP answer that it marks as truncated"
            message = await _exchange(server, name, rdtype, wait, tcp=True, edns=edns)
        if over == "TCP":
            memory.answered_over_tcp(server)
        elif edns and over == "UDP":
            memory.can_edns(server)
        chain = _checked(message)
    except (DNSException, OSError, EOFError, _ImproperError) as error:
        raise _NoAnswerError(_cause(server, over, why, error)) from None
    return Response(message, chain, server, len(message.wire or b""), over != "UDP")


async def _exchange(  # noqa: PLR0913 - as above
    server: Nameserver, name: dns.name.Name, rdtype: RdataType, wait: float, *, tcp: bool, edns: bool
) -> QueryMessage:
    """Send a query, from its own socket, and return the response."""
    request = dns.message.make_query(name, rdtype)
    if edns:
        request.use_edns(0, payload=EDNS_PAYLOAD)
    backend = dns.asyncbackend.get_backend("asyncio")
    return cast("QueryMessage", await server.async_query(request, wait, None, 0, tcp, backend))


class _ImproperError(Exception):
    """An invalid answer; `str` is the cause."""

    def __init__(self, cause: str, rcode: Rcode = NOERROR) -> None:
        super().__init__(cause)
        self.rcode = rcode


def _checked(message: QueryMessage) -> ChainingResult:
    """Return the chain of CNAMEs and records of a valid answer.

    :raises DNSException: if the answer is invalid; or `_ImproperError`.
    """
    if message.flags & TC:
        raise _ImproperError("truncated even over TCP")
    rcode = message.rcode()
    if rcode == YXDOMAIN:
        raise _ImproperError("YXDOMAIN, the name is too long after DNAME substitution")
    if rcode not in {NOERROR, NXDOMAIN}:
        raise _ImproperError(dns.rcode.to_text(rcode), rcode)
    chain = message.resolve_chaining()
    if rcode == NOERROR and chain.answer is None and not chain.cnames:
        if message.answer:
            raise _ImproperError("only records that were not queried")
        kinds = {rrset.rdtype for rrset in message.authority}
        if SOA not in kinds and not message.flags & AA:
            if NS in kinds:
                raise _ImproperError("a referral to other servers, not an answer")
            if not message.flags & RA:  # send_dg in glibc's resolv/res_send.c
                raise _ImproperError("an empty answer of a server that neither has the zone nor resolves names")
    return chain


def _cause(server: Nameserver, over: str, why: str, error: Exception) -> Cause:
    """Return the cause, with silence marked."""
    if isinstance(error, Timeout):
        return Cause(server, "no answer", over, why, is_silence=True)
    if isinstance(error, ssl.SSLCertVerificationError):
        what = f"certificate rejected ({plain(error.verify_message)})"
    elif isinstance(error, ssl.SSLError):
        what = f"TLS failed ({plain(error.reason or str(error))})"
    elif isinstance(error, EOFError | ConnectionResetError):
        what = "connection closed"
    elif isinstance(error, OSError):
        what = plain(error.strerror or type(error).__name__)
    else:
        what = plain(str(error) or type(error).__name__)
    return Cause(server, what, over, why, is_servfail=isinstance(error, _ImproperError) and error.rcode == SERVFAIL)


def plain(text: str) -> str:
    """Return text that is safe in one line of a log: printable ASCII, bounded, without a full stop at the end."""
    return ascii(text[:_SHOWN_LENGTH])[1:-1].removesuffix(".")
