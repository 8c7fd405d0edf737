"""The elements that a plan writes, and those that it deletes or gives away after the grace period."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from clb_discovery.layout import elements, structs
from clb_discovery.layout.chains import chain_of
from clb_discovery.layout.elements import Label
from clb_discovery.layout.gaps import Range, Taker
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.layout.slots import pool_members, pool_slots, pool_virtual
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Pool, Vip, VirtualServer
from clb_discovery.publication.links import ChainLinks

_WRITTEN = (Map.SERVERS, Map.ROWS, Map.OVERFLOW, Map.VIRTUAL, Map.LABELS)
_COLLECTED = (Map.OVERFLOW, Map.SERVERS, Map.LABELS)


class Draft:
    """Elements to write before, and to delete or to give away after, the links are changed."""

    def __init__(self, installed: Installed) -> None:
        self.virtual = dict(installed.virtual)
        self.generation = installed.last_generation
        self.changed: list[Vip] = []
        self.dropped: list[bytes] = []
        self.indexes = _Indexes(installed)
        self.chains = ChainLinks(installed)
        self.places = Taker(installed.free_virtual)
        self.rows = Taker(installed.free_rows)
        self.freed: list[Range] = []
        """Rows of `clb_rows` that are free after the plan."""
        broken = {index for strays in installed.broken.values() for index in strays}
        broken -= {published.index for published in installed.virtual.values()} if broken else set()
        self.unlinked = [Range(index, index + 1) for index in broken]
        """Elements of `clb_virtual` that are free after the plan."""
        self._repairs = bool(installed.broken)
        # In the order of the steps.
        self.writes: dict[Map, dict[bytes, bytes]] = {map_: {} for map_ in _WRITTEN}
        self.stale: dict[Map, list[bytes]] = {map_: [] for map_ in _COLLECTED}

    def frees(self) -> bool:
        """Tell whether elements are free for the next plan only after a grace period."""
        return bool(self.unlinked or self.freed or self._repairs)

    def publish(self, server: VirtualServer) -> None:
        """Add the changes that make a virtual server as desired."""
        old = self.virtual.get(server.vip)
        key, label = elements.pack_vip(server.vip), label_of(server)
        if old is None or old.label != label:
            self.writes[Map.LABELS][key] = elements.pack_label(label)
        if old is not None and holds(old, server):
            if old.label != label:
                self.virtual[server.vip] = replace(old, label=label)
            return
        self.generation += 1
        servers = self._servers(key, server.pool, old.servers if old else {})
        rows = elements.pack_rows(self.generation, pool_slots(server.pool, servers.items()))
        row = self._write_rows(rows)
        hashed = chain_of(key)
        # If none is free, it is out of range, and the kernel will refuse it.
        index = self.places.take(1) or structs.VIRTUAL_ELEMENTS
        virtual = pool_virtual(
            server,
            key,
            following=self.chains.after(hashed, old.index) if old else self.chains.head(hashed),
            generation=self.generation,
            row=row,
            refusal=servers[elements.refusal(key)],
        )
        self.writes[Map.VIRTUAL][elements.pack_index(index)] = elements.pack_virtual(virtual)
        self.chains.put(hashed, index, old.index if old else None)
        if old:
            self._free(old)
            self._drop({member: index for member, index in old.servers.items() if member not in servers})
        self.virtual[server.vip] = Published(
            generation=self.generation,
            index=index,
            row=row,
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
        self.chains.remove(chain_of(key), old.index)
        self._free(old)
        self._drop(old.servers)
        self.stale[Map.LABELS] += [key] if old.label else []

    def _write_rows(self, rows: Sequence[bytes]) -> int:
        """Write the rows of the new generation; return the first one in `clb_rows`, or OVERFLOWS."""
        first = self.rows.take(len(rows))
        if first is None:
            for number, row in enumerate(rows):
                self.writes[Map.OVERFLOW][elements.pack_place(self.generation, number)] = row
            return structs.OVERFLOWS
        for index, row in enumerate(rows, first):
            self.writes[Map.ROWS][elements.pack_index(index)] = row
        return first

    def _free(self, old: Published) -> None:
        """Give away the elements of a former generation after the plan."""
        self.unlinked.append(Range(old.index, old.index + 1))
        if old.row == structs.OVERFLOWS:
            self.stale[Map.OVERFLOW] += _places(old)
        elif old.rows:
            self.freed.append(Range(old.row, old.row + len(old.rows)))

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


def holds(old: Published, server: VirtualServer) -> bool:
    """Tell whether a virtual server is installed, apart from its label."""
    return (old.pool, old.algorithm, old.health) == (server.pool, server.algorithm, server.health)


def label_of(server: VirtualServer) -> Label:
    """Return the names of a virtual server."""
    # As it is read back; otherwise a name that is too long for the map would be a change in every plan.
    return elements.unpack_label(elements.pack_label(Label(server.service, server.source)))


def _places(published: Published) -> Iterable[bytes]:
    return (elements.pack_place(published.generation, row) for row in published.rows)
