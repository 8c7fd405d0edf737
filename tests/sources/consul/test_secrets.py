"""Secrets of requests to Consul, with a server that repeats them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from clb_discovery.errors import SourceError
from clb_discovery.sources.consul.server import ConsulServer
from clb_discovery.sources.consul.source import ConsulCatalog, ConsulSource, server_from_environment
from tests.support.fake_consul import FakeConsul, Reply, instance

TOKEN = "5d1c2b7e-very-secret"  # noqa: S105  # not a real one
BASIC = "d2FsbDpodW50ZXIyOng="  # wall:hunter2:x
ECHO = f"X-Consul-Token: {TOKEN}, Authorization: Basic {BASIC}"
ECHOES = [
    Reply(status=404, body=ECHO.encode()),
    Reply(body=ECHO.encode()),
    Reply(body=b" " * 770 + ECHO.encode()),
    Reply(entries={"headers": ECHO}),
    Reply(entries={"X-Consul-Token": TOKEN, "Authorization": f"Basic {BASIC}"}),
    Reply(entries=[ECHO]),
    Reply(entries=[ECHO, instance()]),
    Reply(entries=[instance(address=ECHO), instance("10.0.0.2")]),
    Reply(entries="x" * 30 + ECHO),
]


@pytest.mark.parametrize("echo", ECHOES, ids=str)
async def test_no_answer_that_repeats_a_secret_makes_it_known(echo: Reply) -> None:
    """A server that repeats the headers of a request, in any form and cut anywhere, puts them into no error or report.

    That includes a part of a secret.
    """
    environ = {"CONSUL_HTTP_AUTH": "wall:hunter2:x", "CONSUL_HTTP_TOKEN": TOKEN}
    said: list[object] = []
    async with FakeConsul(echo) as fake:
        server = server_from_environment(fake.url, environ)
        with capture_logs() as logs:
            for source in (ConsulSource(server, "redis"), ConsulCatalog(server)):
                try:
                    said.append(await source.next())
                except SourceError as error:
                    said.append(error)
            with suppress(SourceError):
                said.append(await ConsulSource(server, "redis").why_empty())
            with pytest.raises(SourceError) as caught:
                await server.zone("zone")
        await server.close()
    assert fake.asked[0].headers["Authorization"] == f"Basic {BASIC}"
    text = f"{said} {caught.value} {logs}"
    assert "Consul at " in text
    assert TOKEN[:8] not in text
    assert BASIC[:8] not in text


@pytest.mark.parametrize("head", ["X-Consul-Token: {}", "HTTP/1.1 200 OK\r\nX Consul Token: {}", "HTTP/1.1 {}"])
async def test_bytes_that_are_no_answer_make_no_secret_known(head: str) -> None:
    """The error about bytes that are not HTTP quotes them without the secret."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"{head.format(TOKEN)}\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with listener:
        server = ConsulServer(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", TOKEN)
        with pytest.raises(SourceError, match="<token>") as caught:
            await ConsulSource(server, "redis").next()
        await server.close()
    assert TOKEN[:8] not in str(caught.value)


async def test_a_short_token_changes_no_answer() -> None:
    """A token that is a word, as in a test environment, may be in the names of instances, which stay as they are."""
    async with FakeConsul(Reply(entries=[instance() | {"Node": {"Node": "master-1"}}])) as fake:
        server = ConsulServer(fake.url, token="master")  # noqa: S106  # not a real one
        assert set((await ConsulSource(server, "redis").next()).identities.values()) == {"master-1/s1"}
        await server.close()
