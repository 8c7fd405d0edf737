"""Screenshots get smaller and stay what they are."""

from __future__ import annotations

import struct
import zlib

from tests.support.documents import ROOT
from tests.support.png import chunk, rgb, smaller

LINES = bytes(
    [
        *(1, 10, 20, 30, 1, 1, 1),  # each byte is the difference to the pixel at the left
        *(2, 1, 1, 1, 1, 1, 1),  # to the one above
        *(3, 0, 0, 0, 0, 0, 0),  # to their average
        *(4, 0, 0, 0, 0, 0, 0),  # to the nearest of the neighbours
    ]
)
PIXELS = bytes([10, 20, 30, 11, 21, 31, 11, 21, 31, 12, 22, 32, 5, 10, 15, 8, 16, 23, 5, 10, 15, 8, 16, 23])


def test_a_few_colours_stay_as_they_are() -> None:
    """An image of at most 256 colours has the same pixels with a palette, whatever its filters were."""
    header = struct.pack(">IIBBBBB", 2, 4, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(LINES)) + chunk(b"IEND", b"")
    assert rgb(image) == (2, 4, PIXELS)
    assert rgb(smaller(image)) == (2, 4, PIXELS)


def test_the_picture_in_the_documents_is_small() -> None:
    """docs/page.png is as `make page-picture` makes it."""
    picture = (ROOT / "docs" / "page.png").read_bytes()
    assert struct.unpack(">IIBB", picture[16:26]) == (1180, 756, 8, 3)
    assert len(picture) < 80_000
