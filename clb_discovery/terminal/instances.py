"""`instances` for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from clb_discovery.terminal.screen import plain


def render(found: Mapping[str, Any]) -> RenderableType:
    """Return a table of the document of `instances --json`."""
    if not found["instances"]:
        return plain("no instance is loaded on this host")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("instance", "cgroup", "version", "sidecar"):
        table.add_column(head, overflow="fold")
    for one in found["instances"]:
        layouts = ", ".join(map(str, one["layouts"]))
        pid = one["sidecar"]["pid"]
        table.add_row(
            plain(one["instance"], "bold"),
            plain(one["cgroup"] or "unknown"),
            plain(one["version"] or f"another, layout {layouts}"),
            plain(f"process {pid}", "green") if pid is not None else plain("not running", "red"),
        )
    return table
