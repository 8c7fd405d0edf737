"""The real servers of the demo: their records in DNS, the pools that the kernel should have, and their listeners."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, cast

from dns.rdatatype import AAAA, SRV, A

from clb_discovery.demo.dns import Zone
from clb_discovery.model.address import format_endpoint, is_ipv4, parse_address
from clb_discovery.model.servers import Pool, RealServer, Vip

DOMAIN: Final = "example"
RECORD: Final = f"_redis._tcp.{DOMAIN}"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class Server:
    """One real server: a name, an address of each family, and its own port."""

    name: str
    ipv4: str
    port: int
    weight: int
    priority: int = 0
    ipv6: str = "::1"

    @property
    def srv(self) -> str:
        """The data of its SRV record (RFC 2782): priority, weight, port, target."""
        return f"{self.priority} {self.weight} {self.port} {self.name}.{DOMAIN}."

    def behind(self, vip: Vip) -> RealServer:
        """Return the server as a member of a virtual server's pool."""
        address = parse_address(self.ipv4 if is_ipv4(vip.address) else self.ipv6)
        return RealServer(self.priority, address, self.port, self.weight)

    def endpoint(self, vip: Vip) -> str:
        """Return the address and port that connects to the virtual server are sent to."""
        return format_endpoint(self.behind(vip).address, self.port)


def publish(servers: Iterable[Server], zone: Zone) -> None:
    """Make these servers the targets of the SRV record. The zone keeps the addresses of servers that left."""
    servers = list(servers)
    for server in servers:
        zone.replace(f"{server.name}.{DOMAIN}.", A, [server.ipv4])
        zone.replace(f"{server.name}.{DOMAIN}.", AAAA, [server.ipv6])
    zone.replace(f"{RECORD}.", SRV, [server.srv for server in servers])


def pool(servers: Iterable[Server], vip: Vip) -> Pool:
    """Return the pool of a virtual server with these servers."""
    return tuple(sorted(server.behind(vip) for server in servers))


class Listener:
    """A server that responds to `PING` with `+PONG` and its name, like Redis."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._servers: list[asyncio.Server] = []

    async def start(self, hosts: Iterable[str], port: int) -> None:
        """Listen on these addresses."""
        loop = asyncio.get_running_loop()
        for host in hosts:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit it. Clients close first, so the reset loses no data, and thousands of connections do
            # not stay in TIME_WAIT and use up the client's ports.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.bind((host, port))
            self._servers.append(await loop.create_server(lambda: _Pong(self.name), sock=sock, backlog=_BACKLOG))

    def close(self) -> None:
        """Stop listening. From now on connects to these addresses are refused."""
        for server in self._servers:
            server.close()


class _Pong(asyncio.Protocol):
    def __init__(self, name: str) -> None:
        self._answer = f"+PONG {name}\r\n".encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\n"):
            self._transport.write(self._answer)
