"""The rules of Consul's blocking queries, as guards in one function, and a rate limit against hot loops.

A blocking query carries the index of the last answer and returns when there is a newer one, or when its wait is over.
Source of the rules: Consul's API documentation, "Blocking Queries", "Implementation Details".
Pure: the time is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

from clb_discovery.errors import SourceError

WAIT: Final = 50.0
"""How long Consul holds a query without a change by default, in seconds.

Consul's own default is 300. But a path that silently drops packets is noticed only after the wait, and until then an
agent also counts a query whose client has gone. With the sixteenth that Consul adds, this wait ends before the 60 s
after which most proxies cut a connection.
"""
LONGEST_WAIT: Final = 600.0
"""Longest wait that Consul accepts, in seconds."""
MARGIN: Final = 10.0
"""Seconds that a query may take beyond its wait; also the time limit of a query that does not block."""
FIRST: Final = 0
"""The index of a query that does not block."""

_INDEX_LIMIT: Final = 1 << 64  # an index is a uint64
_INDEX_DIGITS: Final = 20
_SHOWN: Final = 80
_LONG: Final = 1.0


def next_index(header: str | None, previous: int) -> int:
    """Return the index of the next query.

    :param header: the `X-Consul-Index` of a good answer, `None` if it is missing.
    :param previous: the index that was sent with this query, possibly `FIRST`.
    :return: at least 1; or `FIRST` if the index went backwards, so that the next query does not block.
    :raises SourceError: if the header is missing or is not an index.
    """
    if header is None:
        raise SourceError("the answer has no X-Consul-Index header; is this Consul, or does a proxy drop headers?")
    if not (header.isascii() and header.isdigit() and len(header) <= _INDEX_DIGITS and int(header) < _INDEX_LIMIT):
        raise SourceError(f"the answer's X-Consul-Index is {header[:_SHOWN]!r}, which is not an index; is this Consul?")
    # A query with index 0 would not block at all.
    index = max(int(header), 1)
    # The servers were restored from a snapshot or lost their state: an index above the old one may never come.
    if index < previous:
        return FIRST
    return index


def client_timeout(wait: float, margin: float = MARGIN) -> float:
    """Return the client's time-out in seconds for a query with this wait.

    Consul adds up to a sixteenth of the wait, so that its clients do not all wake up at once.
    """
    return wait + wait / 16 + margin


def is_long(elapsed: float, wait: float) -> bool:
    """Return whether a query was held so long that a proxy which cuts long polls may have broken the connection.

    An agent that rejects a query, and a proxy that cannot reach the agent, respond at once.

    :param elapsed: seconds until the connection broke.
    :param wait: seconds that Consul was to hold the query.
    """
    return elapsed >= min(_LONG, wait / 2)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Token bucket: allows a burst of queries, then limits them to a rate.

    Consul may return a query although its index has not changed, and a busy service changes all the time.
    """

    rate: float
    """Queries per second in the long run."""
    burst: float
    """Maximum number of queries at once after a quiet time; at least 1."""
    tokens: float
    """Queries that may start now; negative while admitted queries still have to pause."""
    at: float
    """When `tokens` was counted, in seconds of the caller's clock."""

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> Self:
        """Return a full bucket."""
        return cls(rate=rate, burst=burst, tokens=burst, at=now)

    def take(self, now: float, count: int = 1) -> tuple[Self, float]:
        """Take tokens for queries.

        :param now: seconds of a monotonic clock (if it goes backwards, no time has passed).
        :param count: number of queries.
        :return: the new bucket, and the seconds to pause before these queries.
        """
        earned = max(now - self.at, 0.0) * self.rate
        tokens = min(self.tokens + earned, self.burst) - count
        return replace(self, tokens=tokens, at=max(now, self.at)), max(-tokens / self.rate, 0.0)
