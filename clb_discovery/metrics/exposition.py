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
from clb_discovery.documents.causes import by_cause
from clb_discovery.documents.shares import standings
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Server
from clb_discovery.layout.health import Health
from clb_discovery.layout.structs import Map
from clb_discovery.metrics.meters import Meters
from clb_discovery.metrics.report import Report
from clb_discovery.model.address import format_address, format_endpoint
from clb_discovery.model.own_servers import is_own
from clb_discovery.model.servers import Vip
from clb_discovery.state.service import STATES, ServiceState

_OF_REAL_SERVERS: Final[tuple[tuple[str, str, str, Callable[[Server], int]], ...]] = (
    ("clb_connects_total", "counter", "Connects sent to a real server", lambda server: server.connects),
    ("clb_failures_total", "counter", "Connects that a real server failed", lambda server: server.failures),
    ("clb_ejections_total", "counter", "How often a real server was ejected", lambda server: server.times_ejected),
    ("clb_active_connections", "gauge", "Connections to a real server", lambda server: server.active),
)
"""Names, types, help texts and values of the metrics of each real server."""


_OF_SOURCES: Final[tuple[tuple[str, str, Callable[[ServiceState], float]], ...]] = (
    ("clb_source_fresh", "Whether discovery is up and its latest answer is served", lambda one: one.state == "fresh"),
    ("clb_source_stale", "Whether the served pool may be out of date because discovery is down", lambda one: one.stale),
    (
        "clb_source_held_removals",
        "Real servers that are absent and kept until an answer confirms it",
        lambda one: one.guarded.withheld[0],
    ),
    (
        "clb_source_refused",
        "Real servers and registrations that the source names and that are not used",
        lambda one: one.rejections,
    ),
    (
        "clb_source_incomplete",
        "Whether a part of the latest answer could not be looked up, so that previous real servers of it stay",
        lambda one: one.incomplete,
    ),
)
"""Names, help texts and values of the gauges of each source."""


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
        yield from self._parts()
        yield from self._zones()
        yield from self._maps()

    def _sidecar(self) -> Iterator[Metric]:
        datapath = self._report.datapath
        effective = datapath.info is not None and datapath.ineffective is None
        yield GaugeMetricFamily("clb_datapath_effective", "Whether the programs are in effect", effective)
        refused = self._report.state["config_error"] is not None
        text = "Whether the last reload of the configuration failed"
        yield GaugeMetricFamily("clb_config_refused", text, refused)
        text = "Times that there was no memory to remember a socket's server"
        yield CounterMetricFamily("clb_records_lost", text, datapath.records_lost)

    def _sources(self) -> Iterator[Metric]:
        following, now, source = self._report.following, time.time(), ("source",)
        for name, text, value in _OF_SOURCES:
            yield _gauge(name, text, source, *(((one.source,), value(one)) for one in following))
        yield _gauge(
            "clb_source_state",
            "Which state the source is in",
            ("source", "state"),
            *(((one.source, name), one.state == name) for one in following for name in STATES),
        )
        answered = [((one.source,), one.last_success.timestamp()) for one in following if one.last_success]
        text = "When the source last answered, in seconds since 1970"
        yield _gauge("clb_source_last_success_seconds", text, source, *answered)
        ages = ((labels, max(0.0, now - moment)) for labels, moment in answered)
        yield _gauge("clb_source_age_seconds", "How long ago the source last answered", source, *ages)
        unpublished: collections.Counter[str] = collections.Counter()
        for one in following:
            unpublished[one.service.name] += len(one.unpublished)
        text = "Virtual servers that are not published because there is no room for them"
        yield _gauge("clb_unpublished", text, ("service",), *(((name,), n) for name, n in unpublished.items()))
        errors = CounterMetricFamily("clb_source_errors", "Failed queries of the source", labels=source)
        for one in following:
            errors.add_metric((one.source,), one.errors)
        yield errors

    def _parts(self) -> Iterator[Metric]:
        services = {one.service.source: one.service for one in self._report.following if len(one.service.parts) > 1}
        found = []
        for vip, published in self._report.datapath.installed.virtual.items() if services else ():
            service = services.get(published.label.source) if published.label else None
            if service:
                labels = service.name, format_endpoint(vip.address, vip.port), vip.protocol.name.lower()
                counts = collections.Counter(server.part for server in published.pool or ())
                found += [((*labels, part.source), counts[place]) for place, part in enumerate(service.parts)]
        text = "Real servers of a part in the pool, if it has several; one of several parts counts for the first"
        yield _gauge("clb_part_servers", text, ("service", "vip", "protocol", "source"), *found)

    def _zones(self) -> Iterator[Metric]:
        own, zones = self._report.state.get("zone") or {}, self._report.state.get("zones", {})
        found = []
        for vip, one in self._report.datapath.installed.virtual.items() if zones else ():
            if one.label and one.label.source in zones:
                near = frozenset(zones[one.label.source].get(own.get("name"), ()))
                labels = one.label.service, format_endpoint(vip.address, vip.port), vip.protocol.name.lower()
                standing = standings(vip, one, self._report.datapath.servers, self._report.datapath.words)
                share = sum(each.target_share for each in standing if str(each.server) in near)
                found.append((labels, min(1.0, share)))
        text = "Share of the pool's connects that the zone of this host should get now, if the pool follows zones"
        yield _gauge("clb_zone_share", text, ("service", "vip", "protocol"), *found)

    def _maps(self) -> Iterator[Metric]:
        virtual = self._report.datapath.installed.virtual
        rows = [0, 0]
        for one in virtual.values():
            rows[one.row == structs.OVERFLOWS] += len(one.rows)
        used = {
            Map.VIRTUAL: (len(virtual), structs.MAX_VIRTUAL_SERVERS),
            Map.LABELS: (len(virtual), structs.MAX_VIRTUAL_SERVERS),
            Map.ROWS: (sum(rows), structs.MAX_ROWS),  # those that have no room there are in the overflow
            Map.OVERFLOW: (rows[True], structs.MAX_ROWS),
            Map.SERVERS: (sum(len(one.servers) for one in virtual.values()), structs.MAX_SERVERS),
        }
        for name, text, column in (
            ("clb_map_entries", "Elements of a map that are in use", 0),
            ("clb_map_max_entries", "Elements that a map has room for", 1),
        ):
            yield _gauge(name, text, ("map",), *(((map_,), numbers[column]) for map_, numbers in used.items()))


def _of_servers(report: Report) -> Iterator[bytes]:
    """Yield the families of servers: they may be 100,000, so without prometheus_client, and labels are made once."""
    named = [
        (_labels(one.label.service, vip), one.label.source, vip, one)
        for vip, one in report.datapath.installed.virtual.items()
        if one.label is not None and not is_own(one.label.source)
    ]
    refusals: list[tuple[str, Server]] = []
    rows: list[tuple[str, Server]] = []
    ejected: list[tuple[str, int]] = []
    kept_out: list[tuple[str, int]] = []
    failing: list[tuple[str, int]] = []
    down = {(one["address"], one["port"], one["protocol"]): one["down"] for one in report.state.get("checks", ())}
    for labels, _, vip, one in named:
        checked = one.health is not None and one.health.checked
        own = down.get((format_address(vip.address), vip.port, vip.protocol.name.lower()))
        for member in one.servers:
            server = report.datapath.servers.get(member)
            if server is None:
                continue
            if elements.is_refusal(member):
                refusals.append((labels, server))
            else:
                _, address, port = elements.unpack_member(member)
                name = format_endpoint(address, port)
                full = f'{labels},real_server="{name}"'
                rows.append((full, server))
                health = report.datapath.words.health(member, server, checked=checked)
                ejected.append((full, int(health is Health.EJECTED)))
                if health is Health.EJECTED:
                    kept_out.append((full, int(report.datapath.words.decide(member, server, checked=checked))))
                if own is not None:
                    failing.append((full, int(name in own)))
    text = "Real servers in the pool, ejected ones among them"
    sizes = ((f'{labels},source="{_escaped(source)}"', len(one.pool or ())) for labels, source, _, one in named)
    yield _family("clb_pool_servers", "gauge", text, sizes)
    text = "Connects refused because the pool is empty"
    yield _family("clb_refused_total", "counter", text, ((labels, server.connects) for labels, server in refusals))
    for name, kind, text, value in _OF_REAL_SERVERS:
        yield _family(name, kind, text, ((labels, value(server)) for labels, server in rows))
    yield _family("clb_ejected", "gauge", "Whether a real server is left out", ejected)
    text = "Whether probes or checks of the sidecar keep an ejected real server out"
    yield _family("clb_kept_out", "gauge", text, kept_out)
    yield _family("clb_check_failing", "gauge", "Whether a real server fails its checks", failing)
    text = "Connects that a real server failed, by their cause where it is known"
    causes = (
        (f'{labels},cause="{cause}"', number)
        for labels, server in rows
        if server.failures
        for cause, number in by_cause(server).items()
        if number
    )
    yield _family("clb_failures_by_cause_total", "counter", text, causes)


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, int]]) -> bytes:
    head = f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
    return b"".join([head, *(f"{name}{{{labels}}} {value}\n".encode() for labels, value in samples)])


def _labels(service: str, vip: Vip) -> str:
    """Return the labels of a virtual server in the text format of Prometheus."""
    name, protocol = _escaped(service), vip.protocol.name.lower()
    return f'service="{name}",vip="{format_endpoint(vip.address, vip.port)}",protocol="{protocol}"'


def _escaped(value: str) -> str:
    """Return the value of a label in the text format of Prometheus, which escapes only three characters."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _gauge(name: str, text: str, labels: tuple[str, ...], *samples: tuple[tuple[str, ...], float]) -> GaugeMetricFamily:
    """Return a family with its samples, each a tuple of label values and a number."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family
