"""The state of a running sidecar at one moment, for metrics and for the page."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from clb_discovery import __version__
from clb_discovery.documents.status import Datapath, document
from clb_discovery.layout.elements import Info, Server
from clb_discovery.layout.installed import Installed
from clb_discovery.model.neighbours import Overlap
from clb_discovery.model.servers import Vip
from clb_discovery.state.service import ServiceState


class Report(NamedTuple):
    """The state at one moment."""

    instance: str
    info: Info | None
    installed: Installed
    servers: Mapping[bytes, Server]
    """Counters of connects, by packed member."""
    ineffective: str | None
    """Why the programs are not in effect, or None if they are."""
    records_lost: int
    """How often there was no memory for the record of a socket."""
    following: Sequence[ServiceState]
    state: Mapping[str, Any]
    """The state that the sidecar writes about itself, without its sources."""
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
            datapath=Datapath(
                self.info, self.installed, self.servers, self.ineffective, self.records_lost, self.overlaps
            )
            if self.info
            else None,
            pid=os.getpid(),
            state={**self.state, "sources": [one.document for one in self.following]},
            listening=self.listening,
        )
        return json.dumps(found).encode()
