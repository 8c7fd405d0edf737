"""One Consul agent, shared by all services that are followed there: its connections, and limits on queries."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from weakref import WeakSet

import structlog

from clb_discovery.errors import SourceError, UsageError
from clb_discovery.model.zones import AUTO, FORM, is_zone
from clb_discovery.sources.consul.address import ConsulAddress
from clb_discovery.sources.consul.answer import (
    Reading,
    parse_entries,
    parse_names,
    parse_service_names,
    parse_summaries,
    show,
)
from clb_discovery.sources.consul.blocking import FIRST, LONGEST_WAIT, MARGIN, WAIT
from clb_discovery.sources.consul.change_watch import ChangeWatch, Key
from clb_discovery.sources.consul.client import CONSISTENT, OWN, STALE, Client, Mode, Scope
from clb_discovery.sources.consul.names import Names
from clb_discovery.sources.consul.secret_files import SecretFile
from clb_discovery.sources.consul.transport import RIGHTS, SERVICE, SERVICES, StatusError, Tls, Transport

if TYPE_CHECKING:
    from clb_discovery.sources.dns.host_names import HostNames

DIRECT: Final = 32
"""Services with a blocking query of their own.

With the three of the catalog and `AT_ONCE` these are 43 connections. An agent accepts 200 from one host by default, and
counts a query whose client has gone until its wait ends. That leaves room for four restarts in a minute.
"""
AT_ONCE: Final = 8
"""Maximum number of queries at a time that do not block."""


class Limits(NamedTuple):
    """How many queries to an agent there are at a time."""

    direct: int
    """Services with a blocking query of their own."""
    at_once: int
    """Queries that do not block."""


LOCAL: Final = Limits(DIRECT, AT_ONCE)
"""The limits for the datacenter of the options."""
REMOTE: Final = Limits(4, 2)
"""The limits for each other datacenter, whose queries never take the places of local ones: with the three of the
catalog nine connections."""
REFRESH: Final = 300.0
"""Seconds after which a service without a blocking query of its own is queried although no change was reported.

The names in the catalog are queried again after the same time.
"""
AFTER_FAILURE: Final = 0.1
"""Seconds for which a failed query keeps its place among the `AT_ONCE`."""

_MODES: Final = {STALE: "stale", CONSISTENT: "consistent"}
"""Consul's names of the consistency modes."""

_FORBIDDEN: Final = 403

_log = structlog.stdlib.get_logger()


def system_host_names() -> HostNames:
    """Return a resolver that uses the hosts file and the DNS servers of this host."""
    from clb_discovery.sources.dns.host_names import HostNames  # noqa: PLC0415  # rarely needed, and dnspython is big
    from clb_discovery.sources.dns.resolvers import Resolvers  # noqa: PLC0415

    return HostNames(Resolvers())


class Endable(Protocol):
    """A user of the connections that works in the background."""

    async def end(self) -> None:
        """Cancel its queries."""


class ConsulServer:
    """One Consul agent, or the cluster behind it; every source of it shares its connections."""

    def __init__(  # noqa: PLR0913  # one for each setting in the environment
        self,
        address: str,
        token: str | SecretFile[str] | None = None,
        scope: Scope = OWN,
        *,
        tls: Tls | None = None,
        auth: str | None = None,
        names: Names | None = None,
        wait: float = WAIT,
        margin: float = MARGIN,
        limits: Limits = LOCAL,
    ) -> None:
        """Prepare; nothing is connected yet. The environment is not read.

        :param address: `127.0.0.1:8500`, `http://…`, `https://…`, `[::1]:8500` or `unix:///path`.
        :param token: ACL token, sent with every query, or the file that holds it; `None` for the agent's own.
        :param scope: which part of Consul to query.
        :param tls: settings for https; `None` for the system's authorities and the address's host.
        :param auth: value of the Authorization header, for a proxy before the agent.
        :param names: resolver of host names; `None` for the hosts file and the DNS servers of this host.
        :param wait: how long Consul holds a query without a change, in seconds, at most 600.
        :param margin: seconds that a query may take beyond its wait.
        :param limits: how many queries at a time.
        :raises UsageError: if the address, the token or the wait is invalid.
        """
        self._address = ConsulAddress.parse(address)
        if isinstance(token, str) and not (token.isascii() and token.isprintable() and token):
            raise UsageError(
                "the Consul token is empty or contains characters that a token cannot have; set CONSUL_HTTP_TOKEN"
            )
        if not 0 < wait <= LONGEST_WAIT:
            raise UsageError(f"a Consul query cannot wait for {wait:g} s; at most {LONGEST_WAIT:g}")
        self._wait = wait
        self.names = names or Names(system_host_names)
        """Resolver of host names."""
        self._transport = Transport(self._address, tls, auth, self.names, margin=margin)
        self._client = Client(self._transport, token, scope)
        self._catalog = ChangeWatch(self._client, wait)
        self._sources: WeakSet[Endable] = WeakSet()
        self._limits = limits
        self._direct = asyncio.Semaphore(limits.direct)
        self._at_once = asyncio.Semaphore(limits.at_once)

    def __str__(self) -> str:
        """Return `Consul at http://127.0.0.1:8500`."""
        return str(self._address)

    @property
    def url(self) -> str:
        """The full address."""
        return self._address.url

    async def read(self, service: Key, index: int, *, confirm: bool = False) -> tuple[int, Reading, float]:
        """Query the instances of a service.

        At most `DIRECT` services have a blocking query each. The others are queried when the catalog has changed, often
        because of another service, or after `REFRESH` seconds without a change.

        :param index: the index that the last `read` returned, to wait for a newer one; with `FIRST` Consul responds at
            once.
        :param confirm: query the current state at once, not the state that some server had a while ago.
        :return: the index of the next query, the parsed answer, and the CPU seconds that parsing took.
        :raises SourceError: if there is no complete answer.
        """
        if index == FIRST or confirm:
            return await self._query_now(service, confirm=confirm)
        if not self._direct.locked():
            async with self._direct:
                _log.debug("waiting for a change by a blocking query", service=service[0], index=index, wait=self._wait)
                return await self._query(service, index)
        _log.debug(
            "waiting for a change of the whole catalog: too many services",
            service=service[0],
            direct=self._limits.direct,
        )
        await self._catalog.changed(service, time.monotonic() + REFRESH)
        return await self._query_now(service)

    async def _query_now(self, service: Key, *, confirm: bool = False) -> tuple[int, Reading, float]:
        async with self._at_once:
            # Other servers may lag behind the one that reported the change, or have just started; so may the leader
            # itself if it was just elected.
            mode = CONSISTENT if confirm or self._direct.locked() else STALE
            _log.debug("querying without waiting", service=service[0], mode=_MODES[mode], after_failure=confirm)
            self._catalog.note_query(service, leader=mode is not STALE)
            try:
                return await self._query(service, FIRST, mode)
            except SourceError:
                await asyncio.sleep(AFTER_FAILURE)  # when one query fails, the others mostly fail, too
                raise

    async def _query(self, service: Key, index: int, mode: Mode = STALE) -> tuple[int, Reading, float]:
        name, selection = service
        header, entries = await self._client.entries(name, selection, index, self._wait, mode)
        started = time.thread_time()
        try:
            reading = parse_entries(entries, selection.tagged_address, selection.zone_key)
        except SourceError as error:
            raise SourceError(f"{self}: {error}") from None
        took = time.thread_time() - started
        return self._client.next_index(f"{SERVICE}{name}", header, index), reading, took

    async def list_services(
        self, index: int, *, known: bool = False, confirm: bool = False
    ) -> tuple[int, frozenset[str] | None]:
        """Query the services that may opt in, by their tags and meta; a service that is missing here does not.

        :param index: as in `read`; `confirm` is, too.
        :param known: skip the query to the leader if no instance was registered or deregistered.
        :return: the index of the next query, and the names; `None` if they are unchanged.
        :raises SourceError: if there is no complete answer, or the token lacks rights.
        """
        mode = CONSISTENT if confirm else STALE
        header, services = await self._client.services(FIRST if confirm else index, self._wait, mode)
        if not services:  # Consul itself is always listed
            raise SourceError(f"{self} listed no service at all: the token lacks rights; {RIGHTS}")
        following = self._client.next_index(SERVICES, header, index)
        if known and index == following:
            _log.debug("the list of services has not changed; their meta is not queried")
            return following, None
        async with self._at_once:
            summaries = await self._client.summaries()
        try:
            names = parse_names(services) | parse_summaries(summaries)
        except SourceError as error:
            raise SourceError(f"{self}: {error}") from None
        return following, names

    async def service_names(self) -> frozenset[str]:
        """Query the names of all services that the token may read.

        :raises SourceError: if there is no complete answer.
        """
        _, services = await self._client.services(FIRST, self._wait)
        return parse_service_names(services)

    async def zone(self, key: str) -> str:
        """Query the zone of the agent's own node.

        :param key: the name of the node meta that has it.
        :raises SourceError: if it is not known, with the cause and the fix.
        """
        fix = "or give the zone, --zone NAME"
        try:
            meta = await self._client.own_meta()
        except StatusError as error:
            if error.status != _FORBIDDEN:
                raise
            text = f'the token lacks agent:read, agent_prefix "" {{ policy = "read" }}; grant it, {fix}'
            raise SourceError(f"{self} does not return the zone of this host: {text}") from None
        zone = meta.get(key) if isinstance(meta, dict) else None
        if not isinstance(zone, str) or not zone:
            raise SourceError(f"{self} has no meta {key!r} of its own node; set it in node_meta of the agent, {fix}")
        if not is_zone(zone) or zone == AUTO:
            raise SourceError(f"{self} has {show(zone)} as the zone of its node; {FORM}; correct node_meta, {fix}")
        return zone

    def attach(self, source: Endable) -> None:
        """Register a source whose queries have to end before the connections are closed."""
        self._sources.add(source)

    async def close(self) -> None:
        """Close the connections."""
        for source in list(self._sources):
            await source.end()
        await self._catalog.close()
        await self._transport.close()
