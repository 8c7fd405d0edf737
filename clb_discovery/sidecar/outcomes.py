"""Whether the kernel follows how TCP connects end: only while a virtual server needs it, or `trace` runs.

The program for it costs every TCP connect of the cgroup, also those to other addresses. It is attached before the first
virtual server that needs it is published, so no outcome is lost. It is detached when none needs it, after a pause, and
only once no connection is counted any more, because a count that it raised would otherwise stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from clb_discovery.datapath.plane import Plane
from clb_discovery.errors import ClbError
from clb_discovery.layout.elements import Server
from clb_discovery.layout.installed import Installed
from clb_discovery.publication.outcomes import WITHOUT_OUTCOMES, are_counted, are_needed, will_be_needed
from clb_discovery.publication.plan import Plan

PAUSE: Final = 10.0
"""Seconds after which nothing has needed outcomes for long enough, and between two looks for counted connections. A
connect that has met the previous pool is at its end by then."""
_SELDOM: Final = 200  # the next look comes after this many times the duration of the last one, if that is longer


class Outcomes:
    """Attaches and detaches the program, or reports that it is missing."""

    def __init__(self, plane: Plane, clock: Callable[[], float] = time.monotonic) -> None:
        self._plane = plane
        self._clock = clock  # returns seconds, and does not go backwards
        self._installed: Installed | None = None
        self._needed = False  # whether any virtual server of it needs outcomes
        self._next_look = clock() + PAUSE
        self.objection: str | None = None
        """Why outcomes are not followed although they are needed, and what is lost; None if they are."""

    def prepare(self, plan: Plan) -> None:
        """Attach the program before the steps of a plan whose virtual servers need it. A failure is an objection."""
        if will_be_needed(plan):
            self._follow()

    def look(self, installed: Installed, read: Callable[[Installed], Mapping[bytes, Server]]) -> None:
        """Attach the program if it is needed now, and detach it if it has not been needed for a while.

        :param read: returns the counters of each packed member.
        :raises ClbError: if it cannot be detached, or an OSError.
        """
        if installed is not self._installed:
            self._installed, self._needed = installed, are_needed(installed)
        now = self._clock()
        if self._needed or self._plane.is_traced():
            self._next_look = now + PAUSE
            self._follow()
            return
        self.objection = None
        if now < self._next_look or not self._plane.loads or not self._plane.follows_outcomes():
            return
        counted = are_counted(installed, read(installed))
        self._next_look = now + max(PAUSE, _SELDOM * (self._clock() - now))
        if not counted:
            self._plane.leave_outcomes()

    def _follow(self) -> None:
        try:
            self._plane.follow_outcomes()
        except (ClbError, OSError) as error:
            self.objection = f"{WITHOUT_OUTCOMES}: {error}"
        else:
            self.objection = None
