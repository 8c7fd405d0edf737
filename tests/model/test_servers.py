"""Pools: families are separate, sorted, and duplicates are merged."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.model.address import is_ipv4
from clb_discovery.model.servers import RealServer, pools
from tests.support.strategies import few_real_servers

SERVERS: Final = st.lists(few_real_servers(ipv4=True) | few_real_servers(ipv4=False), max_size=12)


@given(SERVERS)
def test_families_are_separate(servers: list[RealServer]) -> None:
    """Every endpoint is in the pool of its family."""
    found = pools(servers)
    assert {one.endpoint for one in found} == {one.endpoint for one in servers}
    assert all(is_ipv4(one.address) for one in found.ipv4)
    assert not any(is_ipv4(one.address) for one in found.ipv6)
    assert len(found) == len(list(found))


@given(SERVERS)
def test_pool_is_sorted_and_has_no_endpoint_twice(servers: list[RealServer]) -> None:
    """Pools are in strict order of priority, address and port, each endpoint once."""
    for pool in (pools(servers).ipv4, pools(servers).ipv6):
        assert all(one[:3] < other[:3] for one, other in pairwise(pool))
        assert len({one.endpoint for one in pool}) == len(pool)


@given(SERVERS)
def test_of_equal_endpoints_lowest_priority_and_then_highest_weight_stays(servers: list[RealServer]) -> None:
    """Entries with one address and port are merged into the best of them."""
    for one in pools(servers):
        same = [other for other in servers if other.endpoint == one.endpoint]
        assert one == min(same, key=lambda other: (other.priority, -other.weight))


@given(SERVERS, st.randoms(use_true_random=False))
def test_order_does_not_matter(servers: list[RealServer], random: Random) -> None:
    """The order of the real servers has no effect."""
    shuffled = list(servers)
    random.shuffle(shuffled)
    assert pools(shuffled) == pools(servers)
