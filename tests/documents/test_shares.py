"""Target shares, by the rules of the kernel programs."""

from __future__ import annotations

from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.documents.shares import Member, target_shares
from clb_discovery.model.servers import MAX_TIERS

MEMBERS = st.lists(st.builds(Member, st.integers(0, 3), st.integers(0, 65535), st.booleans()), max_size=12)
TIERS = st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=20)
"""Whether each server of each tier is ejected."""


@given(MEMBERS)
def test_shares_add_up_to_one(pool: list[Member]) -> None:
    """All shares are in one tier, and an ejected server has none, unless all servers are ejected."""
    shares = target_shares(pool)
    assert len(shares) == len(pool)
    if not pool:
        return
    assert isclose(sum(shares), 1.0)
    if not all(member.ejected for member in pool):
        assert len({member.priority for member, share in zip(pool, shares, strict=True) if share}) == 1
        assert not any(share for member, share in zip(pool, shares, strict=True) if member.ejected)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ([(0, 10, False), (0, 30, False), (1, 99, False)], [0.25, 0.75, 0.0]),
        ([(0, 10, False), (0, 30, True), (1, 99, False)], [1.0, 0.0, 0.0]),
        ([(0, 10, True), (0, 30, True), (1, 99, False)], [0.0, 0.0, 1.0]),
        ([(0, 10, True), (0, 30, True), (1, 99, True), (1, 0, True)], [0.25] * 4),
        ([(0, 0, False), (0, 0, False)], [0.5, 0.5]),
        ([(0, 0, False), (0, 3, False)], [0.25, 0.75]),
    ],
)
def test_examples(pool: list[tuple[int, int, bool]], expected: list[float]) -> None:
    """By weight; without ejected servers; in the next tier; alike if all are ejected; weights of 0 (RFC 2782)."""
    assert target_shares([Member(*member) for member in pool]) == expected


@given(TIERS)
def test_the_tier_in_use_is_the_lowest_with_a_usable_server(tiers: list[list[bool]]) -> None:
    """Only the first MAX_TIERS tiers count. If none of their servers is usable, all of them are tried."""
    pool = [Member(10 * tier, 1, ejected) for tier, members in enumerate(tiers) for ejected in members]
    in_use = next((tier for tier, members in enumerate(tiers[:MAX_TIERS]) if not all(members)), None)
    shares = dict(zip(range(len(pool)), target_shares(pool), strict=True))
    for index, member in enumerate(pool):
        tier = member.priority // 10
        serves = tier < MAX_TIERS if in_use is None else tier == in_use and not member.ejected
        assert (shares[index] > 0) is serves
