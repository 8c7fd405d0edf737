"""Repeated log lines at growing intervals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.repeats import FIRST, FORGOTTEN, LONGEST, MOST, Repeats


def test_repetitions_are_logged_at_growing_intervals_with_a_count() -> None:
    """It is logged at once, then after 10 s, 20 s, 40 s and so on, each time with the number of events in between."""
    repeats = Repeats()
    said = {now: times for now in range(200) if (times := repeats.happened("x", "down", float(now))) is not None}
    assert said == {0: 0, 10: 10, 30: 20, 70: 40, 150: 80}


def test_intervals_have_an_end() -> None:
    """After days it is still logged once an hour."""
    repeats = Repeats()
    moments = [now for now in range(0, 200_000, 10) if repeats.happened("x", "down", float(now)) is not None]
    assert moments[-1] - moments[-2] == LONGEST


def test_another_reason_and_another_thing_are_logged_at_once() -> None:
    """Only a repetition of the same reason is delayed."""
    repeats = Repeats()
    assert [repeats.happened(*of, 0.0) for of in (("x", "a"), ("x", "b"), ("y", "a"))] == [0, 0, 0]
    assert [repeats.happened(*of, FIRST / 2) for of in (("x", "a"), ("x", "b"), ("y", "a"))] == [None] * 3


def test_event_after_a_long_pause_is_new() -> None:
    """An error after a long pause is logged at once."""
    repeats = Repeats()
    repeats.happened("x", "down", 0.0)
    assert repeats.happened("x", "down", 1.0) is None
    assert repeats.happened("x", "down", 2.0 + FORGOTTEN) == 0


def test_reasons_are_bounded() -> None:
    """Errors that differ each time do not accumulate, and do not displace ongoing ones of any thing."""
    repeats = Repeats()
    assert repeats.happened("y", "down", 0.0) == 0
    for number in range(3 * MOST):
        assert repeats.happened("x", str(number), 0.0) == 0
        assert repeats.happened("x", "goes on", 0.0) == (0 if number == 0 else None)
    assert repeats.happened("y", "down", 0.0) is None
    assert len(repeats._things["x"]) == MOST  # noqa: SLF001 - what cannot be seen from outside


def test_any_number_of_things_is_remembered() -> None:
    """However many have trouble, in two ways by turns, a line is new once; what is over is forgotten."""
    repeats, things = Repeats(), [str(number) for number in range(10_000)]
    for second in (0.0, 1.0):
        found = {repeats.happened(what, reason, second) for what in things for reason in ("down", "slow")}
        assert found == ({None} if second else {0})
    repeats.happened("x", "down", 2.0 + FORGOTTEN)
    assert list(repeats._things) == ["x"]  # noqa: SLF001 - as above


@given(st.lists(st.floats(0, 10_000), min_size=1, max_size=200))
def test_nothing_is_lost_in_counting(moments: list[float]) -> None:
    """Logged and pending events add up, and the first one is always logged."""
    repeats = Repeats()
    answers = [repeats.happened("x", "down", now) for now in sorted(moments)]
    assert answers[0] == 0
    assert sum(times for times in answers if times) <= len(moments)
    assert all(times is None or times >= 0 for times in answers)
