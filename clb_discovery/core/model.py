"""The terms everything else speaks in: virtual servers, real servers, pools and what discovery answers.

All of them are immutable values. Names are LVS's own; a *pool* is the set of real servers of one virtual server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from clb_discovery.core.address import Address, format_address, format_endpoint, is_ipv4

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

    __hash__ = int.__hash__  # that of an enumeration takes longer than all else in the key of a virtual server


class Algorithm(IntEnum):
    """Scheduler of a virtual server."""

    RANDOM = 0
    ROUND_ROBIN = 1
    LEAST_CONN = 2

    def __str__(self) -> str:
        """Return the name that options and status use: `round-robin`."""
        return self.name.lower().replace("_", "-")


class Vip(NamedTuple):
    """Where applications connect to: the key of a virtual server."""

    address: Address
    port: int
    """1 to 65535, or 0 for every port of the address."""
    protocol: Protocol

    def __str__(self) -> str:
        """Return the text that the command line takes: `10.64.0.1:6379`, `[fd00::1]:53/udp`."""
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

    def __str__(self) -> str:
        """Return `10.0.0.7:31001`."""
        return format_endpoint(self.address, self.port)


Endpoint = tuple[Address, int]
"""Address and port of a real server."""

Pool = tuple[RealServer, ...]
"""The real servers of one virtual server: one family, sorted, no two with the same address and port."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """What the kernel keeps track of for a virtual server's connects, and when it ejects a real server."""

    active: bool = True
    """Count active connections; least-conn needs it."""
    eject_after: int = 3
    """Failed connects in a row that eject a real server; 0 for never."""
    eject_first_ms: int = 5_000
    """How long the first time, in milliseconds; doubles with each repetition."""
    eject_most_ms: int = 60_000
    """How long at most, in milliseconds."""


@dataclass(frozen=True, slots=True)
class VirtualServer:
    """A virtual server as it should be, or as the kernel holds it."""

    vip: Vip
    service: str
    source: str
    """Name of the source that feeds it, such as `srv:_redis._tcp.example`."""
    algorithm: Algorithm
    pool: Pool
    tracking: Tracking = Tracking()


@dataclass(frozen=True, slots=True)
class Policy:
    """How many members may be missing from an answer to go at once, and for how long others stay."""

    max_removal: float = 0.5
    """Share of present and absent members, 0 to 1; while more are absent, or all, they stay."""
    hold: float = 30.0
    """Seconds that each of them has to be absent before an answer confirms that it has gone."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the operator configured: one name in discovery behind one or more virtual servers."""

    name: str
    source: str
    vips: tuple[Vip, ...]
    algorithm: Algorithm = Algorithm.RANDOM
    tracking: Tracking = Tracking()
    policy: Policy = Policy()
    servers: Pool = ()
    """Those of a static service; where discovery is asked there are none here."""
    automatic: Protocol | None = None
    """Protocol of VIPs that are to be taken from `--vip-range`, by the name; None where there are to be none."""
    filter: str | None = None
    """Consul's filter expression over instances, where the service is Consul's."""
    tags: tuple[str, ...] = ()
    """Only instances that have all of them, likewise."""
    linger: float | None = None
    """Seconds that SRV records stay after they were last seen; None for as long as the name server makes necessary."""
    most: int = MAX_POOL
    """Most real servers in one pool."""


class Refused(NamedTuple):
    """Something that a service in a catalog says of itself and that is not applied."""

    value: str
    """What was said, bounded and escaped: `clb-vip '10.64.0.300'`."""
    reason: str
    """Goes on from the value, and names the way out."""

    def __str__(self) -> str:
        """Return both as one sentence."""
        return f"{self.value} {self.reason}"


@dataclass(frozen=True, slots=True)
class OptIn:
    """What the instances of a service in a catalog say about its virtual servers."""

    vips: tuple[Vip, ...] = ()
    """Those of all instances, sorted."""
    automatic: tuple[Protocol, ...] = ()
    """Protocols of VIPs that are to be taken from `--vip-range`, by the name."""
    algorithm: Algorithm | None = None
    """None for that of the configuration."""
    refused: tuple[Refused, ...] = ()
    """What nobody could apply, whatever else there is."""


class Unread(NamedTuple):
    """A member that discovery names, and whose addresses cannot be read now: it keeps those that it had."""

    identity: str
    port: int | None = None
    """Only endpoints with this port are kept, so that no port meets the address of another version; None for all."""
    priority: int | None = None
    """The priority that the kept ones get; None for the previous one."""
    weight: int | None = None
    """Likewise the weight."""
    is_ipv4: bool | None = None
    """Only this family could not be read; None for both."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One reading of discovery, complete: an empty tuple means that there really are no real servers."""

    servers: tuple[RealServer, ...]
    """Usable ones of both families, any order, duplicates allowed; `desired` sorts, merges and checks them."""
    opt_in: OptIn | None = None
    """What the service says of itself in a catalog; None where it does not opt in."""
    out: tuple[Endpoint, ...] = ()
    """Members that discovery takes out by a statement: critical or in maintenance (Consul), or lingered to the end
    (DNS). A gap is something else: a member that the answer does not contain at all."""
    identities: Mapping[Endpoint, str] = field(default_factory=dict)
    """Identity of each endpoint that has one, by which a replacement is told from a removal: node and service id
    (Consul), the target (SRV). Where several share an endpoint, the lowest of the usable ones, else of all."""
    unread: tuple[Unread, ...] = ()
    """Members whose addresses cannot be read now."""
    left_out: tuple[Refused, ...] = ()
    """Members that cannot be used at all, for people: bounded and escaped, with the cause and the fix."""
    note: str | None = None
    """What people should know of this reading, such as that it may be incomplete; bounded and escaped."""
    out_members: tuple[str, ...] = ()
    """Identities of members that are out, and whose endpoints the answer cannot tell."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Which services of a catalog may opt in now; each is then asked for itself, and has the last word."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Failure:
    """Discovery could not say. The last known good answer stays."""

    reason: str
    unusable: bool = False
    """It did say, but nothing that can be used: asking again does not help before somebody mends it."""
