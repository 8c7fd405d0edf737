"""Which virtual servers fit into the kernel's bounded maps, and which of them one bounded round publishes.

Both are decided for each virtual server separately, so that one that is too large does not stop the others:

- *Admission*: does it fit together with all others? Virtual servers that shrink come first, then those of configured
  services in the order of the configuration, then those of the catalog: installed ones first, then by name. One that
  does not fit keeps its size: servers that are gone are removed, and new ones take only their places. Services of the
  catalog fill at most three quarters of a map; the remaining quarter is for the configuration.
  The programs follow a chain of `clb_virtual` only so far. A virtual server beyond that does not fit, either.
- *Slices*: a round writes a bounded number of real servers. Services take turns, small changes first, so that large or
  frequent changes do not delay others; changes that have waited too long come before all. Old and new pool are in the
  maps side by side while one replaces the other, so a slice must also fit beside everything that is installed.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from clb_discovery.layout import elements, structs
from clb_discovery.layout.chains import chain_of
from clb_discovery.layout.gaps import count
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.layout.structs import Map
from clb_discovery.model.address import Address
from clb_discovery.model.servers import Protocol, Unpublished, Vip, VirtualServer
from clb_discovery.publication.plan import Plan, is_installed

SLICE: Final = 2560
"""Real servers written in a round, unless a single virtual server has more."""
SHARE: Final = 8
"""A round writes at least the backlog divided by this number, because each round has a fixed cost."""
OVERHEAD: Final = 8
"""Fixed cost of a virtual server, expressed in real servers."""
PATIENCE: Final = 8
"""Rounds of waiting after which a change comes first."""


class Room(NamedTuple):
    """A number of elements in each map."""

    virtual: int
    """Of `clb_labels`."""
    elements: int
    """Of `clb_virtual`: old and new ones side by side."""
    rows: int
    """Of `clb_rows` and `clb_overflow` together. A pool that does not fit into `clb_rows`, although there are enough
    free rows in all, has room in `clb_overflow`, which can hold them all."""
    servers: int

    def plus(self, other: Room) -> Room:
        """Return the sum."""
        return Room(*map(operator.add, self, other))

    def minus(self, other: Room) -> Room:
        """Return the difference."""
        return Room(*map(operator.sub, self, other))

    def lacks(self, need: Room) -> str | None:
        """Return which map is too small for the need, with its size; None if there is room in all."""
        for what, has, wants, most in zip(_NAMES, self, need, SIZES, strict=True):
            if wants > 0 and wants > has:
                return f"at most {most} {what} are possible"
        return None


_NAMES: Final = (
    "virtual servers",
    "old and new virtual servers together",
    "rows of real servers",
    "real and virtual servers together",
)
SIZES: Final = Room(structs.MAX_VIRTUAL_SERVERS, structs.VIRTUAL_ELEMENTS - 1, structs.MAX_ROWS, structs.MAX_SERVERS)
OF_CATALOG: Final = Room(*(size * 3 // 4 for size in SIZES))
_NOTHING: Final = Room(0, 0, 0, 0)
_TOO_LONG: Final = "the VIPs of too many virtual servers have the same hash; use another VIP"


class Admitted(NamedTuple):
    """The result of admission."""

    changes: Sequence[VirtualServer]
    """Virtual servers that fit, and those that do not in their present size."""
    refused: Sequence[Unpublished]


class Slice(NamedTuple):
    """The changes of one round."""

    publish: Mapping[Vip, VirtualServer]
    withdraw: Collection[Vip]
    left: Mapping[Vip, int]
    """Virtual servers that wait for another round, each with the number of rounds that it has waited."""
    cramped: Sequence[Unpublished]
    """Virtual servers that fit, but not beside the pools that they replace; further rounds do not help."""


def used(installed: Installed) -> Room:
    """Return the elements of all installed virtual servers, without orphans."""
    return _total(installed.virtual.values())


def used_after(plan: Plan, installed: Installed, taken: Room) -> Room:
    """Return the result of `used` after a plan, from that before it."""
    before = (installed.virtual.get(vip) for vip in (*plan.changed, *plan.removed))
    gone = _total(one for one in before if one)
    return taken.minus(gone).plus(_total(plan.result.virtual[vip] for vip in plan.changed))


def admit(
    installed: Installed,
    changes: Sequence[VirtualServer],
    gone: Collection[Vip],
    configured: Iterable[str],
    taken: Room | None = None,
) -> Admitted:
    """Decide which virtual servers fit.

    :param changes: virtual servers that differ from what is installed.
    :param gone: installed virtual servers that are not desired.
    :param configured: the sources of the configuration in order, which are needed only if there is not enough room;
        all other sources are of the catalog.
    :param taken: the result of `used`, if the caller has it already.
    """
    growth = {server.vip: _size(server).minus(_installed_size(installed.virtual.get(server.vip))) for server in changes}
    wanted = (taken or used(installed)).minus(_total(installed.virtual[vip] for vip in gone))
    for each in growth.values():
        wanted = wanted.plus(each) if each.servers > 0 or each.virtual > 0 else wanted
    if OF_CATALOG.minus(wanted).lacks(Room(1, 1, 1, 1)) is None and not _may_be_too_long(installed, changes):
        return Admitted(changes, ())
    places = {source: place for place, source in enumerate(dict.fromkeys(configured))}
    return _admit_in_order(installed, _ordered(installed, changes, growth, places), growth, gone, places)


def _admit_in_order(
    installed: Installed,
    ordered: Iterable[VirtualServer],
    growth: Mapping[Vip, Room],
    gone: Collection[Vip],
    configured: Mapping[str, int],
) -> Admitted:
    stays = [one for vip, one in installed.virtual.items() if vip not in gone]
    theirs = (one for one in stays if _source(one) not in configured)
    room, catalog = SIZES.minus(_total(stays)), OF_CATALOG.minus(_total(theirs))
    chains = Counter(chain_of(elements.pack_vip(vip)) for vip in installed.virtual if vip not in gone)
    admitted: list[VirtualServer] = []
    refused: list[Unpublished] = []
    for server in ordered:
        need = growth[server.vip]
        of_catalog = server.source not in configured
        lack = room.lacks(need) or (catalog.lacks(need) if of_catalog else None)
        if lack is None and need.virtual:
            chain = chain_of(elements.pack_vip(server.vip))
            chains[chain] += 1
            if chains[chain] > structs.CHAIN:
                chains[chain] -= 1
                refused.append(_unpublished(server, _TOO_LONG))
                continue
        if lack:
            refused.append(_refusal(installed, server, lack, of_catalog=of_catalog))
            same_size = _as_large_as_installed(installed, server)
            if same_size and not is_installed(installed, same_size):
                admitted.append(same_size)
            continue
        admitted.append(server)
        room = room.minus(need)
        catalog = catalog.minus(need) if of_catalog else catalog
    return Admitted(admitted, refused)


def _ordered(
    installed: Installed, changes: Iterable[VirtualServer], growth: Mapping[Vip, Room], configured: Mapping[str, int]
) -> list[VirtualServer]:
    holding = {one.label.source for one in installed.virtual.values() if one.label}

    def place(server: VirtualServer) -> tuple[bool, int, bool, str, Vip]:
        grows = growth[server.vip].servers > 0
        return (
            grows,
            configured.get(server.source, len(configured)),
            server.source not in holding,
            server.service,
            server.vip,
        )

    return sorted(changes, key=place)


def _refusal(installed: Installed, server: VirtualServer, lack: str, *, of_catalog: bool) -> Unpublished:
    share = ", three quarters of them for services of the catalog" if of_catalog else ""
    stays = "; its pool stays as large as it is" if server.vip in installed.virtual else ""
    fix = "use fewer VIPs or real servers, or a second --instance for some services"
    return _unpublished(server, f"no room: {lack}{share}{stays}; {fix}")


def _unpublished(server: VirtualServer, reason: str) -> Unpublished:
    return Unpublished(server.vip, server.service, server.source, reason)


def _may_be_too_long(installed: Installed, changes: Iterable[VirtualServer]) -> bool:
    """Tell whether new virtual servers make a chain too long, if none of its others are gone."""
    new = Counter(chain_of(elements.pack_vip(server.vip)) for server in changes if server.vip not in installed.virtual)
    return any(len(installed.chains.get(chain, ())) + number > structs.CHAIN for chain, number in new.items())


def _as_large_as_installed(installed: Installed, server: VirtualServer) -> VirtualServer | None:
    """Return a virtual server with as many real servers as are installed; None if none are.

    Low priorities stay, as in every pool that is cut; within a priority, installed servers stay.
    """
    old = installed.virtual.get(server.vip)
    if not old or not old.pool:
        return None
    had = {one.endpoint for one in old.pool}
    ranked = sorted(server.pool, key=lambda one: (one.priority, one.endpoint not in had))
    return replace(server, pool=tuple(sorted(ranked[: len(old.pool)])))


def choose(  # noqa: PLR0913 - all inputs of a round
    installed: Installed,
    changes: Sequence[VirtualServer],
    gone: Collection[Vip],
    waited: Mapping[Vip, int],
    taken: Room | None = None,
    *,
    budget: int | None = SLICE,
) -> Slice:
    """Choose the changes of this round.

    :param changes: admitted virtual servers.
    :param gone: virtual servers to withdraw.
    :param waited: the number of rounds that each of them has waited.
    :param taken: as for `admit`.
    :param budget: real servers to write; None for all of them.
    """
    units = _units(installed, changes, gone)
    if budget is not None:
        budget = max(budget, sum(unit.cost for unit in units) // SHARE)
    room = _free(installed, taken or used(installed))
    chains: Counter[int] = Counter()
    publish: dict[Vip, VirtualServer] = {}
    withdraw: list[Vip] = []
    late: list[_Unit] = []
    cramped: list[_Unit] = []
    spent = 0
    for unit in _in_turns(units, waited):
        if late or (budget is not None and spent and spent + unit.cost > budget):
            late.append(unit)
            continue
        need = _beside(installed, unit, room)
        longer = _longer(installed, unit)
        too_long = (
            len(installed.chains.get(chain, ())) + chains[chain] + longer.count(chain) > structs.CHAIN
            for chain in longer
        )
        if room.lacks(need) or any(too_long):
            cramped.append(unit)
            continue
        chains.update(longer)
        room = room.minus(need)
        spent += unit.cost
        publish |= {server.vip: server for server in unit.publish}
        withdraw += unit.withdraw
    moves = bool(publish or withdraw)  # this round makes room for the next
    waiting = [*late, *(cramped if moves else ())]
    left = {vip: waited.get(vip, 0) + 1 for unit in waiting for vip in unit.vips()}
    stuck = () if moves else [server for unit in cramped for server in unit.publish]
    return Slice(publish, withdraw, left, [_cramped(installed, server) for server in stuck])


def _cramped(installed: Installed, server: VirtualServer) -> Unpublished:
    stays = "; its previous pool stays in use" if server.vip in installed.virtual else ""
    reason = f"no room for the old and the new pool side by side{stays}; use a second --instance for some services"
    return _unpublished(server, reason)


class _Unit(NamedTuple):
    """Changes that must be in one round: of all ports of an address whose wildcard comes or goes, else of one VIP."""

    source: str
    publish: Sequence[VirtualServer]
    withdraw: Sequence[Vip]
    cost: int

    def vips(self) -> Iterator[Vip]:
        """Yield all VIPs."""
        yield from (server.vip for server in self.publish)
        yield from self.withdraw


def _units(installed: Installed, changes: Iterable[VirtualServer], gone: Collection[Vip]) -> list[_Unit]:
    changes = list(changes)
    vips = (*(server.vip for server in changes), *gone)
    wild = {(vip.address, vip.protocol) for vip in vips if vip.port == 0}
    published: defaultdict[Vip | tuple[Address, Protocol], list[VirtualServer]] = defaultdict(list)
    withdrawn: defaultdict[Vip | tuple[Address, Protocol], list[Vip]] = defaultdict(list)
    for server in changes:
        published[_unit_of(server.vip, wild)].append(server)
    for vip in gone:
        withdrawn[_unit_of(vip, wild)].append(vip)
    units = []
    for key in dict.fromkeys([*published, *withdrawn]):
        new, old = published[key], withdrawn[key]
        cost = sum(len(server.pool) + OVERHEAD for server in new)
        cost += sum(len(installed.virtual[vip].rows) + OVERHEAD for vip in old)
        units.append(_Unit(new[0].source if new else _source(installed.virtual[old[0]]), new, old, cost))
    return units


def _unit_of(vip: Vip, wild: Collection[object]) -> Vip | tuple[Address, Protocol]:
    both = (vip.address, vip.protocol)
    return both if both in wild else vip


def _in_turns(units: Iterable[_Unit], waited: Mapping[Vip, int]) -> list[_Unit]:
    """Return units in their order: by the cost of the earlier units of the same source, including their own.

    Units of one source that publish come before those that only withdraw, so that a service that moves to another VIP
    is published there before the old one is withdrawn.
    """
    given: defaultdict[str, int] = defaultdict(int)
    placed: list[tuple[int, int, _Unit]] = []
    for unit in sorted(units, key=lambda unit: (not unit.publish, unit.cost)):
        given[unit.source] += unit.cost
        patience = max((waited.get(vip, 0) for vip in unit.vips()), default=0)
        placed.append((-patience if patience >= PATIENCE else 0, given[unit.source], unit))
    return [unit for _, _, unit in sorted(placed, key=lambda one: one[:2])]


def _free(installed: Installed, taken: Room) -> Room:
    """Return the free room beside everything that is in the maps, including orphans."""
    orphans = {map_: len(installed.orphans.get(map_, ())) for map_ in (Map.LABELS, Map.OVERFLOW)}
    return Room(
        SIZES.virtual - taken.virtual - orphans[Map.LABELS],
        count(installed.free_virtual),
        SIZES.rows - taken.rows - orphans[Map.OVERFLOW],
        len(installed.free) + len(installed.resting) + max(0, SIZES.servers - installed.top),
    )


def _longer(installed: Installed, unit: _Unit) -> list[int]:
    """Return the chains that gain elements, once for each, while those that they lose are still in them."""
    new = (server.vip for server in unit.publish if server.vip not in installed.virtual)
    return [chain_of(elements.pack_vip(vip)) for vip in new]


def _beside(installed: Installed, unit: _Unit, room: Room) -> Room:
    """Return the room that a unit needs while its old pools are still in the maps; less if servers are reused.

    The exact number of servers is computed only if room is scarce.
    """
    need = _NOTHING
    for server in unit.publish:
        old = installed.virtual.get(server.vip)
        size = _size(server)
        servers = size.servers
        if servers > room.servers and old:
            had = {one.endpoint for one in old.pool or ()}
            servers = sum(one.endpoint not in had for one in server.pool)
        need = need.plus(Room(0 if old else 1, 1, size.rows, servers))
    return need


def _size(server: VirtualServer) -> Room:
    return Room(1, 1, elements.rows(max(1, len(server.pool))), len(server.pool) + 1)


def _installed_size(one: Published | None) -> Room:
    return Room(1, 1, len(one.rows), len(one.servers)) if one else _NOTHING


def _total(published: Iterable[Published]) -> Room:
    sizes = [(len(one.rows), len(one.servers)) for one in published]
    return Room(len(sizes), len(sizes), sum(rows for rows, _ in sizes), sum(servers for _, servers in sizes))


def _source(one: Published) -> str:
    return one.label.source if one.label else ""
