"""Names of the parts of the documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def service_of(server: Mapping[str, Any]) -> str:
    """Return the name of a virtual server's service; its address if another program wrote it without a name."""
    return str(server["service"] or server["address"])


def sources_of(one: Mapping[str, Any]) -> list[str]:
    """Return the names of the sources of a virtual server, or of an unpublished service, as far as they are known."""
    return [name for name in (one["source"], *(part["source"] for part in one.get("parts", ()))) if name]


def endpoint(found: Mapping[str, Any]) -> str:
    """Return the address and port of a virtual or real server; `*` is every port."""
    address = f"[{found['address']}]" if ":" in found["address"] else found["address"]
    return f"{address}:{found['port'] or '*'}"
