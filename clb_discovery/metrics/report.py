"""What a running sidecar can tell at one moment, gathered for metrics and for its page."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from clb_discovery import __version__
from clb_discovery.documents.status import Datapath, document
from clb_discovery.layout.elements import Info, Server
from clb_discovery.layout.installed import Installed
from clb_discovery.model import own_servers
from clb_discovery.model.neighbours import Overlap
from clb_discovery.model.servers import Vip
from clb_discovery.state.service import ServiceState


class Report(NamedTuple):
    """One moment."""

    instance: str
    info: Info | None
    installed: Installed
    servers: Mapping[bytes, Server]
    """What became of connects, by packed member."""
    ineffective: str | None
    """Why connects do not meet the programs, or None if they do."""
    records_lost: int
    """How often there was no memory to remember where a socket was sent."""
    following: Sequence[ServiceState]
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
            datapath=Datapath(
                self.info, self.installed, self.servers, self.ineffective, self.records_lost, self.overlaps
            )
            if self.info
            else None,
            pid=os.getpid(),
            state={**self.state, "sources": [one.document for one in self.following]},
            hidden=frozenset(own_servers.virtual_servers(self.instance)),
            listening=self.listening,
        )
        return json.dumps(found).encode()
