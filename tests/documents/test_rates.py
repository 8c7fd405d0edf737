"""Rates between two documents of `status --json`."""

from __future__ import annotations

from typing import Any

from clb_discovery.documents.rates import Rate, connects_per_second, rates


def document(*counters: tuple[int, int, int]) -> dict[str, Any]:
    """Return the part of a document that rates need: real servers by port, connects and failures."""
    reals = [
        {"address": "10.0.0.1", "port": port, "connects": connects, "failures": failures}
        for port, connects, failures in counters
    ]
    return {"virtual_servers": [{"address": "10.64.0.1", "port": 80, "protocol": "tcp", "real_servers": reals}]}


def test_rates_are_per_second() -> None:
    """The growth of a counter is divided by the seconds between the documents."""
    found = rates(document((1, 10, 1), (2, 5, 5)), document((1, 30, 2), (2, 5, 5)), 2.0)
    assert list(found.values()) == [Rate(10.0, 0.5), Rate(0.0, 0.0)]


def test_new_counters_have_no_rate() -> None:
    """A server that was added, or that left and returned with new counters, has no rate yet."""
    assert rates(document((1, 10, 0)), document((2, 3, 0)), 1.0) == {}
    assert rates(document((1, 10, 0)), document((1, 3, 0)), 1.0) == {}
    assert rates(document((1, 10, 4)), document((1, 12, 0)), 1.0) == {}
    assert rates(document((1, 10, 0)), document((1, 12, 0)), 0.0) == {}


def test_rate_of_a_virtual_server() -> None:
    """It is the sum of those of its real servers; one without a rate counts nothing."""
    after = document((1, 30, 0), (2, 5, 0), (3, 9, 0))
    found = rates(document((1, 10, 0), (2, 0, 0)), after, 2.0)
    assert connects_per_second(found, after["virtual_servers"][0]) == 12.5
