"""When the sidecar is ready: everything is served, and every source has had time to answer first."""

from __future__ import annotations

import math
from typing import Final

FRESH_WITHIN: Final = 5.0
"""Seconds that sources have to answer before a start with last known sets counts as ready."""
ALL_WITHIN: Final = 60.0
"""Seconds that services without any answer keep the programs of another layout, which may still have their pools."""


class Readiness:
    """Whether the sidecar is ready. Once it is, it stays ready."""

    def __init__(self) -> None:
        self.is_ready = False
        self._fresh_until = math.inf
        self._all_until = math.inf

    def begin(self, now: float) -> None:
        """Give sources their time to answer from now on, by a clock that does not go backwards."""
        self._fresh_until = now + FRESH_WITHIN
        self._all_until = now + ALL_WITHIN

    def is_settled(self, now: float, *, tried: bool) -> bool:
        """Tell whether last known sets are used in place of answers that are missing.

        Until then they are not published again, perhaps at other VIPs.

        :param tried: whether every source has had an outcome.
        """
        return tried or now >= self._fresh_until

    def reach(self, *, settled: bool, served: bool) -> bool:
        """Return whether the sidecar has just become ready."""
        if self.is_ready or not (settled and served):
            return False
        self.is_ready = True
        return True

    def takes_over(self, now: float, *, published: bool) -> bool:
        """Tell whether the programs of another layout can go, whose pools nobody updates.

        They can when the sidecar is ready. A service that never has an answer must not keep them for ever: after a
        while it is left to itself, unless discovery has not shown anything at all.

        :param published: whether something is known, and all of that is published.
        """
        return self.is_ready or (published and now >= self._all_until)
