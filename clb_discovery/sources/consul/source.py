"""Follow one service of Consul, or the list of those that opt in, by blocking queries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
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
from clb_discovery.sources.consul.members import BOTH, Known, is_anyone_usable, to_answer
from clb_discovery.sources.consul.names import Names, Watched
from clb_discovery.sources.consul.server import LOCAL, REFRESH, ConsulServer, Limits
from clb_discovery.text import nearest

RATE: Final = 10.0
"""Queries per second for one service in the long run."""
BURST: Final = 20.0
"""Queries for one service without a pause after a quiet time."""
REST: Final = 20.0
"""Seconds without a query for each CPU second that parsing the last answer took."""
LONGEST_REST: Final = 5.0
"""Longest such rest, in seconds."""
GRACE: Final = 1.0
"""Seconds that an answer waits for host names that were never looked up."""
LONG_GRACE: Final = 10.0
"""Additional seconds if no instance is usable without them."""

_SHOWN: Final = 80
_SHOWN_PAUSE: Final = 0.05
"""Seconds; every query has a shorter rest."""
_Result = TypeVar("_Result")
_log = structlog.stdlib.get_logger()


class _Hastened(Generic[_Result]):
    """A source whose wait for a change can be cut short by a query that does not block.

    Times are by `time.monotonic`, the clock of asyncio's loop.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._index = FIRST
        self._wakeup = asyncio.Event()
        self._running: asyncio.Task[_Result] | None = None
        self._waits = False
        """Whether the current query waits for a change."""
        self._confirms = False
        """Whether the current query asks the leader for its confirmed state."""
        self._sent = 0.0
        """When the current query was sent, or the last one."""
        self._asked = 0.0
        """When the last such query that was answered was sent; 0 before. A later answer of any server is at least as
        new as its answer, because one with a lower index is not used."""
        self._since = 0.0
        """When it was hastened: answers to earlier queries confirm nothing."""

    @property
    def name(self) -> str:
        """Name in status, logs and metrics."""
        raise NotImplementedError

    @property
    def _confirms_afresh(self) -> bool:
        """Whether a query without an index, such as the one after a failure, goes to the leader."""
        return False

    def hasten(self) -> None:
        """Query Consul's leader at once, or after a query that is under way and does not wait."""
        self._since = time.monotonic()
        self._wakeup.set()

    async def _query(self) -> _Result:
        raise NotImplementedError

    async def _wait_for_answer(self, patience: float | None = None) -> _Result | None:
        """Wait for the current query; start one if there is none.

        :param patience: longest wait in seconds; `None` for no limit.
        :return: the answer; `None` if something else happened first, or the patience is over.
        """
        if self._running is not None and not self._running.done() and self._waits and self._sent < self._since:
            _log.debug("wait was cut short; the leader is queried at once", source=self.name)
            await self._end()
        if self._running is None:
            self._waits = False
            self._running = asyncio.create_task(self._query())
            self._running.add_done_callback(lambda _: self._wakeup.set())
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._wakeup.wait()
        self._wakeup.clear()
        if not self._running.done():
            return None
        ended, self._running = self._running, None
        result = ended.result()
        if self._confirms:
            self._asked = self._sent
        return result

    async def _start(self, until: float = 0.0) -> tuple[int, bool]:
        """Keep to the rate limit, and start a query.

        :param until: when it may start in any case.
        :return: the index to send, and whether to ask the leader for its confirmed state.
        """
        now = time.monotonic()
        self._bucket, pause = self._bucket.take(now)
        pause = max(pause, until - now)
        if pause >= _SHOWN_PAUSE:
            _log.debug("rate limit: pausing before the next query", source=self.name, seconds=round(pause, 1))
        await asyncio.sleep(pause)
        self._sent = time.monotonic()
        # If this query is interrupted, the next one must not block.
        index, self._index = self._index, FIRST
        self._confirms = self._asked < self._since or (index == FIRST and self._confirms_afresh)
        self._waits = index != FIRST and not self._confirms
        return index, self._confirms

    async def _end(self) -> None:
        """Cancel the current query."""
        running, self._running = self._running, None
        if running is not None:
            self._index = FIRST
            running.cancel()
            await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()  # so that asyncio does not complain


class ConsulCatalog(_Hastened[Listing]):
    """The services in Consul that may opt in: a `sources.base.CatalogSource`."""

    name = CATALOG

    def __init__(self, server: ConsulServer, selection: Selection = ALL, *, lingers: bool = True) -> None:
        """Prepare; no query is sent yet.

        :param server: shared; its creator closes it.
        :param selection: which instances of each service.
        :param lingers: as for `ConsulSource`.
        """
        super().__init__(Bucket.full(WATCH_RATE, WATCH_BURST, time.monotonic()))
        self._server = server
        self._selection = selection
        self._lingers = lingers
        self._listed: frozenset[str] | None = None
        self._listed_at = 0.0

    async def next(self) -> Listing:
        """Wait until an instance is registered or deregistered, or a wait is over, and return the names.

        :raises SourceError: if there is no complete answer.
        """
        try:
            while (listing := await self._wait_for_answer()) is None:
                pass
        finally:
            await self._end()
        return listing

    def service(self, name: str) -> ConsulSource:
        """Return the source of one of the services.

        :raises UsageError: if Consul's HTTP interface cannot be queried for this name.
        """
        return ConsulSource(self._server, name, self._selection, must_opt_in=True, lingers=self._lingers)

    async def _query(self) -> Listing:
        index, confirm = await self._start()
        known = self._listed is not None and time.monotonic() < self._listed_at + REFRESH
        self._index, names = await self._server.list_services(index, known=known and not confirm, confirm=confirm)
        if names is not None:
            self._listed, self._listed_at = names, time.monotonic()
            _log.debug("answer is complete", source=self.name, services=len(names))
        return Listing(self._listed or frozenset())


class ConsulSource(_Hastened[Reading]):
    """One service in Consul: a `sources.base.Source`.

    The query and the look-ups of host names run side by side, so that a name without a DNS answer does not delay a
    change. A result of either is combined with the last result of the other into an answer.
    """

    def __init__(  # noqa: PLR0913  # what is followed, and how
        self,
        server: ConsulServer,
        service: str,
        selection: Selection = ALL,
        families: frozenset[bool] = frozenset(),
        name: str | None = None,
        *,
        must_opt_in: bool = False,
        lingers: bool = True,
    ) -> None:
        """Prepare; no query is sent yet.

        :param server: shared; its creator closes it.
        :param selection: which instances.
        :param families: those of its VIPs, True for IPv4; empty for those that its registration claims.
        :param name: the name of the source, if another than `consul:redis`.
        :param must_opt_in: whether the instances do not count unless one of them opts in.
        :param lingers: whether addresses of a host name may stay, if the DNS server varies them.
        :raises UsageError: if Consul's HTTP interface cannot be queried for this name.
        """
        objection = consul_objection(service)
        if objection:
            raise UsageError(f"{service[:_SHOWN]!r} {objection}")
        super().__init__(Bucket.full(RATE, BURST, time.monotonic()))
        self._server = server
        self._service = service, selection
        self._name = name or f"consul:{service}"
        self._families = families
        self._must_opt_in = must_opt_in
        self._names = Watched(server.names, self.name, self._wakeup.set, lingers=lingers)
        server.attach(self)
        self._answered = False
        """Whether there was an answer before: a query without an index then follows a failure, perhaps a restart."""
        self._rested = 0.0
        """When the next query may start."""
        self._reading: Reading | None = None
        """The last one, while queries succeed."""
        self._returned: Answer | None = None
        """The last answer that `next` made of it."""
        self._due: float | None = None
        """Until when an answer may wait for host names; None if none waits."""
        self._fresh: float | None = None
        """When the first reading came that was asked for after `hasten`."""

    @property
    def name(self) -> str:
        """Name in status, logs and metrics: `consul:redis`, `consul:redis?dc=dc2`."""
        return self._name

    async def next(self) -> Answer:
        """Wait for the next complete answer and return it, whether or not it differs from the last.

        :raises SourceError: if there is no complete answer.
        """
        try:
            return await self._next()
        except UnusableError as error:  # there was an answer, so the index stays valid
            self._returned = self._fresh = None
            raise UnusableError(f"{self._server}: {error}") from None
        except BaseException:
            self._reading = self._returned = self._due = self._fresh = None
            await self.end()
            raise

    async def why_empty(self) -> str | None:
        """Query whether Consul knows the service at all: a `sources.base.Explaining`."""
        name, selection = self._service
        names = await self._server.service_names()
        if name.lower() not in map(str.lower, names):  # Consul ignores case
            similar = " or ".join(map(repr, nearest(name, sorted(names))))
            hint = f"did you mean {similar}?" if similar else "is the name right, and the datacenter?"
            return f"{self._server} has no service {name!r}; {hint}"
        selects = selection.tags or selection.filter
        return f"no instance of {name!r} fits the tags and the filter" if selects else None

    @property
    def _confirms_afresh(self) -> bool:
        return self._answered

    async def end(self) -> None:
        """Cancel the query and the look-ups; the next call of `next` starts them again."""
        self._names.stop()
        await self._end()

    def hasten(self) -> None:
        """Query Consul's leader and DNS at once, or after queries that are under way and do not wait."""
        super().hasten()
        self._names.renew(self._since)
        self._fresh = None

    async def _next(self) -> Answer:
        if self._reading is not None:
            self._names.want(self._reading.host_names)
        while True:
            reading = await self._wait_for_answer(self._next_look())
            if reading is not None:
                self._reading = reading
                self._names.want(reading.host_names)
                self._returned = None
                self._due = self._due or time.monotonic() + GRACE
                if self._is_fresh:
                    self._fresh = self._fresh or time.monotonic()
            if self._reading is None:
                continue
            if patience := self._patience():
                _log.debug("answer waits for host names", source=self.name, seconds=round(patience, 1))
                continue
            self._due = None
            answer = self._answer(self._reading)
            if answer != self._returned or self._returned.asked < self._since <= answer.asked:
                self._returned = answer
                _log.debug("answer is complete", source=self.name, servers=len(answer.servers))
                return answer
            _log.debug("looking up host names has changed nothing", source=self.name)

    def _answer(self, reading: Reading) -> Answer:
        names, asked = self._names.known, min(self._asked, self._names.asked)
        if self._renewal() == 0.0:
            names, asked = self._names.renewed, self._since
        answer = to_answer(reading, names, self._families or _own_families(reading))
        return replace(answer, asked=asked)

    @property
    def _is_fresh(self) -> bool:
        """Whether the last reading was asked for after `hasten`."""
        return self._asked >= self._since

    def _next_look(self) -> float | None:
        """Return the seconds after which an answer is due without any news; `None` if none is."""
        is_owed = self._returned is None or self._returned.asked < self._since
        patience = self._patience()
        return self._renewal() if patience is None and is_owed else patience

    def _patience(self) -> float | None:
        """Return the seconds that an answer may still wait for host names; `None` if none waits.

        A reading from before `hasten` waits for nothing: it may end an absence, and the next one takes its place.
        """
        if self._due is None or self._reading is None or not self._is_fresh:
            return None
        if self._names.is_complete:
            return 0.0
        return self._left(self._due, self._reading, self._names.known)

    def _renewal(self) -> float | None:
        """Return the seconds that names may still be looked up again after `hasten`; `None` if none is.

        Those that take longer are unread from then on, so that they delay no removal of others.
        """
        if self._fresh is None or self._reading is None or self._names.is_renewed:
            return None
        return self._left(self._fresh + GRACE, self._reading, self._names.renewed)

    @staticmethod
    def _left(due: float, reading: Reading, names: Mapping[str, Known]) -> float:
        """Return the seconds until a time, which is later if no instance has an address yet."""
        grace = 0.0 if is_anyone_usable(reading, names) else LONG_GRACE
        return max(due + grace - time.monotonic(), 0.0)

    async def _query(self) -> Reading:
        index, confirm = await self._start(self._rested)
        self._index, reading, took = await self._server.read(self._service, index, confirm=confirm)
        self._rested = time.monotonic() + min(REST * took, LONGEST_REST)
        self._answered = True
        # Instances that nothing can use must not hide that the service has left the catalog.
        return Reading() if self._must_opt_in and reading.declines else reading


def _own_families(reading: Reading) -> frozenset[bool]:
    """Return the families of the VIPs that a service in the catalog claims; an automatic one counts as both."""
    if reading.opt_in is None or reading.opt_in.automatic:
        return BOTH
    return frozenset(is_ipv4(vip.address) for vip in reading.opt_in.vips) or BOTH


def server_from_environment(  # noqa: PLR0913  # options beside the environment
    address: str | None,
    environ: Mapping[str, str],
    options: Mapping[str, str | None] | None = None,
    datacenter: str | None = None,
    *,
    names: Names | None = None,
    wait: float = WAIT,
    limits: Limits = LOCAL,
) -> ConsulServer:
    """Return the Consul server that the arguments and the variables of the consul command line name.

    :param address: overrides CONSUL_HTTP_ADDR; `None` if the command line has none.
    :param environ: usually `os.environ`.
    :param options: values of the options in `environment.OPTIONS`, by the variable that each overrides.
    :param datacenter: if another than the agent's.
    :param names: resolver of host names; `None` for the hosts file and the DNS servers of this host.
    :param wait: how long Consul holds a query without a change, in seconds.
    :param limits: how many queries at a time.
    :raises UsageError: if a value cannot be used.
    :raises HostError: if a file cannot be used.
    """
    settings = environment.Settings(environ, options or {})
    return ConsulServer(
        environment.address(settings, address),
        token=environment.token(settings),
        scope=environment.scope(settings, datacenter),
        tls=environment.tls(settings),
        auth=environment.auth(settings),
        names=names,
        wait=wait,
        limits=limits,
    )
