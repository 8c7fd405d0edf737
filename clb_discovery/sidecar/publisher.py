"""The kernel's side of the sidecar: it publishes the desired state, and keeps the programs attached.

One thing at a time, each in a thread, so that the event loop never waits for the kernel, and no counter is read for
another server's index.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, NamedTuple

import structlog

from clb_discovery.config.settings import Settings
from clb_discovery.datapath.maps import FullError, Maps
from clb_discovery.datapath.plane import Plane
from clb_discovery.documents.status import Datapath
from clb_discovery.errors import ClbError, RemovedError
from clb_discovery.layout.installed import Installed
from clb_discovery.metrics.meters import Meters
from clb_discovery.model import own_servers
from clb_discovery.model.address import Address
from clb_discovery.model.answer import Claim, Refusal
from clb_discovery.model.neighbours import Overlap
from clb_discovery.model.servers import Endpoint, Pools, Protocol, Unpublished, Vip
from clb_discovery.model.zones import NO_FACTS, ZoneFacts
from clb_discovery.publication.admission import SLICE
from clb_discovery.publication.aside import FIRST_PAUSE, LONGEST_PAUSE, Aside, next_try, put_aside, waiting
from clb_discovery.publication.cut import Cut, cut
from clb_discovery.publication.leaving import Leaving
from clb_discovery.publication.plan import Plan, observed, together
from clb_discovery.publication.reconcile import Publication, Wanted, publication
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.outcomes import Outcomes

_MOST_FAILURES: Final = 16  # virtual servers that are set aside in one round; the next one goes on from there

_LOOK_EVERY: Final = 60.0  # seconds between two looks for other instances
_PATIENCE: Final = 1.0  # seconds at the end for sockets that are being closed

_log = structlog.stdlib.get_logger()


class Published(NamedTuple):
    """The result of a publication: the parts of answers that were not published, or not yet."""

    refused: Mapping[str, Sequence[Refusal]]
    """Registrations of services of a catalog, by source."""
    vips: Mapping[str, Sequence[Vip]]
    """The VIPs of these services."""
    addresses: frozenset[Address]
    """Those of all virtual servers."""
    rejected: Mapping[str, Sequence[Refusal]]
    """Real servers of all services, by source."""
    unpublished: Sequence[Unpublished]
    """Virtual servers that there is no room for."""
    remarks: Mapping[str, str]
    """How pools differ from the answers of their parts, by the names of the pools."""
    zones: Mapping[str, Mapping[Endpoint, str]]
    """The known zones of real servers, by the names of the pools; only of those that follow zones."""
    pending: frozenset[str]
    """Pools of which more has to be published at once, because the publication was interrupted."""


class Publisher:
    """The only writer of an instance's maps, which therefore knows their content."""

    def __init__(self, plane: Plane, maps: Maps, announcer: Announcer, meters: Meters) -> None:
        self._plane = plane
        self.installed = maps.read()
        self._before: Publication | None = None
        self._synced = False  # whether everything has been published once
        self._aside: dict[Vip, Aside] = {}
        self._leaving = Leaving()
        self._closing: asyncio.Task[None] | None = None  # closes sockets of removed servers
        self._protocols: Collection[Protocol] = ()  # the protocols whose sockets are closed
        self._replaced = False  # whether the maps were replaced by others since they were read
        self._failed_until: float | None = None  # when to try again after a publication that failed as a whole
        self._pause = FIRST_PAUSE
        self.overlaps: Sequence[Overlap] = ()
        """Other instances that served VIPs of this one at the last look."""
        self._looked_at: AbstractSet[Vip] = frozenset()
        self._looked = 0.0
        self._maps = maps
        self._announcer = announcer
        self._meters = meters
        self._outcomes = Outcomes(plane)
        self._unsure = False  # whether the maps may differ from `installed`, and could not be read
        self._lost = False  # whether the data plane was lost, and is not yet restored
        self.times_recreated = 0
        """How often the maps were replaced by others."""
        self._attached = True  # whether `keep_up` has found the programs attached, or attached them
        self._kernel = asyncio.Lock()  # while it is free, `installed` is the content of the maps

    async def datapath(self, ineffective: str | None) -> Datapath:
        """Read the counters of connects, and add why the programs are not in effect, if they are not."""

        def read(maps: Maps, installed: Installed) -> Datapath:
            counters = maps.servers(installed)
            lost, outcomes = maps.records_lost(), self._plane.follows_outcomes()
            words = maps.words(installed)
            return Datapath(maps.info(), installed, counters, ineffective, lost, self.overlaps, outcomes, words)

        async with self._kernel:
            return await asyncio.to_thread(read, self._maps, self.installed)

    @asynccontextmanager
    async def using_maps(self) -> AsyncIterator[tuple[Maps, Installed]]:
        """Keep others away from the maps while the block runs, and return them with their content.

        :raises OSError: if they cannot be read after a publication that failed.
        """
        async with self._kernel:
            if self._unsure:
                await self._read()
            yield self._maps, self.installed

    @property
    def next_try(self) -> float:
        """When to publish again although nothing has changed, by `time.monotonic`; infinity if there is no need."""
        closing = None if self._is_closing else self._leaving.next_try
        tries = (next_try(self._aside.values()), self._failed_until, closing)
        return min((one for one in tries if one is not None), default=math.inf)

    @property
    def _is_closing(self) -> bool:
        return self._closing is not None and not self._closing.done()

    @property
    def failed(self) -> bool:
        """Whether the last publication failed as a whole."""
        return self._failed_until is not None

    async def publish(  # noqa: PLR0913 - the inputs of a publication
        self,
        settings: Settings,
        claims: Sequence[Claim],
        servers: Mapping[str, Pools],
        *,
        complete: bool,
        heard: AbstractSet[str] = frozenset(),
        interrupted: Callable[[], bool] = lambda: False,
        facts: ZoneFacts = NO_FACTS,
    ) -> Published:
        """Publish the desired state that follows from the real servers of each source, round by round.

        :param claims: of services of a catalog, in addition to the services of the settings.
        :param complete: as for `plan`.
        :param heard: as for `Wanted`.
        :param interrupted: whether there is something new to publish; then no further round begins.
        :param facts: what decides about zones.
        :raises ClbError: if the kernel refuses a step for another reason than lack of room.
        :raises OSError: if this host lacks a resource, such as descriptors.
        """
        options, services, _ = settings
        own = own_servers.virtual_servers(options.instance)
        wanted = Wanted(services, claims, servers, own, options.vip_range, options.real_range, complete, heard, facts)
        while True:
            found = await self._round(wanted)
            self._leaving.add(found.plan.dropped)
            if not found.goes_on or interrupted():
                break
        self._close_sockets(reset=options.on_remove == "reset")
        if options.once and self._closing:
            await self._closing
        self._announcer.rejected(found.desired.rejected, found.desired.basis.by_source)
        without_room = {one.vip: one for one in (*found.unpublished, *(one.why for one in self._aside.values()))}
        unpublished = tuple(without_room.values())
        self._announcer.unpublished(unpublished)
        desired, refused = found.desired, found.resolved.refused
        vips = {one.source: one.vips for one in found.resolved.services if one.source in refused} if refused else {}
        addresses, pending = desired.basis.vips, found.pending()
        return Published(
            refused, vips, addresses, desired.rejected, unpublished, desired.remarks, desired.zones, pending
        )

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
            else:
                _log.debug(
                    "nothing to write",
                    virtual_servers=len(found.desired.virtual),
                    complete=wanted.complete,
                    set_aside=len(self._aside),
                    next_round=len(found.left),
                )
            self.installed = found.plan.result
        self._announcer.published(before, found.plan)
        return found

    async def _read(self) -> None:
        """Read the maps, now or before the next write, and take in what a failed publication has changed."""
        self._unsure = True
        before, self.installed = self.installed, await asyncio.to_thread(self._maps.read)
        self._unsure = False
        if self._replaced:  # what the former maps had says nothing about these
            self._replaced = False
            return
        carried_out = observed(before, self.installed)
        self._leaving.add(carried_out.dropped)
        self._announcer.published(before, carried_out)

    def _publish(self, wanted: Wanted) -> Publication:
        """Publish everything that the kernel accepts; set aside the rest, which it has no room for."""
        installed, before = self.installed, self._before
        carried_out: list[Plan] = []
        for tries in range(1, _MOST_FAILURES + 1):
            budget = SLICE if self._synced else None  # until then no change waits
            late = waiting(self._aside, time.monotonic())
            found = publication(installed, wanted, before, late, budget)
            failure = self._apply(installed, found)
            if failure is None:
                # Virtual servers that were due are published now, or refused for another reason; keep the others aside.
                self._aside = {vip: one for vip, one in self._aside.items() if vip in found.left and vip in late}
                self._before = found._replace(plan=replace(found.plan, steps=()))  # which may be large
                self._synced |= wanted.complete and not found.goes_on
                return found._replace(plan=together(carried_out, found.plan))
            reason, refused = failure
            behind: Sequence[Vip] = ()
            if tries == _MOST_FAILURES and refused.vip in found.plan.changed:  # similar ones would fail, too
                behind = found.plan.changed[found.plan.changed.index(refused.vip) + 1 :]
            for vip in (refused.vip, *behind):
                if (vip in installed.virtual) == (refused.vip in installed.virtual):
                    server = found.desired.virtual.get(vip) or wanted.own[vip]
                    why = Unpublished(vip, server.service, server.source, reason)
                    self._aside[vip] = put_aside(self._aside.get(vip), server, why, time.monotonic())
            carried_out.append(refused.carried_out)
            installed, before = refused.carried_out.result, None
        self._before = None
        return found._replace(plan=together(carried_out, Plan((), installed, (), (), ())), goes_on=True)

    def _apply(self, installed: Installed, found: Publication) -> tuple[str, Cut] | None:
        """Carry out a plan. If the kernel has no room, undo its elements; return the reason and the cut."""
        self._outcomes.prepare(found.plan)
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

    def _close_sockets(self, *, reset: bool) -> None:
        """Close sockets of removed servers: a UDP socket would go on sending there without noticing.

        It takes a task of its own, because the service that closes them may be slow, and pools must not wait for it.
        """
        self._protocols = (Protocol.TCP, Protocol.UDP) if reset else (Protocol.UDP,)
        if self._is_closing:
            return  # it goes on with those that have been added
        if self._due():
            self._closing = asyncio.create_task(self._close_due())
        else:
            self._announcer.closed(None)

    def _due(self) -> frozenset[bytes]:
        return self._leaving.due(self.installed, self._protocols, time.monotonic())

    async def _close_due(self) -> None:
        while members := self._due():
            protocols = self._protocols
            closed = await self._plane.request_closing(members, protocols)
            if closed is None:
                async with self._kernel:
                    members = self._due()
                    closed = await asyncio.to_thread(self._plane.close_sockets, members, self._maps, protocols)
            self._leaving.tried(members, time.monotonic(), succeeded=not closed.failures)
            self._announcer.closed(closed)

    async def end(self) -> None:
        """Wait a moment for sockets that are being closed: nobody closes them later."""
        if self._closing is not None:
            await asyncio.wait({self._closing}, timeout=_PATIENCE)
            async with self._kernel:  # no thread uses the maps now
                self._closing.cancel()
            await asyncio.wait({self._closing})
            self._closing = None

    async def look_at_outcomes(self) -> None:
        """Let the kernel follow how connects end, if that is needed, and report if it cannot."""
        if not self._attached:  # `keep_up` has reported why
            return
        with self._announcer.trying("cannot stop following outcomes", ClbError, OSError):
            async with self._kernel:
                await asyncio.to_thread(self._outcomes.look, self.installed, self._maps.servers)
        self._announcer.trouble("outcomes are not followed", self._outcomes.objection)

    async def look_around(self) -> None:
        """Look for other instances that serve VIPs of this one: when its VIPs have changed, and from time to time."""
        vips, now = self.installed.virtual.keys(), time.monotonic()
        if vips == self._looked_at and now < self._looked + _LOOK_EVERY:
            return
        self._looked_at, self._looked = vips, now
        try:
            self.overlaps = await asyncio.to_thread(self._plane.overlaps)
        except (ClbError, OSError):  # the maps are gone, which `keep_up` reports
            self.overlaps = ()
        self._announcer.overlaps(self.overlaps)

    async def keep_up(self) -> bool:
        """Bring the data plane up again if its cgroup or its pins were recreated; return whether it was lost."""
        try:
            lost = self._lost = self._lost or await asyncio.to_thread(self._plane.is_lost)
            if lost:
                async with self._kernel:
                    await asyncio.to_thread(self._plane.bring_up)
                    await asyncio.to_thread(self._maps.reopen)
                    self.times_recreated += 1
                    self._replaced = True
                    self._aside.clear()
                    await self._read()
                self._lost = False
        except RemovedError:
            raise
        except (ClbError, OSError) as error:
            self._attached = False
            self._announcer.trouble("programs are not attached", str(error))
            return False
        self._attached = True
        if lost and self._plane.loads:
            _log.warning("programs attached again", cgroup=str(self._plane.cgroup))
        elif lost:
            _log.warning("maps were recreated", cgroup=str(self._plane.cgroup))
        self._announcer.trouble("programs are not attached", None)
        return lost
