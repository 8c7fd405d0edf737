"""Each server that joins is reached once, slowly. No clock, no sockets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.sidecar.health.cases import SECOND
from clb_discovery.sidecar.health.reached import FIRST_RETRY, LAST_RETRY, PAUSE, SPREAD, Reached

NOW = 1_000 * SECOND
ONE, TWO = b"one", b"two"


@pytest.fixture
def reached() -> Reached:
    """Return a world without endpoints, in which every random number is a half."""
    return Reached(lambda: 0.5)


def test_a_new_server_is_reached_once(reached: Reached) -> None:
    """After a random pause; then nothing is due."""
    reached.join(ONE, NOW)
    assert (reached.due(NOW), reached.next_due) == (None, NOW + SPREAD // 2)
    assert reached.due(NOW + SPREAD // 2) == ONE
    reached.add(ONE)
    assert ONE in reached
    assert (reached.due(NOW + 99 * SECOND), reached.next_due) == (None, None)


def test_many_new_servers_are_reached_one_after_the_other(reached: Reached) -> None:
    """At most 50 a second, however late the timer is."""
    for number in range(200):
        reached.join(bytes([number]), NOW)
    started = 0
    for turn in range(100):
        now = NOW + SPREAD + turn * SECOND // 100
        assert reached.next_due is not None
        while reached.due(now):
            started += 1
    assert started == 50
    assert PAUSE * 50 == SECOND


def test_a_failure_is_repeated_ever_more_rarely(reached: Reached) -> None:
    """It may not have started yet; one that only others reach costs a connect every five minutes."""
    reached.join(ONE, NOW)
    now, pauses = NOW + SPREAD, []
    for _ in range(9):
        assert reached.due(now) == ONE
        reached.missed(ONE, now)
        reached.missed(ONE, now)  # as for another reason
        assert reached.next_due is not None
        pauses.append(reached.next_due - now)
        now = reached.next_due
    assert pauses[:3] == [FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY]
    assert pauses[-1] == LAST_RETRY


def test_the_last_pool_takes_it_along(reached: Reached) -> None:
    """A server in two pools stays known until it has left both; then it is new again."""
    for _ in range(2):
        reached.join(ONE, NOW)
    assert reached.due(NOW + SPREAD) == ONE
    reached.add(ONE)
    reached.leave(ONE)
    assert ONE in reached
    reached.leave(ONE)
    assert ONE not in reached
    reached.add(ONE)
    reached.missed(ONE, NOW)
    assert ONE not in reached
    assert reached.next_due is None
    reached.join(ONE, NOW)
    reached.leave(ONE)
    assert reached.due(NOW + SPREAD) is None


def test_a_server_that_comes_back_is_new(reached: Reached) -> None:
    """However long the pause after its failures was when it left, it is reached as soon as any new one."""
    reached.join(ONE, NOW)
    now = NOW + SPREAD
    for _ in range(9):
        assert reached.due(now) == ONE
        reached.missed(ONE, now)
        assert reached.next_due is not None
        now = reached.next_due
    reached.leave(ONE)
    assert reached.next_due is None
    reached.join(ONE, now)
    assert reached.next_due == now + SPREAD // 2
    assert reached.due(now + SPREAD) == ONE
    assert reached.next_due is None


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "add", "missed", "due"]), st.sampled_from([ONE, TWO]))))
def test_in_any_order(steps: list[tuple[str, bytes]]) -> None:
    """Each endpoint in use that was not reached is due once and again, and no other."""
    reached, uses, known, taken = Reached(lambda: 0.5), {ONE: 0, TWO: 0}, set[bytes](), set[bytes]()
    now = NOW
    for what, endpoint in steps:
        if what == "join":
            reached.join(endpoint, now)
            uses[endpoint] += 1
        elif what == "leave" and uses[endpoint]:
            reached.leave(endpoint)
            uses[endpoint] -= 1
            if not uses[endpoint]:
                known.discard(endpoint)
        elif what == "add":
            reached.add(endpoint)
            if uses[endpoint]:
                known.add(endpoint)
        elif what == "missed" and endpoint in taken:
            reached.missed(endpoint, now)
            taken.discard(endpoint)
        elif what == "due":
            now += LAST_RETRY * 2
            found = reached.due(now)
            assert found is None or (uses[found] and found not in known)
            taken |= {found} if found else set()
        assert {one for one in (ONE, TWO) if one in reached} == known
