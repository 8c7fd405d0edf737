"""The unit of systemd and the container that a process belongs to, by the path of its cgroup.

systemd puts each unit into a cgroup of its name below that of its slice (systemd.slice(5)). Container engines name
their cgroups after the id of the container: a scope of systemd, or a plain directory. A path is untrusted: users of
the host name the cgroups below their own.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_UNIT: Final = re.compile(r".+\.(?:service|scope|socket|mount|swap)")
_USER_MANAGER: Final = re.compile(r"user@[0-9]+\.service")
_SCOPE: Final = re.compile(r"(docker|libpod|libpod-payload|cri-containerd|crio|nerdctl)-([0-9a-f]{64})(?:\.scope)?")
_ID: Final = re.compile(r"[0-9a-f]{64}")
_KUBERNETES: Final = "kubepods"
_ENGINES: Final = {
    "libpod": "podman",
    "libpod-payload": "podman",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
}
"""Engines that name their cgroups otherwise than themselves."""


class Origin(NamedTuple):
    """Where a process runs; None where the path does not show it."""

    unit: str | None = None
    """The unit of systemd: `shop.service`."""
    container: str | None = None
    """The engine and the id of the container: `docker:3f2a…`; below Kubernetes's cgroups it is `kubernetes:`."""


def origin(path: str) -> Origin:
    """Return the unit and the container of a cgroup by its path below the root."""
    parts = [part for part in path.split("/") if part]
    return Origin(_unit(parts), _container(parts))


def _unit(parts: list[str]) -> str | None:
    """Return the first name below the slices, or below a user's own service manager; systemd makes no deeper ones."""
    found = None
    for part in parts:
        if part.endswith(".slice"):
            continue
        if not _UNIT.fullmatch(part):
            break
        found = part
        if not _USER_MANAGER.fullmatch(part):
            break
    return found


def _container(parts: list[str]) -> str | None:
    above = ""
    for part in parts:
        if found := _SCOPE.fullmatch(part):
            return f"{_engine(parts, found[1])}:{found[2]}"
        if _ID.fullmatch(part) and (above == "docker" or parts[0] == _KUBERNETES):
            return f"{_engine(parts, above)}:{part}"
        above = part
    return None


def _engine(parts: list[str], name: str) -> str:
    return "kubernetes" if parts[0].split(".")[0] == _KUBERNETES else _ENGINES.get(name, name)
