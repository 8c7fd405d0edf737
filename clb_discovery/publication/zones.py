"""Divide the real servers of one priority by zone, so that connects stay in the zone of this host while it can.

The rule is that of Envoy for priorities, with its overprovisioning factor of 1.4: the own zone keeps the part
min(1, 1.4 x usable / registered weight) of its connects, and the rest goes to the other zones by weight. Real servers
that are critical, in maintenance, ejected or fail their checks are registered and not usable, and so are members whose
host names have no known address. While the own zone keeps all, the others are the next tier. If it keeps less, it and
the usable servers of other zones are one tier in that ratio, but by weight no server of another zone gets more than one
of the own zone. With fewer usable servers than `ZoneRule.least`, the own zone and the usable servers of others are one
tier by weight. Servers of other zones that are not usable are the next tier, so a zone that is known to be down gets no
connects that leave the own one. If no server of any zone is usable, all zones are one. After a start, parts of which
only the kernel's tiers and weights are known stay as they are there.

Sources other than Consul do not list members that are out, so with them alone the own zone keeps all while it has
enough usable servers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

from clb_discovery.model.servers import Endpoint, RealServer
from clb_discovery.model.zones import Places, ZoneRule, zones_by_network

OVERPROVISIONED: Final = Fraction(7, 5)
"""How much more than its own part each server of a zone can take, as Envoy assumes by default."""
ALL: Final = Fraction(1)
NEAR: Final = 0
FAR: Final = 1
"""The place of a tier among those of one priority: the own zone, and all others."""

Member = tuple[int, RealServer]
"""A real server, and the position of its part."""


class Zoning(NamedTuple):
    """The zones of one pool, and its rule."""

    own: str
    rule: ZoneRule
    zones: Mapping[Endpoint, str]
    """Of all members whose zone is known, those that are out included."""
    out: Sequence[Mapping[Endpoint, int]]
    """For each part, the members that are out with their weights; only of the pool's family and at usable addresses."""
    unhealthy: Collection[Endpoint]
    """Those that are ejected or fail their checks."""
    unlocated: Sequence[int] = ()
    """For each part, the weights of members of the own zone whose addresses are unknown; empty if there are none. Their
    family is unknown, too, so they count in both."""
    divided: Sequence[bool] = ()
    """For each part, whether its servers are divided already; empty if none are."""

    def is_usable(self, member: Member) -> bool:
        """Tell whether a server of the pool gets connects."""
        place, server = member
        endpoint = server[1:3]
        return endpoint not in self.unhealthy and endpoint not in self.out[place]


class Division(NamedTuple):
    """Real servers of one zone or of several, with their part of the connects to all that were divided."""

    tier: int
    """NEAR or FAR."""
    ratio: Fraction
    members: Sequence[Member]


def divide(
    members: Sequence[Member], places: Collection[int], zoning: Zoning, lists: Sequence[bool]
) -> Iterator[Division]:
    """Divide real servers of one priority.

    :param members: of one part, or of several without shares.
    :param places: the positions of these parts; one of them may have no members but those that are out.
    :param lists: of each part of the pool, whether its source lists members that are out.
    """
    if zoning.divided and all(zoning.divided[place] for place, _ in members):
        yield Division(NEAR, ALL, members)
        return
    near: list[Member] = []
    far: list[Member] = []
    for member in members:
        (near if zoning.zones.get(member[1][1:3]) == zoning.own else far).append(member)
    usable, others = list(filter(zoning.is_usable, near)), list(filter(zoning.is_usable, far))
    kept = ALL
    if zoning.rule.spills and others and any(lists[place] for place in places):
        kept = _kept(near, usable, others, _out_near(near, places, zoning))
    if not usable and not others:
        first = [Division(NEAR, ALL, members)]
    elif others and len({server[1:3] for _, server in usable}) < zoning.rule.least:
        first = [Division(NEAR, ALL, [*near, *others])]
    elif kept < ALL:
        first = [Division(NEAR, kept, near), Division(NEAR, ALL - kept, others)]
    else:
        first = [Division(NEAR, ALL, near)]
    yield from first
    there = {server[1:3] for division in first for _, server in division.members}
    behind = [member for member in members if member[1][1:3] not in there]
    if behind:
        yield Division(FAR, ALL, behind)


def _kept(near: Sequence[Member], usable: Sequence[Member], others: Sequence[Member], out: int) -> Fraction:
    """Return the part of its connects that the own zone keeps.

    :param near: its real servers, and those of them that get connects.
    :param others: those of other zones that get connects.
    :param out: the weights of its other members.
    """
    left, elsewhere = (sum(server.weight for _, server in some) for some in (usable, others))
    if not left:
        return ALL
    registered = out + sum(server.weight for _, server in near)
    return min(ALL, max(OVERPROVISIONED * left / registered, Fraction(left, left + elsewhere)))


def _out_near(near: Sequence[Member], places: Collection[int], zoning: Zoning) -> int:
    """Return the weights of the members of the own zone that are out, or have no known address, and not in the pool."""
    unlocated = sum(zoning.unlocated[place] for place in places) if zoning.unlocated else 0
    if not any(zoning.out[place] for place in places):
        return unlocated
    there = {server[1:3] for _, server in near}
    return unlocated + sum(
        weight
        for place in places
        for endpoint, weight in zoning.out[place].items()
        if endpoint not in there and zoning.zones.get(endpoint) == zoning.own
    )


def zones_of(pools: Sequence[Sequence[RealServer]], places: Sequence[Places], rule: ZoneRule) -> Mapping[Endpoint, str]:
    """Return the zone of each member that has one: that which its source names, else that of its network.

    :param pools: the real servers of each part.
    :param places: what the source of each part says; the first part that names a zone counts.
    """
    named = [one.zones for one in places if one.zones]
    found = named[0] if len(named) == 1 else {at: zone for zones in reversed(named) for at, zone in zones.items()}
    if not rule.map:
        return found
    members = {server[1:3] for pool in pools for server in pool}.union(*(one.out for one in places))
    unknown = members - found.keys()
    by_network = zones_by_network(rule.map, {address for address, _ in unknown})
    return {**found, **{at: by_network[at[0]] for at in unknown if at[0] in by_network}}
