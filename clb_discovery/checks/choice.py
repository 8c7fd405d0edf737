"""Which of the servers that fail their checks may be out, so that a broken check never empties a pool."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

_Member = TypeVar("_Member", bound=bytes)


def choose_out(
    tiers: Sequence[Sequence[_Member]],
    failing: Mapping[_Member, int],
    out: Collection[_Member],
    ejected: Collection[_Member] = (),
) -> frozenset[_Member]:
    """Return the members that are kept out of a pool by their checks.

    A tier goes out as a whole if a further tier has a member that takes over: it does not fail, and is not ejected. Of
    other tiers at most half is out, for whatever cause: ejected members, members that are out already, then those that
    have failed for longest. So if all members of all tiers fail, which more likely is the fault of the check, the first
    tier goes on with half of its members.

    :param tiers: of one pool, the first one first.
    :param failing: since when each failing member fails its checks.
    :param out: the members that were out before by their checks.
    :param ejected: the members that are out or suspect because of failed connects.
    """
    chosen: set[_Member] = set()
    takes_over = False  # whether a further tier has a member that does
    for tier in reversed(tiers):
        fails = [member for member in tier if member in failing]
        if not takes_over:
            fails.sort(key=lambda member: (member not in out, member not in ejected, failing[member], member))
            fails = _at_most_half(tier, fails, ejected)
        chosen.update(fails)
        takes_over = takes_over or any(member not in failing and member not in ejected for member in tier)
    return frozenset(chosen)


def _at_most_half(tier: Sequence[_Member], fails: Sequence[_Member], ejected: Collection[_Member]) -> list[_Member]:
    """Return the first of these members that may be out beside those that are ejected, which may be among them."""
    half, chosen = len(tier) // 2, list[_Member]()
    all_out = {member for member in tier if member in ejected}
    for member in fails:
        if len(chosen) < half and (member in all_out or len(all_out) < half):
            chosen.append(member)
            all_out.add(member)
    return chosen
