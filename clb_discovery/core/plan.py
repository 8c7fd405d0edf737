"""The difference between desired and held, as steps in an order that is safe after every one of them.

The order is bpf/clb.h's: counters and labels, the slots of a fresh generation, the virtual server's one element, its
address; then what is gone; a grace period; then what nothing refers to any more. At each point a connect to a virtual
server that is in both states finds all of its old pool or all of its new one:

- what is written before `clb_virtual` is under a generation that nothing refers to yet;
- replacing an element of `clb_virtual` is atomic for readers and moves all connects at once;
- exact ports come before and go after the wildcard of their address, which would serve them meanwhile; where an exact
  port takes over from a wildcard that goes, a grace period lies between, since a program looks for one after the other;
- what is deleted after the grace period was last referred to before it.

A crash leaves at worst elements that nothing refers to; they are orphans at the next start and are deleted then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from clb_discovery.core import layout
from clb_discovery.core.held import Held, Published
from clb_discovery.core.layout import Label, Map
from clb_discovery.core.model import Vip, VirtualServer
from clb_discovery.core.slots import pool_slots, pool_virtual


@dataclass(frozen=True, slots=True)
class Write:
    """Insert or replace elements."""

    map: Map
    items: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete elements that are there."""

    map: Map
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class GracePeriod:
    """Wait until every program that runs now has ended."""


Step = Write | Delete | GracePeriod


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps from held to desired, and what is held when they have been carried out."""

    steps: tuple[Step, ...]
    result: Held
    changed: tuple[Vip, ...]
    """Virtual servers that get a new generation."""
    removed: tuple[Vip, ...]
    """Virtual servers that go."""


def plan(held: Held, desired: Mapping[Vip, VirtualServer], *, complete: bool) -> Plan:
    """Work out the steps that make the kernel hold what is desired.

    :param complete: whether desired says everything. Until every source has answered once it does not; then virtual
        servers that it lacks stay, and so does everything that seems to belong to nobody.
    """
    virtual = dict(held.virtual)
    changed: list[Vip] = []
    counters: list[tuple[bytes, bytes]] = []
    labels: list[tuple[bytes, bytes]] = []
    slots: list[tuple[bytes, bytes]] = []
    elements: list[tuple[bytes, bytes]] = []
    stale: dict[Map, list[bytes]] = {map_: [] for map_ in _COLLECTED}
    generation = held.last_generation

    for vip, server in sorted(desired.items(), key=lambda item: item[0].port == 0):
        old = virtual.get(vip)
        label = _label(server)
        if old is None or old.label != label:
            labels.append((layout.pack_vip(vip), layout.pack_label(label)))
        if old is not None and old.pool == server.pool and old.algorithm == server.algorithm:
            if old.label != label:
                virtual[vip] = replace(old, label=label)
            continue
        generation += 1
        key = layout.pack_vip(vip)
        columns = pool_slots(key, server.pool)
        slots += ((layout.pack_place(generation, index), layout.pack_slot(slot)) for index, slot in enumerate(columns))
        elements.append((key, layout.pack_virtual(pool_virtual(generation, server.algorithm, server.pool))))
        members = frozenset((layout.refusal(key), *(slot.member for slot in columns)))
        had = old.counters if old else frozenset()
        counters += ((member, bytes(layout.COUNTER_SIZE)) for member in sorted(members - had))
        if old:
            stale[Map.SLOTS] += _places(old)
            stale[Map.COUNTERS] += sorted(had - members)
        virtual[vip] = Published(generation, range(len(columns)), server.algorithm, server.pool, label, members)
        changed.append(vip)

    gone = tuple(sorted(held.virtual.keys() - desired.keys(), key=lambda vip: (vip.port != 0, vip))) if complete else ()
    for vip in gone:
        old = virtual.pop(vip)
        stale[Map.SLOTS] += _places(old)
        stale[Map.COUNTERS] += sorted(old.counters)
        if old.label:
            stale[Map.LABELS].append(layout.pack_vip(vip))

    orphans = _without(held.orphans, {Map.COUNTERS: dict(counters), Map.LABELS: dict(labels)})
    if complete:
        for map_, keys in orphans.items():
            stale[map_] += keys
    addresses = frozenset(vip.address for vip in virtual)
    writes = _present(
        Write(Map.COUNTERS, tuple(counters)),
        Write(Map.LABELS, tuple(labels)),
        Write(Map.SLOTS, tuple(slots)),
        Write(Map.VIRTUAL, tuple(elements)),
        Write(Map.ADDRESSES, tuple((address, layout.PRESENT) for address in sorted(addresses - held.addresses))),
    )
    deletes = _present(
        Delete(Map.ADDRESSES, tuple(sorted(held.addresses - addresses)) if complete else ()),
        Delete(Map.VIRTUAL, tuple(map(layout.pack_vip, gone))),
    )
    taken_over = {vip._replace(port=0) for vip in changed if vip.port}
    between = (GracePeriod(),) if not taken_over.isdisjoint(gone) else ()
    collected = _present(*(Delete(map_, tuple(keys)) for map_, keys in stale.items()))
    result = Held(
        virtual=virtual,
        addresses=addresses if complete else addresses | held.addresses,
        orphans={} if complete else orphans,
        last_generation=generation,
    )
    after = (GracePeriod(), *collected) if collected else ()
    return Plan((*writes, *between, *deletes, *after), result, tuple(changed), gone)


_COLLECTED = (Map.VIRTUAL, Map.SLOTS, Map.COUNTERS, Map.LABELS)


def _label(server: VirtualServer) -> Label:
    # As it reads back, so that a name too long for the map does not look like a change for ever.
    return layout.unpack_label(layout.pack_label(Label(server.service, server.source)))


def _without(
    orphans: Mapping[Map, Iterable[bytes]], written: Mapping[Map, Mapping[bytes, bytes]]
) -> dict[Map, tuple[bytes, ...]]:
    """Return the orphans but for those that are needed now: a crash may have left just what comes next."""
    left = {map_: tuple(key for key in keys if key not in written.get(map_, {})) for map_, keys in orphans.items()}
    return {map_: keys for map_, keys in left.items() if keys}


def _places(published: Published) -> Iterable[bytes]:
    return (layout.pack_place(published.generation, index) for index in published.slots)


def _present(*steps: Write | Delete) -> tuple[Step, ...]:
    return tuple(step for step in steps if (step.items if isinstance(step, Write) else step.keys))
