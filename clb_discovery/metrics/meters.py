"""The counters of the sidecar's own work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from functools import partial
from typing import Final, NoReturn

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

_LAG_EVERY: Final = 1.0  # seconds between two measurements of the event loop's lag
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds."""
CHECK_RESULTS: Final = ("passed", "failed", "local")
"""Results of checks; the last one if it failed on this host."""


class Meters:
    """Counters and measurements of the sidecar itself."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # they double the number of series and are not used
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=_BUCKETS)
        self._publications = counter("clb_publications", "Changes of the kernel's maps")
        self._pools = counter("clb_published_pools", "Pools that were new or changed")
        self._failures = counter("clb_publication_failures", "Changes of the kernel's maps that the kernel rejected")
        self.unkept = counter("clb_state_write_failures", "Times that the last known good sets could not be saved")
        """For `count_exceptions` around the code that writes."""
        self._suspicions = counter(
            "clb_suspicions", "Servers that were passed over after one connect that failed or waited"
        )
        self._probes = counter("clb_probes", "Probes of real servers by the sidecar", ["result"])
        for result in ("up", "down", "local"):
            self._probes.labels(result)
        self._checks = counter("clb_checks", "Checks of real servers", ["service", "result"])
        self._late = counter("clb_checks_late", "Checks that began late because too many others ran")
        self._checked: frozenset[str] = frozenset()
        self._check_time = histogram("clb_check_seconds", "Time that a check of a real server took")
        text = "Time to work out and to carry out a change of the kernel's maps"
        self._time = histogram("clb_publication_seconds", text)
        self._lag = histogram("clb_loop_lag_seconds", "Event-loop lag: how late a timer fires")

    def published(self, pools: int, seconds: float) -> None:
        """Count a change of the maps, and the pools that were new or changed."""
        self._publications.inc()
        self._pools.inc(pools)
        self._time.observe(seconds)

    def failed(self) -> None:
        """Count a change that the kernel refused."""
        self._failures.inc()

    def suspected(self) -> None:
        """Count a server that is passed over after one connect that failed or waits."""
        self._suspicions.inc()

    def probed(self, result: str) -> None:
        """Count a probe by its result."""
        self._probes.labels(result).inc()

    def follow_checks(self, services: Collection[str]) -> None:
        """Count the checks of these services from now on; the series of others end."""
        for service in self._checked.difference(services):
            for result in CHECK_RESULTS:
                self._checks.remove(service, result)
        self._checked = frozenset(services)
        for service in self._checked:
            for result in CHECK_RESULTS:
                self._checks.labels(service, result)

    def checked(self, services: Collection[str], result: str, seconds: float) -> None:
        """Count a check of a real server, for each of the services that share it.

        :param result: one of `CHECK_RESULTS`.
        :param seconds: that it took.
        """
        self._check_time.observe(seconds)
        for service in self._checked.intersection(services):
            self._checks.labels(service, result).inc()

    def late(self) -> None:
        """Count a check that began late."""
        self._late.inc()

    async def watch_lag(self) -> NoReturn:
        """Measure the event loop's lag, that is how late a timer fires, until cancelled."""
        while True:
            due = time.monotonic() + _LAG_EVERY
            await asyncio.sleep(_LAG_EVERY)
            self._lag.observe(max(0.0, time.monotonic() - due))
