"""Endpoints that the sidecar has reached, and those that it has yet to reach once. Pure: moments are values.

A failed probe is evidence only if the server was reached before. So each server that joins a pool is reached once: a
few at a time, after a random pause, because many hosts learn of it at the same moment.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from clb_discovery.sidecar.health.cases import SECOND, Endpoint

PAUSE: Final = SECOND // 50
"""Nanoseconds between two connects to new servers."""
SPREAD: Final = 2 * SECOND
"""Longest pause before the first one."""
FIRST_RETRY: Final = 5 * SECOND
"""Pause after a failed one; it doubles."""
LAST_RETRY: Final = 300 * SECOND


class Reached:
    """What is known of the endpoints in use. Moments are nanoseconds of CLOCK_MONOTONIC."""

    def __init__(self, chance: Callable[[], float]) -> None:
        """Start without any.

        :param chance: returns a random number from 0 to 1.
        """
        self._chance = chance
        self._uses: dict[Endpoint, int] = {}  # how many virtual servers have it
        self._reached: set[Endpoint] = set()
        self._retry: dict[Endpoint, int] = {}  # the pause after the next failure, for those that have failed
        self._planned: dict[Endpoint, int] = {}  # when each is due that waits
        self._waiting: list[tuple[int, Endpoint]] = []  # a heap; entries that `_planned` contradicts are void
        self._free_at = 0

    def __contains__(self, endpoint: Endpoint) -> bool:
        return endpoint in self._reached

    def join(self, endpoint: Endpoint, now: int) -> None:
        """Plan to reach the endpoint of a server that has joined a pool."""
        uses = self._uses.get(endpoint, 0)
        self._uses[endpoint] = uses + 1
        if not uses:
            self._plan(endpoint, now + round(SPREAD * self._chance()))

    def leave(self, endpoint: Endpoint) -> None:
        """Forget the endpoint if this was the last pool with it."""
        self._uses[endpoint] -= 1
        if not self._uses[endpoint]:
            del self._uses[endpoint]
            self._reached.discard(endpoint)
            self._retry.pop(endpoint, None)
            self._planned.pop(endpoint, None)

    def add(self, endpoint: Endpoint) -> None:
        """Take an endpoint as reached."""
        if endpoint in self._uses:
            self._reached.add(endpoint)
            self._retry.pop(endpoint, None)

    def missed(self, endpoint: Endpoint, now: int) -> None:
        """Try again later, after a connect has failed."""
        if endpoint in self._uses and endpoint not in self._reached and endpoint not in self._planned:
            pause = self._retry.get(endpoint, FIRST_RETRY)
            self._retry[endpoint] = min(2 * pause, LAST_RETRY)
            self._plan(endpoint, now + round(pause * (0.75 + 0.5 * self._chance())))

    def due(self, now: int) -> Endpoint | None:
        """Return an endpoint to reach now; `add` or `missed` has to be called for it."""
        while now >= self._free_at and (due := self._first_due()) is not None and due <= now:
            _, endpoint = heappop(self._waiting)
            del self._planned[endpoint]
            if endpoint not in self._reached:
                self._free_at = now + PAUSE
                return endpoint
        return None

    @property
    def next_due(self) -> int | None:
        """When the next one is due; None for never."""
        due = self._first_due()
        return None if due is None else max(due, self._free_at)

    def _first_due(self) -> int | None:
        while self._waiting and self._planned.get(self._waiting[0][1]) != self._waiting[0][0]:
            heappop(self._waiting)
        return self._waiting[0][0] if self._waiting else None

    def _plan(self, endpoint: Endpoint, due: int) -> None:
        if endpoint not in self._planned:
            self._planned[endpoint] = due
            heappush(self._waiting, (due, endpoint))
