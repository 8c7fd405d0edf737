"""From the answers of discovery to the steps that change the kernel's maps: claims, desired state, admission, plan.

Everything is rebuilt each time. From a previous publication that was carried out, only equal parts are taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import NamedTuple

from clb_discovery.layout.installed import Installed, holders
from clb_discovery.model.address import Network
from clb_discovery.model.answer import Claim
from clb_discovery.model.servers import Pools, Unpublished, Vip, VirtualServer
from clb_discovery.model.service import Service
from clb_discovery.model.zones import NO_FACTS, ZoneFacts
from clb_discovery.publication.admission import Room, admit, choose, used, used_after
from clb_discovery.publication.claims import Resolved, resolve
from clb_discovery.publication.desired import Desired, desired
from clb_discovery.publication.plan import Plan, is_installed, plan


class Wanted(NamedTuple):
    """The inputs of a publication."""

    configured: Sequence[Service]
    """The services of the configuration."""
    claims: Sequence[Claim]
    """The services of a catalog."""
    known: Mapping[str, Pools]
    """The real servers of each source that has answered. Passing the same object for an equal value saves work."""
    own: Mapping[Vip, VirtualServer]
    """The self-test servers, which belong to no service."""
    vip_ranges: Sequence[Network]
    real_ranges: Sequence[Network]
    complete: bool
    """As for `plan`."""
    heard: AbstractSet[str] = frozenset()
    """The names of pools whose services have answered: what they do not claim any more goes, complete or not."""
    facts: ZoneFacts = NO_FACTS
    """What decides about zones."""


class Publication(NamedTuple):
    """The result: what is published in this round, and what is not."""

    resolved: Resolved
    desired: Desired
    plan: Plan
    wanted: Wanted
    unpublished: Sequence[Unpublished]
    """Virtual servers that there is no room for."""
    left: Mapping[Vip, int]
    """Virtual servers that differ from the desired state after this plan, with the number of rounds that each has
    waited; 0 if further rounds do not help."""
    goes_on: bool
    """Whether another round can publish more of them."""
    taken: Room
    """The elements of all virtual servers after this plan."""

    def pending(self) -> frozenset[str]:
        """Return the names of pools of which another round can publish more."""
        waiting = (self.desired.virtual.get(vip) for vip, rounds in self.left.items() if rounds)
        return frozenset(server.source for server in waiting if server)


def publication(
    installed: Installed,
    wanted: Wanted,
    before: Publication | None = None,
    aside: Mapping[Vip, VirtualServer] | None = None,
    budget: int | None = None,
) -> Publication:
    """Compute what to publish.

    :param before: the publication that led to the installed state, if there is one. It saves work and does not change
        the result.
    :param aside: virtual servers that are not tried now, unless another state is desired of them.
    :param budget: real servers to write in one round; None for all.
    """
    resolved = _resolved(installed, wanted, before)
    earlier = before.desired if before else None
    state = desired(resolved.services, wanted.known, wanted.real_ranges, earlier, wanted.facts)
    waited = before.left if before else {}
    goes_on = before is not None and _goes_on(installed, wanted, before, state)
    if goes_on:  # unchanged virtual servers need no look
        looked_at = {**state.rebuilt, **{vip: state.virtual[vip] for vip in waited if vip in state.virtual}}
        gone = [
            vip for vip in waited if vip in installed.virtual and vip not in state.virtual and vip not in wanted.own
        ]
    else:
        looked_at = {**wanted.own, **state.virtual}
        gone = list(installed.virtual.keys() - looked_at.keys())
        if not wanted.complete:
            gone = _unclaimed(installed, gone, resolved, wanted.heard)
    changes = [server for server in looked_at.values() if not is_installed(installed, server)]
    late = {server.vip: 0 for server in changes if aside and aside.get(server.vip) == server}
    configured = chain((one.source for one in wanted.own.values()), (one.source for one in wanted.configured))
    taken = before.taken if before and before.plan.result is installed else used(installed)
    admitted = admit(installed, [server for server in changes if server.vip not in late], gone, configured, taken)
    without_room = [vip for vip in (*late, *(one.vip for one in admitted.refused)) if vip not in installed.virtual]
    kept = _kept(installed, gone, [looked_at[vip] for vip in without_room])
    chosen = choose(installed, admitted.changes, [vip for vip in gone if vip not in kept], waited, taken, budget=budget)
    # After a complete plan, and if nothing is withdrawn, a plan of the changes alone is enough.
    whole = wanted.complete and (not goes_on or bool(chosen.withdraw))
    steps = plan(installed, chosen.publish, complete=whole, gone=frozenset(chosen.withdraw))
    unpublished = (*admitted.refused, *chosen.cramped)
    late |= dict.fromkeys((*kept, *(one.vip for one in unpublished)), 0)
    collects = whole and bool(installed.orphans)  # which also makes room
    more = bool(chosen.left) or (bool(chosen.cramped) and collects)
    left = {**late, **chosen.left}
    return Publication(resolved, state, steps, wanted, unpublished, left, more, used_after(steps, installed, taken))


def _unclaimed(
    installed: Installed, lacking: Collection[Vip], resolved: Resolved, heard: AbstractSet[str]
) -> list[Vip]:
    """Return those that their services do not claim any more, and no other one that has not answered yet."""
    if not heard:
        return []
    claimed = {vip for service in resolved.services for vip in service.vips}
    labels = ((vip, installed.virtual[vip].label) for vip in lacking if vip not in claimed)
    return [vip for vip, label in labels if label and label.source in heard]


def _kept(installed: Installed, gone: Collection[Vip], without_room: Sequence[VirtualServer]) -> frozenset[Vip]:
    """Return the virtual servers that stay although they are gone, because there is no room for their successors.

    These are virtual servers of the same service, or at another port of the same address.
    """
    if not without_room:
        return frozenset()
    addresses = {(server.vip.address, server.vip.protocol) for server in without_room}
    sources = {server.source for server in without_room}
    labels = ((vip, installed.virtual[vip].label) for vip in gone)
    return frozenset(
        vip
        for vip, label in labels
        if (vip.address, vip.protocol) in addresses or (label is not None and label.source in sources)
    )


def _resolved(installed: Installed, wanted: Wanted, before: Publication | None) -> Resolved:
    if before and before.wanted is wanted:  # another round with the same inputs
        return before.resolved
    return resolve(wanted.configured, wanted.claims, holders(installed) if wanted.claims else {}, wanted.vip_ranges)


def _goes_on(installed: Installed, wanted: Wanted, before: Publication, state: Desired) -> bool:
    """Tell whether the previous publication led to the installed state and has the same virtual servers as this one."""
    return (
        before.plan.result is installed
        and before.wanted.complete
        and wanted.complete
        and wanted.own.keys() == before.wanted.own.keys()
        and state.rebuilt is not state.virtual
        and len(state.virtual) == len(before.desired.virtual)  # then these are the same VIPs
    )
