"""The configuration of services, with the policy for removals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from clb_discovery.model.address import Address
from clb_discovery.model.check import Check
from clb_discovery.model.servers import MAX_NAME, MAX_POOL, Algorithm, PassiveHealth, Pool, Protocol, Vip
from clb_discovery.model.zones import ZoneRule

CONSUL: Final = "consul:"
SRV: Final = "srv:"
DNS: Final = "dns:"
STATIC: Final = "static:"
"""Prefixes of the names of sources."""
POOL: Final = "pool:"
"""Prefix of the names of pools with several parts."""
CATALOG: Final = "catalog:consul"
"""Name of the source that lists the services of Consul that opt in."""
MAX_PARTS: Final = 64
"""Most parts of one pool."""
_LONGEST_NAME: Final = 262  # that of a source with a name of MAX_NAME bytes; the kernel has room for a few more
_DIGEST: Final = 16


@dataclass(frozen=True, slots=True)
class RemovalPolicy:
    """How many missing members are removed at once, and how long they stay if more are missing."""

    max_removal: float = 0.5
    """Share of present and absent members, 0 to 1. While more than this share is absent, or all are, they stay."""
    hold: float = 30.0
    """Seconds that each member must be absent before an answer can confirm its removal."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a pool: one source, and the place of its real servers among those of the other parts."""

    source: str
    """The name of its source, which no other part of any service has: `consul:redis`, `consul:redis?dc=dc2`."""
    selected: str | None = None
    """The name in discovery, if the name of the source has more than the kind and that name."""
    servers: Pool = ()
    """The real servers of a static part; empty for a part with a source in discovery."""
    priority: int = 0
    """The real servers of a part are used if those of all parts with a lower priority cannot be; 0 to 65535."""
    share: int | None = None
    """Weight of the whole part beside other parts of the same priority; None if the real servers' own weights count."""
    datacenter: str | None = None
    """The datacenter of Consul; None for that of the options."""
    filter: str | None = None
    """Filter expression of Consul over the instances of the service; for parts in Consul only."""
    tags: tuple[str, ...] | None = None
    """Only instances that have all of these tags are used, or all if there are none; for parts in Consul only. None for
    those of the options."""
    linger: float | None = None
    """Seconds that records of DNS stay after the last answer with them; None to derive it from the answers."""
    hold: float | None = None
    """Seconds that its absent members stay at least; None for those of the service's policy."""

    @property
    def name(self) -> str:
        """The name in discovery: `redis`, `_redis._tcp.example`."""
        return self.source.partition(":")[2] if self.selected is None else self.selected

    @property
    def is_static(self) -> bool:
        """Whether its real servers are in the configuration, so that no answer has to come."""
        return self.source.startswith(STATIC)

    @property
    def lists_unhealthy(self) -> bool:
        """Whether the source also lists members that are out, so that the capacity of a zone is known."""
        return self.source.startswith(CONSUL)


@dataclass(frozen=True, slots=True)
class Service:
    """One configured service: the parts of its pools, and the virtual servers that it feeds."""

    name: str
    source: str
    """The name of its pools: that of the source, or one made of the names of all sources."""
    vips: tuple[Vip, ...]
    algorithm: Algorithm = Algorithm.RANDOM
    health: PassiveHealth = PassiveHealth()  # noqa: RUF009 - immutable
    policy: RemovalPolicy = RemovalPolicy()
    parts: tuple[Part, ...] = ()
    """Where its real servers come from. By default there is one part, whose source has the name of the pools."""
    automatic: Protocol | None = None
    """Protocol of the automatic VIPs, whose addresses in `--vip-range` follow from the name; None for no such VIPs."""
    check: Check | None = None
    """How its real servers are checked by the sidecar; None if they are not."""
    most: int = MAX_POOL
    """Most real servers in one pool."""
    zones: ZoneRule | None = None
    """How its pools follow zones; None if they do not."""

    def __post_init__(self) -> None:
        if not self.parts:
            object.__setattr__(self, "parts", (Part(self.source),))

    @property
    def is_composed(self) -> bool:
        """Whether its pools differ from the answers: priorities are numbers of tiers, and weights are scaled."""
        return len(self.parts) > 1 or self.zones is not None

    def with_default_check(self) -> Service:
        """Return the service without a check that is that of all services, if it cannot be one for its servers.

        Servers of UDP need not listen on TCP. A port in the check is another one than theirs.
        """
        if self.check is None or self.check.request.port or not self.vips:
            return self
        if any(vip.protocol is not Protocol.UDP for vip in self.vips):
            return self
        return replace(self, check=None, health=replace(self.health, checked=False))

    def is_off(self, part: Part) -> bool:
        """Tell whether one of the parts is switched off: it has a share of 0, and another part beside it has more."""
        return part.share == 0 and any(one.share for one in self.parts if one.priority == part.priority)

    def policy_of(self, part: Part) -> RemovalPolicy:
        """Return the policy for removals from one of the parts."""
        return self.policy if part.hold is None else RemovalPolicy(self.policy.max_removal, part.hold)


def vip_addresses(services: Iterable[Service]) -> frozenset[Address]:
    """Return the addresses of the VIPs of these services."""
    return frozenset(vip.address for service in services for vip in service.vips)


def pool_name(parts: Sequence[Part]) -> str:
    """Return the name of the pools of these parts; other parts have another one.

    The kernel keeps it, so that a start knows whether the installed pools were put together from the same parts.
    """
    if len(parts) == 1 and len(parts[0].source.encode()) <= _LONGEST_NAME:
        return parts[0].source
    name = POOL + " + ".join(part.source for part in parts)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]
    return f"{name.encode()[: _LONGEST_NAME - _DIGEST - 4].decode(errors='ignore')}… {digest}"


def consul_objection(service: str) -> str | None:
    """Return why the HTTP API of Consul cannot be queried for a service of this name, or None if it can.

    Consul would take some names for another path; others are invalid.

    :returns: the rest of a sentence that begins with the name.
    """
    if service.isprintable() and len(service.encode()) <= MAX_NAME and {"", ".", ".."}.isdisjoint(service.split("/")):
        return None
    return (
        f"cannot be a Consul service: give 1 to {MAX_NAME} bytes of printable text, without an empty, '.' or '..' part "
        "between slashes"
    )


MAX_SERVICES: Final = 1000
"""Most services of a catalog that are followed, by default."""
