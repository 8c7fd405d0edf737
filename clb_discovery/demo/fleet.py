"""The real servers of the demo as values: their records in DNS, and the pools that the kernel should have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dns.rdatatype import AAAA, SRV, A

from clb_discovery.demo.dns import Zone
from clb_discovery.model.address import format_endpoint, is_ipv4, parse_address
from clb_discovery.model.servers import Pool, RealServer, Vip

DOMAIN: Final = "example"
RECORD: Final = f"_redis._tcp.{DOMAIN}"


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
