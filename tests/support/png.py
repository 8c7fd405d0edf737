"""Small PNG files of screenshots, with a palette instead of three bytes a pixel; https://www.w3.org/TR/png-3/."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MOST: Final = 256  # colours of a palette
_RGB: Final = 3  # bytes of a pixel


def smaller(png: bytes) -> bytes:
    """Return a screenshot with its most frequent colours; each of the others becomes the nearest of them."""
    width, height, pixels = rgb(png)
    counts = Counter(pixels[at : at + _RGB] for at in range(0, len(pixels), _RGB))
    palette = [colour for colour, _ in counts.most_common(_MOST)]
    index = {colour: number for number, colour in enumerate(palette)}
    for colour in counts.keys() - index.keys():
        index[colour] = min(range(_MOST), key=lambda number: _distance(palette[number], colour))
    row = width * _RGB
    lines = (
        b"\0" + bytes(index[pixels[at : at + _RGB]] for at in range(start, start + row, _RGB))
        for start in range(0, len(pixels), row)
    )
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": b"".join(palette),
        b"IDAT": zlib.compress(b"".join(lines), 9),
        b"IEND": b"",
    }
    return _SIGNATURE + b"".join(chunk(kind, data) for kind, data in chunks.items())


def rgb(png: bytes) -> tuple[int, int, bytes]:
    """Return width, height and pixels of a PNG of eight bits a colour, with or without a palette."""
    chunks: dict[bytes, bytes] = {}
    for kind, data in _chunks(png):
        chunks[kind] = chunks.get(kind, b"") + data
    width, height, depth, colours, *_, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, interlaced) == (8, 0)
    size = {2: _RGB, 3: 1}[colours]
    pixels = _unfiltered(zlib.decompress(chunks[b"IDAT"]), width * size, size)
    if size == 1:
        pixels = b"".join(chunks[b"PLTE"][_RGB * number : _RGB * number + _RGB] for number in pixels)
    return width, height, pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _unfiltered(data: bytes, row: int, size: int) -> bytes:
    above, lines = bytes(row), []
    for start in range(0, len(data), row + 1):
        kind, line = data[start], bytearray(data[start + 1 : start + 1 + row])
        for at in range(row if kind else 0):
            left, corner = (line[at - size], above[at - size]) if at >= size else (0, 0)
            guess = (0, left, above[at], (left + above[at]) // 2, _paeth(left, above[at], corner))[kind]
            line[at] = (line[at] + guess) & 0xFF
        above = bytes(line)
        lines.append(above)
    return b"".join(lines)


def _paeth(left: int, above: int, corner: int) -> int:
    """Return the neighbour that is nearest to the plane through all three."""
    plane = left + above - corner
    return min((left, above, corner), key=lambda one: abs(plane - one))


def _distance(one: bytes, other: bytes) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += length + 12
