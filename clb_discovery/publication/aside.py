"""Virtual servers that the kernel had no room for: each is set aside, and tried again after a growing pause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from clb_discovery.model.servers import Unpublished, Vip, VirtualServer

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds until the next try, which double with each."""


class Aside(NamedTuple):
    """One virtual server that is not to be tried now."""

    wanted: VirtualServer
    """As it should be; another wish is tried at once."""
    why: Unpublished
    pause: float
    until: float
    """When it is tried again, in seconds on a clock that does not go backwards."""


def put_aside(before: Aside | None, wanted: VirtualServer, why: Unpublished, now: float) -> Aside:
    """Return what is set aside after another try has failed.

    :param before: what was set aside of the same VIP.
    """
    pause = min(2 * before.pause, LONGEST_PAUSE) if before else FIRST_PAUSE
    return Aside(wanted, why, pause, now + pause)


def waiting(aside: Mapping[Vip, Aside], now: float) -> dict[Vip, VirtualServer]:
    """Return what is not to be tried yet."""
    return {vip: one.wanted for vip, one in aside.items() if now < one.until}


def next_try(aside: Iterable[Aside]) -> float | None:
    """Return when one is to be tried again, or None where there is none."""
    return min((one.until for one in aside), default=None)
