"""Why connects failed, by the names that people see."""

from __future__ import annotations

from enum import IntEnum

from clb_discovery.layout.elements import Server


class Cause(IntEnum):
    """CLB_CAUSE_* of bpf/clb.h, except for those that name no cause."""

    REFUSED = 1
    TIMED_OUT = 2
    SILENT = 3
    UNREACHABLE = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


def cause_of(number: int) -> str | None:
    """Return the name of a cause; None if it is not known, or only to a newer version."""
    return str(Cause(number)) if number in Cause.__members__.values() else None


def by_cause(server: Server) -> dict[Cause, int]:
    """Return how many connects of a server failed for each cause; of some, the cause is not known."""
    counts = (server.refused, server.timed_out, server.silent, server.unreachable)
    return dict(zip(Cause, counts, strict=True))
