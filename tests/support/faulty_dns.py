"""A real Knot behind a proxy that misbehaves, in a different way for each name."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from enum import Enum
from typing import Final

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import RealServer
from tests.support.fake_dns import FakeDns
from tests.support.knot import KnotServer
from tests.support.pace import patient
from tests.support.schedules import Servers, real_server

NAME: Final = "_web._tcp.example"
_SOA: Final = "ns. admin. 1 3600 600 86400 1"


class Fault(Enum):
    """The fault of every query for one name."""

    SERVFAIL = "the server could not"
    REFUSED = "the server does not want to"
    NOTIMP = "the server cannot"
    SILENT = "no answer comes before the client gives up"
    WRONG_ID = "the answer is to another question"
    HALF = "the second half of the message is missing"
    GARBAGE = "the answer is no DNS message"
    CLOSED = "UDP is truncated, and TCP is closed unanswered"
    TRUNCATED_TOO = "truncated, over TCP as well"
    TRUNCATED = "truncated over UDP"
    NXDOMAIN = "the name does not exist"
    NODATA = "the name has no such records"


HOST: Final = "db.example"
PORT: Final = 8000

LIES: Final = frozenset({Fault.NXDOMAIN, Fault.NODATA})
"""Faults that a source cannot detect."""
SLOW: Final = frozenset({Fault.SILENT, Fault.WRONG_ID, Fault.HALF, Fault.GARBAGE})
"""Faults that cost a client its time-out."""
_RCODES: Final = {
    Fault.SERVFAIL: dns.rcode.SERVFAIL,
    Fault.REFUSED: dns.rcode.REFUSED,
    Fault.NOTIMP: dns.rcode.NOTIMP,
    Fault.NXDOMAIN: dns.rcode.NXDOMAIN,
    Fault.NODATA: dns.rcode.NOERROR,
}


class FaultyDns(FakeDns):
    """The targets of one SRV name of a server, behind a proxy at `address`: a `schedules.World`.

    Their addresses are in another zone, so each is queried separately. `inject` takes the fault of each name: `NAME`,
    or the number of a real server.
    """

    def __init__(self, knot: KnotServer) -> None:
        """Take a server with the zones example and other."""
        super().__init__()
        self.knot = knot
        self.numbers: frozenset[int] = frozenset()
        self.faults: Mapping[object, Fault] = {}

    async def publish(self, numbers: frozenset[int]) -> None:
        """Write SRV records for exactly these, all at once."""
        servers = [(number, real_server(number)) for number in sorted(numbers)]
        records = [f"_web._tcp SRV 0 {one.weight} {one.port} s{number}.other." for number, one in servers]
        await asyncio.to_thread(self.knot.write, "\n".join(records))
        self.numbers = numbers

    def inject(self, faults: object) -> None:
        """Misbehave in this way from now on."""
        assert faults is None or isinstance(faults, Mapping)
        self.faults = faults or {}

    def says(self, good: Servers = frozenset()) -> Servers | None:
        """Return the result that a source should have: a target that fails keeps its addresses, and others count."""
        believed = {None, Fault.TRUNCATED, *LIES}
        if self.faults.get(NAME) in LIES:
            return frozenset()
        if self.faults.get(NAME) not in believed:
            return None
        faults = {real_server(number): self.faults.get(number) for number in self.numbers}
        usable = {server for server, fault in faults.items() if fault in believed - LIES}
        unread = {server for server, fault in faults.items() if fault not in believed}
        return frozenset(usable | (unread & good)) if usable or not unread else None

    def respond(self, wire: bytes, protocol: str) -> bytes | None:
        """Return the message to send back; None for nothing.

        :raises ConnectionError: if the connection is to be closed.
        """
        question = dns.message.from_wire(wire).question[0]
        owner = question.name.canonicalize().to_text().removesuffix(".")
        self.asked.append((owner, question.rdtype.name, protocol))
        fault = self.fault_of(owner, question.rdtype.name)
        if fault is None:
            return self._ask(wire, protocol)
        return self._misbehave(wire, protocol, fault)

    def fault_of(self, owner: str, kind: str) -> Fault | None:
        """Return the fault of a query for a name without the dot at its end, and a type."""
        del kind
        return self.faults.get(NAME if owner == NAME else int(owner[1 : owner.index(".")]))

    def _misbehave(self, wire: bytes, protocol: str, fault: Fault) -> bytes | None:
        if fault is Fault.SILENT:
            return None
        if fault is Fault.GARBAGE:
            return wire[:2] + b"\x80\x00" + b"\xff" * 9
        response = dns.message.make_response(dns.message.from_wire(wire))
        if fault in _RCODES:
            response.set_rcode(_RCODES[fault])
            if fault in LIES:
                zone = ".".join(response.question[0].name.to_text().split(".")[-2:])
                response.authority.append(dns.rrset.from_text(zone, 1, "IN", "SOA", _SOA))
            return response.to_wire()
        if fault in {Fault.TRUNCATED, Fault.TRUNCATED_TOO, Fault.CLOSED} and (
            protocol == "udp" or fault is Fault.TRUNCATED_TOO
        ):
            response.flags |= dns.flags.TC
            return response.to_wire()
        if fault is Fault.CLOSED:
            raise ConnectionResetError
        answer = self._ask(wire, protocol)
        if fault is Fault.WRONG_ID:
            return bytes([answer[0] ^ 1]) + answer[1:]
        return answer[: len(answer) // 2] if fault is Fault.HALF else answer

    def _ask(self, wire: bytes, protocol: str) -> bytes:
        """Query the real server, which is close enough to wait for."""
        where = ("127.0.0.1", self.knot.port)
        if protocol == "udp":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(patient(5))
                sock.connect(where)
                sock.send(wire)
                return sock.recv(65535)
        with socket.create_connection(where, timeout=patient(5)) as sock, sock.makefile("rwb") as stream:
            stream.write(struct.pack("!H", len(wire)) + wire)
            stream.flush()
            (size,) = struct.unpack("!H", stream.read(2))
            return stream.read(size)


class FaultyName(FaultyDns):
    """The IPv4 addresses of one name of a server, likewise. `inject` takes the fault of each type, A and AAAA."""

    async def publish(self, numbers: frozenset[int]) -> None:
        """Write A records for exactly these, in another order each time, all at once."""
        records = {f"db A 10.0.0.{number}" for number in numbers}
        await asyncio.to_thread(self.knot.write, "\n".join(records))
        self.numbers = numbers

    def says(self, good: Servers = frozenset()) -> Servers | None:
        """Return the result that a source should have: without addresses, each query has to be answered."""
        del good
        believed = {None, Fault.TRUNCATED, *LIES}
        found, other = (self.faults.get(kind) for kind in ("A", "AAAA"))
        if found not in believed:
            return None
        if found in LIES or not self.numbers:
            return frozenset() if other in believed else None
        return frozenset(RealServer(0, parse_address(f"10.0.0.{number}"), PORT, 1) for number in self.numbers)

    def fault_of(self, owner: str, kind: str) -> Fault | None:
        """Return the fault of a query for the name, by its type."""
        del owner
        return self.faults.get(kind)
