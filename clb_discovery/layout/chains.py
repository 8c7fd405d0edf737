"""The chains of virtual servers: `clb_chains` and the links in `clb_virtual`, as programs follow them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from clb_discovery.layout import address_filter, elements, structs
from clb_discovery.layout.elements import Virtual
from clb_discovery.layout.structs import Map
from clb_discovery.model.servers import Vip

Values = Callable[[Map, int, int], bytes]
"""Returns the values of consecutive elements of an array: map, first index, number; fewer if the array ends."""

_KEY: Final = struct.Struct("=4IHBx")
_SIZE: Final = structs.VIRTUAL.size
_PART: Final = 4096  # bytes of clb_chains; most parts are zero
_NO_PART: Final = bytes(_PART)


class Chains(NamedTuple):
    """What programs can reach."""

    chains: Mapping[int, tuple[int, ...]]
    """The indexes of the virtual servers of each chain in their order, by hash; only chains that have some."""
    virtual: Mapping[Vip, tuple[int, Virtual]]
    """Each virtual server with its index."""
    broken: Mapping[int, frozenset[int]]
    """Chains that no publication leaves, by hash: each with the indexes of elements that no connect can look up. It may
    also be too long, or end in an element that does not exist or was there before."""


def chain_of(vip: bytes) -> int:
    """Return the hash of a virtual server.

    :param vip: packed.
    """
    first, second, third, fourth, port, protocol = _KEY.unpack(vip)
    address = address_filter.hash_of(first, second, third, fourth)
    hashed: int = address + (port << 8 | protocol) * structs.FILTER_HIGH
    return hashed % 2**64 >> (64 - structs.CHAIN_BITS)


def read_chains(values: Values) -> Chains:
    """Read all virtual servers that connects can reach.

    Elements may be reused meanwhile, and another program may have written anything: nothing is followed for ever.
    """
    heads = dict(_heads(values(Map.CHAINS, 0, 2**structs.CHAIN_BITS)))
    array = _Array(values, max(heads.values(), default=0))
    chains: dict[int, tuple[int, ...]] = {}
    virtual: dict[Vip, tuple[int, Virtual]] = {}
    broken: dict[int, frozenset[int]] = {}
    for hashed, head in heads.items():
        followed: dict[int, Virtual] = {}
        index = head
        while index and index not in followed and len(followed) < structs.CHAIN:
            element = array.get(index)
            if element is None:
                break
            followed[index] = element
            index = element.next
        found = []
        for at, element in followed.items():
            vip = _vip(element.vip)
            if vip is not None and vip not in virtual and chain_of(element.vip) == hashed:
                virtual[vip] = at, element
                found.append(at)
        if found:
            chains[hashed] = tuple(found)
        if index or len(found) < len(followed):
            broken[hashed] = frozenset(followed.keys() - found)
    return Chains(chains, virtual, broken)


class _Array:
    """`clb_virtual`, read as far as needed."""

    def __init__(self, values: Values, highest: int) -> None:
        self._values = values
        self._data = b""
        if 0 < highest < structs.VIRTUAL_ELEMENTS:
            self._data = values(Map.VIRTUAL, 0, highest + 1)

    def get(self, index: int) -> Virtual | None:
        """Return an element; None if there is no such element."""
        if index >= structs.VIRTUAL_ELEMENTS:
            return None
        have = len(self._data) // _SIZE
        if index >= have:
            self._data += self._values(Map.VIRTUAL, have, max(index + 1, 2 * have) - have)
        data = self._data[index * _SIZE : (index + 1) * _SIZE]
        return elements.unpack_virtual(data) if len(data) == _SIZE else None


def _heads(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the chains that have a first element, with its index."""
    for start in range(0, len(data), _PART):
        part = data[start : start + _PART]
        if part != _NO_PART:
            for hashed, head in enumerate(memoryview(part).cast("I"), start // 4):
                if head:
                    yield hashed, head


def _vip(key: bytes) -> Vip | None:
    """Parse a VIP; None if no connect can look it up, so another program must have written it."""
    try:
        vip = elements.unpack_vip(key)
    except ValueError:
        return None
    return vip if elements.pack_vip(vip) == key else None
