"""The basic terms: virtual servers, real servers and pools.

All of them are immutable values. The names are those of LVS; a *pool* is the set of real servers of one virtual server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, NamedTuple

from clb_discovery.model.address import Address, format_address, format_endpoint, is_ipv4

MAX_PORT: Final = 65535
MAX_WEIGHT: Final = 65535
MAX_PRIORITY: Final = 65535
MAX_POOL: Final = 65536
MAX_TIERS: Final = 16
MAX_NAME: Final = 255
"""Longest service name in bytes of UTF-8; also the longest DNS name (RFC 1035 section 2.3.4)."""


class Protocol(IntEnum):
    """Transport protocol, by its IP protocol number."""

    TCP = 6
    UDP = 17

    __hash__ = int.__hash__  # the hash of an enumeration is slower than that of the rest of a VIP


class Algorithm(IntEnum):
    """Scheduler of a virtual server."""

    RANDOM = 0
    ROUND_ROBIN = 1
    LEAST_CONN = 2

    def __str__(self) -> str:
        """Return the name that options and status use: `round-robin`."""
        return self.name.lower().replace("_", "-")


class Vip(NamedTuple):
    """The address that applications connect to; the key of a virtual server."""

    address: Address
    port: int
    """1 to 65535, or 0 for every port of the address."""
    protocol: Protocol

    def __str__(self) -> str:
        """Return the text that the command line accepts: `10.64.0.1:6379`, `[fd00::1]:53/udp`."""
        suffix = "" if self.protocol is Protocol.TCP else "/udp"
        if self.port or is_ipv4(self.address):
            return format_endpoint(self.address, self.port) + suffix
        return f"[{format_address(self.address)}]{suffix}"


class RealServer(NamedTuple):
    """One member of a pool. Sorts by priority, then address, then port."""

    priority: int
    """Tier, 0 to 65535; the lowest is used first (RFC 2782)."""
    address: Address
    port: int
    """1 to 65535."""
    weight: int
    """0 to 65535, relative to the other servers of the tier (RFC 2782)."""
    part: int = 0
    """Which part of the pool it comes from: the position in the list of the service, from 0."""

    @property
    def endpoint(self) -> Endpoint:
        """Address and port, which identify a real server in its pool."""
        return self.address, self.port

    def __str__(self) -> str:
        """Return `10.0.0.7:31001`."""
        return format_endpoint(self.address, self.port)


Endpoint = tuple[Address, int]
"""Address and port of a real server."""
Pool = tuple[RealServer, ...]
"""The real servers of one virtual server: one family, sorted, no two with the same address and port."""


@dataclass(frozen=True, slots=True)
class Pools:
    """The real servers of one service: a pool for each address family."""

    ipv4: Pool = ()
    ipv6: Pool = ()

    def __len__(self) -> int:
        return len(self.ipv4) + len(self.ipv6)

    def __iter__(self) -> Iterator[RealServer]:
        yield from self.ipv4
        yield from self.ipv6


def pools(servers: Iterable[RealServer]) -> Pools:
    """Sort real servers into pools.

    Of several with one address and port, the one with the lowest priority stays, then the one with the highest weight.

    :param servers: of both families, in any order.
    """
    best: dict[Endpoint, RealServer] = {}
    for server in servers:
        other = best.setdefault(server[1:3], server)  # its endpoint
        if other is not server and (server.priority, -server.weight) < (other.priority, -other.weight):
            best[server[1:3]] = server
    ipv4: list[RealServer] = []
    ipv6: list[RealServer] = []
    for server in sorted(best.values()):
        (ipv4 if is_ipv4(server.address) else ipv6).append(server)
    return Pools(tuple(ipv4), tuple(ipv6))


@dataclass(frozen=True, slots=True)
class PassiveHealth:
    """What the kernel counts for a virtual server, when it ejects a real server, and how long it waits for one."""

    active: bool = True
    """Count active connections; least-conn needs it."""
    eject_after: int = 3
    """Failed connects in a row that eject a real server; 0 for never."""
    eject_first_ms: int = 5_000
    """Duration of the first ejection, in milliseconds; it doubles with each repetition."""
    eject_most_ms: int = 60_000
    """Longest ejection, in milliseconds."""
    silent_after_ms: int = 200
    """How long a connect that the application gives up must have been unanswered to be a failure; 0 for never."""
    checked: bool = False
    """Whether the sidecar checks the servers, so that programs have to look at its verdicts for every connect."""
    suspicion: bool = True
    """Whether one connect that fails or waits has the sidecar probe the server, which is passed over meanwhile."""

    connect_timeout_ms: int = 5_000
    """When a TCP connect that is not answered ends; 0 for the kernel's own time, about two minutes."""
    dead_after_ms: int = 0
    """When a TCP connection ends whose real server does not answer any more; 0 for the kernel's own time."""

    @property
    def needs_outcomes(self) -> bool:
        """Whether it needs to know how TCP connects go on."""
        return self.active or any((self.eject_after, self.connect_timeout_ms, self.dead_after_ms))


class HealthClaim(NamedTuple):
    """Settings of passive health that a service registers; None for those of the configuration."""

    connect_timeout_ms: int | None = None
    silent_after_ms: int | None = None
    eject_after: int | None = None
    eject_first_ms: int | None = None
    eject_most_ms: int | None = None

    def over(self, health: PassiveHealth) -> PassiveHealth:
        """Return settings with these in place of their own; an ejection may last as long as the first one."""
        found = replace(health, **{name: value for name, value in self._asdict().items() if value is not None})
        return replace(found, eject_most_ms=max(found.eject_first_ms, found.eject_most_ms))


@dataclass(frozen=True, slots=True)
class VirtualServer:
    """A virtual server as it should be, or as the kernel holds it."""

    vip: Vip
    service: str
    source: str
    """Name of the source that feeds it, such as `srv:_redis._tcp.example`."""
    algorithm: Algorithm
    pool: Pool
    health: PassiveHealth = PassiveHealth()


def needs_outcomes(vip: Vip, health: PassiveHealth | None) -> bool:
    """Tell whether a virtual server needs to know how its connects end; those of UDP have no outcome.

    :param health: None if this version cannot read it; it may then need them.
    """
    return vip.protocol is Protocol.TCP and (health is None or health.needs_outcomes)


ALL_MEMBERS: Final = ""
"""An identity that no member has, for those that stand for all."""


class Unread(NamedTuple):
    """A member that discovery names, but whose addresses are unknown at the moment: it keeps its previous ones."""

    identity: str
    """`ALL_MEMBERS` if nothing could be read."""
    port: int | None = None
    """Only endpoints with this port are kept, so that no new port is combined with an old address; None for all."""
    priority: int | None = None
    """The new priority of the kept endpoints; None for the previous one."""
    weight: int | None = None
    """The new weight of the kept endpoints; None for the previous one."""
    is_ipv4: bool | None = None
    """Only the addresses of this family are unknown; None for both families."""


class Unpublished(NamedTuple):
    """A virtual server that differs from the desired state, although discovery has answered."""

    vip: Vip
    service: str
    source: str
    reason: str
    """The cause and the fix."""
