"""What the operator configures: services, and the policy for removals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from clb_discovery.model.servers import MAX_NAME, MAX_POOL, Algorithm, PassiveHealth, Pool, Protocol, Vip

CONSUL: Final = "consul:"
SRV: Final = "srv:"
STATIC: Final = "static:"
"""What the names of sources begin with."""
CATALOG: Final = "catalog:consul"
"""Name of the source that lists which services of Consul opt in."""


@dataclass(frozen=True, slots=True)
class RemovalPolicy:
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
    health: PassiveHealth = PassiveHealth()  # noqa: RUF009 - a value that cannot change
    policy: RemovalPolicy = RemovalPolicy()
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


def consul_objection(service: str) -> str | None:
    """Return why Consul's HTTP interface cannot be asked for a service of this name, or None if it can.

    It would read some names as another path, and others are no names.

    :returns: what goes on from the name.
    """
    if service.isprintable() and len(service.encode()) <= MAX_NAME and {"", ".", ".."}.isdisjoint(service.split("/")):
        return None
    return (
        f"cannot be a Consul service: give 1 to {MAX_NAME} bytes of printable text, without an empty, '.' or '..' part "
        "between slashes"
    )


MAX_SERVICES: Final = 1000
"""Most services of a catalog that are followed, by default."""
