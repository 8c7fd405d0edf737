"""A broken check never empties a pool: half of the tier that has to serve stays, together with what connects eject."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.checks.choice import choose_out


class Pool(NamedTuple):
    """A pool with members in any state."""

    tiers: list[list[bytes]]
    failing: dict[bytes, int]
    """The members that fail their checks, with the time of their failure."""
    out: set[bytes]
    """Those that were out before."""
    ejected: set[bytes]
    """Those that are ejected, or suspect, because of failed connects."""

    def chosen(self) -> frozenset[bytes]:
        """Return the members that checks keep out."""
        return choose_out(*self)

    def takes_over(self, rank: int) -> bool:
        """Tell whether a tier after this one has a member in service."""
        return any(
            member not in self.failing and member not in self.ejected
            for tier in self.tiers[rank + 1 :]
            for member in tier
        )


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Return any mixture of members that fail checks, fail connects, or both."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    tiers = [[b"%d.%d" % (rank, number) for number in range(size)] for rank, size in enumerate(sizes)]
    members = [member for tier in tiers for member in tier]
    failing = draw(st.dictionaries(st.sampled_from(members), st.integers(0, 9)))
    some = st.sets(st.sampled_from(members))
    return Pool(tiers, failing, draw(some), draw(some))


@given(pools())
def test_only_failing_members_go_out(pool: Pool) -> None:
    """A member that passes its checks takes connects."""
    assert pool.chosen() <= pool.failing.keys()


@given(pools())
def test_checks_leave_half_of_a_tier_that_has_to_serve(pool: Pool) -> None:
    """They put no member out beyond half of it, and none at all beside so many that are out already."""
    chosen = pool.chosen()
    for rank, tier in enumerate(pool.tiers):
        if not pool.takes_over(rank):
            out_by_checks, ejected = chosen.intersection(tier), pool.ejected.intersection(tier)
            assert 2 * len(out_by_checks) <= len(tier)
            assert 2 * len(out_by_checks | ejected) <= len(tier) or out_by_checks <= ejected


@given(pools())
def test_a_pool_is_never_empty(pool: Pool) -> None:
    """Whatever connects have ejected within their half, at least one tier keeps half of its members."""
    last = pool.tiers[-1]
    kept = pool._replace(ejected={member for member in pool.ejected if member not in last[len(last) // 2 :]})
    out = kept.chosen() | kept.ejected
    assert any(2 * len(out.intersection(tier)) <= len(tier) for tier in kept.tiers)


@given(pools())
def test_a_tier_goes_out_whole_if_a_further_one_takes_over(pool: Pool) -> None:
    """All failing members of a tier are out while a further tier has one in service."""
    chosen = pool.chosen()
    for rank, tier in enumerate(pool.tiers):
        if pool.takes_over(rank):
            assert chosen.intersection(tier) == pool.failing.keys() & set(tier)


@given(pools())
def test_as_many_go_out_as_may(pool: Pool) -> None:
    """A failing member stays only if half of its tier is out."""
    chosen = pool.chosen()
    for tier in pool.tiers:
        if pool.failing.keys() & set(tier) - chosen:
            out = chosen.union(pool.ejected).intersection(tier)
            assert len(out) >= len(tier) // 2


@given(pools())
def test_the_choice_is_stable(pool: Pool) -> None:
    """A choice that is made again is the same: members do not take turns."""
    chosen = pool.chosen()
    assert pool._replace(out=set(chosen)).chosen() == chosen


def test_members_that_failed_first_are_out() -> None:
    """Of four that all fail, the first two stay out, and the two that failed last go on."""
    tier = [b"a", b"b", b"c", b"d"]
    assert choose_out([tier], {b"a": 4, b"b": 1, b"c": 3, b"d": 2}, ()) == {b"b", b"d"}
    assert choose_out([tier], {b"a": 4, b"b": 1, b"c": 3, b"d": 2}, {b"a"}) == {b"a", b"b"}


def test_ejected_members_count() -> None:
    """With one of four ejected one more may go out; one that also fails its checks costs nothing more."""
    tier = [b"a", b"b", b"c", b"d"]
    assert choose_out([tier], {b"b": 1, b"c": 2}, (), {b"a"}) == {b"b"}
    assert choose_out([tier], {b"b": 1, b"c": 2}, (), {b"c"}) == {b"b", b"c"}
    assert choose_out([tier], {b"b": 1, b"c": 2}, (), {b"a", b"d"}) == frozenset()


def test_an_ejected_member_takes_nothing_over() -> None:
    """The last tier is out of service, so half of the first one stays."""
    assert choose_out([[b"a", b"b"], [b"c"]], {b"a": 1, b"b": 2}, (), {b"c"}) == {b"a"}


def test_a_single_server_stays() -> None:
    """There is nothing to choose instead."""
    assert choose_out([[b"a"]], {b"a": 1}, ()) == frozenset()


def test_if_all_tiers_fail_the_first_one_goes_on() -> None:
    """So the servers that should serve do, instead of a last resort that fails, too."""
    assert choose_out([[b"a", b"b"], [b"c", b"d"]], {b"a": 1, b"b": 2, b"c": 3, b"d": 4}, ()) == {b"a", b"c"}
