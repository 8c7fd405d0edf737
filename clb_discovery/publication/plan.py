"""The difference between desired and installed, as steps in an order that is safe after each step.

The order is that of bpf/clb.h: servers, the rows of a new generation, labels, the one element of the virtual server,
its address in the filter; then virtual servers that are gone; a grace period; then elements without references. At each
point, a connect to a virtual server that is in both states finds its whole old pool or its whole new pool:

- elements written before `clb_virtual` belong to a generation without references yet;
- replacing an element of `clb_virtual` is atomic for readers and moves all connects at once;
- exact ports are added before and deleted after the wildcard of their address, which would serve them meanwhile. If an
  exact port takes over from a wildcard that is deleted, there is a grace period between both steps, because a program
  looks up the exact port first and the wildcard after it;
- elements deleted after the grace period lost their last reference before it;
- an index of `clb_servers` is given to another server only after a grace period since it was set to zero.

A crash leaves at worst elements without references. They are orphans at the next start and are deleted then.
If the kernel refuses an element, `publication.cut` computes the installed state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.elements import Label
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.layout.slots import pool_members, pool_slots, pool_virtual
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Pool, Vip, VirtualServer


@dataclass(frozen=True, slots=True)
class Write:
    """Insert or replace elements."""

    map: Map
    items: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete existing elements."""

    map: Map
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class GracePeriod:
    """Wait until every program that is running now has ended."""


Step = Write | Delete | GracePeriod


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


def plan(
    installed: Installed, desired: Mapping[Vip, VirtualServer], *, complete: bool, keep: AbstractSet[Vip] = frozenset()
) -> Plan:
    """Return the steps from the installed to the desired state.

    :param complete: whether `desired` contains every virtual server. Before every source has answered once, it does
        not: virtual servers that it lacks stay then, and so do orphans.
    :param keep: virtual servers that stay although `desired` lacks them. An exact port can be here only if the wildcard
        of its address is neither added nor deleted, and vice versa.
    """
    draft = _Draft(installed)
    for server in sorted(desired.values(), key=lambda server: server.vip.port == 0):
        draft.publish(server)
    lacking = installed.virtual.keys() - desired.keys() - keep if complete else ()
    gone = tuple(sorted(lacking, key=lambda vip: (vip.port != 0, vip)))
    for vip in gone:
        draft.withdraw(vip)
    orphans = _without(installed.orphans, draft.writes)
    if complete:
        for map_, keys in orphans.items():
            draft.stale[map_] += keys

    wanted = address_filter.elements(frozenset(vip.address for vip in draft.virtual))
    either = _either(installed.filter, wanted)
    draft.writes[Map.FILTER] = _filter_changes(installed.filter, either)
    deletes = _present(
        Write(Map.FILTER, tuple(_filter_changes(either, wanted).items()) if complete else ()),
        Delete(Map.VIRTUAL, tuple(map(elements.pack_vip, gone))),
    )
    taken_over = {vip._replace(port=0) for vip in draft.changed if vip.port}
    between = (GracePeriod(),) if not taken_over.isdisjoint(gone) else ()
    collected = _present(*(_collect(map_, keys) for map_, keys in draft.stale.items()))
    after = (GracePeriod(), *collected) if collected else ()
    before = (GracePeriod(),) if draft.indexes.must_wait else ()
    zeroed = tuple(map(elements.unpack_index, draft.stale[Map.SERVERS]))
    free, resting = draft.indexes.left(zeroed, waited=bool(before or between or after))
    writes = _present(*(Write(map_, tuple(items.items())) for map_, items in draft.writes.items()))
    result = Installed(
        virtual=draft.virtual,
        filter=wanted if complete else either,
        orphans={} if complete else orphans,
        last_generation=draft.generation,
        free=free,
        resting=resting,
        top=draft.indexes.top,
    )
    return Plan(
        (*before, *writes, *between, *deletes, *after), result, tuple(draft.changed), gone, tuple(draft.dropped)
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
    return old is not None and holds(old, server) and old.label == _label(server)


def holds(old: Published, server: VirtualServer) -> bool:
    """Tell whether a virtual server is installed, apart from its label."""
    return (old.pool, old.algorithm, old.health) == (server.pool, server.algorithm, server.health)


class _Indexes:
    """Gives indexes of `clb_servers` to new servers."""

    def __init__(self, installed: Installed) -> None:
        self._free = installed.free
        self._resting = installed.resting
        self._given = 0
        self.top = installed.top
        self.must_wait = False
        """Whether the plan has to begin with a grace period."""

    def give(self) -> int:
        """Return the index of a new server. If none is free, it is out of range, and the kernel will refuse it."""
        if self._given == len(self._free) and self.top >= structs.MAX_SERVERS and self._resting:
            self._free, self._resting, self._given, self.must_wait = self._resting, (), 0, True
        if self._given < len(self._free):
            self._given += 1
            return self._free[self._given - 1]
        self.top += 1
        return self.top - 1

    def left(self, zeroed: tuple[int, ...], *, waited: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the free and the resting indexes after the plan.

        :param zeroed: indexes that are set to zero after the last grace period; empty without one.
        :param waited: whether the plan has a grace period.
        """
        free = self._free[self._given :]
        return (free + self._resting, zeroed) if waited else (free, self._resting)


class _Draft:
    """Elements to write before, and to delete after, the elements of virtual servers are replaced."""

    def __init__(self, installed: Installed) -> None:
        self.virtual = dict(installed.virtual)
        self.generation = installed.last_generation
        self.changed: list[Vip] = []
        self.dropped: list[bytes] = []
        self.indexes = _Indexes(installed)
        # In the order of the steps.
        self.writes: dict[Map, dict[bytes, bytes]] = {map_: {} for map_ in _WRITTEN}
        self.stale: dict[Map, list[bytes]] = {map_: [] for map_ in _COLLECTED}

    def publish(self, server: VirtualServer) -> None:
        """Add the changes that make a virtual server as desired."""
        old = self.virtual.get(server.vip)
        key, label = elements.pack_vip(server.vip), _label(server)
        if old is None or old.label != label:
            self.writes[Map.LABELS][key] = elements.pack_label(label)
        if old is not None and holds(old, server):
            self.virtual[server.vip] = replace(old, label=label)
            return
        self.generation += 1
        servers = self._servers(key, server.pool, old.servers if old else {})
        rows = elements.pack_rows(pool_slots(server.pool, servers.items()))
        for number, row in enumerate(rows):
            self.writes[Map.ROWS][elements.pack_place(self.generation, number)] = row
        refusal = servers[elements.refusal(key)]
        self.writes[Map.VIRTUAL][key] = elements.pack_virtual(pool_virtual(self.generation, server, refusal))
        if old:
            self.stale[Map.ROWS] += _places(old)
            self._drop({member: index for member, index in old.servers.items() if member not in servers})
        self.virtual[server.vip] = Published(
            generation=self.generation,
            rows=range(len(rows)),
            algorithm=server.algorithm,
            pool=server.pool,
            health=server.health,
            label=label,
            servers=servers,
        )
        self.changed.append(server.vip)

    def withdraw(self, vip: Vip) -> None:
        """Add the deletion of a virtual server."""
        old, key = self.virtual.pop(vip), elements.pack_vip(vip)
        self.stale[Map.ROWS] += _places(old)
        self._drop(old.servers)
        self.stale[Map.LABELS] += [key] if old.label else []

    def _servers(self, key: bytes, pool: Pool, had: Mapping[bytes, int]) -> dict[bytes, int]:
        servers = {}
        for member in pool_members(key, pool):
            index = had.get(member)
            if index is None:
                index = self.indexes.give()
                self.writes[Map.SERVERS][elements.pack_index(index)] = elements.NEW_SERVER
            servers[member] = index
        return servers

    def _drop(self, servers: Mapping[bytes, int]) -> None:
        self.stale[Map.SERVERS] += map(elements.pack_index, servers.values())
        self.dropped += sorted(member for member in servers if not elements.is_refusal(member))


_WRITTEN = (Map.SERVERS, Map.ROWS, Map.LABELS, Map.VIRTUAL, Map.FILTER)
_COLLECTED = (Map.VIRTUAL, Map.ROWS, Map.SERVERS, Map.LABELS)


def _either(one: Mapping[int, int], other: Mapping[int, int]) -> Mapping[int, int]:
    """Return the elements of a filter that lets pass every address that one of these lets pass."""
    if one == other:
        return one
    return {index: one.get(index, 0) | other.get(index, 0) for index in one.keys() | other.keys()}


def _filter_changes(before: Mapping[int, int], after: Mapping[int, int]) -> dict[bytes, bytes]:
    """Return the elements of `clb_filter` that differ, with their new values."""
    if before == after:
        return {}
    differ = (index for index in before.keys() | after.keys() if before.get(index, 0) != after.get(index, 0))
    return {elements.pack_index(index): address_filter.pack_element(after.get(index, 0)) for index in sorted(differ)}


def _label(server: VirtualServer) -> Label:
    # As it is read back; otherwise a name that is too long for the map would be a change in every plan.
    return elements.unpack_label(elements.pack_label(Label(server.service, server.source)))


def _without(
    orphans: Mapping[Map, Iterable[bytes]], written: Mapping[Map, Mapping[bytes, bytes]]
) -> dict[Map, tuple[bytes, ...]]:
    """Return the orphans except those that are written now: a crash may have left the very elements that come next."""
    left = {map_: tuple(key for key in keys if key not in written.get(map_, {})) for map_, keys in orphans.items()}
    return {map_: keys for map_, keys in left.items() if keys}


def _places(published: Published) -> Iterable[bytes]:
    return (elements.pack_place(published.generation, row) for row in published.rows)


def _collect(map_: Map, keys: Sequence[bytes]) -> Write | Delete:
    """Return the step that deletes elements; elements of an array can only be set to zero."""
    if map_ is Map.SERVERS:
        return Write(map_, tuple((key, elements.NEW_SERVER) for key in keys))
    return Delete(map_, tuple(keys))


def _present(*steps: Write | Delete) -> tuple[Step, ...]:
    return tuple(step for step in steps if (step.items if isinstance(step, Write) else step.keys))
