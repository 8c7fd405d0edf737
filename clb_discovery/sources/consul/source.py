"""Follow one service of Consul, or the list of those that opt in, by blocking queries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Generic, TypeVar

import structlog

from clb_discovery.errors import UnusableError, UsageError
from clb_discovery.model.address import is_ipv4
from clb_discovery.model.answer import Answer, Listing
from clb_discovery.model.service import CATALOG, consul_objection
from clb_discovery.sources.consul import environment
from clb_discovery.sources.consul.answer import Reading
from clb_discovery.sources.consul.blocking import FIRST, WAIT, Bucket
from clb_discovery.sources.consul.change_watch import WATCH_BURST, WATCH_RATE
from clb_discovery.sources.consul.client import ALL, Selection
from clb_discovery.sources.consul.members import BOTH, is_anyone_usable, to_answer
from clb_discovery.sources.consul.names import Names, Watched
from clb_discovery.sources.consul.server import REFRESH, ConsulServer

RATE: Final = 10.0
"""Queries a second for one service in the long run."""
BURST: Final = 20.0
"""Queries for one service at once after a quiet time."""
REST: Final = 20.0
"""Seconds without a query for each second of a processor that reading the last answer took."""
LONGEST_REST: Final = 5.0
"""Most seconds of such a rest."""
GRACE: Final = 1.0
"""Seconds that an answer waits for host names which have never been looked up."""
LONG_GRACE: Final = 10.0
"""Seconds more if no instance is usable without them."""

_SHOWN: Final = 80
_Said = TypeVar("_Said")
_log = structlog.stdlib.get_logger()


class _Hastened(Generic[_Said]):
    """A source whose query under way can be given up for one that answers at once."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._index = FIRST
        self._wakeup = asyncio.Event()
        self._asking: asyncio.Task[_Said] | None = None
        self._gives_up = False
        self._owes = False
        """Whether no query that was sent since the last `hasten` has been answered yet."""

    @property
    def name(self) -> str:
        """Name in status, logs and metrics."""
        raise NotImplementedError

    def hasten(self) -> None:
        """Have Consul's leader queried at once; the next answer is what it says then."""
        self._gives_up = self._owes = True
        self._wakeup.set()

    async def _ask(self, *, confirm: bool) -> _Said:
        raise NotImplementedError

    async def _asked(self, patience: float | None = None) -> _Said | None:
        """Wait for the query under way, which begins if there is none.

        :param patience: in seconds; `None` for as long as it takes.
        :return: what Consul said; `None` if something else has happened meanwhile, or patience is over.
        """
        if self._gives_up:
            _log.debug("wait was cut short; the leader is queried at once", source=self.name)
            await self._end()
        if self._asking is None:
            self._gives_up = False
            self._asking = asyncio.create_task(self._ask(confirm=self._owes))
            self._asking.add_done_callback(lambda _: self._wakeup.set())
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._wakeup.wait()
        self._wakeup.clear()
        if self._gives_up or not self._asking.done():
            return None
        asked, self._asking = self._asking, None
        said = asked.result()
        self._owes = False
        return said

    async def _pause(self, until: float = 0.0) -> None:
        """Keep to the rate limit before a query.

        :param until: when it may start in any case, by `time.monotonic`.
        """
        now = time.monotonic()
        self._bucket, pause = self._bucket.take(now)
        pause = max(pause, until - now)
        if pause > 0:
            _log.debug("rate limit: pausing before the next query", source=self.name, seconds=round(pause, 1))
        await asyncio.sleep(pause)

    async def _end(self) -> None:
        """Give up the query under way."""
        asking, self._asking = self._asking, None
        if asking is not None:
            self._index = FIRST  # what it may have said already is lost
            asking.cancel()
            await asyncio.wait((asking,))
            if not asking.cancelled():
                asking.exception()  # which nobody needs to hear of


class ConsulCatalog(_Hastened[Listing]):
    """The services of a Consul that may opt in: a `sources.base.CatalogSource`."""

    name = CATALOG

    def __init__(self, server: ConsulServer, selection: Selection = ALL) -> None:
        """Prepare; nothing is asked yet.

        :param server: shared; whoever made it closes it.
        :param selection: which instances of each service.
        """
        super().__init__(Bucket.full(WATCH_RATE, WATCH_BURST, time.monotonic()))
        self._server = server
        self._selection = selection
        self._listed: frozenset[str] | None = None
        self._listed_at = 0.0

    async def next(self) -> Listing:
        """Wait until anything is registered or goes, or a wait is over, and return the names.

        :raises SourceError: when Consul could not say.
        """
        try:
            while (listing := await self._asked()) is None:
                pass
        finally:
            await self._end()
        return listing

    def service(self, name: str) -> ConsulSource:
        """Return the source of one of the services.

        :raises UsageError: if Consul's HTTP interface cannot be asked for such a name.
        """
        return ConsulSource(self._server, name, self._selection)

    async def _ask(self, *, confirm: bool) -> Listing:
        await self._pause()
        index, self._index = self._index, FIRST
        known = self._listed is not None and time.monotonic() < self._listed_at + REFRESH
        self._index, names = await self._server.list_services(index, known=known and not confirm, confirm=confirm)
        if names is not None:
            self._listed, self._listed_at = names, time.monotonic()
        return Listing(self._listed or frozenset())


class ConsulSource(_Hastened[Reading]):
    """One service of a Consul: a `sources.base.Source`.

    A query and the look-ups of host names go on side by side, so that a name that nobody answers for keeps no news
    waiting. What one of them finds is an answer together with what is known from the other.
    """

    def __init__(
        self, server: ConsulServer, service: str, selection: Selection = ALL, families: frozenset[bool] = frozenset()
    ) -> None:
        """Prepare; nothing is asked yet.

        :param server: shared; whoever made it closes it.
        :param selection: which instances.
        :param families: those of its VIPs, True for IPv4; none for what the service says of itself.
        :raises UsageError: if Consul's HTTP interface cannot be asked for such a name.
        """
        objection = consul_objection(service)
        if objection:
            raise UsageError(f"{service[:_SHOWN]!r} {objection}")
        super().__init__(Bucket.full(RATE, BURST, time.monotonic()))
        self._server = server
        self._service = service, selection
        self._families = families
        self._names = Watched(server.names, self._wakeup.set)
        server.attach(self)
        self._answered = False
        self._rested = 0.0
        """When the next query may start, by `time.monotonic`."""
        self._reading: Reading | None = None
        """The last one, while queries succeed."""
        self._returned: Answer | None = None
        """What `next` last made of it."""
        self._due: float | None = None
        """When an answer may not wait any longer for host names, by `time.monotonic`; None if none waits."""

    @property
    def name(self) -> str:
        """Name in status, logs and metrics: `consul:redis`."""
        return f"consul:{self._service[0]}"

    async def next(self) -> Answer:
        """Wait for the next complete answer and return it, whether or not it differs from the last.

        :raises SourceError: when Consul could not say.
        """
        try:
            return await self._next()
        except UnusableError as error:  # Consul did say, so that there is no need to read everything afresh
            await self.end()
            raise UnusableError(f"{self._server}: {error}") from None
        except BaseException:
            self._reading = self._returned = self._due = None
            await self.end()
            raise

    async def end(self) -> None:
        """Give up what is under way; the next call of `next` begins again."""
        self._names.stop()
        await self._end()

    def hasten(self) -> None:
        """Have Consul's leader and DNS queried at once; the next answer is what they say then."""
        self._names.renew()
        super().hasten()

    async def _next(self) -> Answer:
        if self._reading is not None:
            self._names.want(self._reading.host_names)
        while True:
            reading = await self._asked(self._patience())
            if reading is not None:
                self._reading = reading
                self._names.want(reading.host_names)
                self._returned = None
                self._due = self._due or time.monotonic() + GRACE
            if self._reading is None or self._owes:
                continue
            if patience := self._patience():
                _log.debug("answer waits for host names", source=self.name, seconds=round(patience, 1))
                continue
            self._due = None
            families = self._families or _own_families(self._reading)
            answer = to_answer(self._reading, self._names.known, families)
            if answer != self._returned:
                self._returned = answer
                _log.debug("answer is complete", source=self.name, servers=len(answer.servers))
                return answer
            _log.debug("looking up host names has changed nothing", source=self.name)

    def _patience(self) -> float | None:
        """Return how many seconds an answer may still wait for host names; `None` if none waits."""
        if self._due is None or self._reading is None or self._owes:
            return None
        if self._names.is_complete:
            return 0.0
        grace = 0.0 if is_anyone_usable(self._reading, self._names.known) else LONG_GRACE
        return max(self._due + grace - time.monotonic(), 0.0)

    async def _ask(self, *, confirm: bool) -> Reading:
        await self._pause(self._rested)
        # Whatever interrupts this query, the next one reads everything afresh.
        index, self._index = self._index, FIRST
        self._index, reading, took = await self._server.read(
            self._service, index, answered=self._answered, confirm=confirm
        )
        self._rested = time.monotonic() + min(REST * took, LONGEST_REST)
        self._answered = True
        return reading


def _own_families(reading: Reading) -> frozenset[bool]:
    """Return the families of the VIPs that a service of a catalog claims; automatic ones are of both."""
    if reading.opt_in is None or reading.opt_in.automatic:
        return BOTH
    return frozenset(is_ipv4(vip.address) for vip in reading.opt_in.vips) or BOTH


def server_from_environment(  # noqa: PLR0913  # what the options name beside the environment
    address: str | None,
    environ: Mapping[str, str],
    options: Mapping[str, str | None] | None = None,
    datacenter: str | None = None,
    *,
    names: Names | None = None,
    wait: float = WAIT,
) -> ConsulServer:
    """Return the Consul that the arguments and the consul command line's variables name.

    :param address: wins over CONSUL_HTTP_ADDR; `None` where the command line names none.
    :param environ: usually `os.environ`.
    :param options: values of the options in `environment.OPTIONS`, by the variable over which they win.
    :param datacenter: another one than the agent's.
    :param names: what looks up host names; `None` for the hosts file and the DNS servers of this host.
    :param wait: how long Consul holds a query without news, in seconds.
    :raises UsageError: if a value cannot be used.
    """
    words = environment.Words(environ, options or {})
    return ConsulServer(
        environment.address(words, address),
        token=environment.token(words),
        scope=environment.scope(words, datacenter),
        tls=environment.tls(words),
        auth=environment.auth(words),
        names=names,
        wait=wait,
    )
