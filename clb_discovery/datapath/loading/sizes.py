"""The sizes of the maps that are chosen when they are made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from clb_discovery.datapath import bpf
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout.structs import BUCKET_PLACES, BUCKETS, PLACES, ROW_SLOTS, ROWS, Map

SERVERS: Final = ROWS * ROW_SLOTS
"""Real servers for which there is room, if nothing else is wanted."""
SOCKETS: Final = PLACES
"""Connected sockets, likewise."""


class Sizes(NamedTuple):
    """Numbers of elements."""

    rows: int = ROWS
    """Of `clb_rows`."""
    buckets: int = BUCKETS
    """Of `clb_owners`, a power of two."""

    @property
    def elements(self) -> Mapping[Map, int]:
        """The number of elements of each map whose size is chosen."""
        return {Map.ROWS: self.rows, Map.OWNERS: self.buckets, Map.PLACES: self.buckets * BUCKET_PLACES}


def sizes(servers: int, sockets: int) -> Sizes:
    """Return the sizes that have room for this much, in the maps that are fast.

    :param servers: real servers of all virtual servers, the old pool beside the new one while it is replaced.
    :param sockets: connected sockets.
    """
    return Sizes(-(-max(1, servers) // ROW_SLOTS), 1 << (-(-max(1, sockets) // BUCKET_PLACES) - 1).bit_length())


def pinned_sizes(pins: Pins) -> Sizes | None:
    """Return the sizes of the pinned maps, or None if they are not pinned.

    :raises OSError: if we are not allowed to open them.
    """
    try:
        return Sizes(_elements(pins, Map.ROWS), _elements(pins, Map.OWNERS))
    except FileNotFoundError:
        return None


def _elements(pins: Pins, map_: Map) -> int:
    fd = bpf.open_pin(pins.map(map_), read_only=True)
    try:
        return bpf.map_entries(fd)
    finally:
        os.close(fd)
