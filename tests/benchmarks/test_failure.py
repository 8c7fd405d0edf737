"""What the benchmark of failures makes of requests."""

from __future__ import annotations

from benchmarks.failure import Request, summary


def test_shares_are_those_of_each_period() -> None:
    """Requests before the failure do not count; slow ones have a response all the same."""
    requests = [
        Request(-1.0, 0.5, answered=False),
        Request(0.5, 0.5, answered=False),
        Request(1.0, 0.2, answered=True),
        Request(2.0, 0.01, answered=True),
        Request(3.0, 0.01, answered=True),
        *(Request(10.0 + second, 0.01, answered=second != 2) for second in range(10)),
    ]
    assert summary(requests) == {
        "requests_first": 4,
        "failed_first": 25.0,
        "slow_first": 25.0,
        "requests_later": 10,
        "failed_later": 10.0,
        "slow_later": 0.0,
        "none_fails_after_s": 12.0,
    }


def test_a_system_without_failures_is_quiet_from_the_start() -> None:
    """No failed request is zero seconds of them."""
    assert summary([Request(float(second), 0.01, answered=True) for second in range(20)])["none_fails_after_s"] == 0.0


def test_a_system_that_still_fails_at_the_end_is_never_quiet() -> None:
    """The time until none fails is unknown then."""
    requests = [Request(float(second), 0.01, answered=second != 19) for second in range(20)]
    assert "none_fails_after_s" not in summary(requests)
