"""Questions of one moment: what they share, and how each ends."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from clb_discovery.sources.srv.burst import EDNS_PAYLOAD
from clb_discovery.sources.srv.nameservers import DatagramNameserver
from tests.support.process import free_port

QUESTION = b"\1a\7example\0\0\1\0\1"


class Echo(asyncio.DatagramProtocol):
    """Sends everything back in the longest datagrams that are taken, unless it is silent."""

    def __init__(self) -> None:
        self.ports = Counter[int]()
        self.numbers = set[bytes]()
        self.silent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to answer by."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Count, and answer."""
        self.ports[addr[1]] += 1
        self.numbers.add(data[:2])
        if not self.silent:
            self._transport.sendto(data.ljust(EDNS_PAYLOAD, b"\0"), addr)


@asynccontextmanager
async def echo(host: str) -> AsyncIterator[tuple[Echo, DatagramNameserver]]:
    """Run a server while the block runs."""
    port = free_port()
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(Echo, (host, port))
    try:
        yield server, DatagramNameserver(host, port)
    finally:
        transport.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_questions_of_one_moment_share_a_port(host: str) -> None:
    """Each has an id of its own and gets its answer; those of the next moment come from another port."""
    async with echo(host) as (server, nameserver):
        for moments in (1, 2):
            answers = await asyncio.gather(*(nameserver.exchange(QUESTION) for _ in range(20)))

            assert all(answer and answer[12:].startswith(QUESTION) for answer in answers)
            assert len(set(answers)) == 20
            assert list(server.ports.values()) == [20] * moments


async def test_many_questions_take_several_ports() -> None:
    """Of more answers than fit into the buffer of a socket none is lost."""
    async with echo("127.0.0.1") as (server, nameserver):
        answers = await asyncio.gather(*(nameserver.exchange(QUESTION) for _ in range(200)))

    assert all(answers)
    assert max(server.ports.values()) == 64


async def test_silence_ends_after_a_second() -> None:
    """All questions of the moment are given up together, and the next moment asks again."""
    clock = asyncio.get_running_loop().time
    async with echo("127.0.0.1") as (server, nameserver):
        server.silent = True
        began = clock()
        answers = await asyncio.gather(*(nameserver.exchange(QUESTION) for _ in range(3)))
        taken = clock() - began
        server.silent = False

        assert answers == [None] * 3
        assert taken >= 0.99
        assert await nameserver.exchange(QUESTION)


async def test_refusal_ends_at_once() -> None:
    """Where nobody listens nothing is waited for."""
    nameserver = DatagramNameserver("127.0.0.1", free_port())

    async with asyncio.timeout(0.9):
        try:
            answers = await asyncio.gather(*(nameserver.exchange(QUESTION) for _ in range(3)))
        except ConnectionRefusedError:  # the first question's, met by the second
            return
    assert answers == [None] * 3


async def test_given_up_question_leaves_no_socket(recwarn: pytest.WarningsRecorder) -> None:
    """Cancelling one question leaves the others; cancelling the last closes the socket."""
    async with echo("127.0.0.1") as (server, nameserver):
        server.silent = True
        questions = [asyncio.create_task(nameserver.exchange(QUESTION)) for _ in range(2)]
        await asyncio.sleep(0.05)
        (port,) = server.ports
        for question, is_over in zip(questions, (False, True), strict=True):
            question.cancel()
            with pytest.raises(asyncio.CancelledError):
                await question
            assert can_bind(port) is is_over

    assert not recwarn.list


def can_bind(port: int) -> bool:
    """Tell whether nobody has a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
