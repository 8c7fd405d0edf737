"""The SRV name `_web._tcp.example` of a real DNS server, the options to follow it, and its pool."""

from __future__ import annotations

from typing import Final

from tests.support.knot import KnotServer
from tests.support.sidecar import status

VIP: Final = "10.64.0.1"
OTHER_VIP: Final = "10.64.0.2"
WEB: Final = ("--srv", f"_web._tcp.example={VIP}:80")
LOOPBACK: Final = ("--real-range", "127.0.0.0/8")


def serve(knot: KnotServer, *servers: str, name: str = "_web._tcp", zone: str = "example") -> None:
    """Serve these addresses and ports as the targets of one SRV name, with weights 1, 2, 3 and so on."""
    lines = []
    for number, server in enumerate(servers):
        host, port = server.rsplit(":", 1)
        lines += [f"{name} SRV 0 {number + 1} {port} t{number}", f"t{number} A {host}"]
    knot.write("\n".join(lines), zone)


def weighted(*servers: str) -> dict[str, int]:
    """Return the pool that belongs to `serve`."""
    return {server: number + 1 for number, server in enumerate(servers)}


def resolver(knot: KnotServer) -> tuple[str, ...]:
    """Return the options for the DNS server."""
    return ("--resolver", knot.address, *LOOPBACK)


def generations(instance: str) -> dict[str, int]:
    """Return the generation of each virtual server."""
    return {server["address"]: server["generation"] for server in status(instance)["virtual_servers"]}
