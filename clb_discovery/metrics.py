"""`--metrics`: what the kernel counts and what the sidecar knows, for Prometheus; whether it is ready, for probes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from clb_discovery import __version__
from clb_discovery.core import layout
from clb_discovery.core.address import format_endpoint
from clb_discovery.core.held import Held
from clb_discovery.core.layout import Server
from clb_discovery.core.selftest import SOURCE
from clb_discovery.errors import ClbError
from clb_discovery.following import STATES, Following


class Snapshot(NamedTuple):
    """What there is to tell at one moment."""

    held: Held
    servers: dict[bytes, Server]
    following: Iterable[Following]


def listen(host: str, port: int) -> socket.socket:
    """Take the port, before anything else is touched.

    :raises ClbError: if it is not to be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ClbError(f"cannot listen on {where} for --metrics: {reason}; name another ADDR:PORT") from error


@asynccontextmanager
async def serving(
    listener: socket.socket, snapshot: Callable[[], Snapshot], is_ready: Callable[[], bool]
) -> AsyncIterator[None]:
    """Answer `/metrics` and `/healthz` while the block runs.

    :param snapshot: called in a thread for each scrape.
    """

    async def metrics(_request: web.Request) -> web.Response:
        registry = CollectorRegistry()
        registry.register(_Snapshots(await asyncio.to_thread(snapshot)))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ready\n") if is_ready() else web.Response(text="not ready\n", status=503)

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()


class _Snapshots(Collector):
    """One snapshot in the words of Prometheus."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield all families of metrics."""
        build = GaugeMetricFamily("clb_build_info", "Version of clb-discovery", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield from self._sources()
        yield from self._servers()

    def _sources(self) -> Iterator[Metric]:
        fresh = GaugeMetricFamily(
            "clb_source_fresh", "Whether discovery is up and what it says served", labels=["source"]
        )
        state = GaugeMetricFamily("clb_source_state", "Which state the source is in", labels=["source", "state"])
        stale = GaugeMetricFamily(
            "clb_source_stale", "Whether what is served may be out of date, since discovery is down", labels=["source"]
        )
        last = GaugeMetricFamily("clb_source_last_success_seconds", "When the source last answered", labels=["source"])
        for following in self._snapshot.following:
            fresh.add_metric([following.service.source], following.state == "fresh")
            stale.add_metric([following.service.source], following.stale)
            for name in STATES:
                state.add_metric([following.service.source, name], following.state == name)
            if following.last_success:
                last.add_metric([following.service.source], following.last_success.timestamp())
        yield from (fresh, state, stale, last)

    def _servers(self) -> Iterator[Metric]:
        virtual = ["service", "vip", "protocol"]
        real = [*virtual, "real_server"]
        refused = CounterMetricFamily("clb_refused", "Connects refused since the pool is empty", labels=virtual)
        connects = CounterMetricFamily("clb_connects", "Connects sent to a real server", labels=real)
        failures = CounterMetricFamily("clb_failures", "Connects that a real server failed", labels=real)
        active = GaugeMetricFamily("clb_active_connections", "Connections to a real server", labels=real)
        ejected = GaugeMetricFamily("clb_ejected", "Whether a real server is left out", labels=real)
        for vip, published in self._snapshot.held.virtual.items():
            if published.label is None or published.label.source == SOURCE:
                continue
            names = [published.label.service, format_endpoint(vip.address, vip.port), vip.protocol.name.lower()]
            for member in published.servers:
                server = self._snapshot.servers.get(member)
                if server is None:
                    continue
                if layout.is_refusal(member):
                    refused.add_metric(names, server.connects)
                    continue
                _, address, port = layout.unpack_member(member)
                labels = [*names, format_endpoint(address, port)]
                connects.add_metric(labels, server.connects)
                failures.add_metric(labels, server.failures)
                active.add_metric(labels, server.active)
                ejected.add_metric(labels, server.ejected_until != 0)
        yield from (refused, connects, failures, active, ejected)
