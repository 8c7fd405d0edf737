"""The difference between desired and installed, as steps in an order that is safe after each step.

The order is that of bpf/clb.h: servers, the rows of a new generation, new elements of `clb_virtual`, labels; links to
these elements; their addresses in the filter; then links past virtual servers that are gone; a grace period; then
deletions. At each point, a connect to a virtual server that is in both states finds its whole old pool or its whole new
pool:

- elements written before the links are free ones, which no link leads to;
- a link is one store, which is atomic for readers and moves all connects at once. What the old link led to stays until
  the grace period, so a reader that is there goes on undisturbed, also along the rest of the chain;
- exact ports are linked before and unlinked after the wildcard of their address, which would serve them meanwhile. If
  an exact port takes over from a wildcard that is deleted, there is a grace period between both steps, because a
  program looks up the exact port first and the wildcard after it;
- elements deleted after the grace period lost their last reference before it; elements of `clb_virtual` and `clb_rows`
  that did are free for the next plan;
- an index of `clb_servers` is given to another server only after a grace period since it was set to zero, and what the
  sidecar has said of it is gone before. It says nothing of servers that are in no pool, so no late word follows.

A crash leaves at worst elements without references. They are free, or orphans, which are deleted, at the next start.
If the kernel refuses an element, `publication.cut` computes the installed state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from clb_discovery.layout import address_filter, elements
from clb_discovery.layout.gaps import joined
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Vip, VirtualServer
from clb_discovery.publication.draft import Draft, holds, label_of
from clb_discovery.publication.steps import Delete, GracePeriod, Step, Store, Write


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps from installed to desired, and the result."""

    steps: tuple[Step, ...]
    result: Installed
    """The installed state after all steps."""
    changed: tuple[Vip, ...]
    """Virtual servers with a new generation."""
    removed: tuple[Vip, ...]
    """Virtual servers that are deleted."""
    dropped: tuple[bytes, ...]
    """Packed members that are removed from their pools."""


def observed(before: Installed, now: Installed) -> Plan:
    """Return, without steps, the plan that has led from one state to another, such as one that failed half-way."""
    whole = {vip: one.servers.keys() for vip, one in now.virtual.items() if one.pool is not None}
    dropped = (
        member
        for vip, one in before.virtual.items()
        if vip in whole or vip not in now.virtual
        for member in one.servers.keys() - whole.get(vip, frozenset())
    )
    return Plan(
        (),
        now,
        tuple(vip for vip, one in now.virtual.items() if one != before.virtual.get(vip)),
        tuple(sorted(before.virtual.keys() - now.virtual.keys())),
        tuple(sorted(one for one in dropped if not elements.is_refusal(one))),
    )


def plan(
    installed: Installed,
    desired: Mapping[Vip, VirtualServer],
    *,
    complete: bool,
    gone: AbstractSet[Vip] | None = None,
) -> Plan:
    """Return the steps from the installed to the desired state.

    :param complete: whether `desired` contains every virtual server. Before every source has answered once, it does
        not: virtual servers that it lacks stay then, and so do orphans.
    :param gone: virtual servers to delete, none of them desired; None for all that a complete `desired` lacks. An exact
        port that stays although it is not desired needs a wildcard of its address that is neither added nor deleted,
        and vice versa.
    """
    draft = Draft(installed)
    for server in sorted(desired.values(), key=lambda server: server.vip.port == 0):
        draft.publish(server)
    links = draft.chains.stored()
    if gone is None:
        gone = installed.virtual.keys() - desired.keys() if complete else frozenset()
    removed = tuple(sorted(gone, key=lambda vip: (vip.port != 0, vip)))
    for vip in removed:
        draft.withdraw(vip)
    orphans = _without(installed.orphans, draft.writes)
    if complete:
        for map_, keys in orphans.items():
            draft.stale[map_] += keys

    filtered = draft.virtual if complete or not installed.filtered else draft.changed
    wanted = address_filter.elements(frozenset(vip.address for vip in filtered))
    either = _either(installed.filter, wanted)
    before = (GracePeriod(),) if draft.indexes.must_wait else ()
    writes = _present(
        *(Write(map_, tuple(items.items())) for map_, items in draft.writes.items()),
        Store(links),
        Write(Map.FILTER, tuple(_filter_changes(installed.filter, either).items())),
    )
    taken_over = {vip._replace(port=0) for vip in draft.changed if vip.port}
    between = (GracePeriod(),) if not taken_over.isdisjoint(removed) else ()
    unlinked = _present(
        Write(Map.FILTER, tuple(_filter_changes(either, wanted).items()) if complete else ()),
        Store(draft.chains.stored()),
    )
    collected = _present(*(step for map_, keys in draft.stale.items() for step in _collect(map_, keys)))
    after = (GracePeriod(), *collected) if collected or draft.frees() else ()
    zeroed = tuple(map(elements.unpack_index, draft.stale[Map.SERVERS]))
    free, resting = draft.indexes.left(zeroed, waited=bool(before or between or after))
    result = Installed(
        virtual=draft.virtual,
        chains=draft.chains.left(),
        free_virtual=joined(draft.places.left(), draft.unlinked),
        free_rows=joined(draft.rows.left(), draft.freed),
        filter=wanted if complete else either,
        filtered=True,
        orphans={} if complete else orphans,
        last_generation=draft.generation,
        free=free,
        resting=resting,
        top=draft.indexes.top,
    )
    return Plan(
        (*before, *writes, *between, *unlinked, *after), result, tuple(draft.changed), removed, tuple(draft.dropped)
    )


def together(carried_out: Sequence[Plan], last: Plan) -> Plan:
    """Return the changes of several consecutive plans, with the steps of the last one."""
    plans = (*carried_out, last)
    return replace(
        last,
        changed=tuple(dict.fromkeys(vip for one in plans for vip in one.changed)),
        removed=tuple(dict.fromkeys(vip for one in plans for vip in one.removed)),
        dropped=tuple(member for one in plans for member in one.dropped),
    )


def is_installed(installed: Installed, server: VirtualServer) -> bool:
    """Tell whether a plan would change nothing in a virtual server."""
    old = installed.virtual.get(server.vip)
    return old is not None and holds(old, server) and old.label == label_of(server)


def _either(one: Mapping[int, int], other: Mapping[int, int]) -> Mapping[int, int]:
    """Return the elements of a filter that lets pass every address that one of these lets pass."""
    lacking = {index: bits | one.get(index, 0) for index, bits in other.items() if bits & ~one.get(index, 0)}
    return {**one, **lacking} if lacking else one


def _filter_changes(before: Mapping[int, int], after: Mapping[int, int]) -> dict[bytes, bytes]:
    """Return the elements of `clb_filter` that differ, with their new values."""
    if before == after:
        return {}
    differ = (index for index in before.keys() | after.keys() if before.get(index, 0) != after.get(index, 0))
    return {elements.pack_index(index): address_filter.pack_element(after.get(index, 0)) for index in sorted(differ)}


def _without(
    orphans: Mapping[Map, Iterable[bytes]], written: Mapping[Map, Mapping[bytes, bytes]]
) -> dict[Map, tuple[bytes, ...]]:
    """Return the orphans except those that are written now: a crash may have left the very elements that come next."""
    left = {map_: tuple(key for key in keys if key not in written.get(map_, {})) for map_, keys in orphans.items()}
    return {map_: keys for map_, keys in left.items() if keys}


def _collect(map_: Map, keys: Sequence[bytes]) -> tuple[Write | Delete, ...]:
    """Return the steps that delete elements; elements of an array can only be set to zero.

    What the sidecar has said of a server goes first: after a crash between the two steps, the server is found again.
    """
    if map_ is not Map.SERVERS:
        return (Delete(map_, tuple(keys)),)
    cleared = {Map.STEERING: elements.NO_WORD, map_: elements.NEW_SERVER}
    return tuple(Write(one, tuple((key, value) for key in keys)) for one, value in cleared.items())


def _present(*steps: Write | Store | Delete) -> tuple[Step, ...]:
    """Return the steps that have something to do."""
    found: list[Step] = []
    for step in steps:
        match step:
            case Write(_, things) | Store(things) | Delete(_, things):
                found += [step] if things else []
    return tuple(found)
