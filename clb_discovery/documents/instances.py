"""The document of `instances --json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from clb_discovery.layout.elements import Info

FORMAT: Final = 1
"""The format of the document. It stays the same as long as changes only add something."""


class Found(NamedTuple):
    """A loaded instance."""

    name: str
    layouts: Sequence[int]
    """The layouts of its maps; after an upgrade there may be several."""
    info: Info | None = None
    """None if it has only other layouts than that of this version."""
    version: str | None = None
    """The version whose programs are loaded; None for another one than this."""
    sidecar: int | None = None
    """The process id of its sidecar."""


def document(found: Iterable[Found]) -> dict[str, Any]:
    """Build the document. Scripts rely on its shape."""
    return {"format": FORMAT, "instances": [_instance(one) for one in found]}


def _instance(one: Found) -> dict[str, Any]:
    return {
        "instance": one.name,
        "cgroup": one.info.cgroup if one.info else None,
        "loader": one.info.loader if one.info else None,
        "version": one.version,
        "layouts": list(one.layouts),
        "sidecar": {"running": one.sidecar is not None, "pid": one.sidecar},
    }
