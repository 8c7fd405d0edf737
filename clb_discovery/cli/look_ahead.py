"""Look ahead: query every source once, and compute what a sidecar that starts now would publish. Nothing is changed.

`plan` and `check` print different parts of one `Outlook`. The functions that compute it are those of `run`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from clb_discovery.config.options import Options
from clb_discovery.config.sources import open_sources
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import SourceError, UnusableError
from clb_discovery.layout.installed import Installed, installed_servers
from clb_discovery.model import own_servers
from clb_discovery.model.answer import Answer, Failure, Outcome, Refusal
from clb_discovery.model.service import CATALOG, Service
from clb_discovery.publication.reconcile import Publication, Wanted, publication
from clb_discovery.sources.base import CatalogSource, Source
from clb_discovery.state import catalog
from clb_discovery.state.service import ServiceState


class Outlook(NamedTuple):
    """The state of a sidecar after one answer of each source."""

    following: Mapping[str, ServiceState]
    """By source, including services of a catalog that opt in."""
    outcomes: Mapping[str, Outcome]
    """By source, including services of a catalog that do not opt in."""
    failed: Mapping[str, SourceError]
    """The sources that did not answer. Their installed servers stay, as they do while a sidecar runs."""
    waiting: Collection[str]
    """Sources whose answer removes so much that a sidecar would hold it at first; here it counts at once."""
    publication: Publication

    def left_out(self, source: str) -> Sequence[Refusal]:
        """Return the members that the answer of a source leaves out."""
        outcome = self.outcomes.get(source)
        return outcome.left_out if isinstance(outcome, Answer) else ()

    def note(self, source: str) -> str | None:
        """Return a remark on the answer of a source, for people."""
        outcome = self.outcomes.get(source)
        return outcome.note if isinstance(outcome, Answer) else self.following[source].beyond


def look_ahead(options: Options, services: Sequence[Service], installed: Installed) -> Outlook:
    """Query every source once, whichever of them fail; raises UsageError if one cannot be opened."""
    following = {service.source: ServiceState(service) for service in services}
    following |= catalog.restored(services, installed, {}, following, options.max_services)
    outcomes, failed = asyncio.run(_query_all(options, services, installed, following))
    waiting = frozenset(source for source, one in following.items() if one.guarded.held)
    following = {source: one.confirmed() for source, one in following.items()}
    claims = catalog.claims(following.values())
    known = {source: one.guarded.good for source, one in following.items() if one.known}
    own, ranges = own_servers.virtual_servers(options.instance), (options.vip_range, options.real_range)
    wanted = Wanted(services, claims, known, own, *ranges, complete=not failed)
    return Outlook(following, outcomes, failed, waiting, publication(installed, wanted))


def read_installed(pins: Pins) -> Installed:
    """Return what is in the kernel for an instance, if it is loaded; raises HostError without permission."""
    if not pins.have_maps():
        return Installed()
    with Maps(pins) as maps:
        return maps.read()


async def _query_all(
    options: Options, services: Sequence[Service], installed: Installed, following: dict[str, ServiceState]
) -> tuple[dict[str, Outcome], dict[str, SourceError]]:
    """Query every source, and add services that opt in, as a sidecar that starts now; return outcomes and errors."""
    before = installed_servers(installed, [*services, *catalog.claimed(following.values())])
    outcomes: dict[str, Outcome] = {}
    failed: dict[str, SourceError] = {}

    async def query(source: str, queried: Source) -> None:
        one = following[source]
        if source in before:
            one = one.seeded(before[source], None, {})
        outcome: Outcome
        try:
            outcome = await queried.next()
        except SourceError as error:
            outcome = Failure(str(error), unusable=isinstance(error, UnusableError))
            if not (outcome.unusable and one.from_catalog):  # a sidecar runs without it
                failed[source] = error
        following[source] = one.after(outcome, time.monotonic(), datetime.now(UTC), options.real_range)
        outcomes[source] = outcome

    async with open_sources(options, services) as sources:
        await asyncio.gather(*(query(*one) for one in sources.items()))
        listed = sources.get(CATALOG)
        if isinstance(listed, CatalogSource):
            following |= catalog.joined(services, following[CATALOG].listed, following, options.max_services)
            following[CATALOG] = replace(following[CATALOG], unfollowed=catalog.unfollowed(following))
            opting = [one.service for one in following.values() if one.from_catalog]
            await asyncio.gather(*(query(service.source, listed.service(service.name)) for service in opting))
    return outcomes, {source: failed[source] for source in following if source in failed}
