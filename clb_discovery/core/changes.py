"""What changed between two pools, in the words of a log line: +2 -1 ~3."""

from __future__ import annotations

from dataclasses import dataclass

from clb_discovery.core.model import Pool, RealServer


@dataclass(frozen=True, slots=True)
class Changes:
    """The real servers that came, went, or got another weight or priority."""

    added: tuple[RealServer, ...]
    removed: tuple[RealServer, ...]
    changed: tuple[RealServer, ...]

    def __str__(self) -> str:
        """Return `+2 -1 ~3`."""
        return f"+{len(self.added)} -{len(self.removed)} ~{len(self.changed)}"


def changes(before: Pool, after: Pool) -> Changes:
    """Compare two pools by the address and port of their members."""
    old = {(server.address, server.port): server for server in before}
    new = {(server.address, server.port): server for server in after}
    return Changes(
        added=tuple(server for endpoint, server in new.items() if endpoint not in old),
        removed=tuple(server for endpoint, server in old.items() if endpoint not in new),
        changed=tuple(server for endpoint, server in new.items() if endpoint in old and old[endpoint] != server),
    )
