"""The links of a plan: how chains change, one store after the other.

A chain changes while programs follow it. Each link is stored when the element that it leads to is written, with the
link to the rest of the chain. Elements that lost their link keep their own, so a program that is there goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import Map
from clb_discovery.publication.steps import Link


class ChainLinks:
    """The chains, and the links that change them, to be stored in this order."""

    def __init__(self, installed: Installed) -> None:
        self._chains = installed.chains
        self._changed: dict[int, tuple[int, ...]] = {}
        self._links: list[Link] = []
        for hashed in installed.broken:  # from the end, so that connects find all virtual servers meanwhile
            chain = self._changed[hashed] = self._of(hashed)
            for at in range(len(chain), -1, -1):
                self._link(hashed, chain[:at], chain[at:])

    def head(self, hashed: int) -> int:
        """Return the first element of a chain; 0 for none."""
        return _first(self._of(hashed))

    def after(self, hashed: int, index: int) -> int:
        """Return the element that follows another one in its chain; 0 for none."""
        chain = self._of(hashed)
        return _first(chain[chain.index(index) + 1 :])

    def put(self, hashed: int, index: int, old: int | None) -> None:
        """Link an element that was written with the right `next`: in the place of an old one, or as the first one."""
        chain = self._of(hashed)
        at = 0 if old is None else chain.index(old)
        self._change(hashed, chain[:at], (index, *chain[at if old is None else at + 1 :]))

    def remove(self, hashed: int, index: int) -> None:
        """Let the element before this one lead to the one after it."""
        chain = self._of(hashed)
        at = chain.index(index)
        self._change(hashed, chain[:at], chain[at + 1 :])

    def stored(self) -> tuple[Link, ...]:
        """Return the links since the last call."""
        links, self._links = tuple(self._links), []
        return links

    def left(self) -> Mapping[int, tuple[int, ...]]:
        """Return the chains after the changes; only those that have elements."""
        if not self._changed:
            return self._chains
        both = {**self._chains, **self._changed}
        for hashed, chain in self._changed.items():
            if not chain:
                del both[hashed]
        return both

    def _of(self, hashed: int) -> tuple[int, ...]:
        return self._changed[hashed] if hashed in self._changed else self._chains.get(hashed, ())

    def _change(self, hashed: int, before: tuple[int, ...], rest: tuple[int, ...]) -> None:
        self._link(hashed, before, rest)
        self._changed[hashed] = before + rest

    def _link(self, hashed: int, before: tuple[int, ...], rest: tuple[int, ...]) -> None:
        """Lead from the end of one part of a chain to the other part."""
        where = (Map.VIRTUAL, before[-1]) if before else (Map.CHAINS, hashed)
        self._links.append(Link(*where, _first(rest)))


def _first(chain: Sequence[int]) -> int:
    """Return the element that a link to this part of a chain leads to."""
    return chain[0] if chain else 0
