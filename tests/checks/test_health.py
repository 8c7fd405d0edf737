"""A server goes out after `fall` failures in a row, and comes back after `rise` passed checks in a row."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.checks.health import Health, Result
from clb_discovery.model.check import Check

PASSED, FAILED, UNKNOWN = Result(passed=True), Result(passed=False, reason="HTTP 503"), Result(None, "no descriptor")
RESULTS = st.lists(st.sampled_from([PASSED, FAILED, UNKNOWN]), max_size=40)
CHECKS = st.builds(Check, rise=st.integers(1, 4), fall=st.integers(1, 4))


def after(results: list[Result], check: Check) -> Health:
    """Return the health after these results."""
    health = Health()
    for result in results:
        health = health.after(result, check)
    return health


def test_a_new_server_is_up() -> None:
    """It takes connects before its first check."""
    assert Health().up


@given(RESULTS, CHECKS)
def test_the_last_long_row_decides(results: list[Result], check: Check) -> None:
    """The last row of failures as long as `fall`, or of successes as long as `rise`, decides; without any it is up."""
    rows = [
        (passed, len(list(row))) for passed, row in groupby(one.passed for one in results if one.passed is not None)
    ]
    long = [passed for passed, length in rows if length >= (check.rise if passed else check.fall)]
    # A row that is long enough for one direction says nothing in a server that is there already.
    assert after(results, check).up is (long[-1] if long else True)


@given(RESULTS, CHECKS)
def test_what_happens_on_this_host_changes_nothing(results: list[Result], check: Check) -> None:
    """A check that could not be made is no verdict, and does not end a row either."""
    assert after(results, check) == after([one for one in results if one is not UNKNOWN], check)


@given(CHECKS)
def test_the_reason_is_that_of_the_last_failure(check: Check) -> None:
    """It stays while the server is down, and goes when it is back."""
    down = after([FAILED] * check.fall, check)
    assert (down.up, down.reason) == (False, "HTTP 503")
    other = down.after(Result(passed=False, reason="no answer within 1 s"), check)
    assert other.reason == "no answer within 1 s"
    back = other
    for _ in range(check.rise):
        back = back.after(PASSED, check)
    assert (back.up, back.reason) == (True, None)
