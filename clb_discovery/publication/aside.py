"""Virtual servers that the kernel had no room for: each is set aside, and retried after a growing pause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from clb_discovery.model.servers import Unpublished, Vip, VirtualServer

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds until the next attempt; the pause doubles with each failure."""


class Aside(NamedTuple):
    """One virtual server that is not tried now."""

    wanted: VirtualServer
    """The desired virtual server that failed; a different one is tried at once."""
    why: Unpublished
    pause: float
    until: float
    """Time of the next attempt, in seconds of a monotonic clock."""


def put_aside(before: Aside | None, wanted: VirtualServer, why: Unpublished, now: float) -> Aside:
    """Return the virtual server set aside after another failed attempt.

    :param before: the previous entry of the same VIP.
    """
    pause = min(2 * before.pause, LONGEST_PAUSE) if before else FIRST_PAUSE
    return Aside(wanted, why, pause, now + pause)


def waiting(aside: Mapping[Vip, Aside], now: float) -> dict[Vip, VirtualServer]:
    """Return the virtual servers whose pause is not over."""
    return {vip: one.wanted for vip, one in aside.items() if now < one.until}


def next_try(aside: Iterable[Aside]) -> float | None:
    """Return the time of the next attempt, or None if nothing is set aside."""
    return min((one.until for one in aside), default=None)
