"""The self-test of the sidecar: whether the programs are in effect."""

from __future__ import annotations

import time
from typing import Final

from clb_discovery.datapath.plane import Plane

PROOF_LASTS: Final = 10.0
"""Seconds for which the result of a self-test connect is told again: outside of its cgroup that takes a process."""


class Proof:
    """Whether the programs are effective, found out again only when that was a while ago."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._objection: str | None = None
        self._until = 0.0

    def objection(self) -> str | None:
        """Return why connects do not meet the programs, or None if they do. One thread at a time."""
        if time.monotonic() >= self._until:
            self._objection = self._plane.objection()
            self._until = time.monotonic() + PROOF_LASTS
        return self._objection
