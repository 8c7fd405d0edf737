"""A DNS server in memory, without sockets: for rules that hold for any sequence of answers, and for fuzzing."""

from __future__ import annotations

import asyncio

from dns.asyncbackend import Backend  # type: ignore[attr-defined] # exported, but not by name
from dns.message import Message, QueryMessage, from_wire
from dns.nameserver import AddressAndPortNameserver
from dns.query import BadResponse

from clb_discovery.sources.dns.exchange import Servers
from clb_discovery.sources.dns.resolvers import Resolvers


class InMemory(AddressAndPortNameserver):
    """Answers at once with what `respond`, or `wire`, returns."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1", 53)

    def kind(self) -> str:
        """Return the kind of an ordinary server."""
        return "Do53"

    def respond(self, request: QueryMessage) -> Message:
        """Return the response to a query."""
        raise NotImplementedError

    def wire(self, request: QueryMessage) -> bytes:
        """Return the bytes of the response to a query."""
        return self.respond(request).to_wire()

    async def async_query(  # noqa: PLR0917 - the shape of its base class
        self,
        request: QueryMessage,
        timeout: float,  # noqa: ARG002, ASYNC109 - as above
        source: str | None,  # noqa: ARG002 - as above
        source_port: int,  # noqa: ARG002 - as above
        max_size: bool,
        backend: Backend,  # noqa: ARG002 - as above
        one_rr_per_rrset: bool = False,  # noqa: ARG002, FBT002 - as above
        ignore_trailing: bool = False,  # noqa: ARG002, FBT002 - as above
    ) -> Message:
        """Answer; the bytes are read as dnspython reads those from a socket."""
        await asyncio.sleep(0)
        response = from_wire(self.wire(request), raise_on_truncation=not max_size)
        if not request.is_response(response):
            raise BadResponse
        return response


class Only(Resolvers):
    """Resolvers with one server."""

    def __init__(self, server: InMemory, lifetime: float = 1.0) -> None:
        """Prepare.

        :param lifetime: seconds for one query.
        """
        super().__init__(["127.0.0.1"])
        self._only = Servers([server], (lifetime,), lifetime=lifetime)

    def current(self) -> Servers:
        """Return it."""
        return self._only
