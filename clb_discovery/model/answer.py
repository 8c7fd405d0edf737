"""Answers of discovery, and refusals of what cannot be used of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeAlias

from clb_discovery.model.servers import Algorithm, Endpoint, HealthClaim, Protocol, RealServer, Unread, Vip
from clb_discovery.model.service import Service
from clb_discovery.model.zones import NO_PLACES, Places
from clb_discovery.text import some_of

MAX_VIPS: Final = 16
"""Maximum number of VIPs that the instances of one service in a catalog can claim."""
Claimed: TypeAlias = Vip | Protocol | None
"""A claim of an opt-in: a VIP, the protocol of automatic VIPs, or None, which stands for the opt-in itself."""
_NAMED: Final = 4  # real servers named in one sentence


class Claim(NamedTuple):
    """A service of a catalog, with its registration of virtual servers."""

    service: Service
    """Without VIPs."""
    opt_in: OptIn
    held: tuple[Vip, ...] = ()
    """The VIPs that it had before the start, by the disk; for those that the kernel does not hold now."""


class Refusal(NamedTuple):
    """Something that discovery named and that is not used: a real server, a member or a registration."""

    value: RealServer | str
    """A real server, or a text that is bounded and escaped: `clb-vip '10.64.0.300'`."""
    reason: str
    """The cause and the fix. After a text it continues the sentence."""

    def __str__(self) -> str:
        """Return `real server 10.64.0.1:80 rejected: it is a VIP; …` or `clb-vip '10.64.0.300' is …`."""
        if isinstance(self.value, RealServer):
            return f"real server {self.value} rejected: {self.reason}"
        return f"{self.value} {self.reason}"


def by_reason(rejected: Iterable[Refusal]) -> dict[str, list[str]]:
    """Return rejected real servers by the reason, which often is the same for a whole pool."""
    found: dict[str, list[str]] = {}
    for one in rejected:
        found.setdefault(one.reason, []).append(str(one.value))
    return found


def rejections(rejected: Iterable[Refusal]) -> list[str]:
    """Return a sentence for each reason: `real servers 127.0.0.1:80, 127.0.0.1:81 rejected: …`, which names a few."""
    return [
        f"real server{'' if len(servers) == 1 else 's'} {', '.join(some_of(servers, _NAMED))} rejected: {reason}"
        for reason, servers in by_reason(rejected).items()
    ]


@dataclass(frozen=True, slots=True)
class OptIn:
    """What the instances of a service in a catalog register about its virtual servers, merged."""

    vips: tuple[Vip, ...] = ()
    """Those of all instances, sorted."""
    automatic: tuple[Protocol, ...] = ()
    """Protocols of automatic VIPs: addresses in `--vip-range` that follow from the name."""
    algorithm: Algorithm | None = None
    """None for the scheduler of the configuration."""
    refused: tuple[Refusal, ...] = ()
    """Registrations that cannot be applied on any host."""
    health: HealthClaim = HealthClaim()  # noqa: RUF009 - immutable
    instances: frozenset[str] = field(default=frozenset(), compare=False)
    """Identities of all instances in the answer, whether or not they claim anything; empty if they are unknown."""

    @property
    def claimed(self) -> frozenset[Claimed]:
        """All that it claims."""
        return frozenset((None, *self.vips, *self.automatic))

    def only(self, claimed: Collection[Claimed]) -> OptIn | None:
        """Return an opt-in that claims only these, or None without the opt-in itself."""
        if None not in claimed:
            return None
        vips = sorted(one for one in claimed if isinstance(one, Vip))
        automatic = sorted(one for one in claimed if isinstance(one, Protocol))
        return replace(self, vips=tuple(vips), automatic=tuple(automatic))


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete answer of discovery: if `servers` is empty, the service really has no real servers."""

    servers: tuple[RealServer, ...]
    """Usable ones of both families, any order, duplicates allowed: the guard makes pools of them."""
    opt_in: OptIn | None = None
    """The registration of a service in a catalog; None if it does not opt in."""
    out: tuple[Endpoint, ...] = ()
    """Members that discovery explicitly takes out: critical or in maintenance (Consul), or lingered to the end (DNS).
    A member that the answer does not contain at all is not here: that is a gap."""
    identities: Mapping[Endpoint, str] = field(default_factory=dict)
    """Identity of each endpoint that has one, to tell a replacement from a removal: node and service id (Consul), the
    target (SRV), the address itself (a plain name in DNS). If several members share an endpoint, the lowest identity of
    the usable ones, else of all."""
    unread: tuple[Unread, ...] = ()
    """Members whose addresses are unknown at the moment."""
    left_out: tuple[Refusal, ...] = ()
    """Members that cannot be used at all, with the cause and the fix."""
    note: str | None = None
    """A remark for the operator, such as that the answer may be incomplete; bounded and escaped."""
    out_members: tuple[str, ...] = ()
    """Identities of members that are out and whose endpoints are not in the answer."""
    places: Places = NO_PLACES
    """The zones of members, and the weights of those that are out; only of a source that is to look for zones."""
    asked: float = field(default=math.inf, compare=False)
    """When the first of the queries was sent that it was made of, or an earlier time, in seconds of the loop's clock.
    It confirms the removals whose clocks had run then; if it can confirm none, this is 0. Infinity for an answer that
    is true whenever it is heard, such as one from the configuration."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The services of a catalog that may opt in. The answer for each of them decides whether it does."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Failure:
    """Discovery gave no usable answer. The last known good set stays in effect."""

    reason: str
    unusable: bool = False
    """There was an answer without anything usable in it: a retry does not help before the registration is corrected."""


Outcome = Answer | Listing | Failure
"""The result of one query of a source."""
