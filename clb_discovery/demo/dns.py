"""An authoritative DNS server for one zone, over UDP and TCP on one port. The zone can be edited while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Iterable
from typing import Final, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
from dns.exception import DNSException, TooBig
from dns.message import Message
from dns.rdataclass import IN
from dns.rdatatype import AAAA, SOA, SRV, A, RdataType

_PLAIN_UDP: Final = 512  # RFC 1035 section 2.3.4, without EDNS
_MAX_TCP: Final = 65535


class Zone:
    """The records of one domain. The next response has every edit."""

    def __init__(self, origin: str, ttl: int) -> None:
        """Take the domain, such as `example.`, and the seconds that records and negative answers are valid."""
        self._origin = dns.name.from_text(origin)
        self._ttl = ttl
        self._serial = 1
        self._records: dict[tuple[dns.name.Name, RdataType], dns.rrset.RRset] = {}

    def replace(self, owner: str, kind: RdataType, data: Iterable[str]) -> None:
        """Replace all records of this type and owner by data in the form of a zone file: `0 60 7001 redis-1.`."""
        name, texts = dns.name.from_text(owner, self._origin), list(data)
        self._records.pop((name, kind), None)
        if texts:
            self._records[name, kind] = dns.rrset.from_text_list(name, self._ttl, IN, kind, texts)
        self._serial += 1

    def respond(self, query: Message) -> Message:
        """Return the authoritative response to one query, with the addresses of SRV targets in this zone."""
        question = query.question[0]
        response = dns.message.make_response(query)
        if not question.name.is_subdomain(self._origin):
            response.set_rcode(dns.rcode.REFUSED)
            return response
        response.flags |= dns.flags.AA
        found = self._records.get((question.name, question.rdtype))
        if found:
            response.answer.append(found)
            response.additional += self._addresses(found)
            return response
        if not any(owner.is_subdomain(question.name) for owner, _ in self._records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        data = f"ns.{self._origin} hostmaster.{self._origin} {self._serial} 60 60 3600 {self._ttl}"
        response.authority.append(dns.rrset.from_text(self._origin, self._ttl, IN, SOA, data))
        return response

    def _addresses(self, found: dns.rrset.RRset) -> list[dns.rrset.RRset]:
        targets = dict.fromkeys(record.target for record in found) if found.rdtype == SRV else ()
        wanted = (self._records.get((target, kind)) for target in targets for kind in (A, AAAA))
        return [rrset for rrset in wanted if rrset]


class DnsServer:
    """Serves a zone on one address."""

    def __init__(self, zone: Zone) -> None:
        self.failing = False
        """Whether the response to every query is SERVFAIL."""
        self._zone = zone
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. The port has to be free in both protocols."""
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._serve, host, port)
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), (host, port))

    def close(self) -> None:
        """Stop listening."""
        if self._udp:
            self._udp.close()
        if self._tcp:
            self._tcp.close()

    def respond(self, wire: bytes, *, over_tcp: bool) -> bytes | None:
        """Return the response to one message, truncated if it is too large for UDP; None if the message is no query."""
        try:
            query = dns.message.from_wire(wire)
            if not query.question:
                return None
            response = dns.message.make_response(query) if self.failing else self._zone.respond(query)
        except DNSException:
            return None
        if self.failing:
            response.set_rcode(dns.rcode.SERVFAIL)
        try:
            return response.to_wire(max_size=_MAX_TCP if over_tcp else max(_PLAIN_UDP, query.payload))
        except TooBig:
            response = dns.message.make_response(query)
            response.flags |= dns.flags.TC
            return response.to_wire()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self.respond(await reader.readexactly(size), over_tcp=True)
                if answer is None:
                    return
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.respond(data, over_tcp=False)
        if answer is not None:
            self._transport.sendto(answer, addr)
