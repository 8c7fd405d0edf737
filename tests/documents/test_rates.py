"""Rates between two documents of `status --json`."""

from __future__ import annotations

from typing import Any

from clb_discovery.documents.rates import Rate, rates


def document(*counters: tuple[int, int, int]) -> dict[str, Any]:
    """Return what matters of a document: a virtual server with real servers by port, connects and failures."""
    reals = [
        {"address": "10.0.0.1", "port": port, "connects": connects, "failures": failures}
        for port, connects, failures in counters
    ]
    return {"virtual_servers": [{"address": "10.64.0.1", "port": 80, "protocol": "tcp", "real_servers": reals}]}


def test_rates_are_per_second() -> None:
    """What came in between is divided by the seconds in between."""
    found = rates(document((1, 10, 1), (2, 5, 5)), document((1, 30, 2), (2, 5, 5)), 2.0)
    assert list(found.values()) == [Rate(10.0, 0.5), Rate(0.0, 0.0)]


def test_who_is_new_or_counted_anew_has_none() -> None:
    """A server that came, or that left and came back with counters from 0 on, has no rate yet."""
    assert rates(document((1, 10, 0)), document((2, 3, 0)), 1.0) == {}
    assert rates(document((1, 10, 0)), document((1, 3, 0)), 1.0) == {}
    assert rates(document((1, 10, 4)), document((1, 12, 0)), 1.0) == {}
    assert rates(document((1, 10, 0)), document((1, 12, 0)), 0.0) == {}
