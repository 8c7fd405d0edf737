"""Names of the parts of the documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple


class Identity(NamedTuple):
    """What tells services apart: several may have the same name, but each has a pool of its own."""

    name: str
    source: str | None


def identity(one: Mapping[str, Any]) -> Identity:
    """Return which service a virtual server, or an unpublished service, is of."""
    return Identity(service_of(one), one["source"])


def titles(status: Mapping[str, Any]) -> dict[Identity, str]:
    """Return what to call each service of a document: by its name, and by its source too if others have that name."""
    services = dict.fromkeys(identity(one) for one in (*status["virtual_servers"], *status["unpublished"]))
    having = Counter(one.name for one in services)
    return {one: one.name if having[one.name] == 1 else f"{one.name} ({one.source})" for one in services}


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
