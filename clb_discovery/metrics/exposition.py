"""The counters of the kernel and the state of the sidecar as Prometheus metrics; docs/metrics.md lists all of them."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clb_discovery import __version__
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Server
from clb_discovery.layout.structs import Map
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.report import Report
from clb_discovery.model.address import format_endpoint
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Vip
from clb_discovery.state.service import STATES, ServiceState

_OF_REAL_SERVERS: Final[tuple[tuple[str, str, str, Callable[[Server], int]], ...]] = (
    ("clb_connects_total", "counter", "Connects sent to a real server", lambda server: server.connects),
    ("clb_failures_total", "counter", "Connects that a real server failed", lambda server: server.failures),
    ("clb_ejections_total", "counter", "How often a real server was ejected", lambda server: server.times_ejected),
    ("clb_active_connections", "gauge", "Connections to a real server", lambda server: server.active),
    ("clb_ejected", "gauge", "Whether a real server is left out", lambda server: int(server.ejected_until != 0)),
)
"""Names, types, help texts and values of the metrics of each real server."""


def exposition(report: Report, meters: Meters) -> bytes:
    """Return all metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Reported(report))
    return b"".join([generate_latest(registry), generate_latest(meters.registry), *_of_servers(report)])


class _Reported(Collector):
    """The metrics of a report, except those of its servers."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metrics."""
        yield _gauge("clb_build_info", "Version of clb-discovery", ("version",), ((__version__,), 1))
        yield from self._sidecar()
        yield from self._sources()
        yield from self._maps()

    def _sidecar(self) -> Iterator[Metric]:
        effective = self._report.info is not None and self._report.ineffective is None
        yield _gauge("clb_datapath_effective", "Whether connects meet the programs", (), ((), effective))
        refused = self._report.state["config_error"] is not None
        yield _gauge(
            "clb_config_refused", "Whether the configuration was refused when it was read last", (), ((), refused)
        )
        lost = CounterMetricFamily("clb_records_lost", "Times that there was no memory to remember a socket's server")
        lost.add_metric((), self._report.records_lost)
        yield lost

    def _sources(self) -> Iterator[Metric]:
        following = self._report.following
        now = time.time()

        def each(value: Callable[[ServiceState], float]) -> list[tuple[tuple[str, ...], float]]:
            return [((one.service.source,), value(one)) for one in following]

        answered = [(one, one.last_success.timestamp()) for one in following if one.last_success]
        source = ("source",)
        yield _gauge(
            "clb_source_fresh",
            "Whether discovery is up and what it says served",
            source,
            *each(lambda one: one.state == "fresh"),
        )
        yield _gauge(
            "clb_source_state",
            "Which state the source is in",
            ("source", "state"),
            *(((one.service.source, name), one.state == name) for one in following for name in STATES),
        )
        yield _gauge(
            "clb_source_stale",
            "Whether what is served may be out of date, since discovery is down",
            source,
            *each(lambda one: one.stale),
        )
        yield _gauge(
            "clb_source_last_success_seconds",
            "When the source last answered, in seconds since 1970",
            source,
            *(((one.service.source,), moment) for one, moment in answered),
        )
        yield _gauge(
            "clb_source_age_seconds",
            "How long ago the source last answered",
            source,
            *(((one.service.source,), max(0.0, now - moment)) for one, moment in answered),
        )
        yield _gauge(
            "clb_source_held_removals",
            "Real servers that are absent and kept until an answer confirms it",
            source,
            *each(lambda one: one.guarded.withheld[0]),
        )
        yield _gauge(
            "clb_source_refused",
            "Real servers and registrations that the source names and that are not used",
            source,
            *each(lambda one: len(one.refused) + len(one.rejected) + len(one.unfollowed) + len(one.left_out)),
        )
        unpublished: collections.Counter[str] = collections.Counter()
        for one in following:
            unpublished[one.service.name] += len(one.unpublished)
        yield _gauge(
            "clb_unpublished",
            "Virtual servers that are not as they should be, since there is no room for them",
            ("service",),
            *(((name,), number) for name, number in unpublished.items()),
        )
        errors = CounterMetricFamily("clb_source_errors", "Times that the source could not say", labels=source)
        for labels, value in each(lambda one: one.errors):
            errors.add_metric(labels, value)
        yield errors

    def _maps(self) -> Iterator[Metric]:
        installed = self._report.installed
        virtual = len(installed.virtual)
        used = {
            Map.VIRTUAL: (virtual, structs.MAX_VIRTUAL_SERVERS),
            Map.LABELS: (virtual, structs.MAX_VIRTUAL_SERVERS),
            Map.ROWS: (sum(len(one.rows) for one in installed.virtual.values()), structs.MAX_ROWS),
            Map.SERVERS: (sum(len(one.servers) for one in installed.virtual.values()), structs.MAX_SERVERS),
        }
        for name, text, column in (
            ("clb_map_entries", "Elements of a map that are in use", 0),
            ("clb_map_max_entries", "Elements that a map has room for", 1),
        ):
            yield _gauge(name, text, ("map",), *(((map_,), numbers[column]) for map_, numbers in used.items()))


def _of_servers(report: Report) -> Iterator[bytes]:
    """Yield the families of virtual and real servers.

    There may be 100,000 real servers, so their labels are written only once, and without prometheus_client.
    """
    named = [
        (_labels(one.label.service, vip), one)
        for vip, one in report.installed.virtual.items()
        if one.label is not None and not is_own(one.label.source)
    ]
    refusals: list[tuple[str, Server]] = []
    rows: list[tuple[str, Server]] = []
    for labels, one in named:
        for member in one.servers:
            server = report.servers.get(member)
            if server is None:
                continue
            if elements.is_refusal(member):
                refusals.append((labels, server))
            else:
                _, address, port = elements.unpack_member(member)
                rows.append((f'{labels},real_server="{format_endpoint(address, port)}"', server))
    text = "Real servers in the pool, ejected ones among them"
    yield _family("clb_pool_servers", "gauge", text, ((labels, len(one.pool or ())) for labels, one in named))
    text = "Connects refused since the pool is empty"
    yield _family("clb_refused_total", "counter", text, ((labels, server.connects) for labels, server in refusals))
    for name, kind, text, value in _OF_REAL_SERVERS:
        yield _family(name, kind, text, ((labels, value(server)) for labels, server in rows))


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, int]]) -> bytes:
    head = f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
    return b"".join([head, *(f"{name}{{{labels}}} {value}\n".encode() for labels, value in samples)])


def _labels(service: str, vip: Vip) -> str:
    """Return the labels of a virtual server in the text format of Prometheus, which escapes only three characters."""
    escaped = service.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return f'service="{escaped}",vip="{format_endpoint(vip.address, vip.port)}",protocol="{vip.protocol.name.lower()}"'


def _gauge(name: str, text: str, labels: tuple[str, ...], *samples: tuple[tuple[str, ...], float]) -> GaugeMetricFamily:
    """Return a family with its samples, each a tuple of label values and a number."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family
