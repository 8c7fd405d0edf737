"""Rates of the counters in `status --json`, from two documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Key = tuple[str, int, str, str, int]
"""Address, port and protocol of a virtual server, address and port of a real server."""


class Rate(NamedTuple):
    """Events per second."""

    connects: float
    failures: float


def rates(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> dict[Key, Rate]:
    """Return the rates of real servers that are in both documents, except those whose counters have started again."""
    then, found = dict(_counters(before)), {}
    for key, (connects, failures) in _counters(after):
        old = then.get(key)
        if old and connects >= old[0] and failures >= old[1] and seconds > 0:
            found[key] = Rate((connects - old[0]) / seconds, (failures - old[1]) / seconds)
    return found


def key_of(virtual: Mapping[str, Any], real: Mapping[str, Any]) -> Key:
    """Return the key of a real server of a virtual server."""
    return virtual["address"], virtual["port"], virtual["protocol"], real["address"], real["port"]


def connects_per_second(rates: Mapping[Key, Rate], virtual: Mapping[str, Any]) -> float:
    """Return the rate of connects to all real servers of a virtual server."""
    found = (rates.get(key_of(virtual, real)) for real in virtual["real_servers"])
    return sum(rate.connects for rate in found if rate)


def _counters(document: Mapping[str, Any]) -> Iterator[tuple[Key, tuple[int, int]]]:
    for virtual in document["virtual_servers"]:
        for real in virtual["real_servers"]:
            yield key_of(virtual, real), (real["connects"], real["failures"])
