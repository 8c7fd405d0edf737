"""The services of a soak: their servers, their VIPs, and the changes of their servers."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

PORT: Final = 80
"""The port of every virtual server."""
DEAD_AFTER: Final = 3
"""Seconds after which an open connection to a host that has vanished ends (`dead-after`), where a service has that."""


class Way(StrEnum):
    """A way in which a real server fails."""

    DIES = "dies"
    """Its process is killed: its host refuses connects."""
    SILENT = "drops each SYN"
    """Open connections stay."""
    VANISHES = "vanishes"
    """All packets to its host and from it are dropped, without any notice."""
    HANGS = "hangs"
    """Its process is stopped: the kernel accepts connects, and nothing responds."""


class Service(NamedTuple):
    """One service, behind a VIP of each family."""

    name: str
    number: int
    source: str
    """`consul` or `dns`."""
    algorithm: str
    core: range
    """Numbers of the real servers that discovery always has."""
    rotating: range = range(0)
    """Servers that come and go in discovery, and run all the time."""
    mortal: range = range(0)
    """Servers of the core that fail and return, while discovery keeps them; never two at the same time."""
    ways: tuple[Way, ...] = (Way.DIES,)
    """The ways in which they fail."""
    udp: bool = False
    every_port: bool = False
    options: str = ""
    """Further lines of its configuration."""

    @property
    def ipv4(self) -> str:
        """The IPv4 VIP."""
        return f"10.64.0.{self.number}"

    @property
    def ipv6(self) -> str:
        """The IPv6 VIP."""
        return f"fd00:64::{self.number}"

    @property
    def vips(self) -> str:
        """All its VIPs in the form of options."""
        port4, port6 = ("", "") if self.every_port else (f":{PORT}", f":{PORT}")
        both = [self.ipv4 + port4, f"[{self.ipv6}]" + port6]
        return ",".join([*both, *(f"{vip}/udp" for vip in both if self.udp)])

    @property
    def servers(self) -> range:
        """All servers that it ever has."""
        return range(self.core.start, max(self.core.stop, self.rotating.stop))


STEADY: Final = Service("steady", 1, "consul", "random", range(1, 6), range(6, 11), udp=True)
ZONE: Final = Service("zone", 2, "dns", "round-robin", range(11, 16), range(16, 21), udp=True, every_port=True)
MORTAL: Final = Service("mortal", 3, "consul", "least-conn", range(21, 27), mortal=range(21, 27))
TIERS: Final = Service("tiers", 4, "dns", "random", range(31, 35), mortal=range(31, 33))
"""The mortal ones have the lower priority, and are preferred."""
FRAIL: Final = Service(
    "frail", 5, "consul", "random", range(41, 49), mortal=range(41, 49),
    ways=(Way.DIES, Way.SILENT, Way.VANISHES), options=f'dead-after = "{DEAD_AFTER}s"\n',
)  # fmt: skip
"""Servers that fail in every way that a connect or an open connection can show."""
CHECKED: Final = Service(
    "checked", 6, "dns", "round-robin", range(51, 57), mortal=range(51, 57), ways=(Way.HANGS, Way.SILENT),
    options='check = "http://soak/"\ncheck-interval = "1s"\nfall = 2\n',
)  # fmt: skip
"""Servers with active checks, which also find those that hang."""
CHECKED_WITHIN: Final = (2 + 1) * 1 + 1
"""Seconds from a failure until its checks have taken it out: (`fall` + 1) x interval, and the time limit of a check."""
SERVICES: Final = (STEADY, ZONE, MORTAL, TIERS, FRAIL, CHECKED)


def ipv4(number: int) -> str:
    """Return the IPv4 address of a real server."""
    return f"10.1.0.{number}"


def ipv6(number: int) -> str:
    """Return the IPv6 address of a real server."""
    return f"fd01::{number}"


def port(number: int) -> int:
    """Return the port of a real server."""
    return 7000 + number


def priority(service: Service, number: int) -> int:
    """Return the SRV priority of a real server."""
    return 1 if service.mortal and number not in service.mortal else 0


class Target(NamedTuple):
    """The target of a client."""

    service: Service
    address: str
    """In the form of the client; IPv4 also as `::ffff:10.64.0.1`."""
    protocol: str = "tcp"

    @property
    def vip(self) -> str:
        """The VIP that it stands for."""
        return self.address.removeprefix("::ffff:")

    def __str__(self) -> str:
        return f"{self.service.name} at {self.address}/{self.protocol}"


def targets(*services: Service, protocol: str = "tcp", mapped: bool = True) -> list[Target]:
    """Return the targets of clients of these services: both families, and with `mapped` IPv4 over IPv6 sockets."""
    found = []
    for service in services:
        addresses = [service.ipv4, service.ipv6, *([f"::ffff:{service.ipv4}"] if mapped else [])]
        found += [Target(service, address, protocol) for address in addresses]
    return found
