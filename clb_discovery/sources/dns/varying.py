"""Let the addresses of a name stay while its server varies them: for targets of SRV records and for host names. No I/O.

One such name may stand for a whole pool. The rule is that of `linger`, so a name that only moves is replaced at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from clb_discovery.sources.dns.linger import Linger

_Key = TypeVar("_Key", bound=Hashable)
_Address = TypeVar("_Address", bound=Hashable)


class _Name(Generic[_Address]):
    """The addresses of one name in one family."""

    def __init__(self, *, enabled: bool) -> None:
        self.linger: Linger[_Address, None] = Linger(None if enabled else 0.0)
        self.asked = -math.inf
        """When the last answer was asked for."""
        self.is_missed = False
        """Whether a query has failed since."""


class Varying(Generic[_Key, _Address]):
    """The addresses of names over their answers. A key is a name and a family."""

    def __init__(self, *, enabled: bool = True) -> None:
        """Start without names.

        :param enabled: whether addresses may stay at all.
        """
        self._enabled = enabled
        self._names: dict[_Key, _Name[_Address]] = {}

    def completed(self, key: _Key, addresses: Sequence[_Address], asked: float, now: float) -> Sequence[_Address]:
        """Return the addresses of an answer, and those that stay although it lacks them.

        :param asked: when it was asked for, by the clock of `now`: an answer counts once.
        """
        one = self._names.setdefault(key, _Name(enabled=self._enabled))
        if asked != one.asked:
            if one.is_missed:
                one.linger.skip(asked - one.asked, lambda _: True)
            one.linger.read(dict.fromkeys(addresses), asked)
            one.asked, one.is_missed = asked, False
        stay = one.linger.lingering(now)
        return (*addresses, *stay) if stay else addresses

    def missed(self, key: _Key | None = None) -> None:
        """Take note of a failed query: until the next answer no address was absent.

        :param key: None for all.
        """
        for one in self._names.values() if key is None else filter(None, (self._names.get(key),)):
            one.is_missed = True

    def stays(self, key: _Key, now: float) -> float:
        """Return how long addresses stay, in seconds, if any does now; else 0."""
        one = self._names.get(key)
        return one.linger.stays if one and one.linger.lingering(now) else 0.0

    def keep(self, keys: Collection[_Key]) -> None:
        """Forget all other names."""
        if self._names.keys() - keys:
            self._names = {key: one for key, one in self._names.items() if key in keys}


def varying_note(stays: Mapping[str, float]) -> str | None:
    """Return the remark about names whose addresses stay, None if there are none.

    :param stays: how long, in seconds.
    """
    if not stays:
        return None
    name, seconds = min(stays.items())
    others = f" (and of {len(stays) - 1} more names)" if len(stays) > 1 else ""
    lacks = f"those that an answer lacks stay for {round(seconds, 1):g} s after they were last seen"
    return f"the DNS server varies the addresses of {name}{others}: {lacks}"
