"""The queries to Consul, by python-consul2 over our own transport, with exactly the given arguments."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import structlog

from clb_discovery.errors import SourceError
from clb_discovery.sources.consul.blocking import FIRST, next_index
from clb_discovery.sources.consul.library import base
from clb_discovery.sources.consul.opt_in import META_VIP
from clb_discovery.sources.consul.secret_files import SecretFile
from clb_discovery.sources.consul.transport import (
    ANY_SERVER,
    CONSISTENTLY,
    RIGHTS,
    SELF,
    SUMMARIES,
    TOKEN,
    Callback,
    Params,
    StatusError,
    Transport,
)

_CANNOT_TELL: Final = frozenset({401, 404, 405})  # ACLs are off, or the agent is too old for this endpoint
_NOT_PASSING: Final = 'Status != "passing"'
_NODES_RIGHT: Final = {"Resource": "node", "Segment": "", "Access": "read"}
_OPTS_IN: Final = f'"{META_VIP}" in Service.Meta and Service.Kind == ""'

_log = structlog.stdlib.get_logger()

Mode = tuple[tuple[str, str], ...]
"""Consistency mode: which servers may answer, as a query parameter."""
STALE: Final[Mode] = (ANY_SERVER,)
"""Any server may answer, however old its state is."""
CONSISTENT: Final[Mode] = (CONSISTENTLY,)
"""The leader answers, once a quorum has confirmed it and it has applied its log: its state is at least as new as that
of any other server. Without this parameter it may answer before, when it was just elected."""

Indexed = tuple[str | None, object]
"""The index header (`None`: missing) and the decoded JSON."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which part of Consul to query; empty for the agent's own."""

    datacenter: str | None = None
    namespace: str | None = None
    """Consul Enterprise."""
    partition: str | None = None
    """Consul Enterprise."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which instances of a service to return, and what to read of them; empty for all, as registered."""

    near: str | None = None
    """Sort by the distance from this node (`_agent` for the agent's own)."""
    filter: str | None = None
    """Consul's filter expression over instances."""
    tags: tuple[str, ...] = ()
    """Only instances with all of these tags."""
    tagged_address: str | None = None
    """Name of the tagged address to use instead of an instance's own, if the instance has it."""
    zone_key: str | None = None
    """Name of the meta of an instance, or else of its node, that has its zone; `None` if zones are not needed."""


OWN: Final = Scope()
ALL: Final = Selection()


class Client:
    """The queries of discovery to one Consul."""

    def __init__(self, transport: Transport, token: str | SecretFile[str] | None, scope: Scope) -> None:
        """Prepare; no query is sent yet.

        :param token: ACL token, or the file that holds it, or None for the agent's own.
        """
        self._transport = transport
        self._token = token
        self._datacenter = scope.datacenter
        self._scope = _given([("ns", scope.namespace), ("partition", scope.partition)])
        self._catalog = {mode: self._library(*mode) for mode in (STALE, CONSISTENT)}
        self._checks = self._library(("filter", _NOT_PASSING), *STALE)
        self._services: dict[tuple[Selection, Mode], _Library] = {}

    def __str__(self) -> str:
        """Return `Consul at http://127.0.0.1:8500`."""
        return str(self._transport)

    def next_index(self, path: str, header: str | None, previous: int) -> int:
        """Return the index of the next query, by the rules of `blocking.next_index`.

        :param path: of the query that was answered, for the log.
        :raises SourceError: if the header is missing or is not an index.
        """
        try:
            index = next_index(header, previous)
        except SourceError as error:
            raise SourceError(f"{self}: {error}") from None
        if index == FIRST:
            _log.debug("index went backwards; the next query does not wait", path=path, previous=previous, index=header)
        elif index == previous:
            _log.debug("index has not changed", path=path, index=index)
        else:
            _log.debug("index has changed", path=path, previous=previous, index=index)
        return index

    async def entries(self, service: str, selection: Selection, index: int, wait: float, mode: Mode = STALE) -> Indexed:
        """Query `/v1/health/service/<service>`.

        :param index: of the last answer, to wait for a newer one; with 0 Consul responds at once.
        :param wait: seconds that Consul holds a query without a change.
        :param mode: which servers may answer.
        :raises SourceError: if there is no complete answer, or the token lacks rights.
        """
        library = self._services.get((selection, mode))
        if library is None:
            wanted = [("near", selection.near), ("filter", selection.filter), *(("tag", tag) for tag in selection.tags)]
            library = self._library(*_given(wanted), *mode)
            self._services[selection, mode] = library
        header, entries = await library.health.service(quote(service, safe=""), index=index, wait=_seconds(wait))
        if not entries:
            await self._check_rights(_service_right(service), _NODES_RIGHT)
        return header, entries

    async def checks(self, index: int, wait: float) -> Indexed:
        """Query all checks that are not passing; every change of a check changes the index.

        :raises SourceError: if there is no complete answer.
        """
        found: Indexed = await self._checks.health.state("any", index=index, wait=_seconds(wait))
        return found

    async def services(self, index: int, wait: float, mode: Mode = STALE) -> Indexed:
        """Query the names of all services; every instance that is registered or deregistered changes the index.

        :param mode: `STALE` or `CONSISTENT`.
        :raises SourceError: if there is no complete answer.
        """
        found: Indexed = await self._catalog[mode].catalog.services(index=index, wait=_seconds(wait))
        return found

    async def summaries(self) -> object:
        """Query all services with an instance whose meta opts in; return decoded JSON.

        No documented endpoint returns the meta of all services. Consul's web interface uses this one; the servers
        evaluate its filter. The leader answers, because another server may be behind a change that was reported.

        :raises SourceError: if there is no complete answer.
        """
        wanted = [*_given([("dc", self._datacenter)]), *self._scope, ("filter", _OPTS_IN), *CONSISTENT]
        found = await self._transport.get(
            lambda response: json.loads(response.body), SUMMARIES, wanted, self._headers()
        )
        if not found:
            await self._check_rights(_NODES_RIGHT)
        return found

    async def own_meta(self) -> object:
        """Query the meta of the agent's own node; return decoded JSON.

        :raises SourceError: if there is no complete answer; a `StatusError` with status 403 without `agent:read`.
        """
        found = await self._transport.get(lambda response: json.loads(response.body), SELF, None, self._headers())
        return found.get("Meta") if isinstance(found, dict) else None

    async def nodes(self, index: int, wait: float) -> Indexed:
        """Query all nodes; every change of a node's address changes the index.

        :raises SourceError: if there is no complete answer.
        """
        found: Indexed = await self._catalog[STALE].catalog.nodes(index=index, wait=_seconds(wait))
        return found

    def _library(self, *added: tuple[str, str]) -> _Library:
        return _Library(_Adding(self._transport, [*self._scope, *added], self._headers), self._datacenter)

    def _headers(self) -> dict[str, str]:
        token = self._token.get() if isinstance(self._token, SecretFile) else self._token
        return {TOKEN: token} if token else {}

    async def _check_rights(self, *wanted: Mapping[str, str]) -> None:
        """Make sure that an empty list means "none", and not "none that this token may see".

        Without rights Consul returns an empty list with status 200. Since 1.11 a header reports it, but not for the
        anonymous token, and no header tells that this Consul would report it. The endpoint that its web interface uses
        (since 1.7) returns the rights of the token itself.

        :param wanted: the rights that are needed.
        :raises SourceError: if the token lacks one of them.
        """
        try:
            granted = await self._transport.post(
                _granted,
                "/v1/internal/acl/authorize",
                params=[*_given([("dc", self._datacenter)]), *self._scope] or None,
                data=json.dumps(wanted),
                headers=self._headers(),
            )
        except StatusError as error:
            if error.status in _CANNOT_TELL:
                return
            raise
        denied = [right["Resource"] for right in wanted if right["Resource"] not in granted]
        if denied:
            raise SourceError(
                f"{self._transport} returned an empty list, but the token may not read every {' and '.join(denied)}"
                f" that could be in it: {RIGHTS}"
            )


class _Adding(base.HTTPClient):  # type: ignore[misc]  # python-consul2 ships no types
    """Our transport; adds parameters and headers that the library does not know to each request."""

    def __init__(self, transport: Transport, added: Params, headers: Callable[[], Mapping[str, str]]) -> None:
        self._transport = transport
        self._added = added
        self._headers = headers

    async def get(
        self, callback: Callback, path: str, params: Params | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:  # noqa: ANN401  # the callback's result
        """Send a GET request with the caller's parameters and headers and those added."""
        both = {**(headers or {}), **self._headers()}
        return await self._transport.get(callback, path, [*(params or ()), *self._added], both)

    def put(self, *_arguments: object, **_options: object) -> Any:  # noqa: ANN401  # python-consul2's signature
        """Not supported: discovery only reads."""
        raise NotImplementedError

    post = delete = put


class _Library(base.Consul):  # type: ignore[misc]  # python-consul2 ships no types
    """python-consul2 over a given connection, whatever its default host is."""

    def __init__(self, connection: _Adding, datacenter: str | None) -> None:
        self._connection = connection
        with _without_consul_environment():
            super().__init__(dc=datacenter)

    def http_connect(self, *_arguments: object, **_options: object) -> _Adding:
        """Return the connection."""
        return self._connection


def _service_right(service: str) -> dict[str, str]:
    return {"Resource": "service", "Segment": service, "Access": "read"}


def _given(params: Iterable[tuple[str, str | None]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in params if value]


def _seconds(wait: float) -> str:
    return f"{wait:g}s"


def _granted(response: base.Response) -> set[str]:
    """Return the kinds of resources that the token may read."""
    grants = json.loads(response.body)
    if not isinstance(grants, list) or not all(isinstance(grant, dict) for grant in grants):
        raise ValueError("no list of objects")
    return {str(grant.get("Resource")) for grant in grants if grant.get("Allow") is True}


@contextlib.contextmanager
def _without_consul_environment() -> Iterator[None]:
    """Hide CONSUL_* from the library's constructor, where the environment would override the given arguments.

    The library does not read the environment later. Its deprecation warnings concern its authors.
    """
    hidden = {name: os.environ.pop(name) for name in tuple(os.environ) if name.startswith("CONSUL_")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        os.environ.update(hidden)
