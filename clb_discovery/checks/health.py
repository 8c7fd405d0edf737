"""What a row of results means for a real server: it goes out after `fall` failures, and comes back after `rise`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from clb_discovery.model.check import Check


class Result(NamedTuple):
    """The result of one check."""

    passed: bool | None
    """None if it was not made, for a cause on this host: it is no verdict about the server."""
    reason: str = ""
    """Why it did not pass; bounded and printable."""


@dataclass(frozen=True, slots=True)
class Health:
    """A real server, as its checks see it. A new one counts as up."""

    up: bool = True
    against: int = 0
    """Results in a row that contradict `up`."""
    reason: str | None = None
    """Why its last failed check failed; None if none has failed since it was last up without doubt."""

    def after(self, result: Result, check: Check) -> Health:
        """Return the health after one more result."""
        if result.passed is None:
            return self
        reason = self.reason if result.passed else result.reason
        if result.passed is self.up:
            return Health(self.up, 0, None if self.up else reason)
        against = self.against + 1
        if against < (check.fall if self.up else check.rise):
            return Health(self.up, against, reason)
        return Health(not self.up, 0, None if result.passed else reason)
