"""One round of DNS questions: each is followed through CNAMEs to its records, or to a certain "none", or fails."""

from __future__ import annotations

import copy
import shlex
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self, cast

import dns.name
from dns.asyncresolver import Resolver
from dns.exception import DNSException, Timeout
from dns.flags import TC
from dns.message import ChainingResult, QueryMessage
from dns.nameserver import Nameserver
from dns.rdatatype import SOA, RdataType
from dns.resolver import NXDOMAIN
from dns.rrset import RRset

from clb_discovery.errors import SourceError
from clb_discovery.sources.srv.burst import EDNS_PAYLOAD
from clb_discovery.sources.srv.nameservers import DatagramNameserver, StreamNameserver
from clb_discovery.sources.srv.outline import Outline, outline
from clb_discovery.sources.srv.repeat import Repeat

MAX_CNAMES: Final = 8
"""CNAMEs followed from one name, in one answer or over several."""

_NDOTS: Final = 1
"""Dots from which on a relative name is tried as it is before the search domains (resolv.conf(5))."""
_SHOWN_CAUSES: Final = 4
_SHOWN_LENGTH: Final = 100


@dataclass(frozen=True, slots=True)
class Found:
    """Where the search for records of one type ended."""

    name: dns.name.Name
    """Owner of the records, or the name that has none."""
    records: RRset | None
    """None after NXDOMAIN and NODATA."""
    response: QueryMessage
    """The last one, with its additional section."""
    ttl: int
    """Seconds; the smallest on the way."""
    outline: Outline | None
    """What it said; None where one datagram to the server that is asked first does not get all of it."""


class Lookup:
    """The questions of one round; prefers the server that answered last, counts, and words the errors."""

    def __init__(self, label: str, resolver: Resolver) -> None:
        """Ask nothing yet.

        :param label: what errors begin with: the name of the source.
        """
        self.questions = 0
        self._label = label
        self._configured = resolver
        self._own: Resolver | None = None

    async def __aenter__(self) -> Self:
        """Begin the round."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the round, and its connections."""
        for server in self._own.nameservers if self._own else ():
            if isinstance(server, StreamNameserver):
                await server.close()

    @property
    def _resolver(self) -> Resolver:
        """What asks in full: ours alone, since it has connections, and learns which server answers."""
        if self._own is None:
            self._own = copy.copy(self._configured)
            self._own.nameservers = [
                server.opened() if isinstance(server, StreamNameserver) else server
                for server in self._configured.nameservers
            ]
        return self._own

    async def find(self, name: dns.name.Name, rdtype: RdataType, *, tcp: bool = False) -> Found:
        """Follow CNAMEs to the records asked for, or to the name that does not have them.

        An authoritative server returns the CNAME alone when its target lies in another zone, so an answer that ends in
        a CNAME is asked on.

        :param name: absolute, or relative to the search domains where the resolver has any.
        :param tcp: ask over TCP only; else over UDP, and over TCP when the answer is marked as truncated.
        :raises SourceError: if a question got no proper answer, or there are more than `MAX_CNAMES`.
        """
        asked, ttl, hops = name, None, 0
        while True:
            response, chain, alone = await self._ask(asked, rdtype, tcp=tcp)
            hops += len(chain.cnames)
            if hops > MAX_CNAMES:
                raise SourceError(
                    f"{self._label}: {rdtype.name} of {to_text(name)} is behind more than {MAX_CNAMES} CNAMEs; "
                    "shorten the chain, or break the loop"
                )
            unfinished = chain.answer is None and chain.cnames and response.rcode() == 0
            here = _ttl(chain, response, negative=chain.answer is None and not unfinished)
            ttl = here if ttl is None else min(ttl, here)
            if not unfinished:
                said = _outline(response) if alone and asked == name else None
                return Found(chain.canonical_name, chain.answer, response, ttl, said)
            asked = chain.canonical_name

    async def again(self, name: dns.name.Name, repeat: Repeat) -> int | None:
        """Ask what was found before once more, at little cost.

        :param name: as it was given to `find`.
        :param repeat: of what was found.
        :return: the seconds that it holds, if it is the same; else None, and it is to be found anew.
        """
        server = _first_asked(self._own or self._configured, name)
        if server is None or not repeat.is_promising:
            return None
        self.questions += 1
        return await repeat.ask(server)

    async def _ask(
        self, name: dns.name.Name, rdtype: RdataType, *, tcp: bool
    ) -> tuple[QueryMessage, ChainingResult, bool]:
        """Ask one question (several with search domains); NXDOMAIN and NODATA are answers.

        :return: also whether one datagram to the server that is asked first gets all of it.
        :raises SourceError: if no server gave a proper answer.
        """
        self.questions += 1
        alone = False
        try:
            answer = await self._resolver.resolve(name, rdtype, tcp=tcp, raise_on_no_answer=False)
        except NXDOMAIN as nothing:
            responses = cast("dict[dns.name.Name, QueryMessage]", nothing.kwargs["responses"])
            # With search domains there are several; the one that may change first stands for all.
            response = min(responses.values(), key=lambda one: _ttl(one.resolve_chaining(), one, negative=True))
            chain = response.resolve_chaining()
        except DNSException as error:
            raise self._failed(name, rdtype, _causes(error)) from None
        else:
            self._own = _preferring(self._resolver, answer.nameserver, answer.port)
            response, chain = answer.response, answer.chaining_result
            first = _first_asked(self._configured, name)
            alone = (
                first is not None
                and (first.address, first.port) == (answer.nameserver, answer.port)
                and answer.qname == name.derelativize(dns.name.root)
                and not tcp
                and len(response.wire or b"") <= EDNS_PAYLOAD  # else it came over TCP
            )
        if response.flags & TC:
            # dnspython goes from UDP to TCP by itself, and takes what it gets there.
            raise self._failed(name, rdtype, "truncated even over TCP")
        return response, chain, alone

    def _failed(self, name: dns.name.Name, rdtype: RdataType, causes: str) -> SourceError:
        by_hand = _by_hand(self._resolver, name, rdtype)
        return SourceError(f"{self._label}: {rdtype.name} of {to_text(name)}: {causes}; ask by hand: {by_hand}")


def to_text(name: dns.name.Name) -> str:
    """Return the form that `answer` speaks: lower case, odd bytes escaped (RFC 1035 section 5.1)."""
    return name.canonicalize().to_text()


def _outline(response: QueryMessage) -> Outline | None:
    """Return what an answer says; None where dnspython has read what we cannot."""
    try:
        return outline(response.wire or b"")
    except ValueError:
        return None


def _ttl(chain: ChainingResult, response: QueryMessage, *, negative: bool) -> int:
    """Return the seconds one response holds: its CNAMEs, its records, and where negative RFC 2308 section 5.

    A negative answer without a SOA record must not be kept, so it holds 0 seconds.
    """
    ttls = [part.ttl for part in (*chain.cnames, chain.answer) if part is not None]
    if negative:
        soas = [rrset for rrset in response.authority if rrset.rdtype == SOA]
        ttls.append(min((min(soa.ttl, soa[0].minimum) for soa in soas), default=0))
    return min(ttls)


def _first_asked(resolver: Resolver, name: dns.name.Name) -> DatagramNameserver | None:
    """Return the server whose answer to the name itself comes first, if it is asked over UDP, else None.

    A relative name with few dots is tried in the search domains before (resolv.conf(5), ndots).
    """
    dots = _NDOTS if resolver.ndots is None else resolver.ndots
    is_tried_first = name.is_absolute() or not resolver.use_search_by_default or len(name) > dots
    server = resolver.nameservers[0]
    return server if is_tried_first and not resolver.rotate and isinstance(server, DatagramNameserver) else None


def _preferring(resolver: Resolver, address: str | None, port: int | None) -> Resolver:
    """Return a resolver that asks this server first, so that a dead one before it costs its time-out once a round."""

    def is_other(server: Nameserver | str) -> bool:
        return not isinstance(server, Nameserver) or (server.answer_nameserver(), server.answer_port()) != (
            address,
            port,
        )

    servers = resolver.nameservers
    if not is_other(servers[0]):
        return resolver
    preferring = copy.copy(resolver)
    preferring.nameservers = sorted(servers, key=is_other)
    preferring.rotate = False
    return preferring


def _causes(error: DNSException) -> str:
    """Return what each server did, shortly: `SERVFAIL from 10.0.0.53@53 (UDP)`."""
    causes = list(dict.fromkeys(_each_cause(error)))
    if not causes:
        return plain(str(error))
    return ", ".join(causes[:_SHOWN_CAUSES]) + (", ..." if len(causes) > _SHOWN_CAUSES else "")


def _each_cause(error: DNSException) -> Iterator[str]:
    for server, tcp, _port, cause, _response in error.kwargs.get("errors", ()):
        if isinstance(cause, Timeout):
            what = "no answer"
        elif isinstance(cause, ssl.SSLCertVerificationError):
            what = f"certificate refused ({plain(cause.verify_message)})"
        elif isinstance(cause, ssl.SSLError):
            what = f"TLS failed ({plain(cause.reason or str(cause))})"
        elif isinstance(cause, EOFError | ConnectionResetError):
            what = "connection closed"
        elif isinstance(cause, OSError):
            what = cause.strerror or type(cause).__name__
        else:
            what = plain(str(cause) or type(cause).__name__)
        kind, _, where = str(server).partition(":")
        yield f"{what} from {where} ({kind.upper() if kind != 'Do53' else 'TCP' if tcp else 'UDP'})"


def plain(text: str) -> str:
    """Return text that is safe in one line of a log: printable ASCII, bounded, without the full stop at its end."""
    return ascii(text[:_SHOWN_LENGTH])[1:-1].removesuffix(".")


def _by_hand(resolver: Resolver, name: dns.name.Name, rdtype: RdataType) -> str:
    """Return the command that asks the same; names come from DNS, so they are quoted for a shell."""
    server = resolver.nameservers[0]
    options = ""
    if isinstance(server, StreamNameserver):
        options = f"+tls +tls-ca +tls-hostname={server.name} " if server.name else "+tcp "
    at = f"@{server.answer_nameserver()} -p {server.answer_port()} " if isinstance(server, Nameserver) else ""
    return f"dig {options}{at}{shlex.quote(to_text(name))} {rdtype.name}"
