"""The sidecar inside the test, with fake sources."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Final

from clb_discovery.config.options import Options
from clb_discovery.config.settings import Settings
from clb_discovery.datapath import bpf
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.model.address import parse_address, parse_network
from clb_discovery.model.servers import RealServer
from clb_discovery.model.service import RemovalPolicy, Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar.daemon import Daemon
from clb_discovery.sources.base import Source
from tests.support.loading import loader_of_tests
from tests.support.srv_web import VIP

ANY: Final = RemovalPolicy()
STOPS_WITHIN: Final = 5.0
"""Seconds from SIGTERM to the end: 2 by the contract, and more for a busy test machine."""


@asynccontextmanager
async def running_daemon(
    instance: str,
    cgroup: Path,
    source: Source,
    policy: RemovalPolicy = ANY,
    state_dir: Path | None = None,
    *,
    vips: Sequence[str] = (f"{VIP}:80",),
    rereading: Callable[[], None] = lambda: None,
) -> AsyncIterator[asyncio.Task[None]]:
    """Run the daemon in this process, with one source of the test; end it with SIGTERM.

    Real servers may be in 10.0.0.0/8, and on the loopback; VIPs of a catalog in 10.64.0.0/16.

    :param rereading: called, in a thread, when SIGHUP has the configuration read again.
    """
    service = Service("fake", source.name, tuple(map(parse_vip, vips)), policy=policy)
    options = Options(
        instance=instance,
        cgroup=str(cgroup),
        real_range=tuple(map(parse_network, ("10.0.0.0/8", "127.0.0.0/8", "::1/128"))),
        vip_range=(parse_network("10.64.0.0/16"),),
        loader=loader_of_tests(),
        state_dir=state_dir,
    )
    settings = Settings(options, [service], lambda: nullcontext({source.name: source}))

    def reread() -> Settings:
        rereading()
        return settings

    task = asyncio.create_task(Daemon(settings, reread).run())
    try:
        yield task
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(STOPS_WITHIN):
            await task


def real_servers(count: int) -> tuple[RealServer, ...]:
    """Return this many real servers, at most 65,536."""
    return tuple(RealServer(0, parse_address(f"10.1.{n >> 8}.{n & 255}"), 80, 1) for n in range(count))


def wait_for_names(instance: str) -> None:
    """Return when the names of the virtual server are in the map, which are written before its slots."""
    pin = Pins(instance).map(Map.LABELS)
    while not pin.exists():  # sources start while the data plane is loaded
        time.sleep(0.0005)
    labels = bpf.open_pin(pin)
    while bpf.lookup(labels, elements.pack_vip(parse_vip(f"{VIP}:80")), structs.LABEL.size) is None:
        time.sleep(0.0005)
    os.close(labels)
