"""What discovery answers, and what of it is not used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from clb_discovery.model.servers import Algorithm, Endpoint, Protocol, RealServer, Unread, Vip
from clb_discovery.model.service import Service


class Claim(NamedTuple):
    """A service of a catalog, and what it says of itself."""

    service: Service
    """Without VIPs."""
    opt_in: OptIn


class Refusal(NamedTuple):
    """Something that discovery named and that is not used: a real server, a member or a registration."""

    value: RealServer | str
    """A real server, or a text that is bounded and escaped: `clb-vip '10.64.0.300'`."""
    reason: str
    """The cause and the fix. After a text it continues the sentence."""

    def __str__(self) -> str:
        """Return `real server 127.0.0.1:80 refused: it is loopback; …` or `clb-vip '10.64.0.300' is …`."""
        if isinstance(self.value, RealServer):
            return f"real server {self.value} refused: {self.reason}"
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
    refused: tuple[Refusal, ...] = ()
    """What nobody could apply, whatever else there is."""


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
    left_out: tuple[Refusal, ...] = ()
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


Outcome = Answer | Listing | Failure
"""What a source comes back with."""
