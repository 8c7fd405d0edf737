"""Changes that a leader does not know yet, because it was just elected and has not applied its log."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from aiohttp import web

from clb_discovery.sources.consul.server import LOCAL, ConsulServer
from clb_discovery.sources.consul.source import ConsulCatalog, ConsulSource
from tests.support.fake_consul import FakeConsul, instance

SOON: Final = 5.0
BEFORE, AFTER = 90, 100
"""Indexes before and after the change."""


class LateLeader(FakeConsul):
    """A change has been reported; only queries that a quorum confirms wait until the leader has applied it."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(request)
        if int(request.query.get("index", "0")) >= BEFORE:
            await self.changed.wait()
        if int(request.query.get("index", "0")) >= AFTER:
            await asyncio.Event().wait()
        is_new = self.changed.is_set() and not request.query.keys().isdisjoint({"stale", "consistent"})
        return web.Response(
            body=json.dumps(self._body(request.path, is_new=is_new)).encode(),
            headers={"X-Consul-Index": str(AFTER if is_new else BEFORE)},
        )

    def _body(self, path: str, *, is_new: bool) -> object:
        if "/health/service/" in path:
            return [instance(), instance("10.0.0.2")] if is_new else [instance()]
        if path.endswith("/ui/services"):
            return [{"Name": "web"}, {"Name": "late"}] if is_new else [{"Name": "web"}]
        return {"web": []} if path.endswith("/catalog/services") else []


async def test_a_service_without_a_query_of_its_own_is_followed() -> None:
    """The change is not reported again, so it must not be hidden by one late answer."""
    async with LateLeader() as fake:
        server = ConsulServer(fake.url, limits=LOCAL._replace(direct=0))
        source = ConsulSource(server, "redis")
        for _ in range(2):  # at first the whole catalog is new
            assert len((await source.next()).servers) == 1
        fake.changed.set()
        async with asyncio.timeout(SOON):
            while len((await source.next()).servers) == 1:
                pass
        await server.close()


async def test_a_new_service_of_a_catalog_is_listed() -> None:
    """The list of services has moved once; the query for their meta must not go to a leader that does not know it."""
    async with LateLeader() as fake:
        server = ConsulServer(fake.url)
        catalog = ConsulCatalog(server)
        assert (await catalog.next()).names == {"web"}
        fake.changed.set()
        assert (await asyncio.wait_for(catalog.next(), SOON)).names == {"web", "late"}
        await server.close()
