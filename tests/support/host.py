"""What one host makes of outcomes, reloads and restarts: the table of services, and the kernel's maps after each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import Network
from clb_discovery.model.answer import Outcome
from clb_discovery.model.servers import Endpoint, Vip
from clb_discovery.model.service import Service
from clb_discovery.model.zones import ZoneFacts
from clb_discovery.publication.reconcile import Publication, Wanted, publication
from clb_discovery.state.last_good import LastGood, decode, encode
from clb_discovery.state.services import ServiceTable

AT: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Host:
    """A sidecar without I/O, as `Daemon` does it: each step publishes at once what has to be published."""

    def __init__(
        self,
        services: Sequence[Service],
        *,
        ranges: Sequence[Network] = (),
        zone: str | None = None,
        installed: Installed = Installed(),  # noqa: B008 - immutable
        stored: Mapping[str, LastGood] | None = None,
    ) -> None:
        """Start, with what the kernel and the disk have.

        :param ranges: `--vip-range`.
        :param zone: the zone of the host.
        """
        self._services, self._ranges, self._zone = services, ranges, zone
        self.installed = installed
        self.table = ServiceTable(services)
        self._recall(tuple(self.table.sources), stored or {})
        self.found: Publication

    def _recall(self, sources: Collection[str], stored: Mapping[str, LastGood]) -> None:
        self.table.recall(sources, self.installed, stored)
        for source, answer in self.table.configured.items():
            self.table.hear(source, answer, 0, AT)

    def hears(self, outcomes: Mapping[str, Outcome], now: float = 0) -> None:
        """Take outcomes of sources, and publish them together."""
        for source, outcome in outcomes.items():
            self.table.hear(source, outcome, now, AT)
        self.publishes()

    def reloads(self, services: Sequence[Service]) -> None:
        """Go on with other services, and publish before any source has been queried."""
        self._services = services
        self._recall(self.table.adopt(services), {})
        self.publishes()

    def publishes(self, unhealthy: Mapping[str, frozenset[Endpoint]] | None = None) -> None:
        """Publish everything that is known."""
        known, complete = self.table.known, self.table.is_complete
        servers = {source: last.servers for source, last in known.items()}
        heard = frozenset() if complete else self.table.heard
        facts = ZoneFacts(self._zone, self.table.places(known), unhealthy or {}, self.table.divided)
        wanted = Wanted(self._services, self.table.claims, servers, {}, self._ranges, (), complete, heard, facts)
        self.found = publication(self.installed, wanted)
        self.installed = self.found.plan.result
        resolved = self.found.resolved
        vips = {one.source: one.vips for one in resolved.services if one.source in resolved.refused}
        self.table.apply(known, self.found.pending(), vips)

    @property
    def disk(self) -> Mapping[str, LastGood]:
        """The last known sets, as the file keeps them."""
        return decode(encode(self.table.last_good)).sets

    def pool(self, vip: Vip) -> list[str] | None:
        """Return the real servers of a VIP, as `ADDRESS:PORT`; None if it is not installed."""
        published = self.installed.virtual.get(vip)
        return None if published is None else [str(one) for one in published.pool or ()]
