"""Rare behaviour of Consul at will: an HTTP server with scripted answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web


def instance(address: str = "10.0.0.1", port: int = 80, status: str = "passing") -> dict[str, Any]:
    """Return an entry of the health endpoint."""
    return {
        "Node": {"Node": "n1", "Address": "10.9.9.9"},
        "Service": {"ID": "s1", "Address": address, "Port": port, "Weights": {"Passing": 1, "Warning": 1}},
        "Checks": [{"CheckID": "c1", "Status": status}],
    }


@dataclass
class Reply:
    """One answer of the health endpoint."""

    entries: object = field(default_factory=lambda: [instance()])
    index: str | None = "7"
    """The X-Consul-Index header; `None` leaves it out."""
    status: int = 200
    body: bytes | None = None
    """Sent in place of the entries."""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    """Never answer."""
    late: float = 0.0
    """Seconds until it is sent."""


class FakeConsul:
    """Sends the replies in order, the last one repeatedly, and records all requests."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.asked: list[web.BaseRequest] = []
        self.connections: set[object] = set()
        self.grants: Reply = Reply(status=404, body=b"no such endpoint")
        """Answer to the request for the rights of the token."""
        self.url = ""
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def queries(self) -> list[dict[str, str]]:
        """The query parameters of every request so far."""
        return [dict(request.query) for request in self.asked]

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.connections.add(request.transport)
        if request.method == "POST":
            return _response(self.grants)
        self.asked.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply.hang:
            await asyncio.Event().wait()
        await asyncio.sleep(reply.late)
        return _response(reply)


def _response(reply: Reply) -> web.Response:
    body = json.dumps(reply.entries).encode() if reply.body is None else reply.body
    headers = dict(reply.headers) | ({} if reply.index is None else {"X-Consul-Index": reply.index})
    return web.Response(status=reply.status, body=body, headers=headers)
