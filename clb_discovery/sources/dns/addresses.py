"""The addresses of a plain name as a source: each of its A and AAAA records is a real server, all with one port."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import dns.name
from dns.rdatatype import AAAA, A

from clb_discovery.errors import SourceError, UsageError
from clb_discovery.model.address import format_address, is_ipv4, parse_address
from clb_discovery.sources.dns.answer import AddressSet, Unavailable, build_addresses
from clb_discovery.sources.dns.lookup import Lookup, to_text
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.source import (
    BOTH,
    Bounds,
    DnsSource,
    Member,
    Round,
    Servers,
    parse_name,
    record_types,
)
from clb_discovery.sources.dns.target_cache import Question
from clb_discovery.sources.dns.whole import Whole


class AddressSource(DnsSource):
    """One name and port, such as `db.example.com:5432`."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        name: str,
        port: int,
        resolvers: Resolvers,
        min_ttl: float = 1.0,
        max_ttl: float = 60.0,
        *,
        families: Collection[bool] = BOTH,
        linger: float | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Check the name; nothing is sent yet.

        :param name: the owner of the address records; always absolute, so no search domains apply.
        :param port: of all real servers.
        :param min_ttl: minimum seconds between two rounds.
        :param max_ttl: maximum seconds between two rounds.
        :param families: families whose addresses are needed: True for IPv4, False for IPv6.
        :param linger: as for `DnsSource`.
        :param rng: random numbers for jitter.
        :raises UsageError: if the name is an IP address or not a DNS name, or the bounds cross.
        """
        example = "a name and a port, such as db.example.com:5432"
        absolute = parse_name("--dns", name, example).derelativize(dns.name.root)
        if _is_address(name):
            raise UsageError(f"--dns {name!r}: is an IP address; give {example}, or use `servers` in a [[service]]")
        bounds = Bounds(min_ttl, max_ttl)
        reader = AddressReader(absolute, port, resolvers, bounds, families)
        super().__init__(f"dns:{name}:{port}", reader, resolvers, bounds, linger=linger, rng=rng)


class AddressReader:
    """Reads the addresses of one name: a `Reader`."""

    def __init__(
        self, name: dns.name.Name, port: int, resolvers: Resolvers, bounds: Bounds, families: Collection[bool]
    ) -> None:
        """Prepare; no query is sent yet.

        :param name: absolute.
        :param families: families whose addresses are needed: True for IPv4, False for IPv6.
        """
        self._name: Final = name
        self._port: Final = port
        self._resolvers: Final = resolvers
        self._bounds: Final = bounds
        self._questions: Final = [Question(to_text(name), rdtype, is_whole=True) for rdtype in record_types(families)]
        self.parts: Sequence[AddressSet | Unavailable] = ()
        self._sets: Mapping[Question, AddressSet | Unavailable] = {}  # of the last answer
        self._servers: dict[bool, Servers] = {}  # the last that were read, by family
        self._failed = 0.0  # when nothing was read: a failure that the cache keeps is queried again

    async def read(self, lookup: Lookup, since: float) -> Round:
        """Query the families that are due, at the same time: see `Reader.read`.

        :raises SourceError: if there is no address that can be used, and a query failed or an address is unusable.
        """
        addresses, earliest = self._resolvers.addresses, max(since, self._failed)
        found = await addresses.find(lookup, self._questions, earliest, self._bounds, wait_for_any=True)
        sets = {asked: found[asked] for asked in self._questions}  # so that an error names the same one each time
        self.parts = list(sets.values())
        try:
            answer = build_addresses(to_text(self._name), self._port, self.parts)
        except SourceError:
            self._failed = asyncio.get_running_loop().time()
            raise
        is_new = any(isinstance(one, AddressSet) and one is not self._sets.get(asked) for asked, one in sets.items())
        self._sets = sets
        unread = frozenset(one.is_ipv4 for one in answer.unread if one.is_ipv4 is not None)
        for family in {*BOTH} - unread:
            self._servers[family] = tuple(one for one in answer.servers if is_ipv4(one.address) is family)
        return Round(answer, is_new, unread)

    def members(self, last: Callable[[Member], Servers | None]) -> Mapping[Member, Servers]:  # noqa: ARG002 - as `Reader`
        """Return the addresses that were last read, in each family: see `Reader.members`."""
        servers = (server for family in self._servers.values() for server in family)
        return {Member(format_address(server.address), server.port): (server,) for server in servers}

    async def why_empty(self, lookup: Lookup) -> str:
        """Query whether the name exists at all, or has addresses of a family that is not needed."""
        reasons = {rdtype: await Whole(self._name, rdtype).why_absent(lookup) for rdtype in (A, AAAA)}
        for rdtype, reason in reasons.items():
            if reason is None:
                return f"the name has {rdtype.name} records only, and no VIP is of their family; add one"
        if reasons[A] == reasons[AAAA]:
            return str(reasons[A])
        return "the name exists, but has no A or AAAA record"


def _is_address(text: str) -> bool:
    try:
        parse_address(text.strip("[]").removesuffix("."))
    except ValueError:
        return False
    return True
