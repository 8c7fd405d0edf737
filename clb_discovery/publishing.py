"""The kernel's side of the sidecar: the maps are brought to what is desired, and the programs are kept attached.

One thing at a time, each in a thread, so that the event loop never waits for the kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from clb_discovery.announce import Announcer
from clb_discovery.core import selftest
from clb_discovery.core.desired import Desired, desired
from clb_discovery.core.layout import protocol_of
from clb_discovery.core.model import Protocol, RealServer
from clb_discovery.core.plan import Plan, plan
from clb_discovery.datapath import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.sockets import Destroyed, close_sockets
from clb_discovery.errors import ClbError
from clb_discovery.settings import Settings

_log = structlog.stdlib.get_logger()


class Publisher:
    """The one who writes an instance's maps, and so knows what they hold."""

    def __init__(self, maps: Maps, announcer: Announcer) -> None:
        """Read what the maps hold."""
        self.maps = maps
        self.held = maps.read()
        self._announcer = announcer

    async def publish(self, settings: Settings, known: Mapping[str, Sequence[RealServer]], *, complete: bool) -> None:
        """Bring the maps to what follows from the real servers of each source.

        :param complete: as for `plan`.
        :raises ClbError: if the kernel refuses a step.
        """
        try:
            wanted, steps, closed = await asyncio.to_thread(self._publish, settings, known, complete=complete)
        except ClbError:
            self.held = await asyncio.to_thread(self.maps.read)
            raise
        self._announcer.published(self.held, steps)
        self._announcer.closed(closed)
        self._announcer.rejected(wanted.rejected)
        self.held = steps.result

    def _publish(
        self, settings: Settings, known: Mapping[str, Sequence[RealServer]], *, complete: bool
    ) -> tuple[Desired, Plan, Destroyed | None]:
        wanted = desired(settings.services, known, settings.real_ranges)
        virtual = {**selftest.virtual_servers(settings.pins.instance), **wanted.virtual}
        steps = plan(self.held, virtual, complete=complete)
        self.maps.apply(steps.steps)
        # A UDP socket would go on sending to a server that is gone, and never know.
        protocols = (Protocol.TCP, Protocol.UDP) if settings.reset else (Protocol.UDP,)
        dropped = frozenset(member for member in steps.dropped if protocol_of(member) in protocols)
        closed = (
            close_sockets(dropped, self.maps.places(), self.maps.sockets(), protocols=protocols) if dropped else None
        )
        return wanted, steps, closed

    async def keep_attached(self, settings: Settings) -> bool:
        """Attach again where the cgroup was removed and made anew, as service managers do.

        :returns: whether that was so; where the pins had gone, too, the maps are new and empty.
        """
        pins, cgroup = settings.pins, settings.cgroup
        if not cgroup.exists():
            self._announcer.trouble("not attached", f"{cgroup} is gone; it is attached again when it is back")
            return False
        again = not loader.is_attached(pins, cgroup)
        if again:
            try:
                await asyncio.to_thread(loader.load, pins, cgroup, settings.loader)
                await asyncio.to_thread(self.maps.reopen)
                self.held = await asyncio.to_thread(self.maps.read)
            except ClbError as error:
                self._announcer.trouble("not attached", str(error))
                return False
            _log.warning("attached again", cgroup=str(cgroup))
        self._announcer.trouble("not attached", None)
        return again
