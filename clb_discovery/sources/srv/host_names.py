"""The addresses of host names: /etc/hosts first, then DNS, as `hosts: files dns` in nsswitch.conf; without threads."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import dns.name
from dns.rdatatype import AAAA, A, RdataType

from clb_discovery.core.address import Address, parse_address
from clb_discovery.errors import SourceError
from clb_discovery.sources.srv.hosts_table import HOSTS, HostsTable
from clb_discovery.sources.srv.lookup import Lookup
from clb_discovery.sources.srv.resolvers import Resolvers

MAX_ADDRESSES: Final = 256
"""Of one name; a name with more keeps the lowest, so that every host uses the same."""
_AT_ONCE: Final = 8
_LONGEST_NAME: Final = 253
_HOST_NAME: Final = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?", re.IGNORECASE
)


class Looked(NamedTuple):
    """What one look-up found; each name that was passed is in `found` or in `failed`, or in both."""

    found: Mapping[str, tuple[Address, ...]]
    """Sorted, each once, at least one; as they come, loopback addresses and others that cannot be used included."""
    failed: Mapping[str, str]
    """Why a name, or one family of it, has no address: one clause, bounded and escaped, without the name."""
    failed_families: Mapping[str, tuple[bool, ...]]
    """For names in `failed` the families that could not be had now: True for IPv4. Empty where it is certain that the
    name has no address: it does not exist, it is none, or both families are empty."""
    surplus: Mapping[str, int]
    """For names with more than `MAX_ADDRESSES` addresses: how many were left out."""
    ttls: Mapping[str, int]
    """For names with addresses from DNS: the seconds that they hold, by the smallest TTL of their records."""


class HostNames:
    """Looks up host names for all services of one sidecar."""

    def __init__(self, resolvers: Resolvers, *, hosts: Path = HOSTS) -> None:
        """Ask nothing yet.

        :param resolvers: whom to ask; share it with every other source, so that the bounds hold for the process.
        :param hosts: read again whenever it has changed.
        """
        self._resolvers = resolvers
        self._hosts = HostsTable(hosts)

    async def look_up(self, names: Iterable[str]) -> Looked:
        """Return the addresses of names, in both families; a name that fails does not keep others from being found.

        A name in the hosts file has the addresses of that file and no others. An address in letters is itself.
        Cancelling ends all that is under way.
        """
        hosts = self._hosts.current()
        known: dict[str, list[Address]] = {}
        failed: dict[str, str] = {}
        families: dict[str, tuple[bool, ...]] = {}
        ttls: dict[str, int] = {}
        asked: list[str] = []
        for name in dict.fromkeys(names):
            local = _literal(name) or hosts.get(name.lower())
            if local:
                known[name] = list(local)
            elif len(name) > _LONGEST_NAME or not _HOST_NAME.fullmatch(name):
                failed[name], families[name] = "is not a host name", ()
            else:
                asked.append(name)
        await self._ask(asked, known, failed, families, ttls)
        lists = {name: sorted(set(addresses)) for name, addresses in known.items()}
        return Looked(
            {name: tuple(some[:MAX_ADDRESSES]) for name, some in lists.items()},
            failed,
            families,
            {name: len(some) - MAX_ADDRESSES for name, some in lists.items() if len(some) > MAX_ADDRESSES},
            ttls,
        )

    async def _ask(
        self,
        names: Iterable[str],
        known: dict[str, list[Address]],
        failed: dict[str, str],
        families: dict[str, tuple[bool, ...]],
        ttls: dict[str, int],
    ) -> None:
        """Ask DNS for both families of each name."""
        places = asyncio.Semaphore(_AT_ONCE)
        try:
            resolver = self._resolvers.current()
        except SourceError as error:
            failed |= dict.fromkeys(names, str(error))
            families |= dict.fromkeys(names, (True, False))
            return

        async def ask(lookup: Lookup, name: str, rdtype: RdataType) -> None:
            async with places:
                try:
                    found = await lookup.find(dns.name.from_text(name, None), rdtype)
                except SourceError as error:
                    failed[name] = str(error)
                    families[name] = (*families.get(name, ()), rdtype == A)
                    return
            if found.records:
                ttls[name] = min(ttls.get(name, found.ttl), found.ttl)
                known.setdefault(name, []).extend(parse_address(one.address) for one in found.records)

        async with Lookup("host", resolver) as lookup:
            tasks = [asyncio.create_task(ask(lookup, name, rdtype)) for name in names for rdtype in (A, AAAA)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for name in names:
            if name not in known and name not in failed:
                failed[name], families[name] = "has no address in DNS", ()


def _literal(name: str) -> tuple[Address, ...]:
    try:
        return (parse_address(str(ipaddress.ip_address(name))),)
    except ValueError:
        return ()
