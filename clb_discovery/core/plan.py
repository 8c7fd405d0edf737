"""The difference between desired and held, as steps in an order that is safe after every one of them.

The order is bpf/clb.h's: counters and labels, the slots of a fresh generation, the virtual server's one element, its
address; then what is gone; a grace period; then what nothing refers to any more. At each point a connect to a virtual
server that is in both states finds all of its old pool or all of its new one:

- what is written before `clb_virtual` is under a generation that nothing refers to yet;
- replacing an element of `clb_virtual` is atomic for readers and moves all connects at once;
- what is deleted after the grace period was last referred to before it.

A crash leaves at worst elements that nothing refers to; they are orphans at the next start and are deleted then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from clb_discovery.core import layout
from clb_discovery.core.alias import alias_table
from clb_discovery.core.held import Held, Published
from clb_discovery.core.layout import Label, Map, Slot, Virtual
from clb_discovery.core.model import Pool, Vip, VirtualServer


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
    stale = {map_: list(held.orphans.get(map_, ())) if complete else [] for map_ in _COLLECTED}
    generation = held.last_generation

    for vip, server in desired.items():
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
        elements.append((key, layout.pack_virtual(_virtual(generation, server))))
        members = frozenset((layout.refusal(key), *(slot.member for slot in columns)))
        had = old.counters if old else frozenset()
        counters += ((member, bytes(layout.COUNTER_SIZE)) for member in sorted(members - had))
        if old:
            stale[Map.SLOTS] += _places(old)
            stale[Map.COUNTERS] += sorted(had - members)
        virtual[vip] = Published(generation, len(columns), server.algorithm, server.pool, label, members)
        changed.append(vip)

    gone = tuple(vip for vip in held.virtual if vip not in desired) if complete else ()
    for vip in gone:
        old = virtual.pop(vip)
        stale[Map.SLOTS] += _places(old)
        stale[Map.COUNTERS] += sorted(old.counters)
        if old.label:
            stale[Map.LABELS].append(layout.pack_vip(vip))

    addresses = frozenset(vip.address for vip in virtual)
    before = _present(
        Write(Map.COUNTERS, tuple(counters)),
        Write(Map.LABELS, tuple(labels)),
        Write(Map.SLOTS, tuple(slots)),
        Write(Map.VIRTUAL, tuple(elements)),
        Write(Map.ADDRESSES, tuple((address, layout.PRESENT) for address in sorted(addresses - held.addresses))),
        Delete(Map.ADDRESSES, tuple(sorted(held.addresses - addresses)) if complete else ()),
        Delete(Map.VIRTUAL, tuple(map(layout.pack_vip, gone))),
    )
    after = _present(*(Delete(map_, tuple(keys)) for map_, keys in stale.items()))
    result = Held(
        virtual=virtual,
        addresses=addresses if complete else addresses | held.addresses,
        orphans={} if complete else held.orphans,
        last_generation=generation,
    )
    return Plan(before + ((GracePeriod(), *after) if after else ()), result, tuple(changed), gone)


def pool_slots(vip: bytes, pool: Pool) -> list[Slot]:
    """Return the slots of a pool in the order of their index; one that refuses where the pool is empty.

    :param vip: the virtual server's key, packed.
    """
    if not pool:
        return [Slot(layout.refusal(vip), keep=1, out_of=1, alias=0, weight=0, priority=0)]
    slots: list[Slot] = []
    for priority, tier in groupby(pool, key=lambda server: server.priority):
        servers = list(tier)
        table = alias_table([server.weight for server in servers])
        first = len(slots)
        slots += (
            Slot(
                member=layout.pack_member(vip, server),
                keep=column.keep,
                out_of=table.out_of,
                alias=first + column.alias,
                weight=server.weight,
                priority=priority,
            )
            for server, column in zip(servers, table.columns, strict=True)
        )
    return slots


_COLLECTED = (Map.SLOTS, Map.COUNTERS, Map.LABELS)


def _label(server: VirtualServer) -> Label:
    # As it reads back, so that a name too long for the map does not look like a change for ever.
    return layout.unpack_label(layout.pack_label(Label(server.service, server.source)))


def _virtual(generation: int, server: VirtualServer) -> Virtual:
    lowest = sum(1 for real in server.pool if real.priority == server.pool[0].priority)
    return Virtual(generation, max(1, len(server.pool)), max(1, lowest), server.algorithm)


def _places(published: Published) -> Iterable[bytes]:
    return (layout.pack_place(published.generation, index) for index in range(published.slots))


def _present(*steps: Write | Delete) -> tuple[Step, ...]:
    return tuple(step for step in steps if (step.items if isinstance(step, Write) else step.keys))
