"""The hash of virtual servers, and chains of any content."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.layout import elements, structs
from clb_discovery.layout.chains import chain_of, read_chains
from clb_discovery.layout.structs import Map
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.servers import Protocol, Vip
from tests.support.strategies import VIP


def hashed(vip: Vip) -> int:
    """Return the hash of a VIP by the text of the header, in the byte order of the host."""
    words = [int.from_bytes(vip.address[at : at + 4], sys.byteorder) for at in range(0, 16, 4)]
    port = int.from_bytes(vip.port.to_bytes(2, "big"), sys.byteorder)
    total = (words[0] * 2**32 + words[1]) * 0x9E3779B97F4A7C15 + (words[2] * 2**32 + words[3]) * 0xD1342543DE82EF95
    return (total + (port * 256 + vip.protocol) * 0x9E3779B97F4A7C15) % 2**64 // 2**47


@given(VIP)
def test_the_hash_is_that_of_the_header(vip: Vip) -> None:
    """Address, port and protocol count."""
    assert chain_of(elements.pack_vip(vip)) == hashed(vip)


@pytest.mark.skipif(sys.byteorder != "little", reason="the hash is of words in the byte order of the host")
def test_examples_of_the_hash() -> None:
    """These are for comparison with the programs."""
    vips = [
        Vip(parse_address(text), port, protocol)
        for text, port, protocol in (
            ("10.64.0.1", 6379, Protocol.TCP),
            ("10.64.0.1", 0, Protocol.TCP),
            ("fd00:64::1", 53, Protocol.UDP),
        )
    ]
    assert [chain_of(elements.pack_vip(vip)) for vip in vips] == [24388, 32225, 127779]


@pytest.mark.parametrize(
    "vips",
    [
        [(host, port) for host in range(65_536) for port in (80,)],
        [(host, port) for host in range(256) for port in range(256)],
        [(host, port) for host in range(1) for port in range(65_536)],
        [(host << 8, port) for host in range(6_553) for port in range(10)],
    ],
    ids=["addresses", "both", "ports", "networks"],
)
def test_chains_of_a_full_map_are_short(vips: list[tuple[int, int]]) -> None:
    """VIPs in sequence spread better over the chains than by chance."""
    first = int.from_bytes(parse_address("10.64.0.0"))
    keys = (elements.pack_vip(Vip(Address((first + host).to_bytes(16)), port, Protocol.TCP)) for host, port in vips)
    lengths = Counter(map(chain_of, keys))
    assert max(lengths.values()) <= structs.CHAIN // 2


@given(
    st.dictionaries(st.sampled_from([0, 1, 5, 2**structs.CHAIN_BITS - 1]), st.integers(0, 6) | st.just(2**32 - 1)),
    st.lists(
        st.tuples(VIP.map(elements.pack_vip) | st.binary(min_size=20, max_size=20), st.integers(0, 9)), max_size=5
    ),
)
def test_any_links_can_be_followed(heads: dict[int, int], virtual: list[tuple[bytes, int]]) -> None:
    """Cycles, chains that meet and links to nowhere end, and everything is in one chain that a connect can look up."""
    first = bytearray(4 * 2**structs.CHAIN_BITS)
    for chain, head in heads.items():
        first[4 * chain : 4 * chain + 4] = elements.pack_index(head)
    element = elements.unpack_virtual(bytes(structs.VIRTUAL.size))
    array = bytes(structs.VIRTUAL.size) + b"".join(
        elements.pack_virtual(element._replace(vip=vip, next=link)) for vip, link in virtual
    )

    def values(map_: Map, start: int, count: int) -> bytes:
        size = structs.SIZES[map_][1]
        return bytes(first if map_ is Map.CHAINS else array)[start * size : (start + count) * size]

    found = read_chains(values)
    for chain, indexes in found.chains.items():
        assert heads[chain]
        assert all(chain_of(virtual[index - 1][0]) == chain for index in indexes)
    assert sorted(index for index, _ in found.virtual.values()) == sorted(sum(found.chains.values(), ()))
    for chain, head in heads.items():
        assert not head or found.chains.get(chain, (0,))[0] == head or chain in found.broken
