"""Checks are spread over their interval, repeated at it, and bounded in number at a time."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.checks.schedule import Schedule
from clb_discovery.model.address import parse_address
from clb_discovery.model.check import Check, Target


def targets(count: int, interval: float = 2.0) -> list[Target]:
    """Return targets with one check."""
    return [Target(parse_address(f"10.0.{n // 200}.{n % 200 + 1}"), 80, Check(interval=interval)) for n in range(count)]


def schedule(most: int = 64, jitter: float | None = None) -> Schedule:
    """Return a schedule with a fixed jitter, or a random one."""
    chance = random.Random(7)  # noqa: S311 - a test
    return Schedule(most, chance.random if jitter is None else lambda: jitter)


def test_first_checks_are_spread_over_the_interval() -> None:
    """Of a hundred new servers about as many are due in each quarter of the interval, and all within it."""
    one = schedule(most=1000)
    one.follow(targets(100), now=50.0)
    counts = [len(one.take(50.0 + 0.5 * quarter)) for quarter in range(1, 5)]
    assert sum(counts) == 100
    assert min(counts) > 10


def test_the_first_check_of_a_server_that_is_down_is_due_at_once() -> None:
    """Such as after a restart, or with another interval: only a lease keeps it out. Known ones keep their time."""
    (known,), (down, up) = targets(1, interval=3.0), targets(2)
    one = schedule(jitter=0.5)
    one.follow([known], now=50.0)
    one.follow([known, down, up], now=50.5, down={known, down})
    assert one.take(50.5) == [down]
    assert one.take(51.5) == [known, up]


@given(st.floats(0, 1), st.floats(0, 0.9), st.integers(1, 20))
def test_a_check_keeps_its_pace(jitter: float, takes: float, times: int) -> None:
    """From start to start there is one interval, however long a check takes within it."""
    (target,), one = targets(1), schedule(jitter=jitter)
    one.follow([target], now=0.0)
    starts = []
    for _ in range(times):
        now = one.next_due()
        assert one.take(now) == [target]
        starts.append(now)
        assert one.take(now + takes) == []  # it still runs
        one.done(target, now + takes)
    assert all(abs(start - (2 * jitter + 2 * number)) < 1e-6 for number, start in enumerate(starts))


@given(st.integers(1, 8), st.integers(1, 30))
def test_a_bounded_number_runs_at_a_time(most: int, count: int) -> None:
    """The others wait, the most overdue first, and all get their turn."""
    one, all_ = schedule(most), targets(count)
    one.follow(all_, now=0.0)
    running, order = one.take(10.0), []
    assert len(running) == min(most, count)
    while running:
        order.append(running.pop(0))
        one.done(order[-1], 10.0)
        if len(order) < count:
            running += one.take(10.0)
        assert len(running) <= most
    assert set(order[:count]) == set(all_)


def test_a_check_that_became_due_meanwhile_starts_at_once() -> None:
    """Even if none runs whose end would start it; only with too many of them it waits for one to end."""
    one = schedule(most=1, jitter=0.5)
    assert one.pause(0.0) is None
    one.follow(targets(2), now=0.0)
    assert one.pause(0.4) == 0.6
    assert one.pause(1.1) == 0.0
    (running,) = one.take(1.1)
    assert one.pause(1.2) is None
    one.done(running, 1.3)
    assert one.pause(1.3) == 0.0


def test_a_late_check_is_not_made_up_for() -> None:
    """After a pause, such as a suspended host, a server is checked once, and then at its interval."""
    (target,), one = targets(1), schedule(jitter=0.5)
    one.follow([target], now=0.0)
    assert one.take(100.0) == [target]
    one.done(target, 100.1)
    assert one.take(100.1) == [target]
    one.done(target, 100.2)
    assert one.next_due() == 102.1


def test_a_target_that_leaves_is_not_checked() -> None:
    """Neither one that waits nor one that runs is due again."""
    waits, runs = targets(2)
    one = schedule(most=1, jitter=0.0)
    one.follow([runs, waits], now=0.0)
    assert one.take(0.0) == [runs]
    one.follow([], now=0.0)
    one.done(runs, 1.0)
    assert one.next_due() == float("inf")
    assert one.take(9.0) == []


def test_a_target_that_comes_back_while_it_runs_runs_once() -> None:
    """Its check goes on, and the next one comes after it."""
    (target,), one = targets(1), schedule(jitter=0.5)
    one.follow([target], now=0.0)
    assert one.take(1.0) == [target]
    one.follow([], now=1.1)
    one.follow([target], now=1.2)
    assert one.take(9.0) == []
    one.done(target, 9.0)
    assert one.take(9.0) == [target]


def test_following_the_same_targets_changes_nothing() -> None:
    """A publication does not begin the intervals again, and the schedule does not grow."""
    all_, one = targets(10), schedule()
    one.follow(all_, now=0.0)
    due = one.next_due()
    for _ in range(100):
        one.follow(all_, now=0.0)
    assert one.next_due() == due
    assert len(one.take(2.0)) == 10


@given(st.floats(0.1, 1), st.lists(st.floats(0.01, 5), max_size=30))
def test_a_hurried_check_is_due_at_once_and_at_most_once_in_an_interval(jitter: float, pauses: list[float]) -> None:
    """However often connects fail, a server is checked at most twice as often as else."""
    (target,), one, now, hurried = targets(1), schedule(jitter=jitter), 100.0, list[float]()
    one.follow([target], now)
    for pause in pauses:
        if one.hurry(target, now, 2):
            hurried.append(now)
            assert one.take(now) == [target]
            assert not one.hurry(target, now, 2)  # it runs
            one.done(target, now)
            assert one.next_due() == now + 2
        now += pause
        for _ in one.take(now):
            one.done(target, now)
    assert all(later - earlier >= 2 for earlier, later in pairwise(hurried))
    assert hurried or not pauses


def test_only_a_check_that_waits_is_hurried() -> None:
    """One that is not followed, or is due anyway, stays as it is."""
    known, unknown = targets(2)
    one = schedule(jitter=0.5)
    one.follow([known], now=0.0)
    assert not one.hurry(unknown, 0.0, 2)
    assert not one.hurry(known, 1.0, 2)
    assert one.take(1.0) == [known]
