"""The differences between two pools in a log line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.servers import Pool, RealServer
from clb_discovery.publication.changes import changes


def server(host: int, weight: int = 1, priority: int = 0, port: int = 80) -> RealServer:
    """Return one of a few real servers."""
    return RealServer(priority, parse_address(f"10.0.0.{host}"), port, weight)


POOLS = st.lists(
    st.builds(server, st.integers(1, 6), st.integers(0, 3), st.integers(0, 2), st.integers(80, 81)),
    unique_by=lambda one: (one.address, one.port),
).map(lambda servers: tuple(sorted(servers)))


def endpoints(pool: Pool) -> set[tuple[Address, int]]:
    """Return the endpoints of a pool."""
    return {(one.address, one.port) for one in pool}


def test_each_kind_of_change_is_named() -> None:
    """Servers are added, removed, or get another weight or priority; another port is another server."""
    before = (server(1), server(2), server(3), server(4), server(5, port=80))
    after = (server(1), server(2, weight=9), server(3, priority=1), server(5, port=81), server(6))
    found = changes(before, after)
    assert found.added == (server(5, port=81), server(6))
    assert found.removed == (server(4), server(5, port=80))
    assert found.changed == ((server(2), server(2, weight=9)), (server(3), server(3, priority=1)))
    assert str(found) == "+2 -2 ~2"


def test_nothing_to_something_and_back() -> None:
    """A new pool is all added, an emptied one all removed."""
    pool = (server(1), server(2))
    assert str(changes((), pool)) == "+2 -0 ~0"
    assert str(changes(pool, ())) == "+0 -2 ~0"
    assert str(changes((), ())) == "+0 -0 ~0"


@given(POOLS, POOLS)
def test_changes_lead_from_one_pool_to_the_other(before: Pool, after: Pool) -> None:
    """Applied to the old pool, changes give the new one, and each server is in at most one kind of change."""
    found = changes(before, after)
    was, now = (tuple(pair[side] for pair in found.changed) for side in (0, 1))
    assert set(was) <= set(before)
    gone = endpoints(found.removed) | endpoints(was)
    kept = [one for one in before if (one.address, one.port) not in gone]
    assert tuple(sorted([*kept, *found.added, *now])) == after
    assert endpoints(found.added).isdisjoint(endpoints(before))
    assert endpoints(found.removed).isdisjoint(endpoints(after))
    assert endpoints(now) == endpoints(was) <= endpoints(before) & endpoints(after)


@given(POOLS)
def test_a_pool_does_not_differ_from_itself(pool: Pool) -> None:
    """The same pool is no change."""
    assert str(changes(pool, pool)) == "+0 -0 ~0"
