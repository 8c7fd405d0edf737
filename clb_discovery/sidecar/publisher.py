"""The kernel's side of the sidecar: the maps are brought to what is desired, and the programs are kept attached.

One thing at a time, each in a thread, so that the event loop never waits for the kernel, and no counter is read for
another server's index.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final, NamedTuple

import structlog

from clb_discovery.config.settings import Settings
from clb_discovery.datapath.maps import FullError, Maps
from clb_discovery.datapath.plane import Plane
from clb_discovery.errors import ClbError, RemovedError
from clb_discovery.layout.elements import Info, Server
from clb_discovery.layout.installed import Installed
from clb_discovery.metrics.meters import Meters
from clb_discovery.model import own_servers
from clb_discovery.model.answer import Claim, Refusal
from clb_discovery.model.neighbours import Overlap
from clb_discovery.model.servers import Protocol, Unpublished, Vip, VirtualServer
from clb_discovery.publication.admission import SLICE
from clb_discovery.publication.aside import FIRST_PAUSE, LONGEST_PAUSE, Aside, next_try, put_aside, waiting
from clb_discovery.publication.cut import Cut, cut
from clb_discovery.publication.leaving import Leaving
from clb_discovery.publication.plan import Plan, together
from clb_discovery.publication.reconcile import Publication, Wanted, publication
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.state.guard import Servers

_MOST_FAILURES: Final = 16
"""Virtual servers that are set aside in one round; the next one goes on from there."""

_LOOK_EVERY: Final = 60.0
"""Seconds between looks for other instances."""

_log = structlog.stdlib.get_logger()


class Counted(NamedTuple):
    """What the maps say at one moment."""

    installed: Installed
    info: Info | None
    servers: Mapping[bytes, Server]
    """What became of connects, by packed member."""
    records_lost: int
    """How often there was no memory to remember where a socket was sent."""


class Refusals(NamedTuple):
    """What was not published of what sources say."""

    words: Mapping[str, Sequence[Refusal]]
    """Of services of a catalog, by source."""
    servers: Mapping[str, Sequence[Refusal]]
    """Real servers of all services, by source."""
    unpublished: Sequence[Unpublished]
    """Virtual servers that there is no room for."""


class Published(NamedTuple):
    """What has come of a publication."""

    refusals: Refusals
    pending: frozenset[str]
    """Sources of which more is to be published at once: it was interrupted."""


class Publisher:
    """The one who writes an instance's maps, and so knows what they hold."""

    def __init__(self, plane: Plane, maps: Maps, announcer: Announcer, meters: Meters) -> None:
        """Read what the maps of the plane hold."""
        self._plane = plane
        self.installed = maps.read()
        self._before: Publication | None = None
        self._synced = False  # whether everything has been published once
        self._aside: dict[Vip, Aside] = {}
        self._leaving = Leaving()
        self._failed_until: float | None = None  # when to try again after a publication that failed as a whole
        self._pause = FIRST_PAUSE
        self.overlaps: Sequence[Overlap] = ()
        """Other instances that serve VIPs of ours, when it was looked last."""
        self._looked_at: AbstractSet[Vip] = frozenset()
        self._looked = 0.0
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
            installed = self.installed
            return await asyncio.to_thread(
                lambda: Counted(installed, self._maps.info(), self._maps.servers(installed), self._maps.records_lost())
            )

    @property
    def next_try(self) -> float:
        """When to publish again although nothing has changed, by `time.monotonic`; infinity where that is not so."""
        tries = (next_try(self._aside.values()), self._failed_until, self._leaving.next_try)
        return min((one for one in tries if one is not None), default=math.inf)

    @property
    def failed(self) -> bool:
        """Whether the last publication failed as a whole."""
        return self._failed_until is not None

    async def publish(
        self,
        settings: Settings,
        claims: Sequence[Claim],
        servers: Mapping[str, Servers],
        *,
        complete: bool,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Published:
        """Bring the maps to what follows from the real servers of each source, round by round.

        :param claims: of services of a catalog, besides those of the settings.
        :param complete: as for `plan`.
        :param interrupted: whether there is something new to publish, after which no further round begins.
        :raises ClbError: if the kernel refuses a step, but for want of room.
        :raises OSError: if this host lacks what it takes, such as descriptors.
        """
        wanted = Wanted(
            settings.services,
            claims,
            servers,
            own_servers.virtual_servers(settings.pins.instance),
            settings.vip_ranges,
            settings.real_ranges,
            complete,
        )
        while True:
            found = await self._round(wanted)
            self._leaving.add(found.plan.dropped)
            if not found.goes_on or interrupted():
                break
        await self._close_sockets(reset=settings.reset)
        self._announcer.rejected(found.desired.rejected, found.desired.basis.by_source)
        without_room = {one.vip: one for one in (*found.unpublished, *(one.why for one in self._aside.values()))}
        unpublished = tuple(without_room.values())
        self._announcer.unpublished(unpublished)
        refusals = Refusals(found.resolved.refused, found.desired.rejected, unpublished)
        return Published(refusals, found.pending())

    async def _round(self, wanted: Wanted) -> Publication:
        """Publish a bounded number of changes."""
        async with self._kernel:
            if self._unsure:
                await self._read()
            began = time.monotonic()
            before = self.installed
            try:
                found = await asyncio.to_thread(self._publish, wanted)
            except (ClbError, OSError):
                self._meters.failed()
                self._before = None
                self._pause = min(2 * self._pause, LONGEST_PAUSE) if self._failed_until else FIRST_PAUSE
                self._failed_until = time.monotonic() + self._pause
                await self._read()
                raise
            self._failed_until = None
            if found.plan.steps:
                self._meters.published(len(found.plan.changed), time.monotonic() - began)
            self.installed = found.plan.result
        self._announcer.published(before, found.plan)
        return found

    async def _read(self) -> None:
        """Find out what the maps hold, now or before they are written next."""
        self._unsure = True
        self.installed = await asyncio.to_thread(self._maps.read)
        self._unsure = False

    def _publish(self, wanted: Wanted) -> Publication:
        """Publish what the kernel takes; what it has no room for is set aside, and the rest tried again."""
        installed, before = self.installed, self._before
        carried_out: list[Plan] = []
        for tries in range(1, _MOST_FAILURES + 1):
            budget = SLICE if self._synced else None  # until then nobody waits for a change
            found = publication(installed, wanted, before, waiting(self._aside, time.monotonic()), budget)
            failure = self._apply(installed, found)
            if failure is None:
                # What was tried is published, or refused for another reason; else it would be due again at once.
                late = waiting(self._aside, time.monotonic())
                self._aside = {vip: one for vip, one in self._aside.items() if vip in found.left and vip in late}
                self._before = found._replace(plan=replace(found.plan, steps=()))  # which may be large
                self._synced |= wanted.complete and not found.goes_on
                return found._replace(plan=together(carried_out, found.plan))
            reason, refused = failure
            behind: Sequence[Vip] = ()
            if tries == _MOST_FAILURES and refused.vip in found.plan.changed:  # what is like it would fail, too
                behind = found.plan.changed[found.plan.changed.index(refused.vip) + 1 :]
            for vip in (refused.vip, *behind):
                if (vip in installed.virtual) == (refused.vip in installed.virtual):
                    self._put_aside(found.desired.virtual.get(vip) or wanted.own[vip], reason)
            carried_out.append(refused.carried_out)
            installed, before = refused.carried_out.result, None
        self._before = None
        return found._replace(plan=together(carried_out, Plan((), installed, (), (), ())), goes_on=True)

    def _apply(self, installed: Installed, found: Publication) -> tuple[str, Cut] | None:
        """Carry out a plan; return where the kernel had no room, and why, when what was written is taken back."""
        try:
            self._maps.apply(found.plan.steps)
        except FullError as error:
            refused = cut(installed, found.plan, error.map, error.key)
            if refused is None:
                raise
            self._meters.failed()
            self._maps.apply(refused.steps)
            return error.reason, refused
        return None

    def _put_aside(self, server: VirtualServer, reason: str) -> None:
        why = Unpublished(server.vip, server.service, server.source, reason)
        before = self._aside.get(server.vip)
        self._aside[server.vip] = put_aside(before, server, why, time.monotonic())

    async def _close_sockets(self, *, reset: bool) -> None:
        """Close sockets of removed servers: a UDP socket would go on sending there, and never know."""
        protocols = (Protocol.TCP, Protocol.UDP) if reset else (Protocol.UDP,)
        members = self._leaving.due(self.installed, protocols, time.monotonic())
        closed = None
        if members:
            async with self._kernel:
                closed = await asyncio.to_thread(self._plane.close_sockets, members, self._maps, protocols)
            self._leaving.tried(time.monotonic(), succeeded=not closed.failures)
        self._announcer.closed(closed)

    async def look_around(self) -> None:
        """Look for other instances that serve VIPs of ours: when ours have changed, and now and then."""
        vips, now = self.installed.virtual.keys(), time.monotonic()
        if vips == self._looked_at and now < self._looked + _LOOK_EVERY:
            return
        self._looked_at, self._looked = vips, now
        try:
            self.overlaps = await asyncio.to_thread(self._plane.overlaps)
        except (ClbError, OSError):  # the maps are gone, which `keep_up` tells
            self.overlaps = ()
        self._announcer.overlaps(self.overlaps)

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
