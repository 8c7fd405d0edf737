"""Put the parts of a service together to one pool.

*Tiers* are in the order of the parts' priorities; those of one part, or of several with the same priority, in the order
of the records' own priorities. Nothing is added up, so no record can move its part before another one. In a pool of
several parts, the priority of a real server is the number of its tier. A priority without real servers keeps a number,
so that the others keep theirs while parts come and go.

*Shares*: parts with a share divide a tier in the ratio of the shares, however many real servers each of them has. For
that their weights are scaled by integers. Where weights above 65535 were needed, the sums are as large as fits, and
each part divides its own by largest remainders: the sums still have the exact ratio, unless a part has more real
servers than its share leaves for them, because each gets a weight of 1 at least. A part without real servers in a tier
leaves its share to the others. A part with a share of 0 is used only in tiers in which no other part is present.

A real server in several parts is one: in its lowest tier, with the sum of the weights that parts give it there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import gcd, lcm
from typing import Final, NamedTuple

from clb_discovery.layout.alias import effective_weights
from clb_discovery.model.servers import MAX_TIERS, MAX_WEIGHT, Endpoint, Pool, RealServer
from clb_discovery.model.service import Part

_LAST: Final = MAX_TIERS - 1
_Tier = tuple[int, int]
"""The priority of a part, and that of a record."""
_Members = Mapping[int, Sequence[RealServer]]
"""The real servers of one tier, by part."""


class Merged(NamedTuple):
    """A pool put together from parts."""

    pool: Pool
    folded: int = 0
    """The number of real servers that are in the last tier although theirs comes after it: a pool has MAX_TIERS."""


def merge(parts: Sequence[Part], pools: Sequence[Pool]) -> Merged:
    """Put the pools of one address family together.

    :param parts: at least one. If one part of a priority has a share, each has.
    :param pools: the real servers of each part, as its source names them.
    """
    if len(parts) == 1:
        return Merged(pools[0])
    lowest: dict[Endpoint, _Tier] = {}
    for part, pool in zip(parts, pools, strict=True):
        for server in pool:
            tier = part.priority, server.priority
            if lowest.setdefault(server[1:3], tier) > tier:
                lowest[server[1:3]] = tier
    numbers = _numbers(parts, set(lowest.values()))
    tiers: defaultdict[int, defaultdict[int, list[RealServer]]] = defaultdict(lambda: defaultdict(list))
    folded = 0
    for place, (part, pool) in enumerate(zip(parts, pools, strict=True)):
        for server in pool:
            tier = part.priority, server.priority
            if lowest[server[1:3]] == tier:
                number = numbers[tier]
                folded += number > _LAST
                tiers[min(number, _LAST)][place].append(server)
    fold = max(numbers.values(), default=0) > _LAST
    merged: list[RealServer] = []
    for number, members in sorted(tiers.items()):
        shares = None if fold and number == _LAST else _shares(parts, members)
        used = {place: own for place, own in members.items() if shares is None or shares[place]}
        merged += _one_each(number, used, _weights(used, shares))
    return Merged(tuple(merged), folded)


def _numbers(parts: Sequence[Part], tiers: set[_Tier]) -> dict[_Tier, int]:
    """Return the number of each tier; a priority of parts without any keeps one."""
    present = {priority for priority, _ in tiers}
    missing = {(part.priority, 0) for part in parts if part.priority not in present}
    return {tier: number for number, tier in enumerate(sorted(tiers | missing))}


def _shares(parts: Sequence[Part], members: _Members) -> dict[int, int] | None:
    """Return the share of each part that is present in a tier; None if their real servers' own weights count."""
    shares = {place: parts[place].share for place in members}
    given = {place: share for place, share in shares.items() if share is not None}
    return given if any(given.values()) else None


def _weights(members: _Members, shares: Mapping[int, int] | None) -> dict[int, Sequence[int]]:
    """Return the weights of the real servers of each part in a tier."""
    if shares is None or len(members) == 1:
        return {place: [server.weight for server in own] for place, own in members.items()}
    own = {place: effective_weights([server.weight for server in servers]) for place, servers in members.items()}
    sums = {place: sum(weights) for place, weights in own.items()}
    common = gcd(*(shares[place] for place in members))
    ratio = {place: shares[place] // common for place in members}
    multiple = lcm(*(total // gcd(total, ratio[place]) for place, total in sums.items()))
    factors = {place: multiple * ratio[place] // sums[place] for place in members}
    divisor = gcd(*(factor * gcd(*own[place]) for place, factor in factors.items()))
    if all(max(own[place]) * factor // divisor <= MAX_WEIGHT for place, factor in factors.items()):
        return {place: [weight * factors[place] // divisor for weight in weights] for place, weights in own.items()}
    most = min(MAX_WEIGHT * sums[place] // (ratio[place] * max(weights)) for place, weights in own.items())
    return {place: _divided(ratio[place] * most, weights) for place, weights in own.items()}


def _divided(total: int, weights: Sequence[int]) -> list[int]:
    """Divide a total in the ratio of weights into integers of 1 to MAX_WEIGHT, by largest remainders."""
    whole = sum(weights)
    found = [total * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % whole))
    for place in order[: total - sum(found)]:
        found[place] += 1
    lacking = found.count(0)
    if lacking:
        found = [max(1, weight) for weight in found]
        for place in sorted(range(len(found)), key=lambda place: -found[place]):
            taken = min(lacking, found[place] - 1)
            found[place] -= taken
            lacking -= taken
    return [min(weight, MAX_WEIGHT) for weight in found]


def _one_each(number: int, members: _Members, weights: Mapping[int, Sequence[int]]) -> list[RealServer]:
    """Return the real servers of a tier, sorted, each once: of its first part, with the sum of its weights."""
    found: dict[Endpoint, RealServer] = {}
    for place in sorted(members):
        for (_, address, port, _, _), weight in zip(members[place], weights[place], strict=True):
            other = found.get((address, port))
            if other is None:
                found[address, port] = RealServer(number, address, port, weight, place)
            else:
                found[address, port] = other._replace(weight=min(other.weight + weight, MAX_WEIGHT))
    return sorted(found.values())
