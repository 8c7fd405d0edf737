"""`plan`: ask discovery once, compare with what the kernel holds, and change nothing."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clb_discovery.core import selftest
from clb_discovery.core.desired import desired
from clb_discovery.core.held import Held, held_servers
from clb_discovery.core.hosts import names
from clb_discovery.core.model import Answer, Service
from clb_discovery.core.plan import plan
from clb_discovery.core.preview import preview
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.discovery import open_sources, read_services
from clb_discovery.following import Following
from clb_discovery.hosts_file import names_ahead
from clb_discovery.runtime import Instance


def look_ahead(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document of `plan --json`.

    :raises ClbError: also if a source does not answer, since then nobody knows.
    """
    pins = Pins(options.instance)
    services = read_services(options)
    answers = asyncio.run(_ask(options, services))
    held = _read(pins)
    known = {source: answer.servers for source, answer in answers.items()}
    wanted = desired(services, known, options.real_range)
    own = selftest.virtual_servers(pins.instance)
    after = plan(held, {**own, **wanted.virtual}, complete=True).result
    files = _names(Instance(pins.instance), options.hosts_file, after)
    return preview(held, after, wanted.rejected, _waiting(services, answers, held), own.keys(), names=files)


def _names(instance: Instance, path: Path | None, after: Held) -> list[dict[str, Any]]:
    """Return what would change in hosts files: in the one that is named, and in another of before, which is left."""
    before = instance.hosts_file()
    files = {path.resolve(): names(after.virtual, selftest.SOURCE).addresses} if path else {}
    if before:
        files.setdefault(before, {})
    found = (names_ahead(file, instance.name, addresses) for file, addresses in files.items())
    return [change for change in found if change is not None]


async def _ask(options: argparse.Namespace, services: Sequence[Service]) -> dict[str, Answer]:
    async with open_sources(options, services) as sources:
        answers = await asyncio.gather(*(source.next() for source in sources.values()))
        return dict(zip(sources, answers, strict=True))


def _read(pins: Pins) -> Held:
    if not pins.have_maps():
        return Held()
    with Maps(pins) as maps:
        return maps.read()


def _waiting(services: Sequence[Service], answers: dict[str, Answer], held: Held) -> set[str]:
    """Return the sources whose answers a sidecar would hold back, were it started now."""
    before = held_servers(held, services)
    found = set()
    for service in services:
        following = Following(service)
        following.seed(before.get(service.source, ()), None)
        following.take(answers[service.source], time.monotonic())
        if following.guarded.held:
            found.add(service.source)
    return found
