"""Host names, the agent's own and those that stand for an instance's address, looked up without keeping anyone waiting.

`srv.host_names` does the looking up; it is imported with the first name, since most of those who use Consul have none.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from clb_discovery.model.address import format_address, is_ipv4
from clb_discovery.sources.consul.members import Known

if TYPE_CHECKING:
    from clb_discovery.sources.dns.host_names import HostNames

AT_ONCE: Final = 64
"""Names of one service that are looked up at a time; `srv.gate` bounds what that takes in the whole process."""
SUSPECTS_AT_ONCE: Final = 16
"""Names of one service, besides, that could not be looked up when last tried, so that they hold up no others."""
RATE: Final = 10.0
"""Names a second that are looked up for one service in the long run."""
FROM_FILE: Final = 10.0
"""Seconds after which a name in the hosts file is looked up again."""
RETRY: Final = 5.0
"""Least seconds after which a name without an address is looked up again."""
MERGED: Final = 0.2
"""Seconds for which first look-ups are told together."""


class Names(AbstractResolver):
    """Looks up host names for one Consul; also the resolver that aiohttp uses for the agent's address."""

    def __init__(self, host_names: Callable[[], HostNames]) -> None:
        """Ask nothing yet.

        :param host_names: makes what looks names up, when there is the first.
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

        :raises OSError: if there are none, or nobody can say.
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
            raise OSError(f"cannot look up {host}: {looked.failed.get(host, 'it has no address of this family')}")
        return found

    async def close(self) -> None:
        """Nothing is kept open."""

    async def look_up(self, name: str, before: Known | None, since: float) -> tuple[Known, float]:
        """Look up a name that stands where an instance's address belongs.

        :param before: what was known of it.
        :param since: what DNS was asked before this time does not count, in seconds of the loop's clock.
        :return: what is known now, and for how many seconds.
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
    """The host names among the addresses of one service, each looked up again when its addresses' time is over."""

    def __init__(self, names: Names, changed: Callable[[], None]) -> None:
        """Look up nothing yet.

        :param changed: called when something else is known than before.
        """
        self._names = names
        self._changed = changed
        self._known: dict[str, Known] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._since = 0.0
        self._awaited: set[str] = set()
        """Names of which an answer from before `_since` does not count."""
        self._telling: asyncio.TimerHandle | None = None
        self._places = asyncio.Semaphore(AT_ONCE)
        self._suspects = asyncio.Semaphore(SUSPECTS_AT_ONCE)

    @property
    def known(self) -> Mapping[str, Known]:
        """What is known of those that are wanted; those that have not been looked up yet are missing."""
        return {name: known for name, known in self._known.items() if name not in self._awaited}

    def want(self, names: Collection[str]) -> None:
        """Watch these names and no others; a look-up of another one is given up."""
        for name in self._tasks.keys() - names:
            self._tasks.pop(name).cancel()
        self._known = {name: known for name, known in self._known.items() if name in names}
        self._awaited &= set(names)
        for name in sorted(set(names) - self._tasks.keys()):
            self._tasks[name] = asyncio.create_task(self._watch(name))

    @property
    def is_complete(self) -> bool:
        """Whether all of them have been looked up."""
        return self._tasks.keys() <= self._known.keys() - self._awaited

    def renew(self) -> None:
        """Look all of them up again; what DNS was asked before counts no more."""
        self._since = asyncio.get_running_loop().time()
        self._awaited = {*self._tasks, *self._known}
        names = list(self._tasks)
        self.stop()
        if names:
            self.want(names)

    def stop(self) -> None:
        """Look up nothing any more, until names are wanted again."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    def _tell(self) -> None:
        """Tell that something has changed; while there are many first look-ups that is not for each of them."""
        if self.is_complete:
            self._changed()
        elif self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(MERGED, self._tell_merged)

    def _tell_merged(self) -> None:
        self._telling = None
        self._changed()

    async def _watch(self, name: str) -> None:
        while True:
            before = self._known.get(name)
            async with self._suspects if before and before.unread else self._places:
                known, lasts = await self._names.look_up(name, before, self._since)
            if known != before or name in self._awaited:
                self._known[name] = known
                self._awaited.discard(name)
                self._tell()
            await asyncio.sleep(max(lasts, len(self._tasks) / RATE))
