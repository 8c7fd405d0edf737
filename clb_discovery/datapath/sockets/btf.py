"""Read the kernel's type information (BTF), as far as necessary to find the numbers of functions for bpf(2).

The format is that of Documentation/bpf/btf.rst and linux/btf.h: a header, types numbered from 1 in their order, and
NUL-terminated names. Numbers are in the byte order of the host.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import Final

_HEADER: Final = struct.Struct("=HBBIIIII")  # magic, version, flags, and offsets and sizes of header, types and names
_TYPE: Final = struct.Struct("=III")  # struct btf_type: name, info, size or type
_MAGIC: Final = 0xEB9F
_KIND_FUNC: Final = 12
_FIXED: Final = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes after `struct btf_type` by kind: INT, ARRAY, VAR, DECL_TAG."""
_EACH: Final = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""Bytes for each member by kind: STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64."""
_BARE: Final = frozenset({2, 7, 8, 9, 10, 11, 12, 16, 18})
"""Kinds without either: PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG."""


def function_ids(data: bytes, names: Collection[str]) -> dict[str, int]:
    """Return the numbers of functions by name; missing functions are left out.

    :raises ValueError: if the data is not BTF, or has types of an unknown kind.
    """
    try:
        magic, _, _, header, types, types_size, text, text_size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("not BTF")
        text += header
        places = {data.find(f"\0{name}\0".encode(), text, text + text_size) + 1 - text: name for name in names}
        wanted = {place: name for place, name in places.items() if place > 0}
        return _find(data, header + types, header + types + types_size, wanted)
    except struct.error as error:
        raise ValueError("BTF is cut off") from error


def _find(data: bytes, position: int, end: int, wanted: Mapping[int, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    number = 0
    while position < end and len(found) < len(wanted):
        number += 1
        name, info, _ = _TYPE.unpack_from(data, position)
        kind = info >> 24 & 0x1F
        if kind == _KIND_FUNC and name in wanted:
            found[wanted[name]] = number
        position += _TYPE.size
        if kind in _EACH:
            position += _EACH[kind] * (info & 0xFFFF)
        elif kind not in _BARE:
            if kind not in _FIXED:
                raise ValueError(f"BTF with types of kind {kind}")
            position += _FIXED[kind]
    return found
