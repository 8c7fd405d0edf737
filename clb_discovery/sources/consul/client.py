"""python-consul2's requests over our transport, with exactly the arguments given."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from consul import base

from clb_discovery.errors import SourceError
from clb_discovery.sources.consul.transport import RIGHTS, StatusError, Transport

_NOTHING_TO_ASK: Final = frozenset({401, 404, 405})  # ACLs are off, or the agent is too old to tell
_STATES_POLICY: Final = "X-Consul-Default-ACL-Policy"  # Consul 1.9 and later


class Client(base.Consul):  # type: ignore[misc]  # python-consul2 ships no types
    """What discovery asks one Consul."""

    def __init__(self, transport: Transport, token: str | None, datacenter: str | None) -> None:
        self._transport = transport
        with _without_consul_environment():
            super().__init__(token=token, dc=datacenter)

    def http_connect(self, *_arguments: object, **_options: object) -> Transport:
        """Return our transport, whatever host the library has in mind."""
        return self._transport

    async def entries(self, service: str, index: int, wait: float) -> tuple[str | None, object]:
        """Return the index header (`None`: missing) and the decoded JSON of `/v1/health/service/<service>`.

        :param index: of the last answer, to wait for a newer one; 0 answers at once.
        :param wait: seconds that Consul holds a query without news.
        :raises SourceError: when Consul does not say, or does not let us see.
        """
        header, entries = await self.health.service(quote(service, safe=""), index=index, wait=f"{wait:g}s")
        if not entries:
            await self._check_rights(service)
        return header, entries

    async def _check_rights(self, service: str) -> None:
        """Make sure that an empty list means "none", and not "none that this token may see".

        Without rights Consul answers an empty list and status 200, and only since 1.11 a header that says so. The
        endpoint that its web interface asks (since 1.7) tells about the token itself.

        :raises SourceError: if the token may not read the service, or its nodes.
        """
        wanted = [
            {"Resource": "service", "Segment": service, "Access": "read"},
            {"Resource": "node", "Segment": "", "Access": "read"},
        ]
        try:
            denied = await self._transport.post(
                _denied,
                "/v1/internal/acl/authorize",
                params=[("dc", self.dc)] if self.dc else None,
                data=json.dumps(wanted),
                headers={"X-Consul-Token": self.token} if self.token else None,
            )
        except StatusError as error:
            if error.status in _NOTHING_TO_ASK:
                return
            raise
        if denied:
            raise SourceError(
                f"{self._transport} answered an empty list, but the token may not read every {' and '.join(denied)}"
                f" that could be in it: {RIGHTS}"
            )


def _denied(response: base.Response) -> list[str]:
    """Return the kinds of resources that the token may not read."""
    grants = json.loads(response.body)
    if not isinstance(grants, list) or not all(isinstance(grant, dict) for grant in grants):
        raise ValueError("no list of objects")
    # A token for some nodes only cannot read all of them, and need not: a newer Consul says when it filtered.
    kinds = {"service"} if _STATES_POLICY in response.headers else {"service", "node"}
    return [
        str(grant["Resource"]) for grant in grants if grant.get("Resource") in kinds and grant.get("Allow") is not True
    ]


@contextlib.contextmanager
def _without_consul_environment() -> Iterator[None]:
    """Hide CONSUL_* from the library's constructor, where the environment would win over the arguments given.

    It reads nothing afterwards. Its deprecation warnings are for its authors.
    """
    hidden = {name: os.environ.pop(name) for name in tuple(os.environ) if name.startswith("CONSUL_")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        os.environ.update(hidden)
