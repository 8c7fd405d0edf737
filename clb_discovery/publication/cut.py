"""What is installed after the kernel has refused an element in the middle of a plan, and how to undo the rest.

Elements are written map by map, and the element of `clb_virtual` last. So virtual servers whose element was written are
as planned. The programs have seen nothing of the others; their rows and labels are taken back. `cut` names the virtual
server of the refused element, so that a new plan can leave it out. Elements that finished virtual servers no longer
need become orphans, which the next complete plan deletes after a grace period.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from clb_discovery.layout import elements, structs
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Vip
from clb_discovery.publication.plan import Delete, GracePeriod, Plan, Step, Write


class Cut(NamedTuple):
    """A plan that ended at a refused element."""

    vip: Vip
    """The virtual server that the element belongs to."""
    steps: tuple[Step, ...]
    """Undo the writes for virtual servers whose element was not written."""
    carried_out: Plan
    """The installed state after these steps, and the changes; without steps."""


def cut(installed: Installed, made: Plan, refused: Map, key: bytes) -> Cut | None:
    """Return how to go on after the kernel has refused an element of a plan.

    :param installed: the installed state before the plan.
    :param refused: the map of the refused element; everything before the element was written.
    :param key: the key of the refused element.
    :returns: None if the element belongs to no single virtual server.
    """
    vip = _owner(made, refused, key)
    if vip is None:
        return None
    written = _Written(made, refused, key)
    done = made.changed[: len(written.of(Map.VIRTUAL))]
    return Cut(vip, tuple(_undone(installed, made, done, written)), _carried_out(installed, made, done, written))


class _Written:
    """The writes of a plan before the refused element."""

    def __init__(self, made: Plan, refused: Map, key: bytes) -> None:
        self._written: dict[Map, list[bytes]] = {}
        for step in made.steps:
            if isinstance(step, Write):
                keys = [one for one, _ in step.items]
                self._written[step.map] = keys[: keys.index(key)] if step.map is refused else keys
                if step.map is refused:
                    break

    def of(self, map_: Map) -> list[bytes]:
        """Return the written keys of a map, in order."""
        return self._written.get(map_, [])


def _owner(made: Plan, refused: Map, key: bytes) -> Vip | None:
    new = made.result.virtual
    if refused is Map.VIRTUAL or refused is Map.LABELS:
        vip = elements.unpack_vip(key)
        return vip if vip in new else None
    if refused is Map.ROWS:
        generation, _ = elements.unpack_place(key)
        return next((vip for vip in made.changed if new[vip].generation == generation), None)
    if refused is Map.SERVERS:
        index = elements.unpack_index(key)
        return next((vip for vip in made.changed if index in new[vip].servers.values()), None)
    return None


def _undone(installed: Installed, made: Plan, done: tuple[Vip, ...], written: _Written) -> list[Step]:
    """Return the steps that undo rows and labels. No grace period is needed, because no element refers to them.

    Servers need no undo: zeros were written over zeros.
    """
    lasting = {made.result.virtual[vip].generation for vip in done}
    rows = tuple(key for key in written.of(Map.ROWS) if elements.unpack_place(key)[0] not in lasting)
    named = ((key, elements.unpack_vip(key)) for key in written.of(Map.LABELS))
    labels = [(key, installed.virtual.get(vip)) for key, vip in named if vip not in done]
    again = tuple((key, elements.pack_label(one.label)) for key, one in labels if one and one.label)
    new = tuple(key for key, one in labels if not (one and one.label))
    steps: list[Step] = [Delete(Map.ROWS, rows)] if rows else []
    steps += [Write(Map.LABELS, again)] if again else []
    steps += [Delete(Map.LABELS, new)] if new else []
    return steps


def _carried_out(installed: Installed, made: Plan, done: tuple[Vip, ...], written: _Written) -> Plan:
    new = {vip: made.result.virtual[vip] for vip in done}
    old = [(one, new[vip].servers.keys()) for vip in done if (one := installed.virtual.get(vip))]
    gone = {member: index for one, stays in old for member, index in one.servers.items() if member not in stays}
    stale = {
        Map.ROWS: [elements.pack_place(one.generation, row) for one, _ in old for row in one.rows],
        Map.SERVERS: [elements.pack_index(index) for index in gone.values()],
    }
    kept = dict(installed.orphans)
    labels = set(written.of(Map.LABELS))  # an orphan that was written is a label now, or undone
    kept[Map.LABELS] = tuple(key for key in kept.get(Map.LABELS, ()) if key not in labels)
    orphans = {map_: (*kept.get(map_, ()), *stale.get(map_, ())) for map_ in kept.keys() | stale.keys()}
    top = min(made.result.top, structs.MAX_SERVERS)
    waited = bool(made.steps) and isinstance(made.steps[0], GracePeriod)
    taken = {index for one in new.values() for index in one.servers.values()}
    free = (*installed.free, *(installed.resting if waited else ()), *range(installed.top, top))
    result = replace(
        installed,
        virtual={**installed.virtual, **new},
        orphans={map_: keys for map_, keys in orphans.items() if keys},
        last_generation=made.result.last_generation,
        free=tuple(index for index in free if index not in taken),
        resting=() if waited else installed.resting,
        top=top,
    )
    return Plan((), result, done, (), tuple(sorted(member for member in gone if not elements.is_refusal(member))))
