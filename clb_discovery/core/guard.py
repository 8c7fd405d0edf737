"""The guard between discovery and desired state: an answer that removes much has to stand for a while first.

Each service has one state per address family, since each family is a pool of its own. Time comes in as a number of
seconds on any clock that does not go backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from clb_discovery.core.address import Address, is_ipv4
from clb_discovery.core.model import Policy, RealServer

Servers = tuple[RealServer, ...]

_ENDPOINT: Final = attrgetter("address", "port")


@dataclass(frozen=True, slots=True)
class Pending:
    """An answer that removes too much, and since when it stands."""

    servers: Servers
    since: float


@dataclass(frozen=True, slots=True)
class Family:
    """The state of one pool's worth of real servers."""

    good: Servers = ()
    pending: Pending | None = None


@dataclass(frozen=True, slots=True)
class Guarded:
    """The state of one service."""

    ipv4: Family = Family()
    ipv6: Family = Family()

    @property
    def good(self) -> Servers:
        """The real servers that count now, both families."""
        return self.ipv4.good + self.ipv6.good

    @property
    def held(self) -> bool:
        """Tell whether an answer is being held back."""
        return self.ipv4.pending is not None or self.ipv6.pending is not None

    @property
    def withheld(self) -> tuple[int, int]:
        """How many real servers the held answers would remove, and of how many; by address and port."""
        held = [
            (_endpoints(family.good), _endpoints(family.pending.servers))
            for family in (self.ipv4, self.ipv6)
            if family.pending
        ]
        return sum(len(good - answer) for good, answer in held), sum(len(good) for good, _ in held)

    def deadline(self, policy: Policy) -> float | None:
        """Return when a held answer may count, or None if none is held."""
        pending = [family.pending.since for family in (self.ipv4, self.ipv6) if family.pending]
        return min(pending) + policy.hold if pending else None


def seed(servers: Sequence[RealServer]) -> Guarded:
    """Start from what the kernel holds, so that a restart is guarded like any other moment."""
    ipv4, ipv6 = _split(servers)
    return Guarded(Family(ipv4), Family(ipv6))


def admit(state: Guarded, answer: Sequence[RealServer], policy: Policy, now: float) -> Guarded:
    """Take a valid answer: count it, or hold it back if it removes too much."""
    ipv4, ipv6 = _split(answer)
    return Guarded(_admit(state.ipv4, ipv4, policy, now), _admit(state.ipv6, ipv6, policy, now))


def interrupt(state: Guarded) -> Guarded:
    """Take a failure: what was held does not stand any more, and has to be said again and stand anew."""
    return Guarded(Family(state.ipv4.good), Family(state.ipv6.good))


def elapse(state: Guarded, policy: Policy, now: float) -> Guarded:
    """Let time pass: what has stood long enough counts."""
    return Guarded(_elapse(state.ipv4, policy, now), _elapse(state.ipv6, policy, now))


def _admit(family: Family, answer: Servers, policy: Policy, now: float) -> Family:
    if not _removes_much(family.good, answer, policy):
        return Family(answer)
    stands = family.pending is not None and _endpoints(family.pending.servers) == _endpoints(answer)
    since = family.pending.since if family.pending and stands else now
    return _elapse(Family(family.good, Pending(answer, since)), policy, now)


def _elapse(family: Family, policy: Policy, now: float) -> Family:
    if family.pending and now >= family.pending.since + policy.hold:  # the sum that `deadline` gives
        return Family(family.pending.servers)
    return family


def _removes_much(good: Servers, answer: Servers, policy: Policy) -> bool:
    before = _endpoints(good)
    removed = len(before - _endpoints(answer))
    return removed > 0 and (removed == len(before) or removed > policy.max_removal * len(before))


def _endpoints(servers: Servers) -> frozenset[tuple[Address, int]]:
    return frozenset(map(_ENDPOINT, servers))


def _split(servers: Sequence[RealServer]) -> tuple[Servers, Servers]:
    """Return both families, sorted, so that an answer in another order is an equal one."""
    ipv4: list[RealServer] = []
    ipv6: list[RealServer] = []
    for server in sorted(servers):
        (ipv4 if is_ipv4(server.address) else ipv6).append(server)
    return tuple(ipv4), tuple(ipv6)
