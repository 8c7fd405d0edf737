"""Storing links, on files in place of maps: both are mapped memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clb_discovery.datapath.links import store
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.publication.steps import Link

INDEX = st.sampled_from([0, 1, 2, 3, 42, 43, 511, 512])


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[dict[Map, int]]:
    """Make files as large as the maps, without holes of zeros."""
    made = {}
    for map_, size in ((Map.CHAINS, 8 * 2**structs.CHAIN_BITS), (Map.VIRTUAL, structs.VIRTUAL.size * 8192)):
        path = tmp_path / map_
        path.write_bytes(bytes(range(1, 250)) * (size // 249) + bytes(size % 249))
        made[map_] = os.open(path, os.O_RDWR)
    yield made
    for fd in made.values():
        os.close(fd)


def content(fd: int) -> bytes:
    """Return a whole file."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(links=st.lists(st.builds(Link, st.sampled_from([Map.CHAINS, Map.VIRTUAL]), INDEX, st.integers(0, 2**32 - 1))))
def test_a_link_is_all_that_changes(fds: dict[Map, int], links: list[Link]) -> None:
    """Of elements of clb_virtual only `next` changes, of clb_chains only their four bytes; the last store counts."""
    expected = {map_: bytearray(content(fd)) for map_, fd in fds.items()}
    for map_, index, to in links:
        at = index * 8 if map_ is Map.CHAINS else index * structs.VIRTUAL.size + elements.NEXT_AT
        expected[map_][at : at + 4] = elements.pack_index(to)
    store(fds, links)
    assert {map_: bytearray(content(fd)) for map_, fd in fds.items()} == expected


def test_the_last_elements_have_links(fds: dict[Map, int]) -> None:
    """The mapped memory reaches to the end of each map."""
    store(fds, [Link(Map.CHAINS, 2**structs.CHAIN_BITS - 1, 7), Link(Map.VIRTUAL, 8191, 9)])
    assert content(fds[Map.CHAINS])[-8:-4] == elements.pack_index(7)
    assert content(fds[Map.VIRTUAL])[-76:-72] == elements.pack_index(9)


def test_what_cannot_be_mapped_is_an_error(fds: dict[Map, int], tmp_path: Path) -> None:
    """If one map cannot be written, no link is stored."""
    before = content(fds[Map.CHAINS])
    read_only = os.open(tmp_path / Map.VIRTUAL, os.O_RDONLY)
    with pytest.raises(PermissionError):
        store({**fds, Map.VIRTUAL: read_only}, [Link(Map.CHAINS, 1, 5), Link(Map.VIRTUAL, 1, 5)])
    os.close(read_only)
    assert content(fds[Map.CHAINS]) == before
