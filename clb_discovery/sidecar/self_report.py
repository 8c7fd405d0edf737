"""The report of the sidecar about itself, for `status` and the page, and the proof that its programs are in effect."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from clb_discovery.datapath.instance import Instance
from clb_discovery.datapath.plane import Plane
from clb_discovery.documents.parts import NO_PARTS, Parts, configured
from clb_discovery.documents.zones import by_zone
from clb_discovery.model.servers import Endpoint
from clb_discovery.model.service import Service
from clb_discovery.state.services import ServiceTable
from clb_discovery.text import timestamp

PROOF_LASTS: Final = 10.0
"""Seconds for which the result of a self-test connect is used again: outside of its cgroup each takes a process."""


class SelfReport:
    """The state file of one instance, which is written when its content changes."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.last_sync: datetime | None = None
        """When everything was published last, with an answer of every source."""
        self.config_error: str | None = None
        """Why the configuration was not accepted when it was read last."""
        self.metrics_error: str | None = None
        """Why metrics are not served, although they are configured."""
        self.zone: Mapping[str, Any] | None = None
        """The zone of this host, as `OwnZone.document`."""
        self._zones: dict[str, tuple[Mapping[Endpoint, str], Mapping[str, Sequence[str]]]] = {}
        self._written: dict[str, Any] | None = None
        self._composed: Sequence[Service] = ()
        self._parts: Parts = NO_PARTS  # of these services; it is made again only if they change

    def place(self, zones: Mapping[str, Mapping[Endpoint, str]]) -> None:
        """Take the zones of real servers, by the names of pools; the same object for an equal value saves work."""
        before = self._zones
        self._zones = {
            pool: before[pool] if pool in before and before[pool][0] is own else (own, by_zone(own))
            for pool, own in zones.items()
        }

    def document(
        self, services: ServiceTable, hosts_files: Sequence[str], checks: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """Return the report, without the sources.

        :param hosts_files: those that may have names of this instance.
        :param checks: the checked virtual servers, as `ActiveChecks.document`.
        """
        composed = services.composed
        if composed is not self._composed:
            self._composed, self._parts = composed, {service.source: configured(service) for service in composed}
        return {
            "pid": os.getpid(),
            "last_sync": timestamp(self.last_sync),
            "config_error": self.config_error,
            "metrics_error": self.metrics_error,
            "unpublished": services.unpublished,
            "parts": self._parts,
            "hosts_files": list(hosts_files),
            "checks": list(checks),
            "zone": self.zone,
            "zones": {pool: names for pool, (_, names) in self._zones.items()},
        }

    def write(
        self, services: ServiceTable, hosts_files: Sequence[str], checks: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Write the report and the sources, unless nothing has changed; after an error the next call tries again.

        :raises ClbError: as `Instance.lock_again` and `Instance.write_state`.
        """
        document = {**self.document(services, hosts_files, checks), "sources": services.documents}
        if self._instance.lock_again():
            self._written = None
        if document != self._written:
            self._instance.write_state(document)
            self._written = document


class Proof:
    """The result of the last self-test; it runs again only after a while."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._objection: str | None = None
        self._until = 0.0

    def objection(self) -> str | None:
        """Return why the programs are not in effect, or None if they are. For one thread at a time."""
        if time.monotonic() >= self._until:
            self._objection = self._plane.objection()
            self._until = time.monotonic() + PROOF_LASTS
        return self._objection
