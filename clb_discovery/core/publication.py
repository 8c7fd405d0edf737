"""From what discovery says to the steps that bring the kernel there: claims, desired state, plan.

Everything is rebuilt each time; of a publication before, which has been carried out, only what would be equal is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    claims: Sequence[Claim]
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
    plan: Plan
    wanted: Wanted


def publication(held: Held, wanted: Wanted, before: Publication | None = None) -> Publication:
    """Work out what to publish.

    :param before: the publication that led to what is held, if that is so; it spares work and changes nothing.
    """
    resolved = resolve(wanted.configured, wanted.claims, holders(held) if wanted.claims else {}, wanted.vip_ranges)
    state = desired(resolved.services, wanted.known, wanted.real_ranges, before.desired if before else None)
    if before and _goes_on(held, wanted, before, state):
        # What is as it was before needs no look; nothing goes, and nothing is left over from a crash.
        steps = plan(held, {**wanted.own, **state.anew}, complete=False)
    else:
        steps = plan(held, {**wanted.own, **state.virtual}, complete=wanted.complete)
    return Publication(resolved, state, steps, wanted)


def _goes_on(held: Held, wanted: Wanted, before: Publication, state: Desired) -> bool:
    """Tell whether what is held is what was published before, with the same virtual servers as there should be now."""
    return (
        before.plan.result is held
        and before.wanted.complete
        and wanted.complete
        and wanted.own.keys() == before.wanted.own.keys()
        and state.anew is not state.virtual
        and len(state.virtual) == len(before.desired.virtual)  # all of which are in it, then
    )
