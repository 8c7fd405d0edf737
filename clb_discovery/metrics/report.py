"""The state of a running sidecar at one moment, for metrics and for the page."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from clb_discovery import __version__
from clb_discovery.documents.status import Datapath, document
from clb_discovery.model.servers import Vip
from clb_discovery.state.service import ServiceState


class Report(NamedTuple):
    """The state at one moment."""

    instance: str
    datapath: Datapath
    following: Sequence[ServiceState]
    state: Mapping[str, Any]
    """The state that the sidecar writes about itself, without its sources."""
    listening: Collection[Vip] = ()
    """The VIPs on which a program of this host listens."""

    load_error: str | None = None
    """Why the last load failed."""

    other_layouts: Sequence[int] = ()
    """The layouts of other versions whose programs are loaded."""

    def status(self) -> bytes:
        """Return the document of `status --json`."""
        found = document(
            instance=self.instance,
            version=__version__,
            kernel=os.uname().release,
            datapath=self.datapath,
            pid=os.getpid(),
            state={**self.state, "sources": [one.document for one in self.following]},
            listening=self.listening,
            load_error=self.load_error,
            other_layouts=self.other_layouts,
        )
        return json.dumps(found).encode()
