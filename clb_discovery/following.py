"""What the sidecar knows about each service: its source's health, and what the guard lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clb_discovery.core import guard
from clb_discovery.core.guard import Guarded
from clb_discovery.core.model import Answer, Failure, RealServer, Service


@dataclass(slots=True)
class Following:
    """One service and its source, as they are now."""

    service: Service
    guarded: Guarded = field(default_factory=Guarded)
    answered: bool = False
    """Whether the source has answered since the start."""
    known: bool = False
    """Whether there is anything to serve: an answer, or what the kernel held at the start."""
    last_success: datetime | None = None
    error: str | None = None

    def seed(self, held: Sequence[RealServer]) -> None:
        """Start from what the kernel holds for the service."""
        self.guarded = guard.seed(held)
        self.known = True

    def take(self, outcome: Answer | Failure, now: float) -> None:
        """Take what the source came back with.

        :param now: seconds on a clock that does not go backwards.
        """
        if isinstance(outcome, Failure):
            self.error = outcome.reason
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

    def document(self) -> dict[str, Any]:
        """Return what `status --json` says about the source."""
        return {
            "name": self.service.source,
            "state": self.state,
            "last_success": timestamp(self.last_success),
            "error": self.error,
        }


def timestamp(moment: datetime | None) -> str | None:
    """Return RFC 3339 text in UTC, to the second."""
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z") if moment else None
