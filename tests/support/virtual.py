"""Virtual servers in the maps of a running instance, looked up as programs do: without reading everything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from clb_discovery.datapath import bpf
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout import elements, structs
from clb_discovery.layout.chains import chain_of
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Vip


@contextmanager
def generation_of(pins: Pins, vip: Vip) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the generation of a virtual server; 0 if it does not exist."""
    key = elements.pack_vip(vip)
    with ExitStack() as stack:
        chains, virtual = (bpf.open_pin(pins.map(map_), read_only=True) for map_ in (Map.CHAINS, Map.VIRTUAL))
        for fd in (chains, virtual):
            stack.callback(os.close, fd)

        def now() -> int:
            index = elements.unpack_index(bpf.lookup(chains, elements.pack_index(chain_of(key)), 4) or bytes(4))
            while index:
                data = bpf.lookup(virtual, elements.pack_index(index), structs.VIRTUAL.size)
                assert data
                element = elements.unpack_virtual(data)
                if element.vip == key:
                    return element.generation
                index = element.next
            return 0

        yield now
