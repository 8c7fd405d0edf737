"""`status` for people: the document as a few aligned lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def render(status: Mapping[str, Any]) -> str:
    """Return the document of `status --json` as text."""
    return "\n".join([*_datapath(status), *_sources(status["sources"]), *_virtual_servers(status["virtual_servers"])])


def _datapath(status: Mapping[str, Any]) -> list[str]:
    datapath, sidecar = status["datapath"], status["sidecar"]
    if datapath["loaded"]:
        works = "effective" if datapath["effective"] else f"NOT EFFECTIVE: {datapath['reason']}"
        loaded = f"loaded ({datapath['loader']}) on {datapath['cgroup']}, {works}"
        missing = [name for name, there in datapath["features"].items() if not there]
        loaded += f"; kernel lacks {', '.join(missing)}" if missing else ""
    else:
        loaded = "not loaded"
    running = f"running, process {sidecar['pid']}" if sidecar["running"] else "not running"
    refused = [f"            CONFIGURATION REFUSED: {sidecar['config_error']}"] if sidecar["config_error"] else []
    return [
        f"instance {status['instance']}, clb-discovery {status['version']}, kernel {datapath['kernel']}",
        f"data plane  {loaded}",
        f"sidecar     {running}; last sync {sidecar['last_sync'] or 'never'}",
        *refused,
    ]


def _sources(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"source      {source['name']}  {source['state']}, last answer {source['last_success'] or 'never'}"
        + (f"; {source['reason']}" if source["reason"] else "")
        for source in sources
    ]
    return lines or ["source      none"]


def _virtual_servers(servers: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for server in servers:
        port = server["port"] or "*"
        address = f"[{server['address']}]" if ":" in server["address"] else server["address"]
        title = f"{server['service']}  {address}:{port}/{server['protocol']}  {server['algorithm']}"
        lines += ["", f"{title}  connects {server['connects']}  refused {server['refused']}"]
        rows: list[tuple[str, ...]] = [
            ("real server", "priority", "weight", "share", "state", "connects", "active", "failures")
        ]
        rows += [_row(real, server) for real in server["real_servers"]]
        lines += _aligned(rows) if server["real_servers"] else ["  no real servers: connects are refused"]
    return lines


def _row(real: Mapping[str, Any], server: Mapping[str, Any]) -> tuple[str, ...]:
    address = f"[{real['address']}]" if ":" in real["address"] else real["address"]
    share = f"{100 * real['connects'] / server['connects']:.1f}%" if server["connects"] else "-"
    return (
        f"{address}:{real['port']}",
        str(real["priority"]),
        str(real["weight"]),
        share,
        real["state"],
        str(real["connects"]),
        str(real["active"]),
        str(real["failures"]),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
