"""Whether a real server is out of service, as the programs decide it (bpf/slot.h).

There are two words about a server: the kernel's, which it writes with each ejection and return, and the sidecar's,
which says what probes and checks have found. The later one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from clb_discovery.layout.elements import Server, Steering

_NO_WORD: Final = Steering(0, 0)


class Health(StrEnum):
    """What the programs make of a real server."""

    ACTIVE = "active"
    SUSPECT = "suspect"
    """A connect has failed, and the programs pass the server over until the sidecar has probed it."""
    EJECTED = "ejected"
    """It is out, or waits for a connect that probes it."""


def health_of(server: Server, steering: Steering, now: int, *, checked: bool) -> Health:
    """Return the health of a real server.

    :param now: nanoseconds of CLOCK_MONOTONIC.
    :param checked: whether the virtual server has STEERED; otherwise the sidecar's word counts only after an ejection.
    """
    until, ejected = server.ejected_until, bool(server.ejected_until)
    said = _decides(server, steering, checked=checked)
    if server.suspect and ejected and not said:
        return Health.SUSPECT if now < until else Health.ACTIVE
    if said:
        until = steering.out_until
    return Health.EJECTED if until and (ejected or now < until) else Health.ACTIVE


def _decides(server: Server, steering: Steering, *, checked: bool) -> bool:
    """Tell whether the sidecar's word counts, and not the kernel's."""
    return steering.decided_at > server.changed_at and (bool(server.ejected_until) or checked)


class Words(NamedTuple):
    """What the sidecar has said of real servers until some moment."""

    said: Mapping[bytes, Steering] = MappingProxyType({})
    """By packed member; servers of which nothing was said may be missing."""
    now: int = 0
    """Nanoseconds of CLOCK_MONOTONIC."""

    def health(self, member: bytes, server: Server, *, checked: bool) -> Health:
        """Return the health of a real server; as `health_of`."""
        return health_of(server, self.said.get(member, _NO_WORD), self.now, checked=checked)

    def decide(self, member: bytes, server: Server, *, checked: bool) -> bool:
        """Tell whether its health is what the sidecar has said last, by a probe or by checks."""
        return _decides(server, self.said.get(member, _NO_WORD), checked=checked)


NO_WORDS: Final = Words()
