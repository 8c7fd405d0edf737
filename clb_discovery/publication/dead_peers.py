"""Whether the programs can do what `--dead-after` asks for."""

from __future__ import annotations

from collections.abc import Iterable

from clb_discovery.layout.structs import FEATURE_OPTIONS
from clb_discovery.model.service import Service


def objection(services: Iterable[Service], features: int) -> str | None:
    """Return why silent connections cannot be closed, and the fix; None if no service asks for it, or they can be.

    :param features: CLB_FEATURE_* bits of the programs.
    """
    asking = next((service for service in services if service.health.dead_after_ms), None)
    if asking is None or features & FEATURE_OPTIONS:
        return None
    return (
        f"{asking.name}: --dead-after needs Linux 6.1 or later: on this kernel programs cannot read the times that an "
        "application has set, and would overwrite them; set --dead-after off, and TCP_USER_TIMEOUT and keepalive in "
        "the application"
    )
