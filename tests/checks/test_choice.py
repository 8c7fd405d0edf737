"""A broken check never empties a pool: half of the tier that has to serve stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.checks.choice import choose_out


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[list[bytes]], dict[bytes, int], set[bytes]]:
    """Return tiers, the failing members with the time of their failure, and the members that were out before."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    tiers = [[b"%d.%d" % (rank, number) for number in range(size)] for rank, size in enumerate(sizes)]
    members = [member for tier in tiers for member in tier]
    failing = draw(st.dictionaries(st.sampled_from(members), st.integers(0, 9)))
    return tiers, failing, draw(st.sets(st.sampled_from(members)))


@given(pools())
def test_only_failing_members_go_out(pool: tuple[list[list[bytes]], dict[bytes, int], set[bytes]]) -> None:
    """A member that passes its checks takes connects."""
    tiers, failing, out = pool
    assert choose_out(tiers, failing, out) <= failing.keys()


@given(pools())
def test_a_pool_is_never_empty(pool: tuple[list[list[bytes]], dict[bytes, int], set[bytes]]) -> None:
    """At least one tier keeps half of its members; if any member passes its checks, it is in the pool."""
    tiers, failing, out = pool
    chosen = choose_out(tiers, failing, out)
    assert any(2 * sum(member in chosen for member in tier) <= len(tier) for tier in tiers)
    for rank, tier in enumerate(tiers):
        if all(member in failing for below in tiers[rank + 1 :] for member in below):
            assert 2 * len(chosen.intersection(tier)) <= len(tier)


@given(pools())
def test_a_tier_goes_out_whole_if_a_further_one_takes_over(
    pool: tuple[list[list[bytes]], dict[bytes, int], set[bytes]],
) -> None:
    """All failing members of a tier are out while a further tier has one that passes."""
    tiers, failing, out = pool
    chosen = choose_out(tiers, failing, out)
    for rank, tier in enumerate(tiers):
        if any(member not in failing for below in tiers[rank + 1 :] for member in below):
            assert chosen.intersection(tier) == failing.keys() & set(tier)


@given(pools())
def test_the_choice_is_stable(pool: tuple[list[list[bytes]], dict[bytes, int], set[bytes]]) -> None:
    """A choice that is made again is the same: members do not take turns."""
    tiers, failing, out = pool
    chosen = choose_out(tiers, failing, out)
    assert choose_out(tiers, failing, chosen) == chosen


def test_members_that_failed_first_are_out() -> None:
    """Of four that all fail, the first two stay out, and the two that failed last go on."""
    tier = [b"a", b"b", b"c", b"d"]
    assert choose_out([tier], {b"a": 4, b"b": 1, b"c": 3, b"d": 2}, ()) == {b"b", b"d"}
    assert choose_out([tier], {b"a": 4, b"b": 1, b"c": 3, b"d": 2}, {b"a"}) == {b"a", b"b"}


def test_a_single_server_stays() -> None:
    """There is nothing to choose instead."""
    assert choose_out([[b"a"]], {b"a": 1}, ()) == frozenset()


def test_if_all_tiers_fail_the_first_one_goes_on() -> None:
    """So the servers that should serve do, instead of a last resort that fails, too."""
    assert choose_out([[b"a", b"b"], [b"c", b"d"]], {b"a": 1, b"b": 2, b"c": 3, b"d": 4}, ()) == {b"a", b"c"}
