"""Look up host names in the background: the agent's own and those that instances have as their address.

`dns.host_names` does the look-ups; it is imported with the first name, because most users of Consul have none.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp.abc import AbstractResolver, ResolveResult

from clb_discovery.model.address import Address, format_address, is_ipv4
from clb_discovery.sources.consul.members import BOTH, NOT_YET, Known
from clb_discovery.sources.consul.transport import HostNameError
from clb_discovery.sources.dns.varying import Varying
from clb_discovery.sources.follow import Bugs

if TYPE_CHECKING:
    from clb_discovery.sources.dns.host_names import HostNames

AT_ONCE: Final = 64
"""Names of one service that are looked up at a time; `dns.gate` limits the queries of the whole process."""
SUSPECTS_AT_ONCE: Final = 16
"""Further names of one service whose last look-up failed, counted apart so that they do not delay others."""
RATE: Final = 10.0
"""Look-ups per second for one service in the long run."""
FROM_FILE: Final = 10.0
"""Seconds until a name from the hosts file is looked up again."""
RETRY: Final = 5.0
"""Minimum seconds until a name without an address is looked up again."""
MERGED: Final = 0.2
"""Seconds for which the results of first look-ups are collected into one notification."""

_log = structlog.stdlib.get_logger()


class Names(AbstractResolver):
    """Looks up host names for one Consul server; also aiohttp's resolver for the agent's address."""

    def __init__(self, host_names: Callable[[], HostNames]) -> None:
        """Prepare; no query is sent yet.

        :param host_names: creates the resolver when the first name is looked up.
        """
        self._make = host_names
        self._made: HostNames | None = None

    @property
    def _host_names(self) -> HostNames:
        if self._made is None:
            self._made = self._make()
        return self._made

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        :raises HostNameError: if there are none, or the look-up failed.
        """
        looked = await self._host_names.look_up([host])
        found = [
            ResolveResult(
                hostname=host,
                host=format_address(address),
                port=port,
                family=socket.AF_INET if is_ipv4(address) else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in looked.found.get(host, ())
            if family in {socket.AF_UNSPEC, socket.AF_INET if is_ipv4(address) else socket.AF_INET6}
        ]
        if not found:
            cause = looked.failed.get(host, "has no address of this family")
            if not looked.failed_families.get(host):
                cause += "; is the name right?"
            raise HostNameError(f"cannot look up {host}: {cause}")
        return found

    async def close(self) -> None:
        """Do nothing: no connection is kept open."""

    async def look_up(self, name: str, before: Known | None, since: float) -> tuple[Known, float]:
        """Look up a name that an instance has as its address.

        :param before: the previous state of the name.
        :param since: answers to DNS queries from before this time do not count, in seconds of the loop's clock.
        :return: the new state, and for how many seconds it holds.
        """
        looked = await self._host_names.look_up([name], since)
        addresses = looked.found.get(name, ())
        known = Known(
            addresses,
            looked.surplus.get(name, 0),
            looked.failed.get(name),
            frozenset(looked.failed_families.get(name, ())),
            addresses or (before.last if before else ()),
        )
        return known, max(looked.lasts.get(name, FROM_FILE), 0.0 if addresses else RETRY)


class Watched:
    """The host names among the addresses of one service; each is looked up again when its addresses expire."""

    def __init__(self, names: Names, source: str, changed: Callable[[], None], *, lingers: bool = True) -> None:
        """Prepare; nothing is looked up yet.

        :param source: name of the service's source, for reports of bugs.
        :param changed: called when the state of a name has changed.
        :param lingers: whether addresses may stay, if the DNS server varies them.
        """
        self._names = names
        self._source = source
        self._changed = changed
        self._bugs = Bugs()
        self._known: dict[str, Known] = {}
        self._varying = Varying[tuple[str, bool], Address](enabled=lingers)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._since = 0.0
        """When `renew` was called: look-ups that begin after it use no earlier DNS answers."""
        self._asked: dict[str, float] = {}
        """The `_since` of each name's last look-up."""
        self._renewing = asyncio.Event()
        """Set, and replaced, by `renew`."""
        self._timer: asyncio.TimerHandle | None = None
        self._places = asyncio.Semaphore(AT_ONCE)
        self._suspects = asyncio.Semaphore(SUSPECTS_AT_ONCE)

    @property
    def known(self) -> Mapping[str, Known]:
        """The state of the wanted names; names that have not been looked up yet are missing."""
        return self._known

    @property
    def renewed(self) -> Mapping[str, Known]:
        """The same; but of a name that is still looked up again since `renew`, nothing says what it lacks."""
        return {
            name: known._replace(unread=BOTH, cause=NOT_YET.cause) if self._asked[name] < self._since else known
            for name, known in self._known.items()
        }

    @property
    def asked(self) -> float:
        """A time before which no DNS query was sent whose answer is in `known`, in seconds of the loop's clock."""
        return min(self._asked.values(), default=math.inf)

    def want(self, names: Collection[str]) -> None:
        """Watch exactly these names; cancel look-ups of others."""
        for name in self._tasks.keys() - names:
            self._tasks.pop(name).cancel()
        self._known = {name: known for name, known in self._known.items() if name in names}
        self._asked = {name: self._asked[name] for name in self._known}
        self._varying.keep({(name, family) for name in names for family in BOTH})
        for name in sorted(set(names) - self._tasks.keys()):
            self._tasks[name] = asyncio.create_task(self._watch(name))

    @property
    def is_complete(self) -> bool:
        """Whether all of them have been looked up."""
        return self._tasks.keys() <= self._known.keys()

    @property
    def is_renewed(self) -> bool:
        """Whether all that are known have been looked up since `renew`."""
        return self.asked >= self._since

    def renew(self, since: float) -> None:
        """Look up all names again, from DNS; look-ups that are under way end first.

        :param since: answers to queries from before this time do not count any more, in seconds of the loop's clock.
        """
        self._since = since
        self._renewing.set()
        self._renewing = asyncio.Event()

    def stop(self) -> None:
        """Stop all look-ups until `want` is called again."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._varying.missed()

    def _report(self) -> None:
        """Report a change; while first look-ups are running, collect their changes into one report."""
        if self.is_complete and self.is_renewed:
            self._changed()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MERGED, self._report_merged)

    def _report_merged(self) -> None:
        self._timer = None
        self._changed()

    async def _watch(self, name: str) -> None:
        while True:
            before = self._known.get(name)
            async with self._suspects if before and before.unread else self._places:
                since, renewing = self._since, self._renewing
                known, lasts = await self._look_up(name, before, since)
            is_renewed = self._asked.get(name, since) < since
            self._asked[name] = since
            if known != before or is_renewed:
                _log.debug(
                    "host name has changed",
                    name=name,
                    addresses=len(known.addresses),
                    failed_families=len(known.unread),
                    next_query_in=round(lasts, 1),
                )
                self._known[name] = known
                self._report()
            if renewing.is_set():
                await asyncio.sleep(2 * MERGED)  # this result may end an absence, so it is reported before the next
            with suppress(TimeoutError):
                async with asyncio.timeout(max(lasts, len(self._tasks) / RATE)):
                    await renewing.wait()

    def _completed(self, name: str, known: Known) -> Known:
        """Add the addresses that stay because the DNS server varies them."""
        now = asyncio.get_running_loop().time()
        found: list[Address] = []
        stays = 0.0
        for family in BOTH:
            own = [address for address in known.addresses if is_ipv4(address) is family]
            if family in known.unread:
                self._varying.missed((name, family))
                found += own
            else:
                found += self._varying.completed((name, family), own, now, now)
                stays = max(stays, self._varying.stays((name, family), now))
        addresses = tuple(sorted(found))
        return known._replace(addresses=addresses, last=addresses or known.last, stays=stays)

    async def _look_up(self, name: str, before: Known | None, since: float) -> tuple[Known, float]:
        """Look up a name; for a bug, too, the look-up has failed and is repeated, and other names are not affected."""
        try:
            known, lasts = await self._names.look_up(name, before, since)
            return self._completed(name, known), lasts
        except Exception as error:  # noqa: BLE001 - otherwise it would end this task in silence
            reason = self._bugs.reason(self._source, error)
            return Known((), 0, reason, BOTH, before.last if before else ()), RETRY
