"""From what discovery says to the steps that bring the kernel there: claims, desired state, plan.

Everything is rebuilt each time; of a publication before, which has been carried out, only what would be equal is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from clb_discovery.core.address import Network
from clb_discovery.core.claims import Claim, Resolved, holders, resolve
from clb_discovery.core.desired import Desired, desired
from clb_discovery.core.held import Held
from clb_discovery.core.model import RealServer, Service, Vip, VirtualServer
from clb_discovery.core.plan import Plan, plan


class Wanted(NamedTuple):
    """What is to be published."""

    configured: Sequence[Service]
    """The services of the configuration."""
    claims: Iterable[Claim]
    """Those of a catalog, besides."""
    known: Mapping[str, Sequence[RealServer]]
    """The real servers of each source that has been answered for. Equal ones are best the same object as before."""
    own: Mapping[Vip, VirtualServer]
    """Virtual servers of ours that no service has."""
    vip_ranges: Sequence[Network]
    real_ranges: Sequence[Network]
    complete: bool
    """As for `plan`."""


class Publication(NamedTuple):
    """What follows from it."""

    resolved: Resolved
    desired: Desired
    virtual: Mapping[Vip, VirtualServer]
    """All virtual servers that there should be, ours included."""
    plan: Plan
    complete: bool


def publication(held: Held, wanted: Wanted, before: Publication | None = None) -> Publication:
    """Work out what to publish.

    :param before: the publication that led to what is held, if that is so; it spares work and changes nothing.
    """
    resolved = resolve(wanted.configured, wanted.claims, holders(held) if wanted.claims else {}, wanted.vip_ranges)
    state = desired(resolved.services, wanted.known, wanted.real_ranges, before.desired if before else None)
    virtual = {**wanted.own, **state.virtual}
    return Publication(resolved, state, virtual, _plan(held, virtual, wanted, before), wanted.complete)


def _plan(held: Held, virtual: Mapping[Vip, VirtualServer], wanted: Wanted, before: Publication | None) -> Plan:
    settled = (
        before is not None
        and before.plan.result is held
        and before.complete
        and wanted.complete
        and before.virtual.keys() == virtual.keys()
    )
    if before is None or not settled:
        return plan(held, virtual, complete=wanted.complete)
    # Nothing goes, and nothing is left over from a crash: what is the same as before needs no look.
    old = before.virtual
    return plan(held, {vip: one for vip, one in virtual.items() if old[vip] is not one}, complete=False)
