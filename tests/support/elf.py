"""A small reader of BPF objects: their sections, and functions with what they call and how much stack they use.

Formats: ELF-64, and the kernel's Documentation/bpf/standardization/instruction-set.rst and llvm_reloc.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

INSTRUCTION: Final = 8
"""Bytes of an instruction."""

_SYMTAB, _REL = 2, 9  # types of sections
_FUNC: Final = 2  # type of a symbol
_CALL, _WIDE, _MOV, _ADD = 0x85, 0x18, 0xBF, 0x07  # operations
_LOAD, _STORES = 1, (2, 3)  # classes of operations
_FRAME: Final = 10  # the register that points to the end of the stack
_LOCAL: Final = 1  # a call of a function of the object


class Place(NamedTuple):
    """Where a function begins: a section, and bytes from its start."""

    section: int
    at: int


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the object."""

    name: str
    section: str
    stack: int
    """Bytes of stack that it uses itself."""
    calls: frozenset[Place]
    """What it calls, or hands to the kernel to be called."""


class _Section(NamedTuple):
    name: int
    kind: int
    content: bytes
    link: int
    info: int


class _Symbol(NamedTuple):
    name: str
    kind: int
    section: int
    value: int
    size: int


def section(elf: bytes, wanted: str) -> bytes:
    """Return the contents of a section.

    :raises ValueError: if it is not a 64-bit ELF file, or has no such section.
    """
    sections, names = _sections(elf)
    for one in sections:
        if _string(sections[names].content, one.name) == wanted:
            return one.content
    raise ValueError(f"no section {wanted}")


def functions(elf: bytes) -> Mapping[Place, Function]:
    """Return all functions of an object in the byte order of this machine.

    :raises ValueError: if it is not a 64-bit ELF file.
    """
    sections, names = _sections(elf)
    symbols = _symbols(sections)
    links = dict(_relocations(sections))
    found: dict[Place, Function] = {}
    for symbol in symbols:
        if symbol.kind == _FUNC:
            code = sections[symbol.section].content[symbol.value : symbol.value + symbol.size]
            place = Place(symbol.section, symbol.value)
            calls = frozenset(_calls(code, place, symbols, links))
            name = _string(sections[names].content, sections[symbol.section].name)
            found[place] = Function(symbol.name, name, _stack(code), calls)
    known = found.keys()
    return {place: Function(one.name, one.section, one.stack, one.calls & known) for place, one in found.items()}


def _stack(code: bytes) -> int:
    """Return how far from the frame pointer a function reads, writes, or makes pointers."""
    deepest = 0
    pointers: set[int] = set()
    for _, operation, target, source, offset, value in _instructions(code):
        kind = operation & 7
        if operation == _MOV and source == _FRAME:
            pointers.add(target)
        elif operation == _ADD and target in pointers:
            pointers.discard(target)
            deepest = max(deepest, -value)
        elif (kind == _LOAD and source == _FRAME) or (kind in _STORES and target == _FRAME):
            deepest = max(deepest, -offset)
    return deepest


def _calls(code: bytes, start: Place, symbols: list[_Symbol], links: Mapping[Place, int]) -> Iterator[Place]:
    for at, operation, _, source, _, value in _instructions(code):
        here = Place(start.section, start.at + at)
        symbol = symbols[links[here]] if here in links else None
        if operation == _CALL and source == _LOCAL:
            if symbol is None:
                yield Place(start.section, here.at + (value + 1) * INSTRUCTION)
            else:  # of a section, the value counts instructions from its start, less one
                added = 0 if symbol.kind == _FUNC else (value + 1) * INSTRUCTION
                yield Place(symbol.section, symbol.value + added)
        elif operation == _WIDE and symbol is not None:  # a function as an argument; or a map, which is at no place
            yield Place(symbol.section, symbol.value + (0 if symbol.kind == _FUNC else value))


def _instructions(code: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield the place, operation, target and source register, offset and value of each instruction."""
    for at in range(0, len(code), INSTRUCTION):
        operation, registers, offset, value = struct.unpack_from("=BBhi", code, at)
        yield at, operation, registers & 15, registers >> 4, offset, value


def _sections(elf: bytes) -> tuple[list[_Section], int]:
    """Return all sections, and the index of the one with their names."""
    if elf[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF file")
    (headers,) = struct.unpack_from("=Q", elf, 0x28)
    size, count, names = struct.unpack_from("=HHH", elf, 0x3A)
    found = []
    for index in range(count):
        name, kind, _, _, offset, length, link, info = struct.unpack_from("=IIQQQQII", elf, headers + index * size)
        found.append(_Section(name, kind, elf[offset : offset + length], link, info))
    return found, names


def _symbols(sections: list[_Section]) -> list[_Symbol]:
    table = next(one for one in sections if one.kind == _SYMTAB)
    names = sections[table.link].content
    return [
        _Symbol(_string(names, name), info & 15, section, value, size)
        for name, info, _, section, value, size in struct.iter_unpack("=IBBHQQ", table.content)
    ]


def _relocations(sections: list[_Section]) -> Iterator[tuple[Place, int]]:
    """Yield places in sections that refer to a symbol, with its index."""
    for one in sections:
        if one.kind == _REL:
            for offset, info in struct.iter_unpack("=QQ", one.content):
                yield Place(one.info, offset), info >> 32


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()
