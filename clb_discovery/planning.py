"""`plan`: ask discovery once, compare with what the kernel holds, and change nothing."""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clb_discovery import catalog
from clb_discovery.core import selftest
from clb_discovery.core.config import CATALOG
from clb_discovery.core.held import Held, held_servers
from clb_discovery.core.hosts import names
from clb_discovery.core.model import Failure, Service
from clb_discovery.core.preview import preview
from clb_discovery.core.publication import Wanted, publication
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.discovery import open_sources, read_services, vip_ranges
from clb_discovery.errors import UnusableError
from clb_discovery.following import Following
from clb_discovery.hosts_file import names_ahead
from clb_discovery.runtime import Instance
from clb_discovery.sources.base import CatalogSource, Source


def look_ahead(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document of `plan --json`.

    :raises ClbError: also if a source does not answer, since then nobody knows.
    """
    pins = Pins(options.instance)
    services = read_services(options)
    held = _read(pins)
    following = {service.source: Following(service) for service in services}
    following |= catalog.restored(services, held, {}, following, options.max_services)
    asyncio.run(_ask(options, services, held, following))
    waiting = {source for source, one in following.items() if one.guarded.held}
    for one in following.values():
        one.elapse(math.inf)
    wanted = Wanted(
        services,
        catalog.claims(following.values()),
        {source: one.guarded.good for source, one in following.items() if one.known},
        selftest.virtual_servers(pins.instance),
        vip_ranges(options),
        options.real_range,
        complete=True,
    )
    found = publication(held, wanted)
    after = found.plan.result
    files = _names(Instance(pins.instance), options.hosts_file, after)
    document = preview(held, after, found.desired.rejected, waiting, wanted.own.keys(), names=files)
    document["refused"] += [
        {"service": following[source].service.name, "server": item.value, "reason": item.reason}
        for source, refused in found.resolved.refused.items()
        for item in refused
    ]
    document["refused"] += [
        {"service": one.service, "server": str(one.vip), "reason": one.reason} for one in found.unpublished
    ]
    return document


def _names(instance: Instance, path: Path | None, after: Held) -> list[dict[str, Any]]:
    """Return what would change in hosts files: in the one that is named, and in another of before, which is left."""
    before = instance.hosts_file()
    files = {path.resolve(): names(after.virtual, selftest.SOURCE).addresses} if path else {}
    if before:
        files.setdefault(before, {})
    found = (names_ahead(file, instance.name, addresses) for file, addresses in files.items())
    return [change for change in found if change is not None]


async def _ask(
    options: argparse.Namespace, services: Sequence[Service], held: Held, following: dict[str, Following]
) -> None:
    """Let everyone answer as a sidecar would hear it, were it started now; services that opt in are added."""
    before = held_servers(held, [*services, *catalog.claimed(following.values())])

    async def ask(source: str, asked: Source) -> None:
        one = following[source]
        one.seed(before.get(source, ()), None)
        try:
            one.take(await asked.next(), time.monotonic())
        except UnusableError as error:
            if not one.from_catalog:
                raise
            one.take(Failure(str(error), unusable=True), time.monotonic())

    async with open_sources(options, services) as sources:
        await asyncio.gather(*(ask(source, asked) for source, asked in sources.items()))
        listed = sources.get(CATALOG)
        if isinstance(listed, CatalogSource):
            following |= catalog.joined(services, following[CATALOG].listed, following, options.max_services)
            opting = [one.service for one in following.values() if one.from_catalog]
            await asyncio.gather(*(ask(service.source, listed.service(service.name)) for service in opting))


def _read(pins: Pins) -> Held:
    if not pins.have_maps():
        return Held()
    with Maps(pins) as maps:
        return maps.read()
