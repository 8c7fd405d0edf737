"""The steps of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from clb_discovery.layout.structs import Map


@dataclass(frozen=True, slots=True)
class Write:
    """Insert or replace elements."""

    map: Map
    items: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete existing elements."""

    map: Map
    keys: tuple[bytes, ...]


class Link(NamedTuple):
    """One link: an element of `clb_chains`, or `next` of an element of `clb_virtual`."""

    map: Map
    at: int
    """The index of the element."""
    to: int
    """The element of `clb_virtual` that it leads to; 0: none."""


@dataclass(frozen=True, slots=True)
class Store:
    """Store links in their order, each so that readers see the old one or the new one."""

    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class GracePeriod:
    """Wait until every program that is running now has ended."""


Step = Write | Store | Delete | GracePeriod
