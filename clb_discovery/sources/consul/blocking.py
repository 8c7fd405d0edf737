"""The rules of Consul's blocking queries, as guards in one function, and a brake against hot loops.

A blocking query carries the index of the last answer and returns when there is a newer one, or when its wait is over.
Source of the rules: Consul's API documentation, "Blocking Queries", "Implementation Details".
Pure: the time is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Self

from clb_discovery.errors import SourceError

WAIT: Final = 50.0
"""How long a query without news is held by default, in seconds.

Consul's own default is 300. But a path that drops packets in silence is noticed only when the wait is over, and an
agent keeps the place of a query whose client has gone until then. With the sixteenth that Consul adds it ends before
the 60 s after which most proxies cut it.
"""
LONGEST_WAIT: Final = 600.0
"""Longest wait that Consul takes, in seconds."""
MARGIN: Final = 10.0
"""What a query may take beyond its wait, in seconds; also the limit of one that does not block."""
FIRST: Final = 0
"""The index of a query that answers at once."""

_INDEX_LIMIT: Final = 1 << 64  # an index is a uint64
_INDEX_DIGITS: Final = 20
_SHOWN: Final = 80
_LONG: Final = 1.0


def next_index(header: str | None, previous: int) -> int:
    """Return the index to ask with next.

    :param header: the `X-Consul-Index` of a good answer, `None` where it is missing.
    :param previous: the index that this answer was asked with, `FIRST` included.
    :return: at least 1; or `FIRST`, when the index went backwards and everything has to be read afresh.
    :raises SourceError: if the header is missing or is no index.
    """
    if header is None:
        raise SourceError("the answer has no X-Consul-Index header; is this Consul, or does a proxy drop headers?")
    if not (header.isascii() and header.isdigit() and len(header) <= _INDEX_DIGITS and int(header) < _INDEX_LIMIT):
        raise SourceError(f"the answer's X-Consul-Index is {header[:_SHOWN]!r}, which is no index; is this Consul?")
    # An index of 0 would not block at all.
    index = max(int(header), 1)
    # Servers were restored from a snapshot or lost their state: what is newer than the old index may never come.
    if index < previous:
        return FIRST
    return index


def client_timeout(wait: float, margin: float = MARGIN) -> float:
    """Return after how many seconds a query that waits for `wait` seconds is given up.

    Consul adds up to a sixteenth of the wait, so that its clients do not all wake up at once.
    """
    return wait + wait / 16 + margin


def is_long(elapsed: float, wait: float) -> bool:
    """Tell whether a query was held for so long that a broken connection may just be a proxy that cuts long polls.

    An agent that refuses a query, or a proxy that cannot reach it, does so at once.

    :param elapsed: seconds until it broke off.
    :param wait: seconds that Consul was to hold it.
    """
    return elapsed >= min(_LONG, wait / 2)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Token bucket: lets a burst of queries pass, then holds them to a rate.

    Consul wakes a query for an equal index, too, and a busy service has news all the time.
    """

    rate: float
    """Queries a second in the long run."""
    burst: float
    """Most queries at once after a quiet time; at least 1."""
    tokens: float
    """Queries that may start now; negative for those that were let in with a pause."""
    at: float
    """When `tokens` was counted, in seconds of the caller's clock."""

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> Self:
        """Return a bucket in which nothing is used up."""
        return cls(rate=rate, burst=burst, tokens=burst, at=now)

    def take(self, now: float, count: int = 1) -> tuple[Self, float]:
        """Count queries.

        :param now: in seconds of a clock that does not go backwards (if it does, no time has passed).
        :param count: how many.
        :return: the bucket from now on, and how many seconds to pause first.
        """
        earned = max(now - self.at, 0.0) * self.rate
        tokens = min(self.tokens + earned, self.burst) - count
        return replace(self, tokens=tokens, at=max(now, self.at)), max(-tokens / self.rate, 0.0)
