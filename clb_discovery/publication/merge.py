"""Put the parts of a service together to one pool.

*Tiers* are in the order of the parts' priorities; those of one part, or of several with the same priority, in the order
of the records' own priorities; those of one priority in the order of zones. Nothing is added up, so no record can move
its part before another one, and no zone a record. In a pool of several parts, or with zones, the priority of a real
server is the number of its tier. A priority without real servers keeps a number, so that the others keep theirs while
parts come and go.

*Shares*: parts with a share divide a tier in the ratio of the shares, however many real servers each of them has. A
part without real servers leaves its share to the others. A part with a share of 0 is used only for priorities for which
no other part has real servers.

*Zones* divide what belongs together: a part with a share, or all parts of a priority without shares. So shares hold
wherever the servers of a part are; `zones` has the rule.

A real server in several parts is one: in the lowest tier in which one of them is used, with the sum of the weights that
parts give it there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Final, NamedTuple

from clb_discovery.model.servers import MAX_TIERS, MAX_WEIGHT, Endpoint, Pool, RealServer
from clb_discovery.model.service import Part
from clb_discovery.publication.ratios import Block, divided
from clb_discovery.publication.zones import ALL, NEAR, Division, Member, Zoning, divide

_LAST: Final = MAX_TIERS - 1
_Priorities = tuple[int, int]
"""The priority of a part, and that of a record."""
_Tier = tuple[int, int, int]
"""The same, and the place of a zone."""


class Merged(NamedTuple):
    """A pool put together from parts."""

    pool: Pool
    folded: int = 0
    """The number of real servers that are in the last tier although theirs comes after it: a pool has MAX_TIERS."""


class _Unit(NamedTuple):
    """Real servers of one priority that zones divide."""

    ratio: Fraction
    places: Collection[int]
    """The positions of its parts."""
    members: Sequence[Member]


def merge(parts: Sequence[Part], pools: Sequence[Pool], zoning: Zoning | None = None) -> Merged:
    """Put the pools of one address family together.

    :param parts: at least one. If one part of a priority has a share, each has.
    :param pools: the real servers of each part, as its source names them.
    :param zoning: the zones of the real servers; None if the pool does not follow zones.
    """
    if len(parts) == 1 and zoning is None:
        return Merged(pools[0])
    tiers = _tiers(parts, pools, zoning)
    numbers = _numbers(parts, tiers.keys())
    by_number: defaultdict[int, list[Division]] = defaultdict(list)
    folded = 0
    for tier, divisions in tiers.items():
        if numbers[tier] > _LAST:
            folded += sum(len(one.members) for one in divisions)
        by_number[min(numbers[tier], _LAST)] += divisions
    merged: list[RealServer] = []
    if folded:  # by the servers' own weights
        last = [member for division in by_number[_LAST] for member in division.members]
        by_number[_LAST] = [Division(NEAR, ALL, last)]
    for number, divisions in sorted(by_number.items()):
        merged += _one_each(number, divisions, zoning)
    return Merged(tuple(merged), folded)


def _tiers(parts: Sequence[Part], pools: Sequence[Pool], zoning: Zoning | None) -> dict[_Tier, list[Division]]:
    """Return the real servers of each tier, each server only in the lowest one in which it is used."""
    groups: defaultdict[_Priorities, defaultdict[int, list[Member]]] = defaultdict(lambda: defaultdict(list))
    for place, (part, pool) in enumerate(zip(parts, pools, strict=True)):
        for server in pool:
            groups[part.priority, server.priority][place].append((place, server))
    tiers: dict[_Tier, list[Division]] = {}
    lists = [part.lists_unhealthy for part in parts]
    used: set[Endpoint] = set()
    for priorities, members in sorted(groups.items()):
        units = list(_units(parts, priorities, _without(members, used)))
        # A part with a share of 0 that is not used here keeps none of its servers from a higher tier.
        used.update(server[1:3] for unit in units for _, server in unit.members)
        found = [one for unit in units for one in _divisions(unit, zoning, lists)]
        for division in _each_in_lowest(found) if zoning is not None and len(units) > 1 else found:
            tiers.setdefault((*priorities, division.tier), []).append(division)
    return tiers


def _without(members: Mapping[int, Sequence[Member]], used: Collection[Endpoint]) -> Mapping[int, Sequence[Member]]:
    """Return the members of each part without those that are used already; only of parts that have others."""
    if not used:
        return members
    left = ((place, [member for member in own if member[1][1:3] not in used]) for place, own in members.items())
    return {place: own for place, own in left if own}


def _units(parts: Sequence[Part], priorities: _Priorities, members: Mapping[int, Sequence[Member]]) -> Iterator[_Unit]:
    """Yield the parts with a share that are used, or all parts together; nothing without members."""
    shares = {place: parts[place].share for place in members}
    if any(shares.values()):
        for place, share in shares.items():
            if share:
                yield _Unit(Fraction(share), (place,), members[place])
    elif members:
        absent = () if priorities[1] else range(len(parts))  # its members that are out have the priority 0
        places = {*members, *(place for place in absent if parts[place].priority == priorities[0])}
        yield _Unit(ALL, places, [member for place in sorted(members) for member in members[place]])


def _divisions(unit: _Unit, zoning: Zoning | None, lists: Sequence[bool]) -> Iterator[Division]:
    if zoning is None:
        yield Division(NEAR, unit.ratio, unit.members)
        return
    for one in divide(unit.members, unit.places, zoning, lists):
        yield one._replace(ratio=one.ratio * unit.ratio)


def _each_in_lowest(divisions: Sequence[Division]) -> Iterator[Division]:
    """Yield divisions without members that others of them have in a lower tier."""
    near = {server[1:3] for one in divisions if one.tier == NEAR for _, server in one.members}
    for one in divisions:
        left = one.members if one.tier == NEAR else [member for member in one.members if member[1][1:3] not in near]
        if left:
            yield one._replace(members=left)


def _numbers(parts: Sequence[Part], tiers: Collection[_Tier]) -> dict[_Tier, int]:
    """Return the number of each tier; a priority of parts without any keeps one."""
    present = {tier[0] for tier in tiers}
    missing = {(part.priority, 0, NEAR) for part in parts if part.priority not in present}
    return {tier: number for number, tier in enumerate(sorted({*tiers, *missing}))}


def _one_each(number: int, divisions: Sequence[Division], zoning: Zoning | None) -> list[RealServer]:
    """Return the real servers of a tier, sorted, each once: of its first part, with the sum of its weights."""
    weights = divided([_block(one, zoning) for one in divisions])
    found: dict[Endpoint, RealServer] = {}
    for division, of_division in zip(divisions, weights, strict=True):
        for (place, (_, address, port, _, _)), weight in zip(division.members, of_division, strict=True):
            other = found.get((address, port))
            if other is None:
                found[address, port] = RealServer(number, address, port, weight, place)
            else:
                total = min(other.weight + weight, MAX_WEIGHT)
                found[address, port] = other._replace(weight=total, part=min(other.part, place))
    return sorted(found.values())


def _block(division: Division, zoning: Zoning | None) -> Block:
    weights = [server[3] for _, server in division.members]
    is_any_out = zoning is not None and (zoning.unhealthy or any(zoning.out))
    counts = [zoning.is_usable(member) for member in division.members] if zoning and is_any_out else None
    return Block(division.ratio, weights, counts)
