"""A real Consul behind a misbehaving proxy."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from contextlib import suppress
from enum import Enum
from typing import Final, NamedTuple, Self

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.consul import ConsulAgent
from tests.support.schedules import Servers, real_server


class Fault(Enum):
    """The fault of every query."""

    INTERNAL_ERROR = 500
    UNAVAILABLE = 503
    TOO_MANY_REQUESTS = 429
    FORBIDDEN = 403
    RESET = "the connection is reset"
    HALF = "the connection is reset in the middle of the answer"
    SILENT = "no answer comes before the client gives up"
    BAD_JSON = "the last byte of the answer is missing"
    NO_INDEX = "the answer has no index"
    FILTERED = "an empty list that ACLs have filtered"
    EMPTY = "an empty list with a low index, as of a server that has lost its state"
    EMPTY_AS_EVER = "an empty list with the right index"
    BACKWARD = "the index has gone back"
    OUT_OF_TOUCH = "an empty list from a server that knows no leader"


LIES: Final = frozenset({Fault.EMPTY, Fault.EMPTY_AS_EVER})
"""Faults that a source cannot detect."""
HARMLESS: Final = frozenset({Fault.BACKWARD, Fault.OUT_OF_TOUCH})
"""Faults that a source has to detect and ignore."""
_INDEX: Final = "X-Consul-Index"
_KEPT: Final = (_INDEX, "X-Consul-KnownLeader", "X-Consul-LastContact", "Content-Type")
_OTHERS: Final[dict[Fault, dict[str, str]]] = {
    Fault.FILTERED: {"X-Consul-Results-Filtered-By-ACLs": "true"},
    Fault.EMPTY: {_INDEX: "1"},
    Fault.EMPTY_AS_EVER: {},
    Fault.OUT_OF_TOUCH: {"X-Consul-KnownLeader": "false"},
}
"""Headers of an empty list that replaces the real answer."""


class Cut(NamedTuple):
    """How a proxy ends a long query."""

    after: float
    """Seconds."""
    status: int | None
    """The status of its answer; `None` if it closes the connection."""


class FaultyConsul:
    """The instances of one service of an agent, behind a proxy at `url`: a `schedules.World`.

    Without a fault queries block as the agent's do; a fault that is injected also applies to queries under way.

    :ivar asked: how many queries have come.
    :ivar queries: path and parameters of each.
    :ivar cuts: how many have been cut.
    :ivar loop: where it runs, for other threads.
    """

    def __init__(self, agent: ConsulAgent, service: str, cut: Cut | None = None) -> None:
        self.asked = 0
        self.cuts = 0
        self.queries: list[tuple[str, dict[str, str]]] = []
        self._cut = cut
        self._restarted = False
        self.url = ""
        self._agent = agent
        self._service = service
        self._fault: Fault | None = None
        self._numbers: frozenset[int] = frozenset()
        self._turned = asyncio.Event()
        self._session = aiohttp.ClientSession(headers={"Accept-Encoding": "identity"})
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def publish(self, numbers: frozenset[int]) -> None:
        """Register these instances and no others, in one transaction."""
        node = {"Node": {"Verb": "set", "Node": {"Node": "outside", "Address": "10.0.0.254"}}}
        services = [
            {"Service": {"Verb": verb, "Node": "outside", "Service": self._instance(number)}}
            for verb, those in (("delete", self._numbers - numbers), ("set", numbers))
            for number in those
        ]
        await asyncio.to_thread(self._agent.request, "PUT", "/v1/txn", [node, *services])
        self._numbers = numbers

    async def cut_times(self, count: int) -> None:
        """Wait until this many queries have been cut."""
        while self.cuts < count:  # noqa: ASYNC110  # seldom enough
            await asyncio.sleep(0.05)

    def restart(self) -> None:
        """Behave as a server after a restart: waiting queries are reset, and it has not read its log yet."""
        self._restarted = True
        self._turned.set()

    def inject(self, faults: object) -> None:
        """Misbehave in this way from now on."""
        assert faults is None or isinstance(faults, Fault)
        self._fault = faults
        self._turned.set()
        self._turned = asyncio.Event()

    def says(self, good: Servers = frozenset()) -> Servers | None:
        """Return the result that a source should have."""
        del good  # whether a member can be read does not depend on the others here
        if self._fault in LIES:
            return frozenset()
        return frozenset(map(real_server, self._numbers)) if self._fault in {None, *HARMLESS} else None

    def _instance(self, number: int) -> dict[str, object]:
        server = real_server(number)
        return {
            "ID": f"{self._service}-{number}",
            "Service": self._service,
            "Address": f"10.0.0.{number}",
            "Port": server.port,
            "Weights": {"Passing": server.weight, "Warning": 1},
        }

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked += 1
        self.queries.append((request.path, dict(request.query)))
        asking = asyncio.create_task(self._ask(request)) if self._fault is None and not self._restarted else None
        limit = self._cut.after if self._cut else None
        try:
            while asking and self._fault is None and not self._restarted:
                turned = asyncio.create_task(self._turned.wait())
                done, _ = await asyncio.wait({asking, turned}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                turned.cancel()
                if asking.done():
                    return asking.result()
                if self._cut and not done:
                    self.cuts += 1
                    return web.Response(status=self._cut.status) if self._cut.status else _closed(request)
        finally:
            if asking:
                asking.cancel()
        return await self._misbehave(request) if self._fault else await self._behind(request)

    async def _behind(self, request: web.BaseRequest) -> web.Response:
        if "index" in request.query:
            return _reset(request)
        answer = await self._ask(request)
        if "stale" in request.query:
            answer.body = json.dumps([]).encode()
            answer.headers[_INDEX] = "1"
        return answer

    async def _ask(self, request: web.BaseRequest, *, at_once: bool = False) -> web.Response:
        url = URL(self._agent.url + request.raw_path, encoded=True)
        if at_once:
            url = url.without_query_params("index", "wait")
        async with self._session.request(request.method, url, data=await request.read()) as answer:
            headers = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)

    async def _misbehave(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self._fault
        assert fault is not None
        if isinstance(fault.value, int):
            return web.Response(status=fault.value, text="as the schedule says")
        if fault is Fault.RESET:
            return _reset(request)
        if fault is Fault.SILENT:
            await asyncio.Event().wait()
        answer = await self._ask(request, at_once=True)
        body = answer.body
        assert isinstance(body, bytes)
        if fault is Fault.HALF:
            half = web.StreamResponse(headers={**answer.headers, "Content-Length": str(len(body))})
            await half.prepare(request)
            await half.write(body[: len(body) // 2])
            return _reset(request)
        if request.method == "GET":
            if fault is Fault.BAD_JSON:
                answer.body = body.rstrip()[:-1]
            if fault is Fault.NO_INDEX:
                del answer.headers[_INDEX]
            if fault is Fault.BACKWARD:
                answer.headers[_INDEX] = "1"
            if fault in _OTHERS and (fault is not Fault.OUT_OF_TOUCH or "stale" in request.query):
                answer.body = json.dumps([]).encode()
                answer.headers.update(_OTHERS[fault])
        return answer


def _closed(request: web.BaseRequest) -> web.Response:
    """Close the connection; the returned response is not sent."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _reset(request: web.BaseRequest) -> web.Response:
    """Reset the connection; the returned response is not sent."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        with suppress(OSError):  # the client may have gone
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()
