"""What a running sidecar can tell at one moment, gathered for metrics and for its page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from clb_discovery import __version__
from clb_discovery.core import selftest
from clb_discovery.core.held import Held
from clb_discovery.core.layout import Info, Server
from clb_discovery.core.model import Vip
from clb_discovery.core.neighbours import Overlap
from clb_discovery.core.status import Datapath, document
from clb_discovery.following import Following
from clb_discovery.plane import Plane

PROOF_LASTS: Final = 10.0
"""Seconds for which the result of a self-test connect is told again: outside of its cgroup that takes a process."""


class Report(NamedTuple):
    """One moment."""

    instance: str
    info: Info | None
    held: Held
    servers: Mapping[bytes, Server]
    """What became of connects, by packed member."""
    ineffective: str | None
    """Why connects do not meet the programs, or None if they do."""
    records_lost: int
    """How often there was no memory to remember where a socket was sent."""
    following: Sequence[Following]
    state: Mapping[str, Any]
    """What the sidecar says of itself, without its sources."""
    listening: Collection[Vip] = ()
    """The VIPs on which a program of this host listens."""
    overlaps: Sequence[Overlap] = ()
    """Other instances that serve the same VIPs."""

    def status(self) -> bytes:
        """Return the document of `status --json`."""
        found = document(
            instance=self.instance,
            version=__version__,
            kernel=os.uname().release,
            datapath=Datapath(self.info, self.held, self.servers, self.ineffective, self.records_lost, self.overlaps)
            if self.info
            else None,
            pid=os.getpid(),
            state={**self.state, "sources": [one.document() for one in self.following]},
            hidden=frozenset(selftest.virtual_servers(self.instance)),
            listening=self.listening,
        )
        return json.dumps(found).encode()


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
