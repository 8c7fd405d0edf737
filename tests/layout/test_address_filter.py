"""The filter lets every published address pass, and few others."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout import address_filter, structs
from clb_discovery.model.address import MAPPED_PREFIX
from tests.support.strategies import ADDRESS


def passes(elements: dict[int, int], address: bytes) -> bool:
    """Tell whether the programs would look an address up."""
    index, bit = divmod(address_filter.bit_of(address), 64)
    return bool(elements.get(index, 0) >> bit & 1)


@given(st.frozensets(ADDRESS))
def test_every_address_of_it_passes(addresses: frozenset[bytes]) -> None:
    """Every VIP passes, and at most one bit is set for each address."""
    elements = dict(address_filter.elements(addresses))
    assert all(passes(elements, address) for address in addresses)
    assert sum(bits.bit_count() for bits in elements.values()) <= len(addresses)
    assert all(bits and 0 <= index < 2**structs.FILTER_BITS // 64 for index, bits in elements.items())


def test_few_others_pass() -> None:
    """With 10,000 VIPs of one network, about 4 of 100 other addresses of any network pass; 6 are too many."""
    chance = random.Random(1)  # noqa: S311 - addresses, no secrets
    vips = [MAPPED_PREFIX + (0xF0400000 + number).to_bytes(4, "big") for number in range(10000)]
    elements = dict(address_filter.elements(frozenset(vips)))
    for others in (
        [MAPPED_PREFIX + (0xF0400000 + 10000 + number).to_bytes(4, "big") for number in range(10000)],
        [MAPPED_PREFIX + chance.randbytes(4) for _ in range(10000)],
        [b"\x20\x01\x0d\xb8" + bytes(4) + number.to_bytes(8, "big") for number in range(10000)],
        [chance.randbytes(16) for _ in range(10000)],
    ):
        assert sum(passes(elements, address) for address in others) < 600


@given(st.integers(0, 2**64 - 1))
def test_an_element_reads_back(bits: int) -> None:
    """64 bits in the byte order of the host."""
    data = address_filter.pack_element(bits)
    assert len(data) == structs.SIZES[structs.Map.FILTER][1]
    assert address_filter.unpack_element(data) == bits
