"""Checks of real servers, by real sockets: what passes, what fails, and what is no verdict."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import pytest

from clb_discovery.checks.health import Result
from tests.support.checked import HEAD, HELLO_REQUESTS, PASSED, TIMEOUT, Handler, answering, failed, hang, look, serving
from tests.support.process import free_port
from tests.support.tls import Authority


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, PASSED), (204, PASSED), (302, PASSED), (404, failed("HTTP 404")), (503, failed("HTTP 503"))],
)
def test_2xx_and_3xx_are_up(status: int, expected: Result) -> None:
    """A redirect is an answer, and is not followed."""
    seen: list[bytes] = []
    answer = HEAD.replace(b"Server: x", b"Location: http://127.0.0.1:1/elsewhere") % status

    async def run() -> Result:
        async with serving(answering(answer, seen)) as port:
            return await look(port, "http://web.example/health?deep=1")

    assert asyncio.run(run()) == expected
    assert len(seen) == 1
    assert seen[0].startswith(b"GET /health?deep=1 HTTP/1.1\r\nHost: web.example\r\nUser-Agent: clb-discovery/1.2\r\n")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("check", ["tcp", "http://web.example/"])
def test_both_families_are_checked(address: str, check: str) -> None:
    """The address is the server's own."""

    async def run() -> Result:
        async with serving(answering(HEAD % 200), address) as port:
            return await look(port, check, address=address)

    assert asyncio.run(run()) == PASSED


def test_the_port_of_the_url_replaces_that_of_the_server() -> None:
    """Health may be served beside the service."""

    async def run() -> Result:
        async with serving(answering(HEAD % 200)) as port:
            return await look(1, f"http://web.example:{port}/")

    assert asyncio.run(run()) == PASSED


@pytest.mark.parametrize("check", ["tcp", "http://web.example/", "https://web.example/"])
def test_a_refused_connect_fails(check: str) -> None:
    """Whatever is asked of the server."""
    assert asyncio.run(look(free_port(), check)) == failed("Connection refused")


def test_a_hung_process_fails_within_the_timeout() -> None:
    """It accepts, which passes a check by connect, and never answers."""

    async def run() -> tuple[Result, Result, float]:
        async with serving(hang) as port:
            began = time.monotonic()
            found = await look(port, "http://web.example/")
            return found, await look(port, "tcp"), time.monotonic() - began

    found, by_connect, took = asyncio.run(run())
    assert (found, by_connect) == (failed("no answer within 0.4 s"), PASSED)
    assert TIMEOUT <= took < TIMEOUT + 0.5


def test_a_server_that_stops_accepting_fails() -> None:
    """Its queue is full: the kernel drops the SYN, and the check ends in its time."""

    async def run() -> Result:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)):
                return await look(port, "http://web.example/")

    assert asyncio.run(run()) == failed("no connect within 0.4 s")


async def slow_headers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one byte at a time, which each time looks like progress."""
    for byte in HEAD % 200:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.02)


async def endless_headers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send headers as fast as they are taken."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: " + b"y" * 1000 + b"\r\n")
        await writer.drain()


async def endless_body(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a body as fast as it is taken."""
    writer.write(HEAD % 200)
    while True:
        writer.write(b"z" * 10_000)
        await writer.drain()


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reset the connection."""
    writer.transport.abort()


async def close_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close after half of the headers."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write((HEAD % 200)[:20])


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (slow_headers, failed("no answer within 0.4 s")),
        (endless_headers, failed("the headers of the answer are longer than 16384 bytes")),
        (endless_body, PASSED),
        (close_early, failed("the server closed the connection before its answer was complete")),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), failed("the answer is not HTTP/1")),
        (answering(b"\x16\x03\x01\x02\x00\x01"), failed("the answer is not HTTP/1")),
    ],
)
def test_answers_are_bounded(handler: Handler, expected: Result) -> None:
    """In time as a whole, and in length; the body is not read."""

    async def run() -> tuple[Result, float]:
        async with serving(handler) as port:
            began = time.monotonic()
            return await look(port, "http://web.example/"), time.monotonic() - began

    found, took = asyncio.run(run())
    assert found == expected
    assert took < TIMEOUT + 0.5


def test_a_reset_connection_fails() -> None:
    """Before or after the request."""

    async def run() -> Result:
        async with serving(reset) as port:
            return await look(port, "http://web.example/")

    found = asyncio.run(run())
    assert found.passed is False
    assert "reset" in found.reason or "closed" in found.reason or "Broken pipe" in found.reason


def test_a_check_by_connect_is_not_seen_by_the_application() -> None:
    """The reset comes before the ACK, so there is nothing to accept."""

    async def run() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.setblocking(False)
            for _ in range(20):
                assert await look(listener.getsockname()[1], "tcp") == PASSED
            accepted = 0
            while True:
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    return accepted
                accepted += 1

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize(
    ("check", "answer"),
    [("http://web.example/", b"HTTP/1.1 200 OK\r\n" * 2), ("https://web.example/", HELLO_REQUESTS)],
    ids=["http", "https"],
)
def test_the_loop_runs_between_two_pieces_of_an_answer(
    monkeypatch: pytest.MonkeyPatch, check: str, answer: bytes
) -> None:
    """However fast they come; otherwise no time limit would apply, and nothing else would run."""

    async def run() -> tuple[int, int]:
        loop, pieces, turns = asyncio.get_running_loop(), 0, 0

        async def there(_connection: socket.socket, _most: int) -> bytes:
            nonlocal pieces
            pieces += 1
            return answer[pieces - 1 : pieces]

        def turn() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            monkeypatch.setattr(loop, "sock_recv", there)
            turn()
            await look(listener.getsockname()[1], check)
            return pieces, turns

    pieces, turns = asyncio.run(run())
    assert turns > pieces > 30


@contextmanager
def other_process(answer: bytes, context: ssl.SSLContext | None) -> Iterator[int]:
    """Serve one connection without our event loop; return the port. Without an answer it hangs."""

    def serve() -> None:
        with (
            suppress(OSError),
            listener.accept()[0] as accepted,
            context.wrap_socket(accepted, server_side=True) if context else accepted as connection,
        ):
            while connection.recv(4096):
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        thread = Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # a check by connect leaves it waiting
        thread.join()


@pytest.mark.parametrize(
    ("check", "answer", "expected"),
    [
        ("tcp", HEAD % 200, PASSED),
        ("http://web.example/", HEAD % 200, PASSED),
        ("https://web.example/", HEAD % 200, PASSED),
        ("http://web.example/", b"", failed("no answer within 0.05 s")),
    ],
    ids=["tcp", "http", "https", "hangs"],
)
def test_a_busy_host_is_no_fault_of_the_server(
    authority: Authority, check: str, answer: bytes, expected: Result
) -> None:
    """Each turn of the event loop takes longer than the check may, so it comes late to each answer."""
    context = authority.issue("DNS:web.example") if check.startswith("https:") else None

    async def run(port: int) -> Result:
        loop = asyncio.get_running_loop()

        def turn() -> None:
            time.sleep(0.06)
            loop.call_soon(turn)

        turn()
        return await look(port, check, limit=0.05)

    with other_process(answer, context) as port:
        assert asyncio.run(run(port)) == expected


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let the process have no free descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used, soft), hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("check", ["tcp", "http://web.example/"])
def test_a_full_epoll_is_no_verdict(monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    """Nor is one that is full (fs.epoll.max_user_watches)."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def run() -> Result:
        monkeypatch.setattr("selectors.EpollSelector.register", full)
        return await look(1, check)

    assert asyncio.run(run()) == Result(None, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("check", ["tcp", "http://web.example/"])
def test_a_lack_of_descriptors_is_no_verdict(check: str) -> None:
    """Otherwise a host that is short of them would take all servers out."""

    async def run() -> Result:
        with no_descriptors():
            return await look(1, check)

    assert asyncio.run(run()) == Result(None, os.strerror(errno.EMFILE))


@pytest.mark.parametrize(("address", "check"), [("255.255.255.255", "tcp"), ("255.255.255.255", "http://a/")])
def test_what_this_host_forbids_is_no_verdict(address: str, check: str) -> None:
    """The kernel refuses the address, or has no route: nothing was sent."""
    assert asyncio.run(look(80, check, address=address)).passed is None


def test_no_descriptor_is_left_open() -> None:
    """After checks of all kinds of servers there are as many as before."""

    async def run() -> None:
        async with serving(hang) as hung, serving(answering(HEAD % 200)) as works:
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
            for port in (hung, works, free_port()):
                await asyncio.gather(*(look(port, check) for check in ("tcp", "http://a/", "https://a/")))
            await asyncio.sleep(0.1)
            assert len(os.listdir("/proc/self/fd")) <= before + 8  # noqa: PTH208 - those of the server's side

    asyncio.run(run())
