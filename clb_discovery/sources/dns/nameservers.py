"""DNS servers, queried over UDP (and TCP after truncation), over TCP only, or over TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from contextlib import suppress
from typing import Final

import dns.asyncquery
import dns.inet
from dns.asyncbackend import Backend, StreamSocket  # type: ignore[attr-defined] # exported, but not by name
from dns.message import Message, QueryMessage
from dns.nameserver import AddressAndPortNameserver, Do53Nameserver

from clb_discovery.errors import UsageError
from clb_discovery.model.servers import MAX_PORT

DNS_PORT: Final = 53
TLS_PORT: Final = 853
"""DNS over TLS (RFC 7858 section 3.1)."""

_SHOWN_LENGTH: Final = 80
_LONGEST_NAME: Final = 253
_FORMS: Final = "write IP, IP:PORT or [IPV6]:PORT, after tcp:// or tls:// if you like, and tls://IP#NAME"
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)


class StreamNameserver(AddressAndPortNameserver):
    """A server that is queried over TCP only, or over TLS (RFC 7858).

    Connections are reused (RFC 7766 section 6.2.1), because a TLS handshake costs more than the queries. Callers get a
    copy of a server from `opened`, and close it afterwards.
    """

    def __init__(self, address: str, port: int, name: str | None = None, trust: ssl.SSLContext | None = None) -> None:
        """Take the address; nothing is connected yet.

        :param name: the name in its certificate (RFC 8310), a host name or the address; only with `trust`.
        :param trust: query over TLS, with the authorities in this context; None for TCP.
        """
        super().__init__(address, port)
        self.name = name
        self._trust = trust
        self._idle: list[StreamSocket] = []
        self._closed = False

    def opened(self) -> StreamNameserver:
        """Return the same server with connections of its own."""
        return StreamNameserver(self.address, self.port, self.name, self._trust)

    async def close(self) -> None:
        """Close the idle connections, and the others after their query."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()  # type: ignore[no-untyped-call] # as all of dnspython's back ends

    def kind(self) -> str:
        """Return the scheme, for messages."""
        return "tls" if self._trust else "tcp"

    def is_always_max_size(self) -> bool:
        """Return True: answers are not truncated to fit a datagram."""
        return True

    async def async_query(  # noqa: PLR0913, PLR0917 - the shape of its base class
        self,
        request: QueryMessage,
        timeout: float,  # noqa: ASYNC109 - as above
        source: str | None,  # noqa: ARG002 - as above
        source_port: int,  # noqa: ARG002 - as above
        max_size: bool,  # noqa: ARG002 - as above
        backend: Backend,
        one_rr_per_rrset: bool = False,  # noqa: FBT002 - as above
        ignore_trailing: bool = False,  # noqa: FBT002 - as above
    ) -> Message:
        """Send one query, over an open connection if there is one.

        :raises Exception: what `dns.asyncquery.tls` raises, such as `ssl.SSLCertVerificationError`.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + timeout

        async def ask(connection: StreamSocket) -> Message:
            try:
                response = await dns.asyncquery.tcp(
                    request,
                    self.address,
                    max(0.0, end - clock()),
                    one_rr_per_rrset=one_rr_per_rrset,
                    ignore_trailing=ignore_trailing,
                    sock=connection,
                )
            except BaseException:  # a late answer would be taken for that of the next query
                await connection.close()  # type: ignore[no-untyped-call] # as above
                raise
            self._idle.append(connection)
            if self._closed:
                await self.close()
            return response

        while self._idle:
            with suppress(EOFError, OSError):  # the server may have closed an idle connection
                return await ask(self._idle.pop())
        made = await backend.make_socket(  # type: ignore[no-untyped-call] # as above
            dns.inet.af_for_address(self.address),
            socket.SOCK_STREAM,
            destination=(self.address, self.port),
            timeout=timeout,
            ssl_context=self._trust,
            server_hostname=self.name,
        )
        return await ask(made)


Nameserver = Do53Nameserver | StreamNameserver


def parse_nameserver(text: str) -> Nameserver:
    """Parse one `--resolver` value.

    :param text: `IP`, `IP:PORT` or `[IPV6]:PORT`; optionally with `tcp://` or `tls://` before it, and for TLS with
        `#NAME` behind it if the certificate is not for the address.
    :raises UsageError: if it is anything else.
    """
    shown = repr(text[:_SHOWN_LENGTH])
    scheme, separator, where = text.partition("://")
    if not separator:
        scheme, where = "", text
    elif scheme not in {"tcp", "tls"}:
        raise UsageError(f"--resolver {shown}: {scheme[:_SHOWN_LENGTH]!r} is not a supported scheme; {_FORMS}")
    name: str | None = None
    if scheme == "tls" and "#" in where:
        where, _, name = where.partition("#")
        if len(name) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, name.split("."))):
            raise UsageError(f"--resolver {shown}: {name[:_SHOWN_LENGTH]!r} is not a host name; {_FORMS}")
    address, port = _address_and_port(shown, where, TLS_PORT if scheme == "tls" else DNS_PORT)
    if scheme == "tls":
        return StreamNameserver(address, port, name or address.partition("%")[0], _trust())
    return StreamNameserver(address, port) if scheme else Do53Nameserver(address, port)


def _trust() -> ssl.SSLContext:
    """Return a context that trusts the authorities of the system, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["dot"])  # RFC 7858 registered it
    return context


def _address_and_port(shown: str, text: str, default: int) -> tuple[str, int]:
    """Parse the address and port of a server.

    :param shown: the whole value, for errors.
    :raises UsageError: if it is not an address with or without a port.
    """
    host, port = text, str(default)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"--resolver {shown}: the bracket is not closed before the port; {_FORMS}")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(f"--resolver {shown}: {host[:_SHOWN_LENGTH]!r} is not an IP address; {_FORMS}") from None
    if text.startswith("[") and address.version == 4:
        raise UsageError(f"--resolver {shown}: brackets are for IPv6; {_FORMS}")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= MAX_PORT):
        raise UsageError(f"--resolver {shown}: the port {port[:_SHOWN_LENGTH]!r} is not 1 to {MAX_PORT}; {_FORMS}")
    return destination(str(address)), int(port)


def destination(address: str) -> str:
    """Return the address that answers come from; queries to 0.0.0.0 or :: go to this host's loopback address.

    :param address: an IPv4 or IPv6 literal.
    """
    parsed = ipaddress.ip_address(address)
    if not parsed.is_unspecified:
        return address
    return "127.0.0.1" if parsed.version == 4 else "::1"
