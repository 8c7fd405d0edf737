"""What is installed after the kernel has refused an element in the middle of a plan, and how to undo the rest.

All elements are written before the first link is stored. So the programs have seen nothing, and every virtual server is
as before the plan. Elements of `clb_virtual` and `clb_rows` that were written are still free, because no link leads
there; elements of `clb_overflow` and labels are taken back. `cut` names the virtual server of the refused element, so
that a new plan can leave it out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from clb_discovery.layout import elements
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Vip
from clb_discovery.publication.plan import Plan
from clb_discovery.publication.steps import Delete, GracePeriod, Step, Write


class Cut(NamedTuple):
    """A plan that ended at a refused element."""

    vip: Vip
    """The virtual server that the element belongs to."""
    steps: tuple[Step, ...]
    """Undo the writes."""
    carried_out: Plan
    """The installed state after these steps; without steps and changes."""


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
    written = _written(made, refused, key)
    return Cut(vip, tuple(_undone(installed, written)), _carried_out(installed, made, written))


def _written(made: Plan, refused: Map, key: bytes) -> dict[Map, list[bytes]]:
    """Return the keys that were written before the refused element, in order."""
    written: dict[Map, list[bytes]] = {}
    for step in made.steps:
        if isinstance(step, Write):
            keys = [one for one, _ in step.items]
            written[step.map] = keys[: keys.index(key)] if step.map is refused else keys
            if step.map is refused:
                break
    return written


def _owner(made: Plan, refused: Map, key: bytes) -> Vip | None:
    new = made.result.virtual
    if refused is Map.LABELS:
        vip = elements.unpack_vip(key)
        return vip if vip in new else None
    if refused is Map.OVERFLOW:
        generation, _ = elements.unpack_place(key)
        return next((vip for vip in made.changed if new[vip].generation == generation), None)
    if refused in {Map.SERVERS, Map.VIRTUAL, Map.ROWS}:
        index = elements.unpack_index(key)
        return next((vip for vip in made.changed if _uses(made, vip, refused, index)), None)
    return None


def _uses(made: Plan, vip: Vip, map_: Map, index: int) -> bool:
    """Tell whether a virtual server has this element of an array after the plan."""
    new = made.result.virtual[vip]
    if map_ is Map.SERVERS:
        return index in new.servers.values()
    if map_ is Map.VIRTUAL:
        return index == new.index
    return new.row <= index < new.row + len(new.rows)


def _undone(installed: Installed, written: dict[Map, list[bytes]]) -> list[Step]:
    """Return the steps that undo rows and labels. No grace period is needed, because no link leads to them.

    Servers need no undo: zeros were written over zeros.
    """
    rows = tuple(written.get(Map.OVERFLOW, ()))
    labels = [(key, installed.virtual.get(elements.unpack_vip(key))) for key in written.get(Map.LABELS, ())]
    again = tuple((key, elements.pack_label(one.label)) for key, one in labels if one and one.label)
    new = tuple(key for key, one in labels if not (one and one.label))
    steps: list[Step] = [Delete(Map.OVERFLOW, rows)] if rows else []
    steps += [Write(Map.LABELS, again)] if again else []
    steps += [Delete(Map.LABELS, new)] if new else []
    return steps


def _carried_out(installed: Installed, made: Plan, written: dict[Map, list[bytes]]) -> Plan:
    labels = set(written.get(Map.LABELS, ()))  # an orphan that was written is undone now
    orphans = {**installed.orphans, Map.LABELS: tuple(_without(installed.orphans.get(Map.LABELS, ()), labels))}
    # Other orphans have a generation that is not new, or are servers, which were zero or are zero now.
    waited = bool(made.steps) and isinstance(made.steps[0], GracePeriod)
    result = replace(
        installed,
        orphans={map_: keys for map_, keys in orphans.items() if keys},
        last_generation=made.result.last_generation,
        free=installed.free + (installed.resting if waited else ()),
        resting=() if waited else installed.resting,
    )
    return Plan((), result, (), (), ())


def _without(keys: tuple[bytes, ...], others: set[bytes]) -> list[bytes]:
    return [key for key in keys if key not in others]
