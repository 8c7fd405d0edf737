"""The observed behaviour of DNS servers: which do not answer, not over TCP, or not with EDNS; and what they had.

No I/O, no clock.
"""

from __future__ import annotations

from typing import Final

import dns.name
from dns.nameserver import Nameserver

REMEMBERED: Final = 600.0
"""Seconds for which a server is queried without EDNS after it rejected EDNS."""
GUESSED: Final = 60.0
"""The same after it answered only without EDNS, which may have been chance."""
SILENT: Final = 30.0
"""Seconds for which a server that did not answer is queried after all others."""
WITHOUT_TCP: Final = (60.0, 600.0)
"""Seconds for which TCP is not tried first after it failed: at first, and at most. They double with each failure."""
_MOST_NAMES: Final = 4096


class Memory:
    """The observed behaviour of servers, by their text form, which expires; and the meaning of relative names."""

    def __init__(self) -> None:
        """Start empty."""
        self.turn = 0
        """Counts rounds, for servers that are used in turn."""
        self._without_edns: dict[str, float] = {}
        self._with_edns: set[str] = set()
        self._silent: dict[str, float] = {}
        self._without_tcp: dict[str, tuple[float, float]] = {}
        """Until when, and for how many seconds."""
        self._meant: dict[dns.name.Name, dns.name.Name] = {}

    def knows_edns(self, server: Nameserver, now: float) -> bool:
        """Return whether a server is queried with EDNS."""
        return self._without_edns.get(str(server), now) <= now

    def cannot_edns(self, server: Nameserver, now: float, remembered: float = REMEMBERED) -> None:
        """Note that a server answers only without EDNS."""
        self._without_edns[str(server)] = now + remembered

    def can_edns(self, server: Nameserver) -> None:
        """Note that a server answered a query with EDNS over UDP."""
        self._with_edns.add(str(server))

    def is_edns_certain(self, server: Nameserver) -> bool:
        """Return whether a server ever answered a query with EDNS; some drop such queries."""
        return str(server) in self._with_edns

    def is_silent(self, server: Nameserver, now: float) -> bool:
        """Return whether a server did not answer recently."""
        return self._silent.get(str(server), now) > now

    def was_silent(self, server: Nameserver, now: float) -> None:
        """Note that a server did not answer."""
        self._silent[str(server)] = now + SILENT

    def answered(self, server: Nameserver) -> None:
        """Note that a server answered."""
        self._silent.pop(str(server), None)

    def knows_tcp(self, server: Nameserver, now: float) -> bool:
        """Return whether a server is queried over TCP before all others are."""
        until, _ = self._without_tcp.get(str(server), (now, 0.0))
        return until <= now

    def was_silent_over_tcp(self, server: Nameserver, now: float) -> float:
        """Note that a server did not answer over TCP; return for how many seconds that counts.

        The first time it is none: one lost connection must not have the next server answer for longer than once.
        """
        least, most = WITHOUT_TCP
        known = self._without_tcp.get(str(server))
        seconds = min(max(least, 2 * known[1]), most) if known else 0.0
        self._without_tcp[str(server)] = now + seconds, seconds
        return seconds

    def answered_over_tcp(self, server: Nameserver) -> None:
        """Note that a server answered over TCP."""
        self._without_tcp.pop(str(server), None)

    def meant(self, name: dns.name.Name) -> dns.name.Name | None:
        """Return the absolute name that last had records for a name with several candidates, if it is known."""
        return self._meant.get(name)

    def means(self, name: dns.name.Name, found: dns.name.Name) -> None:
        """Note that an absolute name has records for a name with several candidates; the oldest are forgotten."""
        self._meant.pop(name, None)
        self._meant[name] = found
        if len(self._meant) > _MOST_NAMES:
            del self._meant[next(iter(self._meant))]
