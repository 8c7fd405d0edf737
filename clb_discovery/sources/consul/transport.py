"""Our transport under python-consul2: one aiohttp session with keep-alive for every query to one Consul.

python-consul2 builds the requests and parses the answers; this module decides everything about the connection. The
library's own asyncio client opens a session per request and has no time-outs. Anything but a complete good answer is
raised as a `SourceError`, so that an error can never be mistaken for an empty list.
"""

from __future__ import annotations

import errno
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver
from yarl import URL

from clb_discovery.errors import SourceError
from clb_discovery.sources.consul.address import ConsulAddress
from clb_discovery.sources.consul.blocking import MARGIN, client_timeout, is_long
from clb_discovery.sources.consul.library import base
from clb_discovery.sources.consul.secret_files import SecretFile

MAX_BODY: Final = 64 << 20
"""Largest answer that is accepted, in bytes."""
CONNECT_TIMEOUT: Final = 5.0
"""Seconds after which a connection that was not accepted counts as failed."""
MAX_STALE: Final = 10.0
"""If the answering server had no contact to its leader for more seconds, the query is repeated at the leader."""

SERVICE: Final = "/v1/health/service/"
"""Path of the instances of a service."""
CHECKS: Final = "/v1/health/state/any"
"""Path of all checks."""
SERVICES: Final = "/v1/catalog/services"
"""Path of the names of all services."""
NODES: Final = "/v1/catalog/nodes"
"""Path of all nodes."""
SUMMARIES: Final = "/v1/internal/ui/services"
"""Path of a summary of all services."""
SELF: Final = "/v1/agent/self"
"""Path of the agent's own settings."""
INDEX: Final = "X-Consul-Index"
TOKEN: Final = "X-Consul-Token"  # noqa: S105  # the header's name
AUTHORIZATION: Final = "Authorization"
ANY_SERVER: Final = ("stale", "")
"""The parameter of a query that any server may answer."""
CONSISTENTLY: Final = ("consistent", "")
"""The parameter of a query that only the leader may answer, confirmed by a quorum and with its whole log applied."""
_HEADERS: Final = {
    "Accept-Encoding": "identity",  # so that a body cannot grow when it is decompressed
    "Cache-Control": "no-cache",  # for a cache on the way; Consul ignores this directive
}
_BLOCKING: Final = frozenset({"index", "wait"})
_LAST_CONTACT: Final = "X-Consul-LastContact"  # milliseconds since the answering server's last contact to its leader
_KNOWN_LEADER: Final = "X-Consul-KnownLeader"
_FILTERED: Final = "X-Consul-Results-Filtered-By-ACLs"  # Consul 1.11 and later

_SHOWN: Final = 200
_SECRET: Final = 16
"""Bytes of a secret from which on it is hidden in answers that are parsed: a shorter one may be a word in them."""
RIGHTS: Final = "it needs service:read and node:read; set --consul-token-file or CONSUL_HTTP_TOKEN"
_AGAIN: Final = "the query is repeated"
_BAD_FILTER: Final = b"Failed to create boolean expression"  # comes with status 500
_ADVICE: Final = {
    400: "is a --filter, --near, --namespace or --partition wrong?",
    401: "set --consul-token-file or CONSUL_HTTP_TOKEN, or CONSUL_HTTP_AUTH if a proxy requires it",
    403: f"the token is rejected: {RIGHTS}",
    429: "are there too many connections from this host? See its limits.http_max_conns_per_client",
}

_LABELS: Final = {TOKEN: b"<token>", AUTHORIZATION: b"<password>"}
"""The text that replaces a secret, by the header that has it: a server, or a proxy, may repeat its request."""

_CUT: Final = frozenset({408, 502, 503, 504, 524})
"""Status codes of proxies for a query that took too long."""

_log = structlog.stdlib.get_logger()

Callback = Callable[[base.Response], Any]
Params = Sequence[tuple[str, object]]


class Tls(NamedTuple):
    """Settings for https."""

    context: ssl.SSLContext
    name: str | None
    """Name expected in the certificate, if not the host of the address."""
    certificate: SecretFile[None] | None = None
    """Loads the current client certificate into the context; open connections keep theirs."""


class BrokenOffError(SourceError):
    """A query ended without an answer, for example because a proxy cut it or a path dropped its packets."""


class HostNameError(OSError):
    """The host name of the agent cannot be looked up: a bounded clause that includes the fix."""


class StatusError(SourceError):
    """Consul answered with a status other than 200."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Transport(base.HTTPClient):  # type: ignore[misc]  # python-consul2 ships no types
    """The connection to one Consul agent, for python-consul2: `get` and `post` return `callback(response)`.

    Paths are already escaped. Use it in one event loop; the first request opens the session.
    """

    def __init__(
        self,
        address: ConsulAddress,
        tls: Tls | None,
        auth: str | None = None,
        resolver: AbstractResolver | None = None,
        *,
        margin: float = MARGIN,
    ) -> None:
        """Prepare the transport; nothing is connected yet.

        :param tls: settings for https; `None` for the system's authorities and the address's host.
        :param auth: value of the Authorization header.
        :param resolver: resolver of the agent's host name, which raises HostNameError; `None` for aiohttp's own.
        :param margin: seconds that a query may take beyond its wait.
        """
        super().__init__()
        self._address = address
        self._tls = tls
        self._auth = {AUTHORIZATION: auth} if auth else {}
        self._resolver = resolver
        self._margin = margin
        self._session: aiohttp.ClientSession | None = None

    def __str__(self) -> str:
        return str(self._address)

    def uri(self, path: str, params: Params | None = None) -> str:
        """Return the URL of an escaped path."""
        return f"{self._address.base}{path}" + (f"?{urlencode(params)}" if params else "")

    async def get(
        self, callback: Callback, path: str, params: Params | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:  # noqa: ANN401  # the callback's result
        """Send a GET request.

        A blocking query that was cut is repeated without waiting. A `stale` query is repeated at the leader if
        it reached a server without contact to its leader, or one that is behind an earlier answer. Each is repeated
        once.

        :raises SourceError: if there is no complete good answer, or ACLs have filtered all of it.
        """
        params = params or ()
        given = dict(params)
        # Without the index, so that Consul responds at once, whether or not the answer is newer.
        now = [(name, value) for name, value in params if name not in _BLOCKING]
        response = await self._long_poll(path, params, headers) if "wait" in given and "index" in given else None
        if response is None:
            response = await self._request("GET", self.uri(path, now), headers, self._margin)
        went_back = _is_before(response.headers.get(INDEX), given.get("index"))
        if ANY_SERVER in params and (went_back or self._out_of_touch(response.headers)):
            _log.debug(
                "stale answer is not used; the query is repeated at the leader",
                path=path,
                mode="consistent" if went_back else "default",
                index=response.headers.get(INDEX, "")[:_SHOWN],
                last_contact=response.headers.get(_LAST_CONTACT, "")[:_SHOWN],
                known_leader=response.headers.get(_KNOWN_LEADER, "")[:_SHOWN],
            )
            leader = [*(one for one in now if one != ANY_SERVER), *([CONSISTENTLY] if went_back else [])]
            response = await self._request("GET", self.uri(path, leader), headers, self._margin)
        filtered = path.startswith((SERVICE, SUMMARIES)) and response.headers.get(_FILTERED) == "true"
        if filtered and not response.content.strip(b"[] \r\n"):
            raise SourceError(f"{self._address} filtered the whole answer by ACLs: the token lacks rights; {RIGHTS}")
        # python-consul2 raises a bare KeyError for a missing index; None passes, and `next_index` rejects it.
        response.headers.setdefault(INDEX, None)
        return self._read(callback, response, headers)

    async def _long_poll(self, path: str, params: Params, headers: Mapping[str, str] | None) -> base.Response | None:
        """Return the answer to a blocking query; `None` if it was held and then cut.

        :raises SourceError: if there is no complete good answer for another reason.
        """
        wait = float(str(dict(params)["wait"]).removesuffix("s"))
        started = time.monotonic()
        try:
            return await self._request("GET", self.uri(path, params), headers, client_timeout(wait, self._margin))
        except (BrokenOffError, StatusError) as error:
            elapsed = time.monotonic() - started
            if not is_long(elapsed, wait) or (isinstance(error, StatusError) and error.status not in _CUT):
                raise
            _log.debug("long poll was cut; it is repeated without waiting", seconds=round(elapsed, 1), error=str(error))
            return None

    async def post(
        self,
        callback: Callback,
        path: str,
        params: Params | None = None,
        data: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # noqa: ANN401  # the callback's result
        """Send a body in a POST request, and return the callback's result.

        :raises SourceError: if there is no complete good answer.
        """
        response = await self._request("POST", self.uri(path, params), headers, self._margin, data)
        return self._read(callback, response, headers)

    def put(self, *_arguments: object, **_options: object) -> Any:  # noqa: ANN401  # python-consul2's signature
        """Not supported: discovery only reads."""
        raise NotImplementedError

    delete = put

    async def close(self) -> None:
        """Close every connection. A later request opens a new session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Every blocking query holds a connection, so with a limit some would starve others.
            connector: aiohttp.BaseConnector
            if self._address.socket is not None:
                connector = aiohttp.UnixConnector(self._address.socket, limit=0)
            else:
                connector = aiohttp.TCPConnector(
                    limit=0, ssl=self._tls.context if self._tls else True, resolver=self._resolver
                )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS | self._auth,
                auto_decompress=False,
            )
        return self._session

    async def _request(
        self, method: str, uri: str, headers: Mapping[str, str] | None, limit: float, data: str | None = None
    ) -> base.Response:
        """Return the complete answer, with status 200, without the request's secrets.

        :param limit: seconds for the whole exchange.
        :raises SourceError: in all other cases.
        """
        if self._tls and self._tls.certificate:
            self._tls.certificate.get()
        try:
            async with self._open().request(
                method,
                URL(uri, encoded=True),
                headers=headers,
                data=data,
                timeout=aiohttp.ClientTimeout(total=limit, sock_connect=CONNECT_TIMEOUT),
                allow_redirects=False,
                server_hostname=self._tls.name if self._tls else None,
            ) as answer:
                body = await self._body(answer)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            kind = BrokenOffError if _is_broken_off(error) else SourceError
            raise kind(f"{self._address} {_trouble(error, limit, self._secrets(headers))}") from error
        secrets = self._secrets(headers)
        if answer.status != 200:
            excerpt = _excerpt(body, secrets)
            advice = _ADVICE.get(400 if body.startswith(_BAD_FILTER) else answer.status, _AGAIN)
            raise StatusError(f"{self._address} returned {answer.status} {excerpt}; {advice}", answer.status)
        long = {secret: label for secret, label in secrets.items() if len(secret) >= _SECRET}
        return base.Response(answer.status, answer.headers.copy(), "", _hidden(body, long))

    def _secrets(self, headers: Mapping[str, str] | None) -> Mapping[bytes, bytes]:
        """Return the secrets in the headers of a request, each with the text that replaces it."""
        sent = {**self._auth, **(headers or {})}
        return {sent[name].removeprefix("Basic ").encode(): label for name, label in _LABELS.items() if name in sent}

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY:
                raise SourceError(f"{self._address} returned more than {MAX_BODY >> 20} MiB; is this Consul?")
        return bytes(body)

    def _out_of_touch(self, headers: Mapping[str, str]) -> bool:
        """Return whether the answering server had no contact to its leader for too long.

        Without the headers it had contact: agents that stream from the servers do not send them.
        """
        since = headers.get(_LAST_CONTACT, "0")
        number = int(since) if since.isascii() and since.isdigit() and len(since) <= _SHOWN else None
        return number is None or number > MAX_STALE * 1000 or headers.get(_KNOWN_LEADER) == "false"

    def _read(self, callback: Callback, response: base.Response, headers: Mapping[str, str] | None) -> Any:  # noqa: ANN401  # the callback's
        try:
            return callback(response._replace(body=response.content.decode()))
        except (ValueError, RecursionError) as error:
            excerpt = _excerpt(response.content, self._secrets(headers))
            raise SourceError(f"{self._address} returned invalid JSON: {excerpt}; is this Consul?") from error


def _excerpt(body: bytes, secrets: Mapping[bytes, bytes]) -> str:
    """Return the start of a body, escaped, without the secrets."""
    text = _hidden(body, secrets)[: 4 * _SHOWN].decode(errors="replace").strip()
    return repr(text[:_SHOWN])


def _hidden(text: bytes, secrets: Mapping[bytes, bytes]) -> bytes:
    """Return a text without the secrets; this comes before it is cut, because a part of a secret is one, too."""
    for secret, label in secrets.items():
        text = text.replace(secret, label)
    return text


def _is_before(header: str | None, index: object) -> bool:
    """Return whether a server is behind an earlier answer: it was restored, or has not applied its whole log."""
    return header is not None and header.isascii() and header.isdigit() and int(header[:_SHOWN]) < int(str(index or 0))


def _is_broken_off(error: aiohttp.ClientError | OSError) -> bool:
    """Return whether a connection was established, and then closed or silent before there was an answer."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError):
        return False
    return isinstance(error, TimeoutError) or _is_closed(error)


def _is_closed(error: aiohttp.ClientError | OSError) -> bool:
    return isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError) or (
        isinstance(error, OSError) and error.errno in {errno.ECONNRESET, errno.EPIPE}
    )


def _trouble(error: aiohttp.ClientError | OSError, limit: float, secrets: Mapping[bytes, bytes]) -> str:
    """Return what went wrong with a connection, and what to check."""
    if isinstance(error, aiohttp.ServerTimeoutError):
        return f"did not accept a connection within {CONNECT_TIMEOUT:g} s; is the agent running, and a firewall open?"
    if isinstance(error, TimeoutError):
        return f"did not answer within {limit:g} s; is the agent overloaded?"
    # Without an errno the error around it shows `[None]`: a host name that cannot be looked up, or several errors.
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, HostNameError):
        return f"cannot be reached: {inner}"
    text = _hidden(str(inner).encode(errors="replace"), secrets).decode()
    cause = " ".join(text.split())[:_SHOWN] or type(error).__name__
    if isinstance(error, aiohttp.ClientSSLError):
        return f"failed in TLS: {cause}; look at --consul-ca-file (CONSUL_CACERT) and at the agent's certificate"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        cause = os.strerror(error.errno)
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be reached: {cause}; is the agent running there?"
    # Above its limit an agent closes a new connection; that is a reset if the query was already sent.
    return f"broke off: {cause}; {_ADVICE[429] if _is_closed(error) else _AGAIN}"
