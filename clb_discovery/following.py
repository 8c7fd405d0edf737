"""What the sidecar knows about each service: its source's health, and what the guard lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from clb_discovery.core import guard
from clb_discovery.core.guard import Guarded
from clb_discovery.core.model import Answer, Failure, RealServer, Service

STATES: Final = ("fresh", "retrying", "held")
"""What `Following.state` may be."""


@dataclass(slots=True)
class Following:
    """One service and its source, as they are now."""

    service: Service
    guarded: Guarded = field(default_factory=Guarded)
    answered: bool = False
    """Whether the source has answered since the start."""
    known: bool = False
    """Whether there is anything to serve: an answer, or what the kernel or the disk held at the start."""
    last_success: datetime | None = None
    """When the source last answered, before the start, too."""
    error: str | None = None
    errors: int = 0
    """How often the source could not say."""

    def seed(self, held: Sequence[RealServer], answered: int | None) -> None:
        """Start from what the kernel or the disk holds for the service.

        :param answered: when its source had last answered, in seconds since 1970, or None if that is not known.
        """
        self.guarded = guard.seed(held)
        self.known = True
        self.last_success = None if answered is None else datetime.fromtimestamp(answered, UTC)

    def take(self, outcome: Answer | Failure, now: float) -> None:
        """Take what the source came back with.

        :param now: seconds on a clock that does not go backwards.
        """
        if isinstance(outcome, Failure):
            self.error = outcome.reason
            self.guarded = guard.interrupt(self.guarded)
            self.errors += 1
            return
        self.error = None
        self.answered = self.known = True
        self.last_success = datetime.now(UTC)
        self.guarded = guard.admit(self.guarded, outcome.servers, self.service.policy, now)

    def elapse(self, now: float) -> None:
        """Let time pass for held answers."""
        self.guarded = guard.elapse(self.guarded, self.service.policy, now)

    @property
    def deadline(self) -> float | None:
        """When a held answer may count, or None."""
        return self.guarded.deadline(self.service.policy)

    @property
    def state(self) -> str:
        """The state in words of the contract."""
        if self.error is not None or not self.answered:
            return "retrying"
        return "held" if self.guarded.held else "fresh"

    @property
    def stale(self) -> bool:
        """Whether what is served is what was known last, and nobody can say whether it is still so."""
        return self.known and self.state == "retrying"

    @property
    def reason(self) -> str | None:
        """Why the source is not fresh, or None if it is."""
        if self.state == "held":
            removed, of = self.guarded.withheld
            return f"an answer without {removed} of {of} real servers has to stand for {self.service.policy.hold:g} s"
        if self.state == "fresh":
            return None
        error = self.error or "no answer yet"
        return f"stale since {timestamp(self.last_success) or 'before the start'}: {error}" if self.known else error

    @property
    def answered_at(self) -> int | None:
        """When the source last answered, in seconds since 1970, or None if that is not known."""
        return int(self.last_success.timestamp()) if self.last_success else None

    def document(self) -> dict[str, Any]:
        """Return what `status --json` says about the source."""
        return {
            "name": self.service.source,
            "state": self.state,
            "last_success": timestamp(self.last_success),
            "error": self.error,
            "stale": self.stale,
            "reason": self.reason,
        }


def timestamp(moment: datetime | None) -> str | None:
    """Return RFC 3339 text in UTC, to the second."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z") if moment else None
