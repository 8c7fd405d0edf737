"""The life of the sidecar, in the order in which it happens: run, start up, main loop, tick, reload, shut down.

Sources run as tasks of one event loop and pass their outcomes to `_heard`. Everything that touches the kernel happens
in `_tick`, one after the other, in a thread, so that the loop never waits for it. Signals only set a flag.
"""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from clb_discovery import __version__, log
from clb_discovery.config.settings import Settings, ineffective, without_restart
from clb_discovery.datapath.instance import Instance
from clb_discovery.errors import ClbError, HostError, SourceError
from clb_discovery.layout.installed import Installed
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.report import Report
from clb_discovery.model import own_servers
from clb_discovery.model.answer import Outcome
from clb_discovery.model.servers import Endpoint
from clb_discovery.model.service import CATALOG
from clb_discovery.model.zones import ZoneFacts
from clb_discovery.publication import dead_peers
from clb_discovery.sidecar.active_checks import ActiveChecks
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.disk import Disk
from clb_discovery.sidecar.health.watch import HealthWatch
from clb_discovery.sidecar.hosts import HostsFile
from clb_discovery.sidecar.last_good_file import Store
from clb_discovery.sidecar.local_listeners import LocalListeners
from clb_discovery.sidecar.own_zone import OwnZone
from clb_discovery.sidecar.publisher import Publisher
from clb_discovery.sidecar.readiness import Readiness
from clb_discovery.sidecar.self_report import Proof, SelfReport
from clb_discovery.sidecar.service_manager import ServiceManager
from clb_discovery.sidecar.unhealthy import by_pool
from clb_discovery.sidecar.wakeup import Wakeup
from clb_discovery.sources.watches import Watches
from clb_discovery.state.last_good import LastGood
from clb_discovery.state.services import ServiceTable
from clb_discovery.stderr import internal_error

CHECK_EVERY: Final = 2.0
"""Seconds between two checks that the programs are still attached."""
THREADS: Final = 6
"""Operations that may wait for the kernel at the same time."""
DISK_PATIENCE: Final = 0.7
"""Seconds for which a round, and the end, wait for the disk. One that works needs less, so that names are there when
the sidecar is ready; and a stop takes 2 s at most."""
YOUNG: Final = 10_000
"""New objects between two searches for garbage in cycles; 700 take a third of the time to publish 10,000 services."""

_log = structlog.stdlib.get_logger()


class Daemon:
    """One sidecar: the single writer of one instance's maps."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings]) -> None:
        """Prepare; nothing is touched yet. SIGHUP calls `reread`, to read the configuration again."""
        options = settings.options
        self._settings = settings
        self._reread = reread
        self._watches = Watches(settings.open_sources)
        self._announcer = Announcer()
        self._service_manager = ServiceManager(self._announcer)
        self._services = ServiceTable(settings.services, options.max_services, options.real_range)
        self._instance = Instance(options.instance)
        self._disk = Disk()
        self._names = HostsFile(self._instance, self._announcer, self._disk)
        self._store = Store(options.state_dir, options.instance)
        self._meters = Meters()
        self._plane = settings.plane()
        self._local_listeners = LocalListeners()
        self._wakeup = Wakeup()
        self._checks = ActiveChecks(self._announcer, self._meters, self._wakeup.ring)
        self._zone = OwnZone(self._announcer, self._rezone)
        self._unhealthy: Mapping[str, frozenset[Endpoint]] = {}  # by pool; only of those that follow zones
        self._early: list[tuple[str, Outcome]] | None = []
        """Outcomes of sources while the data plane is being loaded; None afterwards."""
        self._is_alone = False  # whether the programs of another layout are removed
        self._changed = False  # whether the desired state may have changed
        self._pending = False  # whether an interrupted publication goes on at once
        self._readiness = Readiness()
        self._self_report = SelfReport(self._instance)
        self._proving: asyncio.Task[None]
        self._features = 0
        """CLB_FEATURE_* bits of the programs."""

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT, or with `once` until everything is in place.

        :raises ClbError: when starting fails; with `once` also when a source does, or a signal comes before the end.
        """
        gc.set_threshold(YOUNG)
        gc.disable()  # until the first pass of the main loop: what a start makes stays
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_threads())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._wakeup.stop)
        loop.add_signal_handler(signal.SIGHUP, self._wakeup.reload)
        async with AsyncExitStack() as stack:
            stack.callback(gc.enable)
            stack.enter_context(self._instance.locked(loads=self._plane.loads))
            stack.callback(self._plane.let_go)
            stack.push_async_callback(lambda: self._watches.end())  # noqa: PLW0108 - those of that moment
            options = self._settings.options
            metrics = None if options.once else options.metrics  # it ends before a scraper comes
            async with self._plane.coming_up():
                await self._watches.open()
                if metrics:
                    # Here, because aiohttp is a fifth of a sidecar that does without.
                    from clb_discovery.metrics.server import Site  # noqa: PLC0415
                    from clb_discovery.sidecar.metrics_site import MetricsSite  # noqa: PLC0415
                self._zone.follow(options)
                stack.push_async_callback(self._zone.end)
                self._watches.start(self._heard)
            maps = stack.enter_context(self._plane.open())
            info = maps.info()
            self._features = info.features if info else 0
            self._require_features(self._settings)
            publisher = Publisher(self._plane, maps, self._announcer, self._meters)
            stack.push_async_callback(publisher.end)
            self._start_up(publisher)
            self._proving = asyncio.create_task(self._prove())
            stack.push_async_callback(lambda: asyncio.wait([self._proving]))
            if metrics:
                report, readiness = partial(self._report, publisher, Proof(self._plane)), self._readiness
                site = Site(report, lambda: readiness.is_ready, self._meters, lambda: self._services.unpublished)
                waiting = MetricsSite(self._announcer, self._self_report, self._wakeup.ring)
                await stack.enter_async_context(waiting.serving(metrics, site))
            health = None if options.once else HealthWatch(publisher, self._announcer, self._meters, self._ejected)
            await stack.enter_async_context(health.listening(self._checks.hurry) if health else nullcontext())
            stack.push_async_callback(self._shut_down)
            if health:
                await stack.enter_async_context(self._checks.running(publisher, health))
            await self._know_zones(publisher, health)
            await self._main_loop(publisher, health)

    async def _know_zones(self, publisher: Publisher, health: HealthWatch | None) -> None:
        """Before the first publication, wait for what zones depend on: the zone of this host, and servers that are out.

        Otherwise a restart would divide pools in another way for a moment.
        """
        if self._services.zoned:
            self._write_state()  # this can take seconds
            await self._zone.first()
            if health:
                await health.look(self._checks.out)
                await self._check_servers(publisher)
            self._unhealthy = self._unhealthy_now(publisher.installed, health)

    def _rezone(self) -> None:
        """Publish again, because the zone of this host has changed; before the start there is nothing to publish."""
        self._changed |= self._early is None
        self._wakeup.ring()

    def _ejected(self) -> None:
        """Look at zones soon, because a server is out or back."""
        if self._services.zoned and self._zone.name:
            self._wakeup.ring()

    async def _prove(self, after: asyncio.Task[None] | None = None) -> None:
        """Log if the programs are not in effect; outside of their cgroup the self-test takes a process.

        :param after: the look before this one, which ends first.
        """
        if after:
            await asyncio.wait([after])
        try:
            ineffective = await asyncio.to_thread(self._plane.objection)
        except (ClbError, OSError) as error:
            ineffective = str(error)
        except Exception as error:  # noqa: BLE001 - a bug must not end this task in silence
            ineffective = internal_error(error)
        if ineffective:
            _log.error("programs are not in effect", reason=ineffective)

    async def _report(self, publisher: Publisher, proof: Proof) -> Report:
        datapath = await publisher.datapath(await asyncio.to_thread(proof.objection))
        return Report(
            instance=self._instance.name,
            datapath=datapath,
            following=tuple(self._services),
            state=self._self_report.document(self._services, self._names.files, self._checks.document()),
            listening=await self._local_listeners.now(datapath.installed),
            load_error=self._instance.load_error(),
            other_layouts=self._plane.other_layouts(),
        )

    def _start_up(self, publisher: Publisher) -> None:
        self._changed |= self._recall(tuple(self._services.sources), publisher.installed, self._store.read())
        self._zone.remember(self._store.zone)
        self._names.use(self._settings.options.hosts_file)
        instance, cgroup = self._instance.name, str(self._plane.cgroup)
        _log.info("started", version=__version__, instance=instance, cgroup=cgroup, services=len(self._services))
        self._warn()
        self._readiness.begin(asyncio.get_running_loop().time())
        early, self._early = self._early or (), None
        for source, outcome in early:
            self._heard(source, outcome)
        self._wakeup.ring()

    def _warn(self) -> None:
        for option, reason in ineffective(self._settings.options):
            _log.warning("option has no effect", option=option, reason=reason)

    def _recall(self, sources: Collection[str], installed: Installed, stored: Mapping[str, LastGood]) -> bool:
        """Start from last known sets, and from the lists of the configuration, which need no source.

        :returns: whether the disk had a set that is not installed.
        """
        restored = self._services.recall(sources, installed, stored)
        for state in restored:
            self._announcer.restored(state)
        for source, answer in self._services.configured.items():
            self._heard(source, answer)
        return bool(restored)

    async def _main_loop(self, publisher: Publisher, health: HealthWatch | None) -> None:
        once = self._settings.options.once
        while not self._wakeup.is_stopping:
            await (asyncio.sleep(0) if self._pending else self._wakeup.wait(self._next_look(publisher)))
            if self._wakeup.is_reloading:
                await self._reload(publisher)
            if self._wakeup.is_stopping:
                break
            with self._announcer.trying("round failed", *self._bearable(OSError)):  # such as no free descriptor
                self._look_at_zones(publisher.installed, health)
                await self._tick(publisher)
                if health:
                    await health.look(self._checks.out)
            self._announcer.flush()
            self._service_manager.alive()
            if not gc.isenabled():
                gc.freeze()  # no search looks at it again
                gc.enable()
            if once and self._is_done():
                return
        if once:
            raise ClbError("stopped by a signal before everything was published; run it again")

    def _look_at_zones(self, installed: Installed, health: HealthWatch | None) -> None:
        """Publish again if other real servers are ejected or fail their checks, in pools that follow zones."""
        unhealthy = self._unhealthy_now(installed, health)
        self._changed |= unhealthy != self._unhealthy
        self._unhealthy = unhealthy

    def _unhealthy_now(self, installed: Installed, health: HealthWatch | None) -> Mapping[str, frozenset[Endpoint]]:
        zoned = self._services.zoned if self._zone.name else ()
        members = {*health.ejected, *self._checks.failing} if health and zoned else ()
        return by_pool(installed, members, zoned)

    def _next_look(self, publisher: Publisher) -> float:
        """Return the seconds until something is due: a source, another try, the links or the watchdog."""
        now = asyncio.get_running_loop().time()
        watchdog = (self._service_manager.watchdog or math.inf) / 2
        due = [publisher.next_try, *self._services.deadlines]
        return max(0.0, min([CHECK_EVERY, watchdog, *(deadline - now for deadline in due)]))

    async def _tick(self, publisher: Publisher) -> None:
        """Bring the kernel and all files to the desired state."""
        now = asyncio.get_running_loop().time()
        settled = self._readiness.is_settled(now, tried=self._services.is_tried)
        if self._services.leave():
            self._changed = True
            self._announcer.trouble("services not followed", self._services.too_many)
        if settled and not self._changed and not publisher.failed:
            self._changed = not self._services.is_published
        self._watches.adjust(self._services.sources)
        for source in self._services.due(now):  # of those that are followed, also after a reload
            self._watches.hasten(source)
        if self._changed or self._pending or now >= publisher.next_try:
            await self._sync(publisher)
        if await publisher.keep_up():
            self._changed = True
            self._wakeup.ring()
            self._proving = asyncio.create_task(self._prove(after=self._proving))
        else:  # new maps have no servers to check until the publication that follows
            await self._check_servers(publisher)
        await publisher.look_at_outcomes()
        await publisher.look_around()
        self._write_state()  # before names: `unload` finds their file by it, even if we are killed meanwhile
        await self._write_files(publisher.installed, now)
        await self._local_listeners.announce(publisher.installed)
        self._notify(publisher.installed, now, settled=settled)

    async def _check_servers(self, publisher: Publisher) -> None:
        with self._announcer.trying("cannot follow checks", *self._bearable(OSError)):
            await self._checks.follow(publisher.installed, self._services.checks, publisher)

    async def _sync(self, publisher: Publisher) -> None:
        services = self._services
        known, complete = services.known, services.is_complete
        servers = {source: last.servers for source, last in known.items()}
        self._changed = self._pending = False  # first, because sources go on answering while a thread publishes
        with self._announcer.trying("cannot publish", *self._bearable(ClbError, OSError)):
            found = await publisher.publish(
                self._settings,
                services.claims,
                servers,
                complete=complete,
                heard=frozenset() if complete else services.heard,
                interrupted=self._is_interrupted,
                facts=ZoneFacts(self._zone.name, services.places(known), self._unhealthy, services.divided),
            )
            self._self_report.place(found.zones)
            self._pending = bool(found.pending)
            services.apply(known, found.pending, found.vips, found.addresses)
            for before, now, _ in services.refuse(found.refused, found.rejected, found.unpublished, found.remarks):
                self._announcer.refused(now.service.name, before.refused, now.refused)
            if complete and not found.pending:
                self._self_report.last_sync = datetime.now(UTC)

    def _is_interrupted(self) -> bool:
        """Tell whether another change comes before the remaining part of a publication."""
        return self._changed or self._wakeup.is_reloading or self._wakeup.is_stopping

    def _notify(self, installed: Installed, now: float, *, settled: bool) -> None:
        """Report to the service manager how the sources are, and once that the sidecar is ready.

        Before that, the programs of another layout go if we may remove them, so that what waits for the sidecar is
        balanced by ours.
        """
        services = self._services
        if self._readiness.reach(settled=settled, served=services.is_served):
            stale = sum(state.stale for state in services)
            virtual_servers = len(installed.virtual) - len(own_servers.virtual_servers(self._instance.name))
            _log.info("ready", virtual_servers=virtual_servers, stale=stale)
        if not self._is_alone and self._takes_over(now):
            with self._announcer.trying("cannot remove the programs of another version", HostError, OSError):
                self._is_alone = self._plane.settle()
        self._service_manager.status(services.summary, ready=self._readiness.is_ready)

    def _takes_over(self, now: float) -> bool:
        published = bool(self._services.applied) and self._services.is_published
        return self._readiness.takes_over(now, published=published)

    def _is_done(self) -> bool:
        """Tell whether everything is in place.

        :raises ClbError: if something will not be.
        """
        lost = self._services.lost
        if lost:
            raise SourceError(lost[0].error)
        if self._zone.error:
            raise SourceError(self._zone.error)
        tried = self._self_report.last_sync and self._services.is_tried and self._zone.is_tried
        if not tried or any(state.guarded.held for state in self._services):
            return False
        for state in self._services:
            if state.unpublished and not state.from_catalog:
                raise ClbError(f"{state.service.name} is not published: {state.unpublished[0].reason}")
        return True

    def _heard(self, source: str, outcome: Outcome) -> None:
        if self._early is not None:  # the guard needs the installed servers first
            self._early.append((source, outcome))
            return
        change = self._services.hear(source, outcome, asyncio.get_running_loop().time(), datetime.now(UTC))
        if change is None:
            return
        for one in (change, *change.released):
            self._announcer.heard(one.before, one.now)
        if source == CATALOG:
            self._announcer.trouble("services not followed", self._services.too_many)
        counts, shows = change.counts, change.shows
        if self._settings.options.log_level == "debug":  # even a line that is dropped takes 3 us, at each outcome
            _log.debug("outcome heard", source=source, counts=counts, shows=shows)
        self._changed |= counts
        if counts or shows:
            self._wakeup.ring()

    async def _reload(self, publisher: Publisher) -> None:
        """Reload the configuration; a wrong one changes nothing."""
        self._wakeup.is_reloading = False
        self._service_manager.reloading()
        try:
            wanted = await asyncio.to_thread(self._reread)
            self._require_features(wanted)
            watches = Watches(wanted.open_sources)
            await watches.open()
        except (ClbError, OSError) as error:
            self._self_report.config_error = str(error)
            _log.error("configuration reload failed; keeping the previous one", error=str(error))
        else:
            await self._watches.end()
            self._watches = watches
            await self._adopt(wanted, publisher.installed)
            self._zone.follow(self._settings.options)
            self._checks.reload()
            watches.start(self._heard)
        self._service_manager.reloaded()

    def _require_features(self, settings: Settings) -> None:
        """Refuse settings that the programs cannot follow on this kernel."""
        objection = dead_peers.objection(settings.services, self._features)
        if objection:
            raise HostError(objection)

    async def _adopt(self, wanted: Settings, installed: Installed) -> None:
        """Go on with other settings, as after a restart; the state of services that stay is kept."""
        self._self_report.config_error = None
        self._settings, left_out = without_restart(wanted, self._settings)
        options, services = self._settings.options, self._settings.services
        log.configure(options.log_format, options.log_level)
        if left_out:
            _log.warning("changed options need a restart", options=left_out)
        new = self._services.adopt(services, options.max_services, options.real_range)
        self._recall(new, installed, await asyncio.to_thread(self._store.read) if new else {})
        self._names.use(self._settings.options.hosts_file)
        self._changed = True
        self._warn()
        _log.info("configuration reloaded", services=len(self._services))

    async def _shut_down(self) -> None:
        self._service_manager.stopping()
        await self._watches.end()
        self._write_state()
        try:
            async with asyncio.timeout(DISK_PATIENCE):
                await self._disk.rest(None)
                if self._services.applied:  # otherwise the disk may have more
                    await self._write_last_good()
        except TimeoutError:
            stalled = f"the disk has not responded within {DISK_PATIENCE:g} s"
            self._announcer.trouble("cannot save the last known good sets", stalled)
        _log.info("stopped; the last published pools stay in effect")

    async def _write_files(self, installed: Installed, now: float) -> None:
        """Write what is due on disk: the names, and the last good sets."""
        keeps = self._store.is_due(self._services.applied, now, self._zone.kept)
        names = self._names.is_due(now)
        if (keeps or names) and not self._disk.is_busy:
            job = self._names_and_sets(installed, now, names=names, keeps=keeps)
            await self._disk.start(job, None if self._settings.options.once else DISK_PATIENCE)

    async def _names_and_sets(self, installed: Installed, now: float, *, names: bool, keeps: bool) -> None:
        if names:
            with self._announcer.trying("cannot publish names", *self._bearable(HostError, OSError)):
                await self._names.publish(installed, now)
        if keeps:
            await self._write_last_good()

    def _write_state(self) -> None:
        self._self_report.zone = self._zone.document()
        with self._announcer.trying("cannot write the state for status", HostError, OSError):
            self._self_report.write(self._services, self._names.files, self._checks.document())

    async def _write_last_good(self) -> None:
        """Keep the published sets on disk, with the time of each source's last answer."""
        sets = self._services.last_good
        errors = self._bearable(HostError, OSError, ValueError)
        trying = self._announcer.trying("cannot save the last known good sets", *errors)
        with trying, self._meters.unkept.count_exceptions():
            await self._disk.call(self._store.write, sets, asyncio.get_running_loop().time(), self._zone.kept)

    def _bearable(self, *errors: type[Exception]) -> tuple[type[Exception], ...]:
        """Return the errors after which the sidecar goes on; with `once` there are none."""
        return () if self._settings.options.once else errors


def _threads() -> ThreadPoolExecutor:
    """Return threads that have all started; if one failed later, the executor would raise and still do the work."""
    executor, all_there = ThreadPoolExecutor(THREADS), threading.Barrier(THREADS)
    try:
        for started in [executor.submit(all_there.wait) for _ in range(THREADS)]:
            started.result()
    except RuntimeError as error:
        all_there.abort()
        raise HostError(f"cannot start {THREADS} threads: {error}; raise TasksMax=, or ulimit -u") from None
    return executor
