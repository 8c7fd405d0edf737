"""Follow one service of Consul: the health endpoint, by blocking queries, over the connection all services share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from clb_discovery.core.config import CATALOG
from clb_discovery.core.model import Answer, Listing
from clb_discovery.core.spec import consul_objection
from clb_discovery.errors import SourceError, UnusableError, UsageError
from clb_discovery.sources.base import Query
from clb_discovery.sources.consul import environment
from clb_discovery.sources.consul.address import ConsulAddress
from clb_discovery.sources.consul.answer import (
    host_names,
    parse_entries,
    parse_names,
    parse_summaries,
    read_opt_in,
    to_servers,
)
from clb_discovery.sources.consul.blocking import FIRST, MARGIN, WAIT, Bucket, next_index
from clb_discovery.sources.consul.catalog import WATCH_BURST, WATCH_RATE, Catalog, Key
from clb_discovery.sources.consul.client import ALL, CONSISTENT, LEADER, OWN, STALE, Client, Mode, Scope, Selection
from clb_discovery.sources.consul.host_names import look_up
from clb_discovery.sources.consul.rotation import Rotated
from clb_discovery.sources.consul.transport import RIGHTS, Tls, Transport

RATE: Final = 10.0
"""Queries a second for one service in the long run."""
BURST: Final = 20.0
"""Queries for one service at once after a quiet time."""

DIRECT: Final = 32
"""Services with a blocking query of their own.

With the three of the catalog and `AT_ONCE` these are 43 connections. An agent takes 200 from one host by default, and
counts a query whose client has gone until its wait ends, so that there is room for four restarts in a minute.
"""
AT_ONCE: Final = 8
"""Most queries at a time that answer at once."""
REFRESH: Final = 300.0
"""Seconds after which a service without a query of its own is asked for although nothing has been heard of it."""
AFTER_FAILURE: Final = 0.1
"""Seconds for which a query that failed keeps its place among those."""

_LONGEST_WAIT: Final = 600.0
_SHOWN: Final = 80


class ConsulServer:
    """One Consul agent, or the cluster behind it; every source of it shares its connections."""

    def __init__(  # noqa: PLR0913  # one for each thing that the environment says
        self,
        address: str,
        token: str | Rotated[str] | None = None,
        scope: Scope = OWN,
        *,
        tls: Tls | None = None,
        auth: str | None = None,
        wait: float = WAIT,
        margin: float = MARGIN,
    ) -> None:
        """Prepare; nothing is connected yet. The environment is not read.

        :param address: `127.0.0.1:8500`, `http://…`, `https://…`, `[::1]:8500` or `unix:///path`.
        :param token: ACL token, sent with every query, or where it is; `None` for the agent's own.
        :param scope: which part of Consul.
        :param tls: settings for https; `None` for the system's authorities and the address's host.
        :param auth: value of the Authorization header, for a proxy before the agent.
        :param wait: how long Consul holds a query without news, in seconds, at most 600.
        :param margin: what a query may take beyond its wait, in seconds.
        :raises UsageError: if the address is none, or the token cannot be one.
        """
        self._address = ConsulAddress.parse(address)
        if isinstance(token, str) and not (token.isascii() and token.isprintable() and token):
            raise UsageError("the Consul token is empty or holds characters that no token has; set CONSUL_HTTP_TOKEN")
        if not 0 < wait <= _LONGEST_WAIT:
            raise UsageError(f"a Consul query cannot wait for {wait:g} s; at most {_LONGEST_WAIT:g}")
        self._wait = wait
        self._transport = Transport(self._address, tls, auth, margin=margin)
        self._client = Client(self._transport, token, scope)
        self._catalog = Catalog(self._client, wait)
        self._direct = asyncio.Semaphore(DIRECT)
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def __str__(self) -> str:
        """Return `Consul at http://127.0.0.1:8500`."""
        return str(self._address)

    @property
    def url(self) -> str:
        """The address in full."""
        return self._address.url

    async def read(self, service: Key, index: int, *, answered: bool) -> tuple[int, Answer]:
        """Ask who serves now.

        The first `DIRECT` services have a blocking query each. The others are asked for when the catalog has changed,
        mostly elsewhere, or has been silent for `REFRESH` seconds.

        :param index: what the last `read` returned, to wait for something newer; `FIRST` answers at once.
        :param answered: whether there was an answer. `FIRST` after one means that something failed, perhaps by a
            restart.
        :return: the index to ask with next, and the complete answer.
        :raises SourceError: when Consul could not say.
        """
        if index == FIRST:
            return await self._ask_now(service, after_failure=answered)
        if not self._direct.locked():
            async with self._direct:
                return await self._ask(service, index)
        await self._catalog.changed(service, time.monotonic() + REFRESH)
        return await self._ask_now(service)

    async def _ask_now(self, service: Key, *, after_failure: bool = False) -> tuple[int, Answer]:
        async with self._at_once:
            # Any server may be behind the one that told of a change, or have just started; the leader is not.
            mode = CONSISTENT if after_failure else LEADER if self._direct.locked() else STALE
            self._catalog.asked(service, leader=mode is not STALE)
            try:
                return await self._ask(service, FIRST, mode)
            except SourceError:
                await asyncio.sleep(AFTER_FAILURE)  # where one fails, the others mostly do, too
                raise

    async def _ask(self, service: Key, index: int, mode: Mode = STALE) -> tuple[int, Answer]:
        name, selection = service
        header, entries = await self._client.entries(name, selection, index, self._wait, mode)
        try:
            instances = parse_entries(entries, selection.tagged_address)
            servers = to_servers(instances, await look_up(host_names(instances)))
        except SourceError as error:
            raise UnusableError(f"{self}: {error}") from None
        return self._next_index(header, index), Answer(servers, read_opt_in(entries))

    async def list_services(self, index: int) -> tuple[int, frozenset[str]]:
        """Ask which services may opt in, by their tags and meta; a service that is not here does not.

        :param index: as for `read`.
        :return: the index to ask with next, and the names.
        :raises SourceError: when Consul could not say, or does not let us see.
        """
        header, services = await self._client.services(index, self._wait)
        if not services:  # there is always Consul's own
            raise SourceError(f"{self} showed no service at all: the token lacks rights; {RIGHTS}")
        async with self._at_once:
            summaries = await self._client.summaries()
        try:
            names = parse_names(services) | parse_summaries(summaries)
        except SourceError as error:
            raise SourceError(f"{self}: {error}") from None
        return self._next_index(header, index), names

    def _next_index(self, header: str | None, index: int) -> int:
        try:
            return next_index(header, index)
        except SourceError as error:
            raise SourceError(f"{self}: {error}") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._catalog.close()
        await self._transport.close()


class ConsulCatalog:
    """The services of a Consul that may opt in: a `sources.base.CatalogSource`."""

    name = CATALOG

    def __init__(self, server: ConsulServer, selection: Selection = ALL) -> None:
        """Prepare; nothing is asked yet.

        :param server: shared; whoever made it closes it.
        :param selection: which instances of each service.
        """
        self._server = server
        self._selection = selection
        self._index = FIRST
        self._query = Query()
        self._bucket = Bucket.full(WATCH_RATE, WATCH_BURST, time.monotonic())

    async def next(self) -> Listing:
        """Wait until anything is registered or goes, or a wait is over, and return the names.

        :raises SourceError: when Consul could not say.
        """
        self._bucket, pause = self._bucket.take(time.monotonic())
        await asyncio.sleep(pause)

        async def read() -> frozenset[str]:
            index, self._index = self._index, FIRST
            self._index, names = await self._server.list_services(index)
            return names

        return Listing(await self._query.run(read))

    def hasten(self) -> None:
        """List the services at once."""
        self._index = FIRST
        self._query.repeat()

    def service(self, name: str) -> ConsulSource:
        """Return the source of one of the services.

        :raises UsageError: if Consul's HTTP interface cannot be asked for such a name.
        """
        return ConsulSource(self._server, name, self._selection)


class ConsulSource:
    """One service of a Consul: a `sources.base.Source`."""

    def __init__(self, server: ConsulServer, service: str, selection: Selection = ALL) -> None:
        """Prepare; nothing is asked yet.

        :param server: shared; whoever made it closes it.
        :param selection: which instances.
        :raises UsageError: if Consul's HTTP interface cannot be asked for such a name.
        """
        objection = consul_objection(service)
        if objection:
            raise UsageError(f"{service[:_SHOWN]!r} {objection}")
        self._server = server
        self._service = service, selection
        self._index = FIRST
        self._answered = False
        self._query = Query()
        self._bucket = Bucket.full(RATE, BURST, time.monotonic())

    @property
    def name(self) -> str:
        """Name in status, logs and metrics: `consul:redis`."""
        return f"consul:{self._service[0]}"

    async def next(self) -> Answer:
        """Wait for the next complete answer and return it, whether or not it differs from the last.

        :raises SourceError: when Consul could not say.
        """
        self._bucket, pause = self._bucket.take(time.monotonic())
        if pause:
            await asyncio.sleep(pause)

        async def read() -> Answer:
            # Whatever interrupts this query, the next one reads everything afresh.
            index, self._index = self._index, FIRST
            self._index, answer = await self._server.read(self._service, index, answered=self._answered)
            return answer

        answer = await self._query.run(read)
        self._answered = True
        return answer

    def hasten(self) -> None:
        """Query Consul at once, without blocking."""
        self._index = FIRST
        self._query.repeat()


def server_from_environment(
    address: str | None,
    environ: Mapping[str, str],
    options: Mapping[str, str | None] | None = None,
    datacenter: str | None = None,
) -> ConsulServer:
    """Return the Consul that the arguments and the consul command line's variables name.

    :param address: wins over CONSUL_HTTP_ADDR; `None` where the command line names none.
    :param environ: usually `os.environ`.
    :param options: values of the options in `environment.OPTIONS`, by the variable over which they win.
    :param datacenter: another one than the agent's.
    :raises UsageError: if a value cannot be used.
    """
    words = environment.Words(environ, options or {})
    return ConsulServer(
        environment.address(words, address),
        token=environment.token(words),
        scope=environment.scope(words, datacenter),
        tls=environment.tls(words),
        auth=environment.auth(words),
    )
