"""Look ahead: query every source once, or none, and compute what a sidecar that starts now would publish.

Nothing is changed. `plan` and `check` print different parts of one `Outlook`, and the functions that compute it are
those of `run`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from clb_discovery.config.options import Options
from clb_discovery.config.sources import open_sources, own_zone
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import ClbError, SourceError, UnusableError
from clb_discovery.layout import elements
from clb_discovery.layout.health import Health
from clb_discovery.layout.installed import Installed, installed_servers
from clb_discovery.model import own_servers
from clb_discovery.model.address import Address
from clb_discovery.model.answer import Answer, Failure, Outcome, Refusal
from clb_discovery.model.servers import Endpoint, Pools
from clb_discovery.model.service import CATALOG, STATIC, Service, vip_addresses
from clb_discovery.model.zones import AUTO, NO_FACTS, ZoneFacts
from clb_discovery.publication.reconcile import Publication, Wanted, publication
from clb_discovery.sidecar.unhealthy import by_pool
from clb_discovery.sources.base import CatalogSource, Explaining, Source
from clb_discovery.state import catalog
from clb_discovery.state.guard import Families
from clb_discovery.state.service import ServiceState, spare
from clb_discovery.state.start import initial_states


class Outlook(NamedTuple):
    """The state of a sidecar after one answer of each source."""

    following: Mapping[str, ServiceState]
    """The parts of all services by source, including services of a catalog that opt in."""
    outcomes: Mapping[str, Outcome]
    """By source, including services of a catalog that do not opt in."""
    failed: Mapping[str, SourceError]
    """The sources that did not answer. Their installed servers stay, as they do while a sidecar runs."""
    waiting: Collection[str]
    """Sources whose answers remove so much that a sidecar would hold it at first; here it counts at once."""
    why_empty: Mapping[str, str]
    """Why the answer of a source is empty, where discovery knows more."""
    publication: Publication
    zone: str | None = None
    """The zone of this host; None if it has none, or it is not known."""
    zone_error: ClbError | None = None
    """Why the agent did not return it."""

    @property
    def lost(self) -> Mapping[str, SourceError]:
        """The sources that did not answer of services of which no source did."""
        return _lost(self.following, self.failed)

    @property
    def unqueried(self) -> Sequence[str]:
        """The sources that were not queried, because the look ahead is offline."""
        return [source for source in self.following if source not in self.outcomes]

    def left_out(self, source: str) -> Sequence[Refusal]:
        """Return the members that the answer of a source leaves out."""
        outcome = self.outcomes.get(source)
        return outcome.left_out if isinstance(outcome, Answer) else ()

    def note(self, source: str) -> str | None:
        """Return a remark on the answer of a source, for people."""
        outcome = self.outcomes.get(source)
        return outcome.note if isinstance(outcome, Answer) else self.following[source].beyond


def look_ahead(
    options: Options, services: Sequence[Service], installed: Installed, *, offline: bool = False
) -> Outlook:
    """Query every source once, whichever of them fail; raises UsageError if one cannot be opened.

    :param offline: query none. The real servers are then those that are installed, and those of static services.
    """
    following = {state.source: state for state in initial_states(services)}
    following |= catalog.restored(services, installed, {}, following, options.max_services)
    queries = _Queries(options, services, installed, following)
    asyncio.run(queries.open_all() if offline else queries.query_all())
    following = queries.following
    following = {
        source: one.released(_spare(one, following, options, queries.vips)) for source, one in following.items()
    }
    failed = {source: queries.failed[source] for source in following if source in queries.failed}
    waiting = frozenset(source for source, one in following.items() if one.guarded.held)
    following = {source: one.confirmed() for source, one in following.items()}
    claims = catalog.claims(following.values())
    known = {source: one.guarded.good for source, one in following.items() if one.known}
    own, ranges = own_servers.virtual_servers(options.instance), (options.vip_range, options.real_range)
    facts = NO_FACTS
    if queries.zone and any(service.zones for service in services):
        places = {source: following[source].places for source in known}
        facts = ZoneFacts(queries.zone, places, _unhealthy(options, services, installed, following))
    wanted = Wanted(services, claims, known, own, *ranges, complete=not _lost(following, failed), facts=facts)
    found = publication(installed, wanted)
    outcomes, why_empty = queries.outcomes, queries.why_empty
    return Outlook(following, outcomes, failed, waiting, why_empty, found, queries.zone, queries.zone_error)


def _unhealthy(
    options: Options, services: Sequence[Service], installed: Installed, following: Mapping[str, ServiceState]
) -> Mapping[str, frozenset[Endpoint]]:
    """Return the real servers that are ejected now, by pool; a running sidecar takes them into account."""
    pins = Pins(options.instance)
    pools = {one.service.source for one in following.values() if one.service.zones}
    if not pools or not services or not installed.virtual or not pins.have_maps():
        return {}
    with Maps(pins) as maps:
        counters, words = maps.servers(installed), maps.words(installed)
    checked = {vip for vip, one in installed.virtual.items() if one.health and one.health.checked}
    out = (
        member
        for member, server in counters.items()
        if not elements.is_refusal(member)
        and words.health(member, server, checked=elements.unpack_vip(elements.unpack_member(member)[0]) in checked)
        is Health.EJECTED
    )
    return by_pool(installed, out, pools)


def _lost(following: Mapping[str, ServiceState], failed: Mapping[str, SourceError]) -> Mapping[str, SourceError]:
    answered = {one.service.source for source, one in following.items() if source not in failed}
    return {source: error for source, error in failed.items() if following[source].service.source not in answered}


def _spare(
    one: ServiceState, following: Mapping[str, ServiceState], options: Options, vips: frozenset[Address]
) -> Families:
    """Return the families in which another part of the same pools can serve."""
    others = (following[part.source] for part in one.service.parts if part.source != one.source)
    return spare(others, options.real_range, vips)


def read_installed(pins: Pins) -> Installed:
    """Return what is in the kernel for an instance, if it is loaded; raises HostError without permission."""
    if not pins.have_maps():
        return Installed()
    with Maps(pins) as maps:
        return maps.read()


class _Queries:
    """One query of each source, and what a sidecar that starts now knows after it."""

    def __init__(
        self, options: Options, services: Sequence[Service], installed: Installed, following: Mapping[str, ServiceState]
    ) -> None:
        """Begin with what is installed; nothing is sent yet.

        :param following: the services, with those of a catalog that are installed.
        """
        self._options = options
        self._services = services
        claiming = catalog.claimed(following.values())
        self.vips = vip_addresses([*services, *claiming])
        """The addresses of all VIPs, of a catalog those that are installed."""
        self._before = installed_servers(installed, [*services, *claiming])
        self.following = {source: self._seeded(one) for source, one in following.items()}
        self.outcomes: dict[str, Outcome] = {}
        self.failed: dict[str, SourceError] = {}
        self.why_empty: dict[str, str] = {}
        self.zone = None if options.zone == AUTO else options.zone
        self.zone_error: ClbError | None = None

    def _seeded(self, one: ServiceState) -> ServiceState:
        before = self._before.get(one.source)
        return one if before is None else one.seeded(before, None, {}, numbered=one.service.is_composed)

    async def open_all(self) -> None:
        """Open every source, and query static ones; others have the installed real servers, or none."""
        async with open_sources(self._options, self._services) as sources:
            await self._query({source: one for source, one in sources.items() if source.startswith(STATIC)})
        for source, one in self.following.items():
            if source not in self.outcomes and source != CATALOG and not one.known:
                self.following[source] = one.seeded(Pools(), None, {})

    async def query_all(self) -> None:
        """Query every source, and add services that opt in, as a sidecar that starts now."""
        async with open_sources(self._options, self._services) as sources:
            await asyncio.gather(self._query(sources), self._query_zone())
            listed = sources.get(CATALOG)
            if not isinstance(listed, CatalogSource):
                return
            names, most = self.following[CATALOG].listed, self._options.max_services
            self.following |= catalog.joined(self._services, names, self.following, most)
            unfollowed = catalog.unfollowed(self.following)
            self.following[CATALOG] = self.following[CATALOG]._replace(unfollowed=unfollowed)
            opting = [one.service for one in self.following.values() if one.from_catalog]
            await self._query({service.source: listed.service(service.name) for service in opting})

    async def _query(self, sources: Mapping[str, Source]) -> None:
        await asyncio.gather(*(self._query_one(*one) for one in sources.items()))

    async def _query_zone(self) -> None:
        """Query the agent for the zone of this host, if it is to name it."""
        if self._options.zone == AUTO:
            try:
                self.zone = await own_zone(self._options)
            except ClbError as error:
                self.zone_error = error

    async def _query_one(self, source: str, queried: Source) -> None:
        one = self.following[source]
        outcome: Outcome
        try:
            outcome = await queried.next()
        except SourceError as error:
            outcome = Failure(str(error), unusable=isinstance(error, UnusableError))
            if not (outcome.unusable and one.from_catalog):  # a sidecar runs without it
                self.failed[source] = error
        now, at = time.monotonic(), datetime.now(UTC)
        self.following[source] = one.after(outcome, now, at, self._options.real_range, self.vips)
        self.outcomes[source] = outcome
        if isinstance(outcome, Answer) and not outcome.servers and (why := await _why_empty(queried, outcome)):
            self.why_empty[source] = why


async def _why_empty(queried: Source, answer: Answer) -> str | None:
    """Return why an answer without real servers has none, if it does not show that by its members."""
    out = len(answer.out) + len(answer.out_members)
    if out:
        return f"{out} {'is' if out == 1 else 'are'} critical or in maintenance, and no other can be used"
    if answer.left_out or answer.unread or not isinstance(queried, Explaining):
        return None
    with suppress(SourceError):  # the answer itself counts
        return await queried.why_empty()
    return None
