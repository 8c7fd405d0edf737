"""Other instances on this host, as their pins tell."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from clb_discovery.datapath import bpf
from clb_discovery.datapath.maps import read_info
from clb_discovery.datapath.pins import Pins
from clb_discovery.errors import ClbError
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.model import own_servers
from clb_discovery.model.neighbours import Neighbour, Overlap, overlaps
from clb_discovery.model.servers import Vip


def others(own: Pins) -> list[Neighbour]:
    """Return the other instances that are loaded, with the VIPs that they serve; none that we may not look at."""
    try:
        names = sorted(path.name for path in own.home.parent.iterdir() if path.name != own.instance)
    except OSError:
        return []
    found = (_neighbour(name) for name in names)
    return [one for one in found if one is not None]


def find_overlaps(own: Pins, cgroup: Path | str, known: Iterable[Neighbour] = ()) -> list[Overlap]:
    """Return the other instances that serve VIPs which our maps hold, for processes of our cgroup.

    :param cgroup: the one that our programs are attached to.
    :param known: instances that are known from elsewhere; what their pins tell goes before it.
    """
    neighbours = {one.instance: one for one in (*known, *others(own))}
    return overlaps(str(cgroup), _vips(own), neighbours.values()) if neighbours else []


def _neighbour(name: str) -> Neighbour | None:
    try:
        pins = Pins(name)
        info = read_info(pins)
        return Neighbour(name, info.cgroup, _vips(pins)) if info else None
    except (ClbError, OSError):  # not loaded, of another layout, just unloaded, or not ours to see
        return None


def _vips(pins: Pins) -> list[Vip]:
    """Return the VIPs of an instance but for those of its self-test."""
    fd = bpf.open_pin(pins.map(Map.VIRTUAL), read_only=True)
    try:
        keys = [key for key, _ in bpf.items(fd, *structs.SIZES[Map.VIRTUAL])]
    finally:
        os.close(fd)
    own = own_servers.virtual_servers(pins.instance)
    return [vip for vip in map(_vip, keys) if vip is not None and vip not in own]


def _vip(key: bytes) -> Vip | None:
    try:
        return elements.unpack_vip(key)
    except ValueError:  # as only a foreign hand writes it
        return None
