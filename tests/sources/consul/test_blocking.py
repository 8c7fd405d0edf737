"""The rules of blocking queries, and the rate limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.errors import SourceError
from clb_discovery.sources.consul.blocking import FIRST, MARGIN, WAIT, Bucket, client_timeout, next_index

UINT64 = st.integers(min_value=0, max_value=2**64 - 1)


@given(header=UINT64, previous=UINT64)
def test_an_index_blocks_or_starts_afresh(header: int, previous: int) -> None:
    """The next index is the answer's, at least 1; or 0 where it would go backwards."""
    index = next_index(str(header), previous)
    assert index == (max(header, 1) if max(header, 1) >= previous else FIRST)


@given(headers=st.lists(UINT64, max_size=30))
def test_a_chain_of_indexes_is_never_ahead(headers: list[int]) -> None:
    """For any answers, an index that is sent is never ahead of the newest one received since the last reset."""
    index = FIRST
    for header in headers:
        before, index = index, next_index(str(header), index)
        assert index == FIRST or index >= max(before, 1)
        assert index <= max(header, 1)


@pytest.mark.parametrize(
    "header", ["", "-1", "+1", " 1", "1.0", "0x1", "1_0", "\u0661", "\u00b2", str(2**64), "9" * 5000, "a" * 999]
)
def test_a_header_that_is_no_index_is_an_error(header: str) -> None:
    """Anything but the digits of a uint64 is rejected, with a bounded message."""
    with pytest.raises(SourceError, match="not an index") as caught:
        next_index(header, 1)
    assert len(str(caught.value)) < 250


def test_a_missing_header_is_an_error() -> None:
    """An answer without an index does not come from Consul."""
    with pytest.raises(SourceError, match="no X-Consul-Index"):
        next_index(None, 0)


def test_the_client_waits_longer_than_consul() -> None:
    """Consul may take its wait and a sixteenth of it; after that there is still time for the answer."""
    assert client_timeout(WAIT) == WAIT + WAIT / 16 + MARGIN


@given(
    rate=st.integers(min_value=1, max_value=100),
    burst=st.integers(min_value=1, max_value=50),
    gaps=st.lists(st.integers(min_value=0, max_value=40).map(lambda n: n / 16), max_size=100),
)
def test_a_bucket_holds_the_rate_in_every_window(rate: int, burst: int, gaps: list[float]) -> None:
    """In any period, a caller that keeps the pauses sends at most burst + rate * time queries."""
    now, bucket, starts = 100.0, Bucket.full(rate, burst, 100.0), []
    for gap in gaps:
        now += gap
        bucket, pause = bucket.take(now)
        now += pause
        starts.append(now)
    for first, start in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= burst + rate * (starts[last] - start) + 1e-6


@given(burst=st.integers(min_value=1, max_value=50))
def test_a_quiet_bucket_lets_a_burst_pass(burst: int) -> None:
    """As many queries as the burst start at once; the next one waits for a token."""
    bucket = Bucket.full(10.0, burst, 0.0)
    pauses = []
    for _ in range(burst + 1):
        bucket, pause = bucket.take(1e6)
        pauses.append(pause)
    assert pauses == [0.0] * burst + [pytest.approx(0.1)]


def test_a_clock_that_goes_back_earns_nothing() -> None:
    """Time that runs backwards neither fills nor empties the bucket."""
    bucket, _ = Bucket.full(1.0, 1.0, 100.0).take(100.0)
    bucket, pause = bucket.take(50.0)
    assert pause == 1.0
    assert bucket.at == 100.0
