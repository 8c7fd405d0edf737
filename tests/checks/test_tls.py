"""Checks over TLS: which certificates pass, handshakes without end, and authorities that change."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from clb_discovery.checks import authorities
from clb_discovery.checks.exchange import Exchange
from clb_discovery.checks.health import Result
from clb_discovery.config.checks import parse_check
from clb_discovery.model.address import parse_address
from clb_discovery.model.check import Check, Request, Target
from tests.support.checked import HEAD, HELLO_REQUESTS, PASSED, TIMEOUT, Handler, answering, failed, hang, look, serving
from tests.support.process import free_port
from tests.support.tls import Authority


@pytest.mark.parametrize(
    ("subject", "check", "verify", "expected"),
    [
        ("DNS:web.example", "https://web.example/", True, PASSED),
        ("IP:127.0.0.1", "https://127.0.0.1/", True, PASSED),
        (
            "DNS:other.example",
            "https://web.example/",
            True,
            failed("certificate: Hostname mismatch, certificate is not valid for 'web.example'."),
        ),
        ("DNS:other.example", "https://web.example/", False, PASSED),
    ],
)
def test_https_verifies_the_name_of_the_url(
    authority: Authority, subject: str, check: str, *, verify: bool, expected: Result
) -> None:
    """The certificate has to be valid for it, unless check-verify is false."""
    context = authority.issue(subject)

    async def run() -> Result:
        async with serving(answering(HEAD % 200), context=context) as port:
            return await look(port, check, verify=verify)

    assert asyncio.run(run()) == expected


def test_the_name_of_the_url_is_that_of_sni(authority: Authority) -> None:
    """A server with several names serves the right one."""
    context, names = authority.issue("DNS:web.example"), list[str | None]()
    context.sni_callback = lambda _tls, name, _context: names.append(name)

    async def run() -> Result:
        async with serving(answering(HEAD % 503), context=context) as port:
            return await look(port, "https://web.example/")

    assert asyncio.run(run()) == failed("HTTP 503")
    assert names == ["web.example"]


@pytest.mark.usefixtures("authority")
def test_an_unknown_authority_fails(tmp_path: Path) -> None:
    """As for every client of the server."""
    context = Authority(tmp_path, "stranger").issue("DNS:web.example")

    async def run() -> Result:
        async with serving(answering(HEAD % 200), context=context) as port:
            return await look(port, "https://web.example/")

    found = asyncio.run(run())
    assert found.passed is False
    assert found.reason.startswith("certificate: ")


@pytest.mark.usefixtures("authority")
def test_a_server_without_tls_fails() -> None:
    """The reason names TLS."""

    async def run() -> Result:
        async with serving(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9)) as port:
            return await look(port, "https://web.example/")

    found = asyncio.run(run())
    assert found.passed is False


@pytest.mark.usefixtures("authority")
def test_a_handshake_that_hangs_fails_in_time() -> None:
    """TLS has no time of its own."""

    async def run() -> tuple[Result, float]:
        async with serving(hang) as port:
            began = time.monotonic()
            return await look(port, "https://web.example/"), time.monotonic() - began

    found, took = asyncio.run(run())
    assert found == failed("no answer within 0.4 s")
    assert took < TIMEOUT + 0.5


def flood(record: bytes) -> Handler:
    """Return a handler that reads nothing and sends a TLS record as fast as it is taken."""

    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(record * 100)
            await writer.drain()

    return handler


@pytest.mark.usefixtures("authority")
def test_a_handshake_without_end_fails() -> None:
    """OpenSSL skips its messages without limit, so the bytes are bounded, not only those of the answer."""

    async def run() -> Result:
        async with serving(flood(HELLO_REQUESTS)) as port:
            return await look(port, "https://web.example/")

    assert asyncio.run(run()) == failed("the server sends more than 131072 bytes under TLS")


def test_a_long_chain_of_certificates_passes(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL allows 100 KiB of it."""
    context = authority.issue("DNS:web.example")
    chain = tmp_path / "chain.pem"
    own, issuer = (tmp_path / "DNS-web.example.pem").read_text(), authority.certificate.read_text()
    chain.write_text(own + issuer * (90_000 // len(ssl.PEM_cert_to_DER_cert(issuer))))
    context.load_cert_chain(chain, tmp_path / "DNS-web.example.key")

    async def run() -> Result:
        async with serving(answering(HEAD % 200), context=context) as port:
            return await look(port, "https://web.example/")

    assert asyncio.run(run()) == PASSED


def test_tls_that_cannot_be_set_up_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is on this host."""

    def broken() -> ssl.SSLContext:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(ssl, "create_default_context", broken)
    found = asyncio.run(look(free_port(), "https://web.example/"))
    assert found.passed is None
    assert found.reason.startswith("TLS on this host")


NO_AUTHORITY = Result(None, "TLS on this host: no certificate authority can be read")


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock by which authorities grow old."""
    made = Clock()
    monkeypatch.setattr(authorities, "monotonic", made)
    return made


@asynccontextmanager
async def https(
    authority: Authority, exchange: Exchange | None = None
) -> AsyncIterator[Callable[[], Awaitable[Result]]]:
    """Serve https, and return a function that checks it."""
    context, exchange = authority.issue("DNS:web.example"), exchange or Exchange("1")
    async with serving(answering(HEAD % 200), context=context) as port:
        found = Check(parse_check("https://web.example/") or Request(), 2.0, TIMEOUT)
        yield partial(exchange.check, Target(parse_address("127.0.0.1"), port, found))


def test_replaced_authorities_are_read_again(tmp_path: Path, authority: Authority, clock: Clock) -> None:
    """When a verification fails, at most once a minute."""
    wanted = Authority(tmp_path, "new")

    async def run() -> None:
        async with https(wanted) as check:
            assert (await check()).passed is False
            authority.certificate.write_text(wanted.certificate.read_text())
            clock.now += 59
            assert (await check()).passed is False
            clock.now += 1
            assert await check() == PASSED

    asyncio.run(run())


def test_authorities_that_verify_are_not_read_again(authority: Authority, clock: Clock) -> None:
    """It takes milliseconds of a processor."""

    async def run() -> None:
        async with https(authority) as check:
            assert await check() == PASSED
            authority.certificate.unlink()
            clock.now += 3600
            assert await check() == PASSED

    asyncio.run(run())


def test_authorities_that_cannot_be_read_are_no_verdict(
    tmp_path: Path, authority: Authority, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is on this host; it is over a minute after they are there."""
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}:/nonexistent")

    async def run() -> None:
        async with https(authority) as check:
            away = authority.certificate.rename(tmp_path / "away")
            assert await check() == NO_AUTHORITY
            away.rename(authority.certificate)
            assert await check() == NO_AUTHORITY
            clock.now += 60
            assert await check() == PASSED

    asyncio.run(run())


def test_authorities_may_be_in_a_folder(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each under the hash of its name; there is no bundle then."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", f"/nonexistent:{folder}")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    hashed = ("openssl", "x509", "-noout", "-hash", "-in", str(authority.certificate))
    name = subprocess.run(hashed, check=True, capture_output=True, text=True).stdout.strip()
    (folder / f"{name}.0").symlink_to(authority.certificate)

    async def run() -> Result:
        async with https(authority) as check:
            return await check()

    assert asyncio.run(run()) == PASSED


@pytest.mark.usefixtures("clock")
def test_a_reload_reads_the_authorities_again(tmp_path: Path, authority: Authority) -> None:
    """Also those that were removed, which no failed verification shows."""
    exchange = Exchange("1")

    async def run() -> tuple[Result, Result]:
        async with https(authority, exchange) as check:
            before = await check()
            authority.certificate.write_text(Authority(tmp_path, "other").certificate.read_text())
            exchange.reload()
            return before, await check()

    before, after = asyncio.run(run())
    assert before == PASSED
    assert after.passed is False
