"""The life of the sidecar, in the order in which it happens: run, start up, main loop, tick, reload, shut down.

Sources run as tasks of one event loop and hand their outcomes to `_heard`; everything that touches the kernel happens
in `_tick`, one at a time, in a thread, so that the loop never waits for it. Signals only set a flag.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from clb_discovery import __version__, catalog
from clb_discovery.announce import Announcer
from clb_discovery.core import selftest
from clb_discovery.core.address import Network
from clb_discovery.core.automatic import DEFAULT_RANGES
from clb_discovery.core.claims import Resolved
from clb_discovery.core.desired import Desired, Rejected, desired
from clb_discovery.core.held import Held, held_servers
from clb_discovery.core.lastgood import LastGood
from clb_discovery.core.layout import protocol_of
from clb_discovery.core.model import Listing, Protocol, Service
from clb_discovery.core.plan import Plan, plan
from clb_discovery.datapath import loader
from clb_discovery.datapath.loader import Loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets import Destroyed, close_sockets
from clb_discovery.errors import ClbError, HostError, SourceError
from clb_discovery.following import Following, timestamp
from clb_discovery.hosts_file import HostsFile
from clb_discovery.lastgood import Store
from clb_discovery.metrics import Snapshot, listen, serving
from clb_discovery.notify import notify
from clb_discovery.runtime import Instance
from clb_discovery.sources.base import Outcome, Source
from clb_discovery.watches import Watches

QUIET: Final = 0.05
"""Seconds without a further change after which a burst is taken as over."""
QUIET_LIMIT: Final = 0.5
"""Seconds after which a burst is applied although it goes on."""
CHECK_EVERY: Final = 2.0
"""Seconds between looks at whether the programs are still attached."""

_log = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for."""

    pins: Pins
    cgroup: Path
    services: Sequence[Service]
    real_ranges: Sequence[Network]
    reset: bool
    """Whether TCP connections to a removed real server are closed, instead of left to end by themselves."""
    once: bool
    loader: Loader = Loader.AUTO
    metrics: tuple[str, int] | None = None
    """Address and port to serve metrics on."""
    hosts_file: Path | None = None
    """Where the names of services are published."""
    state_dir: Path | None = None
    """Where the last good sets are kept over a reboot."""
    vip_ranges: Sequence[Network] = DEFAULT_RANGES
    """Where VIPs of services in a catalog have to lie, and where automatic ones come from."""


class Configured(NamedTuple):
    """What there is to do, and who is to be asked."""

    settings: Settings
    open_sources: Callable[[], AbstractAsyncContextManager[Mapping[str, Source]]]
    """Makes the source of each service, by its name; nothing is sent yet."""


class Daemon:
    """One sidecar: the single writer of one instance's maps."""

    def __init__(self, configured: Configured, reread: Callable[[], Configured]) -> None:
        """Prepare; nothing is touched yet.

        :param reread: reads the configuration again, for SIGHUP.
        """
        settings = configured.settings
        self._settings = settings
        self._watches = Watches(configured.open_sources)
        self._reread = reread
        self._instance = Instance(settings.pins.instance)
        self._following = {service.source: Following(service) for service in settings.services}
        self._reloading = False
        self._refused: str | None = None
        """Why the configuration was not taken when it was read last."""
        self._held = Held()
        self._woken = asyncio.Event()
        self._news = False  # something that may change what the kernel should hold
        self._stopping = False
        self._ready = False
        self._last_sync: datetime | None = None
        self._announcer = Announcer()
        self._names = HostsFile(self._instance, self._announcer)
        self._said: object = None  # the state file's content
        self._store = Store(settings.state_dir, settings.pins.instance)
        self._applied: Mapping[str, LastGood] = {}  # what was published last, by source, without the time

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT, or with `once` until everything is in place.

        :raises ClbError: when starting fails; with `once` also when a source does.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        async with AsyncExitStack() as stack:
            await self._watches.open()
            stack.push_async_callback(self._unwatch)
            stack.enter_context(self._instance.held())
            listener = stack.enter_context(listen(*self._settings.metrics)) if self._settings.metrics else None
            loader.load(self._settings.pins, self._settings.cgroup, self._settings.loader)
            maps = stack.enter_context(Maps(self._settings.pins))
            self._start_up(maps)
            if listener:
                await stack.enter_async_context(serving(listener, partial(self._snapshot, maps), lambda: self._ready))
            self._watches.start(self._heard)
            self._watches.adjust(self._following)
            stack.push_async_callback(self._shut_down)
            await self._main_loop(maps)

    def _snapshot(self, maps: Maps) -> Snapshot:
        held = self._held
        return Snapshot(held, maps.servers(held), tuple(self._following.values()))

    def _start_up(self, maps: Maps) -> None:
        self._held = maps.read()
        self._seed(tuple(self._following), self._store.read())
        self._names.leave(self._settings.hosts_file)
        ineffective = loader.objection(self._settings.pins, self._settings.cgroup)
        if ineffective:
            _log.error("programs are not effective", reason=ineffective)
        _log.info(
            "started",
            version=__version__,
            instance=self._settings.pins.instance,
            cgroup=str(self._settings.cgroup),
            services=len(self._following),
        )
        self._write_state()

    async def _main_loop(self, maps: Maps) -> None:
        while not self._stopping:
            await self._wait_for_news()
            if self._reloading:
                await self._reload()
            await self._tick(maps)
            if self._settings.once:
                self._finish_once()

    async def _wait_for_news(self) -> None:
        """Wait until something happened, a held answer is due, or it is time to look at the links."""
        now = asyncio.get_running_loop().time()
        deadlines = [deadline for following in self._following.values() if (deadline := following.deadline) is not None]
        timeout = max(0.0, min([now + CHECK_EVERY, *deadlines]) - now)
        if not await self._woken_within(timeout):
            return
        limit = asyncio.get_running_loop().time() + QUIET_LIMIT
        while not self._stopping and asyncio.get_running_loop().time() < limit and await self._woken_within(QUIET):
            pass

    async def _woken_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        woken = self._woken.is_set()
        self._woken.clear()
        return woken

    async def _tick(self, maps: Maps) -> None:
        """Bring the kernel to where it should be, and say so."""
        now = asyncio.get_running_loop().time()
        for following in self._following.values():
            if following.deadline is not None:
                before = following.guarded
                following.elapse(now)
                self._news |= following.guarded != before
        self._leave()
        if self._news:
            self._news = False  # before, since sources go on answering while a thread publishes
            try:
                await self._sync(maps)
                self._announcer.trouble("cannot publish", None)
            except ClbError as error:
                if self._settings.once:
                    raise
                self._announcer.trouble("cannot publish", str(error))
                self._news = True
                self._held = await asyncio.to_thread(maps.read)
        await self._keep_attached(maps)
        await self._publish_names()
        self._write_state()
        if self._store.is_due(self._applied, now):
            await self._write_last_good()
        if self._last_sync and not self._ready:  # when status says so, too
            self._ready = True
            instance = self._settings.pins.instance
            _log.info("ready", virtual_servers=len(self._held.virtual) - len(selftest.virtual_servers(instance)))
            notify("READY=1")

    async def _sync(self, maps: Maps) -> None:
        complete = all(following.answered for following in self._following.values())
        applied = {
            source: LastGood(following.guarded.good, None, following.claims)
            for source, following in self._following.items()
            if following.known
        }
        settings = self._settings
        resolved = catalog.resolved(settings.services, self._following, self._held, settings.vip_ranges)
        wanted, steps, closed = await asyncio.to_thread(
            self._publish, maps, resolved.services, applied, complete=complete
        )
        self._applied = applied
        self._take_refusals(resolved, wanted)
        self._announcer.published(self._held, steps)
        self._announcer.closed(closed)
        self._announcer.rejected(wanted.rejected)
        self._held = steps.result
        if complete:
            self._last_sync = datetime.now(UTC)

    def _publish(
        self, maps: Maps, services: Sequence[Service], applied: Mapping[str, LastGood], *, complete: bool
    ) -> tuple[Desired, Plan, Destroyed | None]:
        known = {source: one.servers for source, one in applied.items()}
        wanted = desired(services, known, self._settings.real_ranges)
        virtual = {**selftest.virtual_servers(self._settings.pins.instance), **wanted.virtual}
        steps = plan(self._held, virtual, complete=complete)
        maps.apply(steps.steps)
        # A UDP socket would go on sending to a server that is gone, and never know.
        protocols = (Protocol.TCP, Protocol.UDP) if self._settings.reset else (Protocol.UDP,)
        dropped = frozenset(member for member in steps.dropped if protocol_of(member) in protocols)
        closed = close_sockets(dropped, maps.places(), maps.sockets(), protocols=protocols) if dropped else None
        return wanted, steps, closed

    def _take_refusals(self, resolved: Resolved, wanted: Desired) -> None:
        """Let every source know, and say, what is not applied of what it says."""
        rejected: defaultdict[str, list[Rejected]] = defaultdict(list)
        for item in wanted.rejected:
            rejected[item.source].append(item)
        for source, following in self._following.items():
            following.rejected = tuple(rejected[source])
            if following.from_catalog:
                refused = resolved.refused.get(source, ())
                self._announcer.refused(following.service.name, following.refused, refused)
                following.refused = refused

    async def _publish_names(self) -> None:
        if self._settings.hosts_file is None:
            return
        try:
            await asyncio.to_thread(self._names.publish, self._settings.hosts_file, self._held)
            self._announcer.trouble("cannot publish names", None)
        except HostError as error:
            if self._settings.once:
                raise
            self._announcer.trouble("cannot publish names", str(error))

    async def _keep_attached(self, maps: Maps) -> None:
        """Attach again where the cgroup was removed and made anew, as service managers do."""
        pins, cgroup = self._settings.pins, self._settings.cgroup
        if not cgroup.exists():
            self._announcer.trouble("not attached", f"{cgroup} is gone; it is attached again when it is back")
            return
        if loader.is_attached(pins, cgroup):
            self._announcer.trouble("not attached", None)
            return
        try:
            await asyncio.to_thread(loader.load, pins, cgroup, self._settings.loader)
            await asyncio.to_thread(maps.reopen)
            self._held = await asyncio.to_thread(maps.read)
        except ClbError as error:
            self._announcer.trouble("not attached", str(error))
            return
        self._announcer.trouble("not attached", None)
        _log.warning("attached again", cgroup=str(cgroup))
        self._news = True  # where the pins had gone, too, the maps are new and empty
        self._woken.set()

    async def _unwatch(self) -> None:
        await self._watches.end()

    def _heard(self, source: str, outcome: Outcome) -> None:
        following = self._following.get(source)
        if following is None:  # it has left, and its watch is about to end
            return
        counted, state, error, refused = following.counted, following.state, following.error, following.refused
        following.take(outcome, asyncio.get_running_loop().time())
        self._announcer.heard(following, state, error)
        if isinstance(outcome, Listing):
            self._announcer.refused(following.service.name, refused, following.refused)
            joined = catalog.joined(self._settings.services, following.listed, self._following)
            self._following |= joined
            self._watches.adjust(self._following)
        self._news |= following.counted != counted
        if self._news or (following.state, following.error) != (state, error):
            self._woken.set()

    def _leave(self) -> None:
        """Stop following services that no longer opt in; what they had is collected."""
        left = catalog.left(self._following)
        for source in left:
            del self._following[source]
        if left:
            self._watches.adjust(self._following)
            self._news = True

    def _finish_once(self) -> None:
        failed = [following for following in self._following.values() if following.error and not following.answered]
        if failed:
            raise SourceError(failed[0].error)
        if self._ready and not any(following.guarded.held for following in self._following.values()):
            self._stopping = True

    def _stop(self) -> None:
        self._stopping = True
        self._woken.set()

    def _reload_soon(self) -> None:
        self._reloading = True
        self._woken.set()

    async def _reload(self) -> None:
        """Read the configuration again and go on with it; one that is wrong changes nothing."""
        self._reloading = False
        if self._ready:
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            configured = await asyncio.to_thread(self._reread)
            watches = Watches(configured.open_sources)
            await watches.open()
        except ClbError as error:
            self._refused = str(error)
            _log.error("configuration refused; the running one stays", error=self._refused)
        else:
            await self._unwatch()
            self._watches = watches
            await self._adopt(configured.settings)
            watches.start(self._heard)
            watches.adjust(self._following)
        if self._ready:
            notify("READY=1")

    async def _adopt(self, settings: Settings) -> None:
        """Go on with other settings, as a restart would; what is known of services that stay is kept."""
        self._refused = None
        fixed = _without_restart(settings, self._settings)
        if fixed != settings:
            _log.warning("instance, cgroup, loader, state directory and metrics change with a restart only")
        known = self._following
        self._following = {
            service.source: known[service.source].reconfigured(service)
            if service.source in known
            else Following(service)
            for service in fixed.services
        }
        staying = (following.service.name for following in known.values() if following.from_catalog)
        for source, following in catalog.joined(fixed.services, staying, self._following).items():
            self._following[source] = replace(known[source], service=following.service)
        self._settings = fixed
        new = self._following.keys() - known.keys()
        self._seed(new, await asyncio.to_thread(self._store.read) if new else {})
        self._names.leave(self._settings.hosts_file)
        self._news = True
        _log.info("configuration read again", services=len(self._following))

    def _seed(self, sources: Collection[str], stored: Mapping[str, LastGood]) -> None:
        """Serve what was known last until sources answer: what the kernel holds, else, as after a reboot, the disk."""
        joined = catalog.restored(self._settings.services, self._held, stored, self._following)
        self._following |= joined
        held = held_servers(self._held, [*self._settings.services, *catalog.claimed(joined.values())])
        for source in (*sources, *joined):
            following, last = self._following[source], stored.get(source)
            if source in held:
                following.seed(held[source], last.answered if last else None)
            elif last:
                following.seed(last.servers, last.answered)
                self._announcer.restored(following)
                self._news = True
                self._woken.set()

    async def _shut_down(self) -> None:
        notify("STOPPING=1")
        await self._unwatch()
        self._write_state()
        if self._applied:  # else the disk may know more
            await self._write_last_good()
        _log.info("stopped; connects go on over what was published last")

    def _write_state(self) -> None:
        state = {
            "pid": os.getpid(),
            "last_sync": timestamp(self._last_sync),
            "config_error": self._refused,
            "hosts_file": str(self._settings.hosts_file.resolve()) if self._settings.hosts_file else None,
            "sources": [following.document() for following in self._following.values()],
        }
        if state == self._said:
            return
        try:
            self._instance.write_state(state)
        except OSError as error:  # such as a full disk, which is no reason to stop following
            self._announcer.trouble("cannot write the state that status shows", str(error))
        else:
            self._announcer.trouble("cannot write the state that status shows", None)
            self._said = state

    async def _write_last_good(self) -> None:
        """Keep what was applied on disk, with when each source last answered."""
        what = "cannot keep the last known sets on disk"
        sets = {
            source: self._applied[source]._replace(answered=following.answered_at)
            for source, following in self._following.items()
            if source in self._applied
        }
        try:
            await asyncio.to_thread(self._store.write, sets, asyncio.get_running_loop().time())
        except (OSError, ValueError) as error:  # such as a full disk, which is no reason to stop following
            self._announcer.trouble(what, str(error))
        else:
            self._announcer.trouble(what, None)


def _without_restart(settings: Settings, running: Settings) -> Settings:
    """Return the settings, as far as a running sidecar can take them."""
    return replace(
        settings,
        pins=running.pins,
        cgroup=running.cgroup,
        loader=running.loader,
        metrics=running.metrics,
        state_dir=running.state_dir,
        once=running.once,
    )
