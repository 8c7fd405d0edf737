"""Programs of this host that listen on VIPs: the sidecar looks for them when VIPs change, and logs each once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

import structlog

from clb_discovery.datapath.sockets.listening import listening_here
from clb_discovery.layout.installed import Installed
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Vip

LASTS: Final = 10.0
"""Seconds for which a finding is reported again without another look."""

_log = structlog.stdlib.get_logger()


class LocalListeners:
    """Where programs of this host listen. For one event loop."""

    def __init__(self) -> None:
        self._installed: Installed | None = None
        self._seen: frozenset[Vip] = frozenset()
        self._found: Collection[Vip] = ()
        self._until = 0.0

    async def announce(self, installed: Installed) -> None:
        """Log the listeners on new VIPs, which are looked for only if the object is another one than before."""
        if installed is self._installed:
            return
        self._installed = installed
        vips = frozenset(installed.virtual)
        if vips - self._seen:
            found = await asyncio.to_thread(listening_here, vips)
            for vip in sorted(found.keys() - self._seen):
                label = installed.virtual[vip].label
                if label is None or not is_own(label.source):
                    _log.warning(
                        "a program of this host listens on a VIP",
                        vip=str(vip),
                        service=label.service if label else None,
                        listener=str(found[vip]),
                        reason="its clients on this host get real servers instead",
                    )
        self._seen = vips

    async def now(self, installed: Installed) -> Collection[Vip]:
        """Return the VIPs on which a program listens; one that came in the last seconds may be missing."""
        if time.monotonic() >= self._until:
            self._found = (await asyncio.to_thread(listening_here, tuple(installed.virtual))).keys()
            self._until = time.monotonic() + LASTS
        return self._found
