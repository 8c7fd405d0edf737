"""A data plane without a kernel, as far as outcomes are concerned."""

from __future__ import annotations

from clb_discovery.errors import HostError


class FakePlane:
    """Remembers whether the program that learns outcomes is attached, and what was done."""

    def __init__(self, *, loads: bool = True, attached: bool = False) -> None:
        self.loads = loads
        self.attached = attached
        self.traced = False
        self.refusal: str | None = None
        """Why it cannot be attached."""
        self.done: list[str] = []

    def follows_outcomes(self) -> bool:
        """Tell whether it is attached."""
        return self.attached

    def follow_outcomes(self) -> None:
        """Attach it, unless the kernel refuses that."""
        if self.attached:
            return
        if self.refusal:
            raise HostError(self.refusal)
        self.attached = True
        self.done.append("attached")

    def leave_outcomes(self) -> None:
        """Detach it."""
        self.attached = False
        self.done.append("detached")

    def is_traced(self) -> bool:
        """Tell whether a trace runs."""
        return self.traced
