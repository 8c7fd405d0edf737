"""Figures of what clients see when servers fail."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.charts import percent
from benchmarks.failure_figures import Request, counts, most_noise, pools, share, shares, times, waits

REQUESTS = st.lists(
    st.builds(Request, st.floats(-8, 40), st.floats(0, 8), st.booleans()),
    max_size=30,
)


def steady(seconds: int, failed: Iterable[int] = ()) -> list[Request]:
    """Return one request a second, of which those at some seconds fail."""
    return [Request(float(second), 0.01, second not in failed) for second in range(seconds)]


def test_requests_are_counted_by_period() -> None:
    """Those before the failure show the noise of the machine; slow ones have a response all the same."""
    requests = [
        Request(-1.0, 0.5, answered=False),
        Request(0.5, 0.5, answered=False),
        Request(1.0, 0.2, answered=True),
        Request(2.0, 0.01, answered=True),
        Request(3.0, 0.01, answered=True),
        *(Request(10.0 + second, 0.01, answered=second != 2) for second in range(10)),
    ]
    found = counts([requests])
    assert found == {
        "requests_before": 1,
        "failed_before": 1,
        "slow_before": 0,
        "requests_first": 4,
        "failed_first": 1,
        "slow_first": 1,
        "requests_after": 10,
        "failed_after": 1,
        "slow_after": 0,
        "longest_failed_s": 0.5,
        "none_fails_after_s": 12.0,
    }
    assert [share(found, period, "failed", "slow") for period in ("before", "first", "after")] == [100, 50, 10]


@given(st.lists(REQUESTS, max_size=3))
def test_rounds_add_up(runs: list[list[Request]]) -> None:
    """Each request is in one period, and every round counts."""
    found, each = counts(runs), [counts([run]) for run in runs]
    for name in found.keys() - {"longest_failed_s", "none_fails_after_s"}:
        assert found[name] == sum(one[name] for one in each)
    assert sum(found[f"requests_{period}"] for period in ("before", "first", "after")) == sum(map(len, runs))


def test_the_latest_round_says_when_none_fails() -> None:
    """A round in which nothing failed was calm from the start."""
    assert counts([steady(20)])["none_fails_after_s"] == 0.0
    assert counts([steady(20, [0, 1]), steady(20, [0, 7]), steady(20)])["none_fails_after_s"] == 7.0


def test_requests_that_fail_until_the_end_are_never_over() -> None:
    """The time until none fails is unknown if requests of one round failed in its last seconds."""
    assert "none_fails_after_s" not in counts([steady(20), steady(20, [16])])


def test_open_connections_wait() -> None:
    """A request that was over before the host vanished is none that hung; one without an end is told apart."""
    requests = [
        Request(-7.0, 3.0, answered=True),
        Request(1.0, 0.01, answered=True),
        Request(0.5, 15.2, answered=False),
        Request(-0.5, 14.9, answered=False),
        Request(2.0, 78.0, answered=False),
        Request(79.9, 0.1, answered=False),  # just begun when the client ended
    ]
    found = waits(requests, 50)
    assert found == {"connections": 50, "hung": 3, "hanging": 1, "longest_s": 15.2}
    assert list(pools({"x": found})) == [("x", "50", "3", "15.2 s", "1")]


def test_open_connections_without_an_end_have_no_longest_wait() -> None:
    """The longest wait is that of the connections that ended."""
    found = waits([Request(0.0, 80.0, answered=False)], 10)
    assert found == {"connections": 10, "hung": 1, "hanging": 1}
    assert list(pools({"x": found})) == [("x", "10", "1", "", "1")]


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (0.0667, "0.067"), (0.25, "0.25"), (1.04, "1"), (9.96, "10"), (100, "100")]
)
def test_a_share_has_two_digits(value: float, expected: str) -> None:
    """What is not zero does not look like it."""
    assert percent(value) == expected


def test_tables_have_a_row_for_each_scene() -> None:
    """Cells are in the order of the systems; one that fails until the end has no time."""
    calm, never = counts([steady(20, [1, 12])]), counts([steady(20, range(20))])
    scenes = {"reset": {"none": {"ours": calm, "theirs": never}}}
    assert list(shares(scenes, "none", "failed")) == [("reset", "10 / 10", "100 / 100")]
    assert list(times(scenes, "none")) == [("reset", "12.0 s", "")]
    assert most_noise(scenes) == (0.0, 0.0)
