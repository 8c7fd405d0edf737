"""Links in the maps of virtual servers: stored while programs follow them, and read.

An update by bpf(2) copies bytes, so a program could read half of a link. So both maps are mapped into our memory. They
stay mapped only while links are stored, and only as far as they are: the kernel counts mapped pages as our memory.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Final, NamedTuple

from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.publication.steps import Link

_WORD: Final = 8


class _Place(NamedTuple):
    """Where links are in a map."""

    stride: int
    at: int
    """The position of the link in its element."""


_PLACES: Final = {
    Map.CHAINS: _Place(_WORD, 0),  # the kernel rounds the size of elements up
    Map.VIRTUAL: _Place(structs.VIRTUAL.size, elements.NEXT_AT),
}


def store(fds: Mapping[Map, int], links: Iterable[Link]) -> None:
    """Store links in their order. A program sees the old link or the new one, and what was written before it.

    A link is half of an aligned word of eight bytes; the other half is never changed while the element is linked.
    CPython stores a c_void_p as a C pointer, which is one instruction on all of our machines: they have 64 bits. It
    copies smaller numbers as bytes, which compilers may split.

    :param fds: descriptors of the maps.
    :raises OSError: if they cannot be written, or if memory is lacking. Then no link is stored.
    """
    places = [(map_, _PLACES[map_].stride * index + _PLACES[map_].at, to) for map_, index, to in links]
    barrier = threading.Lock()
    barrier.acquire()
    with ExitStack() as stack:
        memory = {
            map_: stack.enter_context(mmap.mmap(fds[map_], max(at for of, at, _ in places if of is map_) + _WORD))
            for map_ in dict.fromkeys(map_ for map_, _, _ in places)
        }
        for map_, at, to in places:
            start = at - at % _WORD
            word = bytearray(memory[map_][start : start + _WORD])
            word[at - start : at - start + 4] = to.to_bytes(4, sys.byteorder)
            # No processor may see this store before earlier ones. Releasing a lock orders what was before it, and
            # acquiring it what comes after it (POSIX.1-2017, section 4.12).
            barrier.release()
            barrier.acquire()
            ctypes.c_void_p.from_buffer(memory[map_], start).value = int.from_bytes(word, sys.byteorder)


def read_heads(chains: int) -> bytes:
    """Return the first element of every chain, four bytes each. bpf(2) would take 20 ms, because it copies each alone.

    :param chains: a descriptor of the map; the kernel maps none that is read-only.
    :raises OSError: if it cannot be read, or if memory is lacking.
    """
    size = _WORD << structs.CHAIN_BITS
    with mmap.mmap(chains, size, prot=mmap.PROT_READ) as memory, memoryview(memory) as words:
        return words.cast("I")[::2].tobytes()
