"""All checked virtual servers: what the results of their checks mean for each member of each pool.

A verdict that a member is out is a lease of three intervals, which each further result renews while the member is down;
a passed one only if the lease is still valid, because it puts nobody out that is in service again. So if the sidecar
ends, or can no longer check, its members take connects again soon. On a busy host a sidecar may stop for a second, for
example as it reads its configuration again; so a lease has at least three.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from typing import Final, NamedTuple

from clb_discovery.checks.choice import choose_out
from clb_discovery.checks.health import Health, Result
from clb_discovery.model.check import Target
from clb_discovery.model.servers import Vip

LEASE: Final = 3
"""Intervals for which a verdict is valid."""
LEAST_LEASE: Final = 3_000_000_000
"""Nanoseconds for which a verdict is valid at least."""
MOST_URGENT: Final = 16
"""Checks of members that are down in a virtual server which failed connects hurry. They may all take their whole time,
so it is a part of those that run at the same time."""
EARLIER: Final = "failed its check before this sidecar started"
"""The reason of a member that is out as an earlier sidecar has left it."""
_FAILED_EARLIER: Final = Health(up=False, reason=EARLIER)
_MOST_LATE: Final = 10  # intervals
_SECOND: Final = 1_000_000_000


class Member(NamedTuple):
    """A member of a checked pool."""

    key: bytes
    """The packed member, as in the kernel's maps."""
    target: Target


class CheckedPool(NamedTuple):
    """A virtual server whose real servers are checked."""

    vip: Vip
    tiers: tuple[tuple[Member, ...], ...]
    """The members of each tier, the first one first."""


class Verdict(NamedTuple):
    """What the kernel programs are told of a member, in nanoseconds of CLOCK_MONOTONIC."""

    decided_at: int
    out_until: int
    """0: it takes connects."""


def release(keys: Iterable[bytes], now: int, ejected: Collection[bytes]) -> dict[bytes, Verdict]:
    """Return the verdicts that take back those of members that are out and not checked any more.

    They take connects; but those that are ejected have a moment, in which a probe decides, and then the programs.

    :param now: in nanoseconds of CLOCK_MONOTONIC.
    :param ejected: packed members of any pools that are out or suspect because of failed connects.
    """
    return {key: Verdict(now, now + LEAST_LEASE if key in ejected else 0) for key in keys}


class Change(NamedTuple):
    """A member that goes out, or comes back."""

    key: bytes
    reason: str | None
    """Why it goes out; None if it comes back."""
    out_for: int
    """Nanoseconds since it went out, if it comes back."""


@dataclass(slots=True)
class Decisions:
    """What has to be written, and what has to be logged."""

    verdicts: dict[bytes, Verdict] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def readmits(self, key: bytes) -> bool:
        """Tell whether a packed member takes connects now, even if connects have ejected it."""
        return key in self.verdicts and not self.verdicts[key].out_until


@dataclass(slots=True)
class _Record:
    """A target, and what its checks have found out."""

    health: Health = field(default_factory=Health)
    since: int = 0
    """When it went down."""
    heard_at: int = 0
    """When the last result came."""
    verdict: Verdict = Verdict(0, 0)  # noqa: RUF009 - immutable
    """The last lease."""
    needed: bool = False
    """Whether it is down, and one passed check is enough to bring it back: the next one."""


class CheckTable:
    """The health of all targets, and the members that are out because of it."""

    def __init__(self) -> None:
        self._pools: dict[Vip, CheckedPool] = {}
        self._records: dict[Target, _Record] = {}
        self._targets: dict[bytes, Target] = {}
        self._users: Mapping[Target, Collection[Vip]] = {}
        self._out: dict[bytes, int] = {}  # members that are out, each since when
        self._written: dict[bytes, Verdict] = {}
        self._dirty: set[Vip] = set()

    def follow(self, pools: Iterable[CheckedPool], leases: Mapping[bytes, Verdict] | None = None) -> Collection[Target]:
        """Take these pools in place of the previous ones; return the targets to check.

        A member that is down stays so if its check changes, until the new one has passed often enough. One that is out
        has a lease by the new interval from then on, because its next result may come later.

        :param leases: verdicts of checks in the kernel's maps that are valid now, which an earlier sidecar has left.
            Their members begin as down, so that a restart sends no connects to servers that hang.
        """
        down = {key: _Record(_FAILED_EARLIER, one.decided_at, 0, one) for key, one in (leases or {}).items()}
        down |= self._down()
        self._pools = {pool.vip: pool for pool in pools}
        users: defaultdict[Target, set[Vip]] = defaultdict(set)
        self._targets = {}
        for pool in self._pools.values():
            for member in _members(pool):
                users[member.target].add(pool.vip)
                self._targets[member.key] = member.target
                if member.target not in self._records and member.key in down:
                    self._records[member.target] = replace(down[member.key])
                    if member.key in self._out:
                        self._records[member.target].verdict = _lasting(down[member.key].verdict, member.target)
        self._users = users
        self._records = {target: self._records.get(target) or _Record() for target in users}
        self._out = {key: since for key, since in self._out.items() if key in self._targets}
        self._written = {key: verdict for key, verdict in self._written.items() if key in self._targets}
        self._dirty = set(self._pools)
        return users.keys()

    def forget_written(self) -> None:
        """Decide to write all verdicts again after the next `follow`, because other maps do not have them."""
        self._written = {}

    def hear(self, target: Target, result: Result, now: int) -> bool:
        """Take the result of a check; return whether there is something to decide.

        :param now: in nanoseconds of CLOCK_MONOTONIC.
        """
        record = self._records.get(target)
        if record is None:
            return False
        was_up = record.health.up
        check = replace(target.check, rise=1) if record.needed else target.check
        record.health = record.health.after(result, check)
        if result.passed is not None:
            record.needed = False
            if was_up and not record.health.up:
                record.since = now
            pause = _pause(target, now - record.heard_at if record.heard_at else 0)
            record.heard_at = now
            if not record.health.up and (not result.passed or record.verdict.out_until > now):
                record.verdict = Verdict(now, now + max(LEASE * pause, LEAST_LEASE))
        if was_up and record.health.up:
            return False
        self._dirty.update(self._users[target])
        return True

    def decide(self, now: int, ejected: Collection[bytes] = ()) -> Decisions:
        """Return what has changed since the last time, and regard it as written: the caller writes it in any case.

        :param ejected: packed members of any pools that are out or suspect because of failed connects.
        """
        found = Decisions()
        for vip in self._dirty:
            if vip in self._pools:
                self._decide(self._pools[vip], now, ejected, found)
        self._dirty = set()
        return found

    @property
    def down(self) -> set[Target]:
        """The targets that are down."""
        return {target for target, record in self._records.items() if not record.health.up}

    @property
    def out(self) -> Mapping[bytes, int]:
        """Packed members that are out, each with the moment since when; in nanoseconds of CLOCK_MONOTONIC."""
        return self._out

    def urgent(self, keys: Iterable[bytes]) -> set[Target]:
        """Return the checks to make now, because connects to packed members have failed.

        These are their own, and those of members that are down in the same virtual servers: they may be back, and
        needed. If there are many in a virtual server, only those whose last results are the oldest.
        """
        own = self._targets_of(keys)
        down = self._down_beside(own)
        oldest = [nsmallest(MOST_URGENT, some, key=lambda one: self._records[one].heard_at) for some in down]
        return own.union(*oldest)

    def need(self, keys: Iterable[bytes]) -> bool:
        """Let one passed check be enough, because packed members fail connects and stay in service.

        That is for other members that are down in the same virtual servers: a passed one that waits for another is
        better than one that fails. A last check that has passed is enough as well.

        :returns: whether there is something to decide.
        """
        for target in set[Target]().union(*self._down_beside(self._targets_of(keys))):
            record = self._records[target]
            if record.health.against:
                record.health = Health()
                self._dirty.update(self._users[target])
            else:
                record.needed = True
        return bool(self._dirty)

    def _targets_of(self, keys: Iterable[bytes]) -> set[Target]:
        return {self._targets[key] for key in keys if key in self._targets}

    def _down_beside(self, own: AbstractSet[Target]) -> Iterator[set[Target]]:
        """Yield the other targets that are down in each virtual server of these."""
        for vip in {vip for target in own for vip in self._users[target]}:
            targets = (member.target for member in _members(self._pools[vip]))
            yield {target for target in targets if not self._records[target].health.up} - own

    def failing(self) -> dict[Vip, dict[bytes, str]]:
        """Return the members of each checked virtual server that are down, each with the reason."""
        return {
            vip: {
                member.key: record.health.reason or ""
                for member in _members(pool)
                if not (record := self._records[member.target]).health.up
            }
            for vip, pool in self._pools.items()
        }

    def _down(self) -> dict[bytes, _Record]:
        """Return the record of each member that is down."""
        records = {
            member.key: self._records[member.target] for pool in self._pools.values() for member in _members(pool)
        }
        return {
            key: replace(record, health=Health(up=False, reason=record.health.reason))
            for key, record in records.items()
            if not record.health.up
        }

    def _decide(self, pool: CheckedPool, now: int, ejected: Collection[bytes], found: Decisions) -> None:
        records = {member.key: self._records[member.target] for member in _members(pool)}
        failing = {
            key: record.since
            for key, record in records.items()
            if not record.health.up and record.verdict.out_until > now
        }
        was_out = self._out.keys() & records.keys()
        out = choose_out([[member.key for member in tier] for tier in pool.tiers], failing, was_out, ejected)
        for key in out:
            verdict = records[key].verdict
            if self._written.get(key) != verdict:
                found.verdicts[key] = self._written[key] = verdict
            if key not in was_out:
                self._out[key] = records[key].since
                found.changes.append(Change(key, records[key].health.reason, 0))
        for key in was_out - out:
            written = self._written.pop(key, None)
            if key not in ejected or records[key].health.up:
                found.verdicts[key] = Verdict(now, 0)
            elif written and written.out_until > now:  # no passed check: its lease ends, and its ejection goes on
                found.verdicts[key] = written._replace(out_until=now)
            found.changes.append(Change(key, None, now - self._out.pop(key)))


def _pause(target: Target, last: int) -> int:
    """Return the interval of a check, or the last pause: if checks are late, a lease has to last until the next one."""
    interval = round(target.check.interval * _SECOND)
    return min(max(interval, last), _MOST_LATE * interval)


def _lasting(verdict: Verdict, target: Target) -> Verdict:
    """Return a verdict that is valid for as long as one of this target."""
    return verdict._replace(out_until=max(verdict.out_until, verdict.decided_at + LEASE * _pause(target, 0)))


def _members(pool: CheckedPool) -> Sequence[Member]:
    return [member for tier in pool.tiers for member in tier]
