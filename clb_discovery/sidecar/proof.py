"""Whether the kernel programs are in effect, found out by a self-test connect."""

from __future__ import annotations

import time
from typing import Final

from clb_discovery.datapath.plane import Plane

PROOF_LASTS: Final = 10.0
"""Seconds for which the result of a self-test connect is used again: outside of its cgroup each takes a process."""


class Proof:
    """The result of the last self-test; it runs again only after a while."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._objection: str | None = None
        self._until = 0.0

    def objection(self) -> str | None:
        """Return why the programs are not in effect, or None if they are. For one thread at a time."""
        if time.monotonic() >= self._until:
            self._objection = self._plane.objection()
            self._until = time.monotonic() + PROOF_LASTS
        return self._objection
