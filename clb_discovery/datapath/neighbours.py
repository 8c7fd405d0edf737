"""Other instances on this host, found by their pins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from clb_discovery.datapath import bpf
from clb_discovery.datapath.maps import read_info
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import ClbError
from clb_discovery.layout import structs
from clb_discovery.layout.chains import read_chains
from clb_discovery.layout.structs import Map
from clb_discovery.model import own_servers
from clb_discovery.model.neighbours import Neighbour, Overlap, overlaps, relation
from clb_discovery.model.servers import Vip


def others(own: Pins, cgroup: Path | str) -> list[Neighbour]:
    """Return the other loaded instances. Instances that we are not allowed to read are left out.

    :param cgroup: the cgroup that our programs are attached to. Reading VIPs takes 30 ms, so those of an instance that
        shares no process with it are left out.
    """
    try:
        names = sorted(path.name for path in own.home.parent.iterdir() if path.name != own.instance)
    except OSError:
        return []
    found = (_neighbour(name, str(cgroup)) for name in names)
    return [one for one in found if one is not None]


def find_overlaps(own: Pins, cgroup: Path | str, known: Iterable[Neighbour] = ()) -> list[Overlap]:
    """Return the other instances that serve VIPs in our maps to processes of our cgroup.

    :param cgroup: the cgroup that our programs are attached to.
    :param known: instances from another source; pins that can be read take precedence.
    """
    neighbours = {one.instance: one for one in (*known, *others(own, cgroup))}
    near = [one for one in neighbours.values() if one.vips and relation(str(cgroup), one.cgroup)]
    return overlaps(str(cgroup), pinned_vips(own), near) if near else []


def _neighbour(name: str, cgroup: str) -> Neighbour | None:
    try:
        pins = Pins(name)
        info = read_info(pins)
        if info is None:
            return None
        return Neighbour(name, info.cgroup, pinned_vips(pins) if relation(cgroup, info.cgroup) else ())
    except (ClbError, OSError):  # not loaded, of another layout, just unloaded, or no permission
        return None


def pinned_vips(pins: Pins) -> list[Vip]:
    """Return the VIPs of an instance, without those of its self-test."""
    with ExitStack() as stack:
        fds = {}
        for map_ in (Map.CHAINS, Map.VIRTUAL):
            fds[map_] = bpf.open_pin(pins.map(map_), read_only=True)
            stack.callback(os.close, fds[map_])
        found = read_vips(fds)
    own = own_servers.virtual_servers(pins.instance)
    return [vip for vip in found if vip not in own]


def read_vips(fds: Mapping[Map, int]) -> list[Vip]:
    """Return all VIPs in the maps of an instance, also those of its self-test.

    :param fds: descriptors of `clb_chains` and `clb_virtual`.
    """
    reached = read_chains(lambda map_, first, count: bpf.values(fds[map_], first, count, structs.SIZES[map_][1]))
    return list(reached.virtual)
