"""Which of the servers that fail their checks may be out, so that a broken check never empties a pool."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

_Member = TypeVar("_Member", bound=bytes)


def choose_out(
    tiers: Sequence[Sequence[_Member]], failing: Mapping[_Member, int], out: Collection[_Member]
) -> frozenset[_Member]:
    """Return the members that are kept out of a pool.

    A tier goes out as a whole if a further tier has a member that does not fail, which takes over. Of other tiers at
    most half is out: members that are out already, then those that have failed for longest. So if all members of
    all tiers fail, which more likely is the fault of the check, the first tier goes on with half of its members.

    :param tiers: of one pool, the first one first.
    :param failing: since when each failing member fails.
    :param out: the members that were out before.
    """
    chosen: set[_Member] = set()
    takes_over = False  # whether a further tier has a member that does not fail
    for tier in reversed(tiers):
        fails = [member for member in tier if member in failing]
        if not takes_over:
            fails.sort(key=lambda member: (member not in out, failing[member], member))
            fails = fails[: len(tier) // 2]
        chosen.update(fails)
        takes_over = takes_over or any(member not in failing for member in tier)
    return frozenset(chosen)
