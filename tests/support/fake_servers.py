"""The elements of real servers as the maps have them, and what the sidecar says of them, without a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Server, Steering

HEALTHY: Final = elements.unpack_server(elements.NEW_SERVER)._replace(began=1)
"""A server that has had a connect."""


class FakeServers:
    """The part of `Maps` with servers and verdicts, by index."""

    def __init__(self, count: int) -> None:
        """Make healthy servers of which nothing was said."""
        self.servers: list[Server] = [HEALTHY] * count
        self.said = [Steering(0, 0)] * count

    def raw_server(self, index: int) -> bytes:
        """Return one server."""
        return structs.SERVER.struct.pack(*self.servers[index])

    def raw_servers(self, count: int) -> bytes:
        """Return the first ones."""
        return b"".join(map(self.raw_server, range(count)))

    def raw_steering(self, count: int) -> bytes:
        """Return what was said of the first ones."""
        return b"".join(map(elements.pack_steering, self.said[:count]))

    def steering(self, index: int) -> Steering:
        """Return what was said of one."""
        return self.said[index]

    def steer(self, said: Mapping[int, Steering]) -> None:
        """Say something of some."""
        for index, one in said.items():
            self.said[index] = one
