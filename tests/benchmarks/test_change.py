"""When a change takes effect, by the servers that connects reach; and the summary of these times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest

from benchmarks.change import GONE, GUEST, STEADY, summary, until_first, until_last
from benchmarks.poller import servers


def landing(*numbers: int) -> Callable[[], int]:
    """Return a client that reaches these servers, and then always the one that stays."""
    left: Iterator[int] = chain(numbers, repeat(STEADY))
    return lambda: next(left)


def test_the_first_connect_on_the_new_one_counts() -> None:
    """Earlier connects that fail or reach another server do not count."""
    began = time.monotonic()
    taken = until_first(landing(STEADY, 0, STEADY, GUEST), began)
    assert 0 < taken <= (time.monotonic() - began) * 1000


def test_the_last_connect_on_the_removed_one_counts() -> None:
    """Connects in between to another server do not matter; later connects are not waited for."""
    began = time.monotonic()
    taken = until_last(landing(GUEST, STEADY, STEADY, GUEST), began)
    after = (time.monotonic() - began) * 1000
    assert 0 < taken < after - GONE


def test_a_removal_that_is_felt_at_once_takes_no_time() -> None:
    """No connect reached the removed server after the call."""
    assert until_last(landing(), time.monotonic()) == 0


def test_a_summary_has_the_worst() -> None:
    """A summary has the median, the 99th of 100 and the worst, in milliseconds."""
    assert summary(range(1, 102)) == {"changes": 101, "p50_ms": 51, "p99_ms": 100, "worst_ms": 101}
    assert summary([7.04]) == {"changes": 1, "p50_ms": 7.0, "p99_ms": 7.0, "worst_ms": 7.0}


@pytest.mark.parametrize(("weight", "expected"), [(1, 1), (256, 1), (2304, 9), (65535, 255)])
def test_the_poller_reads_an_answer_of_consul(weight: int, expected: int) -> None:
    """Addresses are those of services, or else of their nodes; weights are limited to HAProxy's maximum."""
    service = {"Port": 80, "Weights": {"Passing": weight}}
    answer = [
        {"Node": {"Address": "10.0.0.1"}, "Service": {"Address": "10.1.0.2", **service}},
        {"Node": {"Address": "10.0.0.1"}, "Service": {"Address": "", **service}},
    ]
    assert servers(answer) == {"10.0.0.1:80": expected, "10.1.0.2:80": expected}
