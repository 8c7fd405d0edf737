"""SRV sources with the fake DNS server."""

from __future__ import annotations

import random

from clb_discovery.model.answer import Answer
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.fake_dns import FakeDns

NAME = "_redis._tcp.example"
SRV = (f"{NAME}.", "SRV")
SOA = "example. 60 SOA ns. admin. 1 3600 600 86400 30"


class Always(random.Random):
    """Gives the same number every time."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self._number = number

    def random(self) -> float:
        """Return the number."""
        return self._number


def source(
    server: FakeDns, name: str = NAME, *, min_ttl: float = 1.0, chance: float = 0.0, lifetime: float = 0.8
) -> SrvSource:
    """Build a source with short time-outs and a fixed jitter."""
    return SrvSource(name, Resolvers([server.address], lifetime=lifetime), min_ttl, rng=Always(chance))


def records(*data: str, ttl: int = 60) -> list[str]:
    """Return SRV lines for the name under test."""
    return [f"{NAME}. {ttl} SRV {one}" for one in data]


def shown(answer: Answer) -> list[str]:
    """Return the servers as text: priority, weight, address and port."""
    return [f"{server.priority} {server.weight} {server}" for server in answer.servers]
