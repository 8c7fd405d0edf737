"""The filter that lets programs skip most addresses that are not VIPs: `clb_filter`, as bpf/clb.h defines it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from clb_discovery.layout import structs

_WORDS: Final = struct.Struct("=4I")
_ELEMENT: Final = struct.Struct("=Q")
_ELEMENT_BITS: Final = 64


def bit_of(address: bytes) -> int:
    """Return the number of the bit that lets an address pass.

    :param address: 16 bytes in network byte order.
    """
    return hash_of(*_WORDS.unpack(address)) >> (64 - structs.FILTER_BITS)


def hash_of(first: int, second: int, third: int, fourth: int) -> int:
    """Return all 64 bits of the hash of an address, from its words in the byte order of the host."""
    high, low = first << 32 | second, third << 32 | fourth
    return (high * structs.FILTER_HIGH + low * structs.FILTER_LOW) % 2**64


@lru_cache(maxsize=2)  # pools change more often than addresses of VIPs
def elements(addresses: frozenset[bytes]) -> Mapping[int, int]:
    """Return the non-zero elements of the filter that lets these addresses pass, by index."""
    found: dict[int, int] = {}
    for address in addresses:
        index, bit = divmod(bit_of(address), _ELEMENT_BITS)
        found[index] = found.get(index, 0) | 1 << bit
    return found


def pack_element(bits: int) -> bytes:
    """Return the value of an element."""
    return _ELEMENT.pack(bits)


def unpack_element(data: bytes) -> int:
    """Parse the value of an element."""
    (bits,) = _ELEMENT.unpack(data)
    return int(bits)
