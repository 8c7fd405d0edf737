"""The differences between two states of a virtual server; those of pools in the form of log lines: +2 -1 ~3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clb_discovery.layout.installed import Published
from clb_discovery.model.servers import PassiveHealth, Pool, RealServer


@dataclass(frozen=True, slots=True)
class Changes:
    """Real servers that were added or removed, or whose weight or priority changed."""

    added: tuple[RealServer, ...]
    removed: tuple[RealServer, ...]
    changed: tuple[tuple[RealServer, RealServer], ...]
    """Each before and after the change."""

    def __str__(self) -> str:
        """Return `+2 -1 ~3`."""
        return f"+{len(self.added)} -{len(self.removed)} ~{len(self.changed)}"


def changes(before: Pool, after: Pool) -> Changes:
    """Compare two pools by the address and port of their members."""
    old = {server[1:3]: server for server in before}  # by endpoint
    new = {server[1:3]: server for server in after}
    return Changes(
        added=tuple(server for endpoint, server in new.items() if endpoint not in old),
        removed=tuple(server for endpoint, server in old.items() if endpoint not in new),
        changed=tuple((old[at], server) for at, server in new.items() if at in old and old[at] != server),
    )


def setting_changes(before: Published | None, after: Published | None) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each changed setting; empty if a virtual server was added or removed."""
    if before is None or after is None:
        return {}
    old, new = _settings(before), _settings(after)
    return {name: (old[name], new[name]) for name in new if old[name] != new[name]}


def _settings(server: Published) -> dict[str, Any]:
    """Return the settings of a virtual server."""
    health = server.health or PassiveHealth()
    return {
        "service": server.label.service if server.label else None,
        "source": server.label.source if server.label else None,
        "algorithm": str(server.algorithm) if server.algorithm is not None else None,
        "active": health.active,
        "eject-after": health.eject_after,
        "eject-time": f"{health.eject_first_ms}ms",
        "eject-max": f"{health.eject_most_ms}ms",
        "silent-after": _time(health.silent_after_ms),
        "connect-timeout": _time(health.connect_timeout_ms),
        "dead-after": _time(health.dead_after_ms),
        "suspicion": health.suspicion,
        "checked": health.checked,
    }


def _time(milliseconds: int) -> str:
    return f"{milliseconds}ms" if milliseconds else "off"
