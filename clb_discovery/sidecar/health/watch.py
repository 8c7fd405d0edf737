"""Hears from the programs which servers fail, probes these servers, and tells the programs what it has found.

While it listens, it holds a lease that programs can read: then the first failed connect makes a server suspect. So its
death leaves the programs to themselves within seconds. Cases change only while the maps are ours: so no verdict is
written about an index that has another server, and no look at the maps overtakes a report.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Protocol, TypeVar

from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.ring import Ring
from clb_discovery.errors import ClbError
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Change, ChangeKind, Server
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.metrics.meters import Meters
from clb_discovery.model.address import Address
from clb_discovery.model.servers import Vip
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.health import servers
from clb_discovery.sidecar.health.cases import SECOND, Cases, Endpoint, Kind, News, endpoint_of
from clb_discovery.sidecar.health.lines import Side
from clb_discovery.sidecar.health.probe import Result, probe, probe_thoroughly
from clb_discovery.sidecar.health.reached import Reached
from clb_discovery.sidecar.publisher import Publisher
from clb_discovery.stderr import internal_error

LEASE: Final = 6 * SECOND
"""Nanoseconds for which programs take it as listening; the main loop comes by every two seconds, or sooner."""
MOST_PROBES: Final = 128
"""Probes of servers that are suspect or out, at the same time; each has two sockets, or eight if in doubt."""
MOST_JOINING: Final = 64
"""Connects to new servers, likewise."""
_T = TypeVar("_T")
_BACKLOG: Final = 8192  # reports that wait; if there are more, a look at all servers replaces them
_SOON: Final = 0.001  # least seconds of a timer


class Fails(Protocol):
    """Takes packed members that fail connects: many at a time, because that may cost as much as one."""

    def __call__(self, members: Collection[bytes], *, needed: bool) -> None:
        """Take them.

        :param needed: whether they stay in service, because too many others are out.
        """


class HealthWatch:
    """The health of all real servers, for one event loop."""

    def __init__(
        self,
        publisher: Publisher,
        announcer: Announcer,
        meters: Meters,
        changed: Callable[[], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Prepare; nothing is heard yet.

        :param changed: is called when a server goes out or returns; suspects do neither.
        :param chance: returns a random number from 0 to 1.
        """
        self._publisher = publisher
        self._announcer = announcer
        self._meters = meters
        self._changed = changed
        self._cases = Cases(chance)
        self._reached = Reached(chance)
        self._installed = Installed()
        self._ring: Ring | None = None
        self._opened = -1  # which of the maps the ring buffer belongs to
        self._until = 0  # end of the lease
        self._started = False
        self._incomplete = True  # whether reports may be missing
        self._reports: deque[Change] = deque()
        self._rung = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing = self._joining = 0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def listening(self, fails: Fails) -> AsyncIterator[None]:
        """Hear and probe while the block runs; the lease ends with it.

        :param fails: is called when the programs report that packed members fail connects.
        """
        self._spawn(self._hear(fails))
        try:
            yield
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._timer:
                self._timer.cancel()
            await self._stop()

    async def look(self, left: Collection[bytes] = ()) -> None:
        """Renew the lease, and look at all servers if reports may be missing; for each pass of the main loop.

        :param left: packed members that their checks keep out, which tell of them.
        """
        with self._trying("cannot follow the health of servers"):
            async with self._maps() as (maps, installed):
                self._listen(maps)
                if self._incomplete or self._cases.has_unprobed:
                    await self._look_at_all(maps, installed, left)
        self._announcer.servers.flush(self._installed)
        self._start_probes()

    @property
    def out(self) -> Collection[bytes]:
        """The packed members that are suspect or out because of failed connects."""
        return self._cases.members

    @property
    def ejected(self) -> Collection[bytes]:
        """The packed members that are out because of failed connects."""
        return self._cases.out

    def overrule(self, member: bytes, moment: int) -> None:
        """Take a server as back in service, because its checks have decided that at this moment."""
        if self._cases.overrule(member, moment):
            self._announcer.servers.lets_in(member, Side.CONNECTS)

    def recall(self, member: bytes) -> None:
        """Probe a server soon that is out because of failed connects: its checks have no say any more."""
        self._cases.recall(member, time.monotonic_ns())
        self._start_probes()

    @asynccontextmanager
    async def _maps(self) -> AsyncIterator[tuple[Maps, Installed]]:
        async with self._publisher.using_maps() as (maps, installed):
            if ended := self._adopt(installed):
                await _in_thread(servers.conclude, maps, installed, ended, time.monotonic_ns())
            yield maps, installed

    def _listen(self, maps: Maps) -> None:
        if self._opened != self._publisher.times_recreated:
            self._open(maps)
        now = time.monotonic_ns()
        if now >= self._until or (self._ring and self._ring.was_full()):
            self._incomplete = True
        maps.hear_changes_until(now + LEASE)
        self._until = now + LEASE

    def _open(self, maps: Maps) -> None:
        """Read another ring buffer, from its end on."""
        self._close()
        self._ring = Ring(maps.changes(), structs.CHANGES_BYTES)
        self._ring.skip()
        self._opened, self._until = self._publisher.times_recreated, 0
        asyncio.get_running_loop().add_reader(self._ring.fileno(), self._readable, self._ring)

    def _close(self) -> None:
        if self._ring:
            asyncio.get_running_loop().remove_reader(self._ring.fileno())
            self._ring.close()
            self._ring = None

    async def _stop(self) -> None:
        self._close()
        if self._until:
            with suppress(ClbError, OSError):
                async with self._publisher.using_maps() as (maps, _):
                    maps.hear_changes_until(0)

    def _readable(self, ring: Ring) -> None:
        self._reports.extend(map(elements.unpack_change, ring.records(0)))
        if len(self._reports) > _BACKLOG:
            self._reports.clear()
            self._incomplete = True
        if self._reports:
            self._rung.set()

    async def _hear(self, fails: Fails) -> None:
        """Take reports as they come, until cancelled."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            with self._trying("cannot follow the health of servers"):
                await self._take_reports(fails)
            self._start_probes()

    async def _take_reports(self, fails: Fails) -> None:
        async with self._maps() as (maps, installed):
            changes = tuple(self._reports)
            self._reports.clear()
            try:
                found = await _in_thread(servers.reported, maps, installed, changes)
            except OSError:
                self._incomplete = True  # the next look finds what they were about
                raise
            now = time.monotonic_ns()
            failing: defaultdict[bool, set[bytes]] = defaultdict(set)  # by whether they are needed
            for change, seen in found:
                if change.kind != ChangeKind.RETURNED:
                    failing[change.kind == ChangeKind.NEEDED].add(seen.member)
                for news in self._cases.heard(seen.member, seen.terms, change, now):
                    self._tell(news, installed, seen.server)
            for needed, members in failing.items():
                fails(members, needed=needed)

    async def _look_at_all(self, maps: Maps, installed: Installed, left: Collection[bytes]) -> None:
        self._incomplete = False
        try:
            found = await _in_thread(servers.out, maps, installed, tuple(self._cases.members), frozenset(left))
        except OSError:
            self._incomplete = True
            raise
        now = time.monotonic_ns()
        for seen in found:
            if seen.steering.decided_at:  # an earlier sidecar had reached it
                self._reached.add(endpoint_of(seen.member))
            for news in self._cases.found(seen.member, seen.terms, seen.server, seen.steering, now):
                self._tell(news, installed, seen.server)
        self._started = True

    def _start_probes(self) -> None:
        """Start all probes that are due, and plan the next time to do this."""
        now = time.monotonic_ns()
        for endpoint in self._cases.due(now, MOST_PROBES - self._probing):
            self._probing += 1
            self._spawn(self._probe(endpoint, joins=False))
        while self._joining < MOST_JOINING and (new := self._reached.due(now)):
            if self._cases.claim(new):
                self._joining += 1
                self._spawn(self._probe(new, joins=True))
        self._plan(now)

    def _plan(self, now: int) -> None:
        next_case = self._cases.next_due if self._probing < MOST_PROBES else None
        next_new = self._reached.next_due if self._joining < MOST_JOINING else None
        due = [one for one in (next_case, next_new) if one is not None]
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if due:
            seconds = max(_SOON, (min(due) - now) / SECOND)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._start_probes)

    async def _probe(self, endpoint: Endpoint, *, joins: bool) -> None:
        """Probe an endpoint, and draw the conclusions."""
        began, result = time.monotonic_ns(), Result.LOCAL
        with self._trying("cannot probe servers"):
            address, port = Address(endpoint[:16]), int.from_bytes(endpoint[16:], "big")
            if not joins and self._cases.is_doubtful(endpoint, began):
                result = await probe_thoroughly(address, port)
            else:
                result = await probe(address, port, twice=not joins)
        ended = time.monotonic_ns()
        if joins:
            self._joining -= 1
        else:
            self._probing -= 1
        self._meters.probed(result)
        if result is Result.UP:
            self._reached.add(endpoint)
        else:
            self._reached.missed(endpoint, ended)
        with self._trying("cannot follow the health of servers"):
            await self._conclude(endpoint, result, began, ended)
        self._cases.release(endpoint, ended)
        self._start_probes()

    async def _conclude(self, endpoint: Endpoint, result: Result, began: int, ended: int) -> None:
        if not self._cases.waits_for(endpoint):
            return
        is_up = None if result is Result.LOCAL else result is Result.UP
        async with self._maps() as (maps, installed):
            news = list(self._cases.probed(endpoint, is_up, began, ended, reached=endpoint in self._reached))
            try:
                found = await _in_thread(servers.conclude, maps, installed, news, ended)
            except OSError:
                self._incomplete = True  # the next look finds what they are still about
                for one in news:
                    self._cases.forget(one.member)
                raise
            for one in news:
                self._tell(one, installed, found.get(one.member))

    def _tell(self, news: News, installed: Installed, server: Server | None) -> None:
        if news.kind is Kind.SUSPECTED:
            self._meters.suspected()
        elif news.kind in {Kind.EJECTED, Kind.RETURNED}:
            self._changed()
        # The programs count the ejection of a suspect later, with the next connect.
        ejections = server.times_ejected + (news.failed_probe and server.suspect) if server else None
        self._announcer.servers.tell(news, installed, ejections=ejections, early=not self._started)

    def _adopt(self, installed: Installed) -> Sequence[News]:
        """Follow what has changed since the previous call: servers that have come or gone, or are not ejected any more.

        :return: the last news of these.
        """
        if installed is self._installed:
            return ()
        before, self._installed = self._installed.virtual, installed
        now = time.monotonic_ns()
        ended: list[News] = []
        for vip, published in installed.virtual.items():
            if before.get(vip) is not published:
                ended += self._replace(vip, before.get(vip), published, now)
        for vip, published in before.items():
            if vip not in installed.virtual:
                self._replace(vip, published, None, now)
        return ended

    def _replace(self, vip: Vip, before: Published | None, published: Published | None, now: int) -> Sequence[News]:
        ended: list[News] = []
        had, has = _probed(vip, before), _probed(vip, published)
        for member in has - had:
            self._reached.join(endpoint_of(member), now)
        for member in had - has:
            self._reached.leave(endpoint_of(member))
        for member in before.servers.keys() & self._cases.members if before else ():
            if not published or member not in published.servers:
                self._cases.forget(member)
            elif not servers.ejects(published):
                ended += self._cases.end(member, now)
        if before and published and before.health != published.health:
            for member in published.servers:
                self._cases.retime(member, servers.terms_of(vip, published))
        for news in ended:
            self._tell(news, self._installed, None)
        return ended

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        """Report what fails in the block, and go on: a bug must not end a task that nothing waits for in silence."""
        try:
            yield
        except (ClbError, OSError) as error:
            self._announcer.trouble(what, str(error))
        except Exception as error:  # noqa: BLE001 - as above
            self._announcer.trouble(what, internal_error(error))
        else:
            self._announcer.trouble(what, None)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _in_thread(work: Callable[..., _T], *arguments: Any) -> _T:  # noqa: ANN401 - they are those of the function
    """Call a function in a thread; if this is cancelled, wait for it first, because the maps are closed next."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _probed(vip: Vip, published: Published | None) -> AbstractSet[bytes]:
    """Return the packed members of a virtual server that are probed."""
    if published is None or servers.terms_of(vip, published) is None:
        return frozenset()
    return published.servers.keys() - {elements.refusal(elements.pack_vip(vip))}
