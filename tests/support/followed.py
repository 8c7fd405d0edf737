"""Services of Consul, followed as in the sidecar."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from clb_discovery.model.answer import Outcome
from clb_discovery.sources.base import Source
from clb_discovery.sources.consul.server import ConsulServer
from clb_discovery.sources.consul.source import ConsulSource
from clb_discovery.sources.watches import Watches


@asynccontextmanager
async def followed(
    server: ConsulServer, services: Iterable[str], heard: Callable[[str, Outcome], None]
) -> AsyncIterator[None]:
    """Follow services while the block runs; the server is closed at its end.

    :param heard: called with the name of a service and the outcome of its source.
    """

    @asynccontextmanager
    async def sources() -> AsyncIterator[Mapping[str, Source]]:
        try:
            yield {name: ConsulSource(server, name) for name in services}
        finally:
            await server.close()

    watches = Watches(sources)
    await watches.open()
    watches.start(lambda source, outcome: heard(source.removeprefix("consul:"), outcome))
    try:
        yield
    finally:
        await watches.end()
