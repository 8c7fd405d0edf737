"""Merging: the parts of a service make one pool, with tiers in their order and the configured shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clb_discovery.layout.alias import effective_weights
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import MAX_TIERS, MAX_WEIGHT, Endpoint, Pool, RealServer, pools
from clb_discovery.model.service import Part
from clb_discovery.publication.merge import Merged, merge
from tests.support import strategies

WEIGHT: Final = st.sampled_from([0, 1, 2, 3, 10, 97, MAX_WEIGHT])
SHARE: Final = st.sampled_from([0, 1, 7, 10, 90, 1000, MAX_WEIGHT])


def server(host: int, weight: int = 1, priority: int = 0, part: int = 0) -> RealServer:
    """Return the real server 10.0.0.HOST:80, or one of the following /24 networks."""
    return RealServer(priority, parse_address(f"10.0.{host // 256}.{host % 256}"), 80, weight, part)


def some(first: int, weights: Sequence[int], priority: int = 0) -> Pool:
    """Return a pool of servers with consecutive addresses."""
    return tuple(server(first + number, weight, priority) for number, weight in enumerate(weights))


def shared(*shares: int | None, priority: int = 0) -> list[Part]:
    """Return parts of one priority with these shares."""
    return [Part(f"consul:{number}", priority=priority, share=share) for number, share in enumerate(shares)]


def sums(found: Merged, tier: int = 0) -> dict[int, int]:
    """Return the sum of the weights of each part in one tier."""
    counts: Counter[int] = Counter()
    for one in found.pool:
        if one.priority == tier:
            counts[one.part] += one.weight
    return dict(counts)


@given(strategies.pools(ipv4=True), st.integers(0, 9), st.none() | SHARE)
def test_a_pool_of_one_part_is_that_part(pool: Pool, priority: int, share: int | None) -> None:
    """Priorities and weights are those of the records, whatever place the only part has."""
    assert merge([Part("consul:web", priority=priority, share=share)], [pool]) == Merged(pool)


PARTS: Final = st.lists(st.tuples(st.sampled_from([0, 0, 1, 9]), strategies.pools(ipv4=True)), min_size=2, max_size=4)


@given(PARTS)
def test_each_real_server_is_there_once_in_its_lowest_tier(given_parts: list[tuple[int, Pool]]) -> None:
    """Tiers have the order of pairs of priorities; weights are the sums of those in the lowest tier."""
    parts = [Part(f"srv:{number}", priority=priority) for number, (priority, _) in enumerate(given_parts)]
    found = merge(parts, [pool for _, pool in given_parts])
    tiers: dict[Endpoint, tuple[int, int]] = {}
    weights: Counter[tuple[Endpoint, tuple[int, int]]] = Counter()
    for priority, pool in given_parts:
        for one in pool:
            tier = priority, one.priority
            tiers[one.endpoint] = min(tiers.get(one.endpoint, tier), tier)
            weights[one.endpoint, tier] += one.weight
    assert [one.endpoint for one in found.pool] == sorted(tiers, key=lambda at: (tiers[at], at))
    for one, other in pairwise(found.pool):
        assert (one.priority < other.priority) is (tiers[one.endpoint] < tiers[other.endpoint])
    for one in found.pool:
        tier = tiers[one.endpoint]
        assert one.weight == min(MAX_WEIGHT, weights[one.endpoint, tier])
        assert given_parts[one.part][0] == tier[0]
        assert any(own.endpoint == one.endpoint and own.priority == tier[1] for own in given_parts[one.part][1])
    assert found.folded == 0
    assert found.pool == tuple(sorted(found.pool))


@given(st.lists(st.tuples(SHARE, st.lists(WEIGHT, max_size=12)), min_size=2, max_size=4))
def test_parts_divide_a_tier_in_the_ratio_of_their_shares(given_parts: list[tuple[int, list[int]]]) -> None:
    """Sums have the exact ratio wherever each server can have a whole weight; weights in a part keep theirs."""
    shares = [share for share, _ in given_parts]
    own = [some(100 * number, weights) for number, (_, weights) in enumerate(given_parts)]
    present = {number: share for number, share in enumerate(shares) if own[number] and share}
    assume(len(present) > 1)
    found = merge(shared(*shares), own)
    got = sums(found)
    assert got.keys() == present.keys()
    assert all(1 <= one.weight <= MAX_WEIGHT for one in found.pool)
    crowded = {number for number in present if got[number] == sum(one.part == number for one in found.pool)}
    exact = {number: Fraction(got[number], share) for number, share in present.items() if number not in crowded}
    assert len(set(exact.values())) <= 1
    for number in crowded & present.keys():  # each server has the least weight, so the part may have too much
        assert all(Fraction(got[number], present[number]) >= ratio for ratio in exact.values())
    for number in present.keys() - crowded:
        expected = effective_weights([one.weight for one in own[number]])
        parts = [one.weight for one in found.pool if one.part == number]
        clamped = sum(weight == 1 for weight in parts)
        for weight, wanted in zip(parts, expected, strict=True):
            ideal = Fraction(got[number] * wanted, sum(expected))
            assert weight == 1 or abs(weight - ideal) < 1 + clamped


@pytest.mark.parametrize(
    ("shares", "weights", "expected"),
    [
        ((90, 10), ([1] * 3, [1] * 3), {0: 27, 1: 3}),
        ((90, 10), ([1] * 3, [1] * 30), {0: 270, 1: 30}),
        ((50, 50), ([10, 20], [7]), {0: 3, 1: 3}),
        ((1, 1), ([MAX_WEIGHT], [1]), {0: 1, 1: 1}),
        ((MAX_WEIGHT, 1), ([1], [1] * 2), {0: MAX_WEIGHT, 1: 2}),
        ((99, 1), ([5], []), {0: 5}),
        ((0, 1), ([5, 6], [7]), {1: 7}),
        ((0, 1), ([5, 6], []), {0: 11}),
    ],
)
def test_shares_in_examples(
    shares: Sequence[int], weights: Sequence[Sequence[int]], expected: Mapping[int, int]
) -> None:
    """The number of servers of a part and their weights do not count; an empty part leaves its share to the others."""
    own = [some(100 * number, each) for number, each in enumerate(weights)]
    assert sums(merge(shared(*shares), own)) == expected


def test_shares_hold_beside_many_servers() -> None:
    """Two thousand servers with odd weights have their 10 % to the last digit, and 3 others the remaining 90 %."""
    own = [some(0, [1, 2, 3]), some(1000, [1 + number * 7919 % 101 for number in range(2000)])]
    found = sums(merge(shared(90, 10), own))
    assert found[0] == 9 * found[1]


def test_a_server_in_two_parts_counts_for_both() -> None:
    """Its weight is the sum of its weights in both, so that both shares come out right."""
    found = merge(shared(80, 20), [some(1, [1, 1]), some(2, [1])])
    assert [(str(one), one.weight, one.part) for one in found.pool] == [("10.0.0.1:80", 2, 0), ("10.0.0.2:80", 3, 0)]


@given(st.lists(st.tuples(st.sampled_from([0, 0, 1]), SHARE, strategies.pools(ipv4=True)), min_size=2, max_size=4))
def test_a_part_that_is_not_used_keeps_no_server_from_others(given_parts: list[tuple[int, int, Pool]]) -> None:
    """Whatever parts with a share of 0 name, all servers of the others are in the pool, each once."""
    parts = [
        Part(f"srv:{number}", priority=priority, share=share) for number, (priority, share, _) in enumerate(given_parts)
    ]
    found = merge(parts, [pool for _, _, pool in given_parts]).pool
    there = [one.endpoint for one in found]
    assert len(set(there)) == len(there)
    assert {one.endpoint for _, share, pool in given_parts if share for one in pool} <= set(there)
    for one in found:
        assert any(one.endpoint == own.endpoint for own in given_parts[one.part][2])


def test_a_last_resort_may_be_a_part_that_is_switched_off() -> None:
    """The servers of a part with a share of 0 stay in the later tier in which another part names them."""
    parts = [*shared(100, 0), Part("static:c", priority=1)]
    found = merge(parts, [some(1, [1, 1]), some(8, [1, 1]), some(9, [1])]).pool
    assert [(one.priority, str(one), one.part) for one in found] == [
        (0, "10.0.0.1:80", 0),
        (0, "10.0.0.2:80", 0),
        (1, "10.0.0.9:80", 2),
    ]
    backup = merge(shared(0, 100), [some(1, [1, 1]), (*some(1, [1]), server(2, priority=10))]).pool
    assert [(one.priority, str(one), one.part) for one in backup] == [(0, "10.0.0.1:80", 1), (1, "10.0.0.2:80", 1)]


def test_priorities_without_servers_keep_their_numbers() -> None:
    """A tier has the same number before, while and after an earlier part is empty."""
    parts = [Part("consul:a"), Part("consul:b", priority=5), Part("static:c", priority=9)]
    pool = [some(1, [1]), some(2, [1]), some(3, [1])]
    assert [one.priority for one in merge(parts, pool).pool] == [0, 1, 2]
    assert [one.priority for one in merge(parts, [(), *pool[1:]]).pool] == [1, 2]


def test_tiers_beyond_the_most_are_the_last_one() -> None:
    """Real servers of all later tiers share the last one by their own weights, and are counted."""
    parts = [Part("srv:a", share=1), Part("srv:b", priority=1, share=0), Part("srv:c", priority=1, share=5)]
    long = tuple(server(number, priority=number) for number in range(MAX_TIERS - 1))
    found = merge(parts, [long, some(100, [3, 4]), some(200, [5, 6], priority=7)])
    last = [(one.weight, one.part) for one in found.pool if one.priority == MAX_TIERS - 1]
    assert last == [(3, 1), (4, 1), (5, 2), (6, 2)]
    assert found.folded == 2
    assert {one.priority for one in found.pool} == set(range(MAX_TIERS))


@given(PARTS, st.lists(SHARE, min_size=4, max_size=4))
def test_a_merged_pool_read_back_from_the_kernel_is_merged_the_same(
    given_parts: list[tuple[int, Pool]], shares: list[int]
) -> None:
    """A start takes the servers of each part from the installed pool: order of tiers and shares stay as they are."""
    parts = [
        Part(f"srv:{number}", priority=priority, share=shares[number] + 1)
        for number, (priority, _) in enumerate(given_parts)
    ]
    once = merge(parts, [pool for _, pool in given_parts]).pool
    again = merge(parts, [_of(once, number) for number in range(len(parts))]).pool
    assert [one.endpoint for one in again] == [one.endpoint for one in once]
    assert [one.part for one in again] == [one.part for one in once]


def _of(pool: Pool, number: int) -> Pool:
    own = pools(one._replace(part=0) for one in pool if one.part == number)
    return own.ipv4
