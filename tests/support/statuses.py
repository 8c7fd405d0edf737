"""Documents of `status --json`, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clb_discovery.documents.status import FORMAT
from clb_discovery.documents.verdict import empty_services

CHANGED = "2026-01-02T03:04:05Z"


def status(
    *,
    virtual_servers: Sequence[dict[str, Any]] = (),
    sources: Sequence[dict[str, Any]] = (),
    unpublished: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return the document of a loaded instance with a running sidecar."""
    return {
        "format": FORMAT,
        "instance": "default",
        "version": "1.2.3",
        "datapath": {
            "loaded": True,
            "loader": "object",
            "cgroup": "/sys/fs/cgroup",
            "kernel": "6.1.0",
            "effective": True,
            "reason": None,
            "features": {"errno": True, "loop": True, "options": True},
            "records_lost": 0,
            "outcomes": True,
            "overlaps": [],
            "load_error": None,
            "other_layouts": [],
        },
        "sidecar": {
            "running": True,
            "pid": 4711,
            "last_sync": CHANGED,
            "config_error": None,
            "metrics_error": None,
            "state_error": None,
        },
        "sources": list(sources),
        "virtual_servers": list(virtual_servers),
        "unpublished": list(unpublished),
        "empty_services": empty_services(virtual_servers),
    }


def source(name: str, state: str = "fresh", reason: str | None = None) -> dict[str, Any]:
    """Return a source; one that is retrying serves its last known good set."""
    error = reason if state == "retrying" else None
    return {
        "name": name,
        "state": state,
        "last_success": CHANGED,
        "error": error,
        "stale": error is not None,
        "reason": f"stale since {CHANGED}: {error}" if error else reason,
    }


def virtual_server(service: str, number: int = 1, *, servers: int = 3, ejected: int = 0) -> dict[str, Any]:
    """Return a virtual server, of which the first real servers are ejected.

    :param number: a part of its address.
    """
    usable = servers - ejected
    return {
        "service": service,
        "source": f"consul:{service}",
        "address": f"10.64.{number >> 8}.{number & 255}",
        "port": 80,
        "protocol": "tcp",
        "algorithm": "random",
        "generation": 1,
        "connects": 10 * servers,
        "refused": 0,
        "needs_outcomes": True,
        "real_servers": [
            {
                "address": f"10.{number & 255}.{place >> 8}.{place & 255}",
                "port": 8080,
                "weight": 1,
                "priority": 0,
                "target_share": 0.0 if place < ejected else 1 / usable,
                "state": "ejected" if place < ejected else "active",
                "suspect": False,
                "probing": False,
                "connects": 10,
                "active": 1,
                "failures": 3 if place < ejected else 0,
                "causes": {"refused": 3 if place < ejected else 0, "timed_out": 0, "silent": 0, "unreachable": 0},
                "check_failure": None,
            }
            for place in range(servers)
        ],
        "listens_here": False,
        "check": None,
    }
