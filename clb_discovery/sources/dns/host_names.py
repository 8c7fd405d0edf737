"""Look up host names: first in /etc/hosts, then in DNS, as `hosts: files dns` in nsswitch.conf; without threads."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import dns.name
import structlog
from dns.rdatatype import AAAA, A

from clb_discovery.errors import SourceError
from clb_discovery.model.address import Address, parse_address
from clb_discovery.sources.dns.answer import AddressSet, Unavailable, lasts
from clb_discovery.sources.dns.hosts_table import HOSTS, HostsTable
from clb_discovery.sources.dns.lookup import Lookup, to_text
from clb_discovery.sources.dns.resolv_conf import Candidate
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.target_cache import PATIENCE, RETRY, Question

MAX_ADDRESSES: Final = 256
"""Maximum number of addresses of one name; if it has more, the lowest count, so that all hosts use the same."""
BOUNDS: Final = (1.0, 60.0)
"""Minimum and maximum seconds for which addresses are cached, whatever their TTL."""
_LONGEST_NAME: Final = 253
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\.?", re.IGNORECASE)

_log = structlog.stdlib.get_logger()


class Looked(NamedTuple):
    """The result of one look-up; each name is in `found` or in `failed`, or in both."""

    found: Mapping[str, tuple[Address, ...]]
    """Sorted, each once, at least one; including loopback and other addresses that cannot be used."""
    failed: Mapping[str, str]
    """Why a name, or one family of it, has no address: a clause, bounded and escaped, without the name."""
    failed_families: Mapping[str, tuple[bool, ...]]
    """For names in `failed`, the families whose query failed: True for IPv4. Empty if the name certainly has no
    address: it does not exist, is not a host name, or both families are empty."""
    surplus: Mapping[str, int]
    """For names with more than `MAX_ADDRESSES` addresses: the number that was left out."""
    lasts: Mapping[str, float]
    """For names that were queried in DNS: the seconds until the next query."""


@dataclass(slots=True)
class _Search:
    """The search for one name through the search list, both families together."""

    left: list[Candidate]
    """The absolute names that it may mean and that were not queried yet."""
    meant: dns.name.Name | None
    """The one of them that had addresses last: no other one counts while it fails."""
    addresses: tuple[str, ...] = ()
    failures: dict[bool, Unavailable] = field(default_factory=dict)
    """The first failure by family, True for IPv4."""
    lasts: float = math.inf
    """When the first part of it is queried again."""

    @property
    def is_over(self) -> bool:
        """Whether there is an address, or no name is left to query."""
        return bool(self.addresses) or not self.left

    def take(self, sets: Sequence[AddressSet | Unavailable], bounds: tuple[float, float]) -> None:
        """Take the results of both families of the next candidate; the rule is that of `Lookup.find`."""
        self.lasts = min(self.lasts, *(lasts(one, bounds, 1.0) for one in sets))
        candidate, is_listed = self.left.pop(0)
        failures = [one for one in sets if isinstance(one, Unavailable)]
        self.addresses = tuple(text for one in sets if isinstance(one, AddressSet) for text in one.addresses)
        if self.addresses:
            self.failures, self.meant = {}, candidate
        elif failures and candidate == self.meant:
            self.left = []
        for one in failures:
            self.failures.setdefault(one.is_ipv4, one)
        if is_listed and not all(one.is_servfail for one in failures):
            self.left = [one for one in self.left if not one.is_listed]


class HostNames:
    """Looks up host names for all services of one sidecar."""

    def __init__(self, resolvers: Resolvers, *, hosts: Path = HOSTS, bounds: tuple[float, float] = BOUNDS) -> None:
        """Prepare; no query is sent yet.

        :param resolvers: the DNS servers; share it with all other sources, so that its limits hold for the process.
        :param hosts: the hosts file, read again when it has changed.
        :param bounds: minimum and maximum seconds for which addresses are cached, whatever their TTL.
        """
        self._resolvers = resolvers
        self._bounds = bounds
        self._hosts = HostsTable(hosts)

    async def look_up(self, names: Iterable[str], since: float = 0.0) -> Looked:
        """Return the addresses of names, in both families; a name that fails does not affect others.

        A name in the hosts file has only the addresses of that file. An IP address as a name is its own address.
        It takes at most `PATIENCE`; queries without an answer by then have failed. Cancelling ends all queries.

        :param since: answers to queries from before this time do not count, in seconds of the loop's clock.
        """
        hosts = self._hosts.current()
        known: dict[str, Iterable[Address]] = {}
        failed: dict[str, str] = {}
        families: dict[str, tuple[bool, ...]] = {}
        asked: list[str] = []
        for name in dict.fromkeys(names):
            local = _literal(name) or hosts.get(name.lower())
            if local:
                known[name] = local
            elif len(name) > _LONGEST_NAME or not _HOST_NAME.fullmatch(name):
                failed[name], families[name] = "is not a host name", ()
            else:
                asked.append(name)
        try:
            searches = await self._ask(asked, since)
        except SourceError as error:
            failed |= dict.fromkeys(asked, str(error))
            families |= dict.fromkeys(asked, (True, False))
            searches = {}
        for name, search in searches.items():
            if search.addresses:
                known[name] = map(parse_address, search.addresses)
            if search.failures or not search.addresses:
                families[name] = tuple(sorted(search.failures, reverse=True))
                failed[name] = next(
                    (f"{'A' if one.is_ipv4 else 'AAAA'}: {one.cause}" for one in search.failures.values()),
                    "has no address in DNS",
                )
        _log.debug("host names were looked up", found=len(known), failed=len(failed), from_dns=len(searches))
        now = asyncio.get_running_loop().time()
        lists = {name: sorted(set(addresses)) for name, addresses in known.items()}
        return Looked(
            {name: tuple(some[:MAX_ADDRESSES]) for name, some in lists.items()},
            failed,
            families,
            {name: len(some) - MAX_ADDRESSES for name, some in lists.items() if len(some) > MAX_ADDRESSES},
            {name: max(0.0, search.lasts - now) for name, search in searches.items()},
        )

    async def _ask(self, names: Iterable[str], since: float) -> Mapping[str, _Search]:
        """Query DNS for both families of each name.

        :raises SourceError: if the DNS servers cannot be determined.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + PATIENCE
        searches: dict[str, _Search] = {}
        async with Lookup("host names", self._resolvers.current()) as lookup:
            for text in names:
                name = dns.name.from_text(text, None)
                searches[text] = _Search(lookup.candidates(name), lookup.meant(name))
                if fault := lookup.search_fault(name):
                    searches[text].failures |= {
                        is_ipv4: Unavailable(fault, RETRY, clock(), is_ipv4=is_ipv4) for is_ipv4 in (True, False)
                    }
            while pending := [one for one in searches.values() if not one.is_over]:
                wanted = {id(one): [Question(to_text(one.left[0].name), kind) for kind in (A, AAAA)] for one in pending}
                questions = dict.fromkeys(question for pair in wanted.values() for question in pair)
                sets = await self._resolvers.addresses.find(
                    lookup, questions, since, self._bounds, max(0.0, end - clock())
                )
                for one in pending:
                    one.take([sets[question] for question in wanted[id(one)]], self._bounds)
            for text, one in searches.items():
                if one.addresses and one.meant:
                    lookup.means(dns.name.from_text(text, None), one.meant)
        return searches


def _literal(name: str) -> tuple[Address, ...]:
    try:
        return (parse_address(name),)
    except ValueError:
        return ()
