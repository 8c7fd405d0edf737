"""A proxy before Consul that cuts long polls, as HTTP proxies with a time-out do."""

from __future__ import annotations

import asyncio
from typing import Final, Self

import aiohttp
from aiohttp import web
from yarl import URL

CUT: Final = 3.0
"""Seconds after which a request is cut."""
_KEPT: Final = ("X-Consul-Index", "X-Consul-KnownLeader", "X-Consul-LastContact", "Content-Type")


class PollCutter:
    """Passes requests on to an agent, and ends long ones by a 504 or by a closed connection, in turn.

    :ivar url: its address, inside its block.
    """

    def __init__(self, agent: str) -> None:
        """Take the agent's URL; nothing listens yet."""
        self.url = ""
        self._agent = agent
        self._cuts = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers={"Accept-Encoding": "identity"})
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            async with asyncio.timeout(CUT):
                return await self._ask(request)
        except TimeoutError:
            self._cuts += 1
        except (aiohttp.ClientError, OSError):  # the agent is down
            return web.Response(status=502)
        if self._cuts % 2 and request.transport is not None:
            request.transport.abort()
        return web.Response(status=504)

    async def _ask(self, request: web.BaseRequest) -> web.Response:
        url = URL(self._agent + request.raw_path, encoded=True)
        async with self._session.request(request.method, url, data=await request.read()) as answer:
            headers = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)
