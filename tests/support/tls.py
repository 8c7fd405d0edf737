"""Certificates of an authority for one test, and a TLS server in front of a DNS server."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Final

from tests.support.fake_dns import cancelled

_DAYS: Final = ("-days", "2")
_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        """Make its key and certificate."""
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._folder = folder
        made = ("-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate)
        # Since 3.13 Python verifies strictly by RFC 5280.
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _openssl("req", "-x509", *_KEY, *_DAYS, *made, *usage)

    def issue(self, name: str) -> ssl.SSLContext:
        """Make a key and a certificate for a host name, `DNS:dns.example`, or an address, `IP:127.0.0.1`.

        :returns: a server's context with both.
        """
        stem = name.replace(":", "-")
        key, request, certificate, extension = (
            self._folder / f"{stem}.{part}" for part in ("key", "csr", "pem", "cnf")
        )
        extension.write_text(f"subjectAltName={name}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
        _openssl("req", "-new", *_KEY, "-subj", "/CN=server", "-keyout", key, "-out", request)
        by = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-extfile", extension)
        _openssl("x509", "-req", "-in", request, *by, *_DAYS, "-out", certificate)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        return context


@asynccontextmanager
async def tls_front(
    port: int, context: ssl.SSLContext, listen: tuple[str, int] = ("127.0.0.1", 0)
) -> AsyncIterator[int]:
    """Accept TLS while the block runs, and forward its contents to a port of 127.0.0.1, over TCP.

    :param port: of the DNS server.
    :param listen: the address, and the port or 0 for a free one.
    :returns: the port that accepts TLS.
    """
    serving: set[asyncio.Task[None] | None] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with closing(writer):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))

    server = await asyncio.start_server(serve, *listen, ssl=context)
    async with server:
        found: int = server.sockets[0].getsockname()[1]
        yield found
        await cancelled(serving)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
