"""What depends on the program that learns how TCP connects end: it is attached only while something does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from clb_discovery.layout.elements import Server
from clb_discovery.layout.installed import Installed
from clb_discovery.model.servers import Protocol, Vip, needs_outcomes
from clb_discovery.publication.plan import Plan

WITHOUT_OUTCOMES: Final = "no server is ejected, no active connection is counted, and no connect has a limit"
"""The effect of its absence on virtual servers that need it."""


def in_need(installed: Installed) -> Iterator[Vip]:
    """Yield the virtual servers that need outcomes."""
    return (vip for vip, published in installed.virtual.items() if needs_outcomes(vip, published.health))


def are_needed(installed: Installed) -> bool:
    """Tell whether any virtual server needs outcomes."""
    return any(in_need(installed))


def will_be_needed(plan: Plan) -> bool:
    """Tell whether a virtual server that the plan changes needs outcomes from then on."""
    return any(needs_outcomes(vip, plan.result.virtual[vip].health) for vip in plan.changed)


def services_in_need(installed: Installed) -> list[str]:
    """Return the services with virtual servers that need outcomes, sorted; a VIP stands for an unknown name."""
    labels = ((vip, installed.virtual[vip].label) for vip in in_need(installed))
    return sorted({label.service if label else str(vip) for vip, label in labels})


def are_counted(installed: Installed, servers: Mapping[bytes, Server]) -> bool:
    """Tell whether any TCP connection is counted as active; only the program that counted it lowers each count.

    :param servers: the counters of each packed member.
    """
    members = (
        member
        for vip, published in installed.virtual.items()
        if vip.protocol is Protocol.TCP
        for member in published.servers
    )
    return any(servers[member].active for member in members if member in servers)
