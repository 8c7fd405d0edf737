"""A small reader of BTF, the type information inside a BPF object: structs, and the definitions of maps.

Format: the kernel's Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

MAGIC: Final = 0xEB9F
POINTER_SIZE: Final = 8

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = range(1, 9)
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT = range(9, 17)
_DECL_TAG, _TYPE_TAG, _ENUM64 = range(17, 20)

_TRAILER_ONCE: Final = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_TRAILER_EACH: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_ALIASES: Final = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_SIZED: Final = frozenset({_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64})


class Field(NamedTuple):
    """One member of a struct, in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct type."""

    name: str
    size: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """A map as the object declares it; missing properties are 0."""

    key_size: int
    value_size: int
    max_entries: int
    kind: int
    """`BPF_MAP_TYPE_*`."""


class _Type(NamedTuple):
    name: str
    kind: int
    size_or_type: int
    trailer: bytes


class Btf:
    """The types of an object."""

    def __init__(self, data: bytes) -> None:
        """Parse the contents of a `.BTF` section.

        :raises ValueError: if it is not BTF.
        """
        self._order = "<" if data[:2] == MAGIC.to_bytes(2, "little") else ">"
        magic, _, _, header, types, types_length, strings, strings_length = struct.unpack_from(
            f"{self._order}HBBIIIII", data
        )
        if magic != MAGIC:
            raise ValueError("not BTF")
        self._strings = data[header + strings : header + strings + strings_length]
        self._types = [_Type("", 0, 0, b""), *self._parse(data[header + types : header + types + types_length])]

    def struct(self, name: str) -> Struct:
        """Return the struct with this name.

        :raises KeyError: if there is none.
        """
        for type_ in self._types:
            if type_.kind == _STRUCT and type_.name == name:
                members = tuple(
                    Field(member, offset, self._size(number)) for member, offset, number in self._members(type_)
                )
                return Struct(name, type_.size_or_type, members)
        raise KeyError(name)

    def maps(self) -> set[str]:
        """Return the names of all maps."""
        sections = (type_ for type_ in self._types if type_.kind == _DATASEC and type_.name == ".maps")
        return {
            self._types[number].name
            for type_ in sections
            for number, _, _ in struct.iter_unpack(f"{self._order}III", type_.trailer)
        }

    def map(self, name: str) -> MapDefinition:
        """Return the map with this name, declared the way libbpf reads it: numbers as array lengths, types as pointers.

        :raises KeyError: if there is none.
        """
        for type_ in self._types:
            if type_.kind == _VAR and type_.name == name:
                definition = self._types[self._strip(type_.size_or_type)]
                members = {member: self._pointed(number) for member, _, number in self._members(definition)}
                return MapDefinition(
                    key_size=self._size(members["key"]) if "key" in members else 0,
                    value_size=self._size(members["value"]) if "value" in members else 0,
                    max_entries=self._number(members.get("max_entries")),
                    kind=self._number(members["type"]),
                )
        raise KeyError(name)

    def _parse(self, data: bytes) -> Iterator[_Type]:
        at = 0
        while at < len(data):
            name, info, size_or_type = struct.unpack_from(f"{self._order}III", data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            length = _TRAILER_ONCE.get(kind, 0) + _TRAILER_EACH.get(kind, 0) * count
            at += 12
            yield _Type(_string(self._strings, name), kind, size_or_type, data[at : at + length])
            at += length

    def _members(self, type_: _Type) -> Iterator[tuple[str, int, int]]:
        for name, number, bits in struct.iter_unpack(f"{self._order}III", type_.trailer):
            yield _string(self._strings, name), (bits & 0xFFFFFF) // 8, number

    def _array(self, type_: _Type) -> tuple[int, int]:
        element, _, length = struct.unpack(f"{self._order}III", type_.trailer)
        return element, length

    def _number(self, number: int | None) -> int:
        return 0 if number is None else self._array(self._types[number])[1]

    def _pointed(self, number: int) -> int:
        return self._strip(self._types[number].size_or_type)

    def _strip(self, number: int) -> int:
        while self._types[number].kind in _ALIASES:
            number = self._types[number].size_or_type
        return number

    def _size(self, number: int) -> int:
        type_ = self._types[self._strip(number)]
        if type_.kind == _PTR:
            return POINTER_SIZE
        if type_.kind == _ARRAY:
            element, length = self._array(type_)
            return length * self._size(element)
        if type_.kind not in _SIZED:
            raise ValueError(f"a type of kind {type_.kind} has no size")
        return type_.size_or_type


def _string(strings: bytes, at: int) -> str:
    return strings[at : strings.index(0, at)].decode()
