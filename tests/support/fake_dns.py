"""A misbehaving DNS server, over UDP and TCP on one port of the loopback."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.message import Message

from tests.support.process import free_port


@dataclass
class Reply:
    """The answer to one query; every option is off by default."""

    answer: list[str] = field(default_factory=list)
    """Zone file lines: `owner ttl type data`."""
    authority: list[str] = field(default_factory=list)
    additional: list[str] = field(default_factory=list)
    rcode: str = "NOERROR"
    truncated: bool = False
    """Set TC and leave out the records, over UDP."""
    truncated_tcp: bool = False
    """The same over TCP."""
    udp_keeps: int | None = None
    """Limit the answer over UDP to so many records without setting TC, as Consul does."""
    keeps: int | None = None
    """Limit the answer to so many records over TCP, too, to different ones each time, as Consul does."""
    wrong_id: bool = False
    garbage: bool = False
    """Send bytes that are not a DNS message."""
    silent: bool = False
    tcp_silent: bool = False
    """The same over TCP alone."""
    edns: str | None = None
    """The response code for queries with EDNS; None for the same answer as without."""
    edns_silent: bool = False
    """Do not answer queries with EDNS."""
    recursion: bool = True
    """Set RA, as a resolver does; no answer sets AA."""
    only_class: str | None = None
    """The class of the records in the answer, if not IN."""


class FakeDns:
    """Answers from `replies`; a query without a reply gets NODATA.

    :ivar replies: by owner (absolute, lower case) and type, such as `("a.example.", "A")`.
    :ivar asked: every query as it came: owner, type, and `udp` or `tcp`.
    :ivar ports: of the clients, one for each query over UDP.
    :ivar connections: how many came over TCP.
    """

    def __init__(
        self, *, tcp: bool = True, host: str = "127.0.0.1", port: int | None = None, questions: int = 1_000_000
    ) -> None:
        """Choose a port, unless one is given.

        :param tcp: whether to listen on TCP too.
        :param host: the address to listen on.
        :param questions: how many to answer over one TCP connection before it is closed.
        """
        self.connections = 0
        self._questions = questions
        self._serving: set[asyncio.Task[None] | None] = set()
        self.replies: dict[tuple[str, str], Reply] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.ports: list[int] = []
        self.port = port or free_port()
        self._tcp = tcp
        self._host = host
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """The address in the form of `--resolver`."""
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Return the message to send back; None for nothing."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        owner, kind = question.name.canonicalize().to_text(), question.rdtype.name
        self.asked.append((owner, kind, protocol))
        reply = self.replies.get((owner, kind), Reply())
        if reply.silent or (reply.tcp_silent and protocol == "tcp") or (reply.edns_silent and query.edns >= 0):
            return None
        if reply.edns and query.edns >= 0:
            return _without_edns(query, reply.edns)
        if reply.garbage:
            return wire[:2] + b"\x80\x00" + b"\xff" * 9
        response = dns.message.make_response(query, recursion_available=reply.recursion)
        response.set_rcode(dns.rcode.from_text(reply.rcode))
        if reply.wrong_id:
            response.id ^= 1
        if reply.truncated_tcp if protocol == "tcp" else reply.truncated:
            response.flags |= dns.flags.TC
        else:
            answer = reply.answer[: reply.udp_keeps] if protocol == "udp" else reply.answer
            if reply.keeps is not None:
                first = len(self.asked) % len(answer)
                answer = (answer[first:] + answer[:first])[: reply.keeps]
            _fill(response, response.answer, answer, reply.only_class or "IN")
            _fill(response, response.authority, reply.authority)
            _fill(response, response.additional, reply.additional)
        return response.to_wire(max_size=65535)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._serving.add(asyncio.current_task())
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            for _ in range(self._questions):
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                wire = self.respond(await reader.readexactly(size), "tcp")
                if wire is not None:
                    writer.write(struct.pack("!H", len(wire)) + wire)
                    await writer.drain()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        where = (self._host, self.port)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), where)
        if self._tcp:
            self._server = await asyncio.start_server(self._serve, *where)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
            await cancelled(self._serving)
            await self._server.wait_closed()
        await asyncio.sleep(0)


class SilentDns(FakeDns):
    """A DNS server that never answers."""

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Return nothing."""
        super().respond(wire, protocol)
        return None


async def cancelled(tasks: Iterable[asyncio.Task[None] | None]) -> None:
    """Cancel the tasks that serve clients, and wait until they have closed their connections."""
    present = [task for task in tasks if task]
    for task in present:
        task.cancel()
    await asyncio.gather(*present, return_exceptions=True)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: FakeDns) -> None:
        self._fake = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._fake.ports.append(addr[1])
        wire = self._fake.respond(data, "udp")
        if wire is not None:
            self._transport.sendto(wire, addr)


def _without_edns(query: Message, rcode: str) -> bytes:
    """Return the answer of a server without support of EDNS: a header and nothing else."""
    flags = int(dns.flags.QR | dns.flags.RD) | int(dns.rcode.from_text(rcode))
    return struct.pack("!HHHHHH", query.id, flags, 0, 0, 0, 0)


def _fill(response: Message, section: list[dns.rrset.RRset], lines: list[str], rdclass: str = "IN") -> None:
    for line in lines:
        owner, ttl, rdata = _record(line, rdclass)
        response.find_rrset(section, owner, rdata.rdclass, rdata.rdtype, create=True).add(rdata, ttl)


@lru_cache(maxsize=8192)
def _record(line: str, rdclass: str) -> tuple[dns.name.Name, int, dns.rdata.Rdata]:
    """Parse a record once: tests ask for the same records again, and there may be hundreds in an answer."""
    owner, ttl, kind, data = line.split(None, 3)
    return dns.name.from_text(owner), int(ttl), dns.rdata.from_text(rdclass, kind, data)
