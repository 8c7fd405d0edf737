"""The configuration of services, with the policy for removals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from clb_discovery.model.check import Check
from clb_discovery.model.servers import MAX_NAME, MAX_POOL, Algorithm, PassiveHealth, Pool, Protocol, Vip

CONSUL: Final = "consul:"
SRV: Final = "srv:"
DNS: Final = "dns:"
STATIC: Final = "static:"
"""Prefixes of the names of sources."""
CATALOG: Final = "catalog:consul"
"""Name of the source that lists the services of Consul that opt in."""


@dataclass(frozen=True, slots=True)
class RemovalPolicy:
    """How many missing members are removed at once, and how long they stay if more are missing."""

    max_removal: float = 0.5
    """Share of present and absent members, 0 to 1. While more than this share is absent, or all are, they stay."""
    hold: float = 30.0
    """Seconds that each member must be absent before an answer can confirm its removal."""


@dataclass(frozen=True, slots=True)
class Service:
    """One configured service: a name in discovery, and the virtual servers that it feeds."""

    name: str
    source: str
    vips: tuple[Vip, ...]
    algorithm: Algorithm = Algorithm.RANDOM
    health: PassiveHealth = PassiveHealth()  # noqa: RUF009 - immutable
    policy: RemovalPolicy = RemovalPolicy()
    servers: Pool = ()
    """The real servers of a static service; empty for a service with a source in discovery."""
    automatic: Protocol | None = None
    """Protocol of the automatic VIPs, whose addresses in `--vip-range` follow from the name; None for no such VIPs."""
    filter: str | None = None
    """Filter expression of Consul over the instances of the service; for services in Consul only."""
    tags: tuple[str, ...] = ()
    """Only instances that have all of these tags are used; for services in Consul only."""
    linger: float | None = None
    """Seconds that records of DNS stay after the last answer with them; None to derive it from the answers."""
    check: Check | None = None
    """How its real servers are checked by the sidecar; None if they are not."""
    most: int = MAX_POOL
    """Most real servers in one pool."""


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
