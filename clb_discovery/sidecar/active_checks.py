"""The active checks of all services: which servers to check, and what follows from the results.

Results come from tasks of the event loop. The programs are told in another task, one batch at a time, so that many
results cost few system calls.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final

import structlog

from clb_discovery import __version__
from clb_discovery.checks.exchange import Exchange
from clb_discovery.checks.health import Result
from clb_discovery.checks.runner import AT_A_TIME, LATE, Runner
from clb_discovery.checks.table import EARLIER, Change, CheckedPool, CheckTable, Member, Verdict, release
from clb_discovery.errors import ClbError
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Steering
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.metrics.meters import Meters
from clb_discovery.model.address import format_address, format_endpoint
from clb_discovery.model.check import Check, Target
from clb_discovery.model.servers import Pool, Vip
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.health import servers
from clb_discovery.sidecar.health.watch import HealthWatch
from clb_discovery.sidecar.publisher import Publisher
from clb_discovery.stderr import internal_error
from clb_discovery.text import some_of

_GATHER: Final = 0.02  # seconds between two batches
_AFTER_FAULT: Final = 5.0  # seconds until a task goes on after a bug
_AFTER_ERROR: Final = 1.0  # seconds until verdicts that could not be written are tried again
_SHOWN: Final = 8  # servers named in one line
_RECALL_PAUSE: Final = 1.0  # seconds between two checks of a server that is needed

_log = structlog.stdlib.get_logger()


class ActiveChecks:
    """Checks the real servers of services that want it. For one event loop."""

    def __init__(self, announcer: Announcer, meters: Meters, changed: Callable[[], None]) -> None:
        """Prepare; `changed` is called when a server goes out or comes back."""
        self._announcer = announcer
        self._meters = meters
        self._changed = changed
        self._table = CheckTable()
        self._exchange = Exchange(__version__)
        self._runner = Runner(self._measured, self._heard, meters.late)
        self._services: Mapping[Target, Collection[str]] = {}
        self._work = asyncio.Event()
        self._installed: Installed | None = None
        self._recreated = 0  # how often the maps were recreated before the last look
        self._checks: Mapping[str, Check] = {}
        self._released: dict[bytes, int] = {}  # members that are not checked any more and were out, each since when
        self._unchecked: dict[Target, str] = {}  # targets that this host cannot check, each with the reason

    @asynccontextmanager
    async def running(self, publisher: Publisher, health: HealthWatch) -> AsyncIterator[None]:
        """Check while the block runs, and write verdicts.

        :param health: what failed connects have ejected; it is told of each member that its checks bring back.
        """
        runs = (self._runner.run, lambda: self._steer(publisher, health))
        tasks = [asyncio.create_task(_lasting(one)) for one in runs]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def follow(self, installed: Installed, checks: Mapping[str, Check], publisher: Publisher) -> None:
        """Check these servers from now on, for each pass of the main loop; nothing happens if all is as before.

        :param checks: by source, only of services that want checks.
        """
        for reason, names in self._obstacles():
            self._announcer.trouble(
                "servers cannot be checked", f"{reason}; they take connects unchecked", servers=names
            )
        late = f"by more than {LATE:g} s: only {AT_A_TIME} run at a time; raise --check-interval"
        self._announcer.trouble("checks are late", late if self._runner.late > LATE else None)
        if installed is self._installed and checks == self._checks:
            return
        if publisher.times_recreated != self._recreated:
            self._recreated = publisher.times_recreated
            self._table.forget_written()
        leases = await _leases(publisher) if self._installed is None and checks else {}
        self._installed, self._checks = installed, checks
        pools, out = list(_pools(installed, checks)), dict(self._table.out)
        targets = self._table.follow(pools, leases)
        for key, since in out.items():
            if key not in self._table.out and installed.index_of(key) is not None:  # it is not checked any more
                self._released[key] = since
        self._runner.follow(targets, self._table.down)
        self._services = _services(installed, pools)
        self._meters.follow_checks({service for services in self._services.values() for service in services})
        self._unchecked = {target: why for target, why in self._unchecked.items() if target in targets}
        self._work.set()

    def reload(self) -> None:
        """Read the certificate authorities of this host again with the next check."""
        self._exchange.reload()

    def hurry(self, members: Collection[bytes], *, needed: bool) -> None:
        """Check packed members now that have checks, because connects to them have failed; and those that are down.

        Each is hurried once in its interval, so that it is checked twice as often at most.

        :param needed: whether they stay in service because too many others are out. Then those that are down are
            checked up to once a second, and one passed check brings each back.
        """
        if needed and self._table.need(members):
            self._work.set()
        for target in self._table.urgent(members):
            interval = target.check.interval
            self._runner.hurry(target, min(interval, _RECALL_PAUSE) if needed else interval)

    @property
    def out(self) -> Collection[bytes]:
        """The packed members that their checks keep out."""
        return self._table.out.keys()

    @property
    def failing(self) -> Collection[bytes]:
        """The packed members that fail their checks, whether or not they are out."""
        return {key for down in self._table.failing().values() for key in down}

    def document(self) -> list[dict[str, Any]]:
        """Return the servers that are down, for `status`: one entry for each checked virtual server."""
        return [
            {
                "address": format_address(vip.address),
                "port": vip.port,
                "protocol": vip.protocol.name.lower(),
                "check": str(self._check_of(vip)),
                "down": {_name(key): reason for key, reason in sorted(down.items())},
            }
            for vip, down in sorted(self._table.failing().items())
        ]

    async def _measured(self, target: Target) -> Result:
        """Make one check, and count it."""
        began = time.monotonic()
        result = await self._exchange.check(target)
        found = "local" if result.passed is None else "passed" if result.passed else "failed"
        self._meters.checked(self._services.get(target, ()), found, time.monotonic() - began)
        return result

    def _heard(self, target: Target, result: Result) -> None:
        if target not in self._services:  # it is not followed any more
            return
        if result.passed is None:
            self._unchecked[target] = result.reason
        else:
            self._unchecked.pop(target, None)
        if self._table.hear(target, result, time.monotonic_ns()):
            self._work.set()

    async def _steer(self, publisher: Publisher, health: HealthWatch) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            now = time.monotonic_ns()
            found = self._table.decide(now, health.out)
            released, self._released = self._released, {}
            await self._write_surely(publisher, release(released, now, health.out) | found.verdicts)
            for key, since in released.items():
                self._tell(Change(key, None, now - since))
                health.recall(key)
            for change in found.changes:
                if found.readmits(change.key):
                    health.overrule(change.key, found.verdicts[change.key].decided_at)
                elif change.reason is None:
                    health.recall(change.key)
                self._tell(change)
            if found.changes:
                self._changed()
            await asyncio.sleep(_GATHER)

    async def _write_surely(self, publisher: Publisher, verdicts: Mapping[bytes, Verdict]) -> None:
        """Write verdicts, and try until they are written: no later decision repeats them."""
        while verdicts:
            with self._announcer.trying("cannot steer servers", ClbError, OSError):
                await _write(publisher, verdicts)
                return
            await asyncio.sleep(_AFTER_ERROR)

    def _tell(self, change: Change) -> None:
        installed, lines = self._installed or Installed(), self._announcer.servers
        if change.reason is None:
            lines.check_passed(change.key, installed, change.out_for)
        else:
            lines.check_failed(change.key, installed, change.reason, early=change.reason == EARLIER)

    def _check_of(self, vip: Vip) -> Check | None:
        published = self._installed.virtual.get(vip) if self._installed else None
        return _check(published, self._checks) if published else None

    def _obstacles(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each reason why this host cannot check servers, with the names of some of these."""
        found = sorted(self._unchecked.items(), key=lambda one: (one[1], one[0][:2]))
        for reason, group in groupby(found, key=itemgetter(1)):
            yield reason, some_of([target for target, _ in group], _SHOWN)


def _pools(installed: Installed, checks: Mapping[str, Check]) -> Iterator[CheckedPool]:
    """Yield the virtual servers whose services want checks."""
    for vip, published in installed.virtual.items():
        check = _check(published, checks)
        if check and published.pool:
            yield CheckedPool(vip, _tiers(elements.pack_vip(vip), published.pool, check))


def _services(installed: Installed, pools: Iterable[CheckedPool]) -> dict[Target, set[str]]:
    """Return the names of the services of each target."""
    found: defaultdict[Target, set[str]] = defaultdict(set)
    for pool in pools:
        label = installed.virtual[pool.vip].label
        for tier in pool.tiers:
            for member in tier:
                found[member.target].add(label.service if label else "")
    return found


def _check(published: Published, checks: Mapping[str, Check]) -> Check | None:
    """Return the check of a virtual server; none if its programs do not look for verdicts."""
    if published.label is None or published.health is None or not published.health.checked:
        return None
    return checks.get(published.label.source)


def _tiers(vip: bytes, pool: Pool, check: Check) -> tuple[tuple[Member, ...], ...]:
    return tuple(
        tuple(
            Member(elements.pack_member(vip, server), Target(server.address, check.request.port or server.port, check))
            for server in tier
        )
        for _, tier in groupby(pool, key=attrgetter("priority"))
    )


def _name(key: bytes) -> str:
    _, address, port = elements.unpack_member(key)
    return format_endpoint(address, port)


async def _leases(publisher: Publisher) -> dict[bytes, Verdict]:
    """Return the verdicts of checks by which servers are out now; an earlier sidecar may have left them."""
    async with publisher.using_maps() as (maps, installed):
        found = await asyncio.to_thread(servers.leases, maps, installed, time.monotonic_ns())
    return {member: Verdict(*said) for member, said in found.items()}


async def _write(publisher: Publisher, verdicts: Mapping[bytes, Verdict]) -> None:
    said = {member: Steering(*verdict) for member, verdict in verdicts.items()}
    async with publisher.using_maps() as (maps, installed):
        await asyncio.to_thread(servers.steer, maps, installed, said)


async def _lasting(run: Callable[[], Any]) -> None:
    """Run a task that never ends, again after a bug."""
    while True:
        try:
            await run()
        except Exception as error:  # noqa: BLE001 - a bug must not end this task in silence
            _log.error("active checks failed", reason=internal_error(error))
            await asyncio.sleep(_AFTER_FAULT)
