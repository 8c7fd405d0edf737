"""The kernel's side of the sidecar: the maps are brought to what is desired, and the programs are kept attached.

One thing at a time, each in a thread, so that the event loop never waits for the kernel, and no counter is read for
another server's index.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import structlog

from clb_discovery.announce import Announcer
from clb_discovery.core import selftest
from clb_discovery.core.claims import Claim
from clb_discovery.core.desired import Rejected
from clb_discovery.core.guard import Servers
from clb_discovery.core.held import Held
from clb_discovery.core.layout import Info, Server, protocol_of
from clb_discovery.core.model import Protocol, Refused
from clb_discovery.core.publication import Publication, Wanted, publication
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.sockets import Destroyed
from clb_discovery.errors import ClbError, RemovedError
from clb_discovery.metrics import Meters
from clb_discovery.plane import Plane
from clb_discovery.settings import Settings

_log = structlog.stdlib.get_logger()


class Counted(NamedTuple):
    """What the maps say at one moment."""

    held: Held
    info: Info | None
    servers: Mapping[bytes, Server]
    """What became of connects, by packed member."""
    records_lost: int
    """How often there was no memory to remember where a socket was sent."""


class Refusals(NamedTuple):
    """What was not published of what sources say."""

    words: Mapping[str, Sequence[Refused]]
    """Of services of a catalog, by source."""
    servers: Sequence[Rejected]


class Publisher:
    """The one who writes an instance's maps, and so knows what they hold."""

    def __init__(self, plane: Plane, maps: Maps, announcer: Announcer, meters: Meters) -> None:
        """Read what the maps of the plane hold."""
        self._plane = plane
        self.held = maps.read()
        self._before: Publication | None = None
        self._maps = maps
        self._announcer = announcer
        self._meters = meters
        self._unsure = False
        """Whether the maps may hold something else than what is held, and could not be read."""
        self._lost = False
        """Whether the data plane was found to be lost, and is not yet as it should be."""
        self._kernel = asyncio.Lock()  # while nobody has it, what is held is what the maps hold

    async def counted(self) -> Counted:
        """Read what became of connects."""
        async with self._kernel:
            held = self.held
            return await asyncio.to_thread(
                lambda: Counted(held, self._maps.info(), self._maps.servers(held), self._maps.records_lost())
            )

    async def publish(
        self, settings: Settings, claims: Sequence[Claim], servers: Mapping[str, Servers], *, complete: bool
    ) -> Refusals:
        """Bring the maps to what follows from the real servers of each source.

        :param claims: of services of a catalog, besides those of the settings.
        :param complete: as for `plan`.
        :raises ClbError: if the kernel refuses a step.
        :raises OSError: if this host lacks what it takes, such as descriptors.
        """
        async with self._kernel:
            if self._unsure:
                await self._read()
            began = time.monotonic()
            wanted = Wanted(
                settings.services,
                claims,
                servers,
                selftest.virtual_servers(settings.pins.instance),
                settings.vip_ranges,
                settings.real_ranges,
                complete,
            )
            try:
                found, closed = await asyncio.to_thread(self._publish, wanted, reset=settings.reset)
            except (ClbError, OSError):
                self._meters.failed()
                await self._read()
                raise
            if found.plan.steps:
                self._meters.published(len(found.plan.changed), time.monotonic() - began)
            before, self.held = self.held, found.plan.result
            self._before = found._replace(plan=replace(found.plan, steps=()))  # which may be large
        self._announcer.published(before, found.plan)
        self._announcer.closed(closed)
        self._announcer.rejected(found.desired.rejected)
        return Refusals(found.resolved.refused, found.desired.rejected)

    async def _read(self) -> None:
        """Find out what the maps hold, now or before they are written next."""
        self._unsure = True
        self.held = await asyncio.to_thread(self._maps.read)
        self._unsure = False

    def _publish(self, wanted: Wanted, *, reset: bool) -> tuple[Publication, Destroyed | None]:
        found = publication(self.held, wanted, self._before)
        self._maps.apply(found.plan.steps)
        # A UDP socket would go on sending to a server that is gone, and never know.
        protocols = (Protocol.TCP, Protocol.UDP) if reset else (Protocol.UDP,)
        dropped = frozenset(member for member in found.plan.dropped if protocol_of(member) in protocols)
        closed = self._plane.close_sockets(dropped, self._maps, protocols) if dropped else None
        return found, closed

    async def keep_up(self) -> bool:
        """Bring the data plane up again where its cgroup was made anew, as service managers do, or its pins were.

        :returns: whether that was so; where the pins had gone, too, the maps are new and empty.
        """
        try:
            lost = self._lost = self._lost or await asyncio.to_thread(self._plane.is_lost)
            if lost:
                async with self._kernel:
                    await asyncio.to_thread(self._plane.bring_up)
                    await asyncio.to_thread(self._maps.reopen)
                    await self._read()
                self._lost = False
        except RemovedError:
            raise
        except (ClbError, OSError) as error:
            self._announcer.trouble("not attached", str(error))
            return False
        if lost and self._plane.loads:
            _log.warning("attached again", cgroup=str(self._plane.cgroup))
        elif lost:
            _log.warning("maps were loaded anew", cgroup=str(self._plane.cgroup))
        self._announcer.trouble("not attached", None)
        return lost
