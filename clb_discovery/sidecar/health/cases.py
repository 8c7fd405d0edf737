"""Real servers that are suspect or out, when to probe each, and what follows from a probe. Pure: moments are values.

A server becomes a case when the programs report it, and stops being one when it takes connects again. Suspect: one
connect has failed, and the programs pass the server over for a second; the probe decides. Out: it is ejected. It is
probed at intervals that double, and each failed probe renews the verdict, which is a lease for three intervals. So a
stopped sidecar keeps no server out. Needed: it fails connects, but too many others are out for it to go out as well. So
the others are recalled: they are probed at once, because each that has recovered is worth more than one that fails.

A failed probe is a verdict only if the sidecar has reached that address and port before: it may be a server that only
others reach, or this process may be confined. Without a verdict the programs probe by a connect of an application.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from itertools import islice
from typing import Final, NamedTuple

from clb_discovery.layout.elements import Change, ChangeKind, Server, Steering
from clb_discovery.layout.health import Health, health_of

SECOND: Final = 1_000_000_000
FIRST_WITHIN: Final = (SECOND // 2, SECOND * 9 // 10)
"""Nanoseconds from an ejection by the programs to the first probe: its cause may be over, and it may not be."""
LEAST_INTERVAL: Final = SECOND
LEASE: Final = 3
"""Intervals between probes for which a failed one keeps a server out."""
MOST_RECALLED: Final = 64
"""Servers of a pool that are recalled at a time; a failing pool recalls once a second."""
DOUBT: Final = 120 * SECOND
"""Nanoseconds after a passed probe for which a server is doubtful: if it fails connects again, it may lose packets."""

Endpoint = bytes
"""Address and port as they are in a packed member: virtual servers share the probes of an endpoint."""


def _vip_of(member: bytes) -> bytes:
    return member[:20]


def endpoint_of(member: bytes) -> Endpoint:
    """Return the endpoint of a packed member."""
    return member[20:38]


class Terms(NamedTuple):
    """How long a virtual server ejects a real server, in nanoseconds."""

    first: int
    most: int
    checked: bool = False
    """Whether active checks have a say, too."""


def heed_later(change: Change, terms: Terms | None) -> bool:
    """Tell whether the programs heed a verdict from after a report: of a server that was back only with checks."""
    return change.kind != ChangeKind.RETURNED or bool(terms and terms.checked)


class Kind(StrEnum):
    """What has happened to a server."""

    SUSPECTED = "suspected"
    CLEARED = "cleared"
    """It was suspect, and is in service again."""
    UNKNOWN = "unknown"
    """It was suspect, and the probe is no evidence."""
    EJECTED = "ejected"
    STAYS_OUT = "stays out"
    """Another probe has failed."""
    RETURNED = "returned"
    NEEDED = "needed"
    """It fails connects, and stays in service."""


class News(NamedTuple):
    """A change of a server, with the verdict for the programs if there is one."""

    kind: Kind
    member: bytes
    verdict: Steering | None = None
    change: Change | None = None
    """The report of the programs that this follows from; None if it follows from a look at all servers."""
    probe_in: int | None = None
    """Nanoseconds until the next probe; None if there is none."""
    out_for: int | None = None
    """Nanoseconds that a server was out; None if that is not known."""
    failed_probe: bool = False
    decided_at: int = 0
    """When the previous probe with a verdict ended; 0: there was none."""


@dataclass(slots=True)
class _Case:
    member: bytes
    terms: Terms | None  # None: it is not probed, or not any more
    changed_at: int  # the latest change by the programs that is known
    change: Change | None
    out: bool = False  # else it is suspect
    since: int | None = None  # when it went out
    decided_at: int = 0
    interval: int = 0
    due: int = 0  # the next probe
    probed_at: int = 0  # when the previous one ended
    recalled: bool = False  # whether the next one comes early, because another server is needed


class Cases:
    """All cases. Moments are nanoseconds of CLOCK_MONOTONIC."""

    def __init__(self, chance: Callable[[], float]) -> None:
        """Start without any.

        :param chance: returns a random number from 0 to 1.
        """
        self._chance = chance
        self._cases: dict[bytes, _Case] = {}
        self._at: defaultdict[Endpoint, dict[bytes, _Case]] = defaultdict(dict)
        self._of: defaultdict[bytes, OrderedDict[bytes, _Case]] = defaultdict(OrderedDict)
        """By packed VIP; first those that have waited longest for a probe. A dict is slow if its first ones leave."""
        self._urgent: deque[Endpoint] = deque()
        self._later: list[tuple[int, Endpoint]] = []
        self._running: set[Endpoint] = set()
        self._doubtful: dict[Endpoint, int] = {}  # when the doubt began or was renewed, in this order

    def __contains__(self, member: bytes) -> bool:
        return member in self._cases

    @property
    def has_unprobed(self) -> bool:
        """Whether any server is out that is not probed: the programs may take it back without a report."""
        return any(case.terms is None for case in self._cases.values())

    @property
    def members(self) -> AbstractSet[bytes]:
        """The packed members that are suspect or out."""
        return self._cases.keys()

    @property
    def out(self) -> AbstractSet[bytes]:
        """The packed members that are out, without suspects."""
        return {member for member, case in self._cases.items() if case.out}

    def heard(self, member: bytes, terms: Terms | None, change: Change, now: int) -> Iterator[News]:
        """Take a report of the programs about a server.

        :param terms: of its virtual server; None if its servers are not probed.
        """
        if change.kind == ChangeKind.NEEDED:
            self._recall(member, terms, now)
            yield News(Kind.NEEDED, member, change=change)
            return
        case = self._cases.get(member)
        if case and change.time < case.decided_at and heed_later(change, terms):
            return
        if change.kind == ChangeKind.RETURNED:
            if case:
                yield self._closed(case, change.time)
        elif change.kind == ChangeKind.SUSPECT:
            if case:  # it is out, but the programs have taken it back when the lease was over
                self._again(case, change)
                self._hurry(case)
            else:
                yield self._suspected(member, terms, change)
        elif change.kind == ChangeKind.EJECTED:
            if case:
                self._again(case, change)
            else:
                case = self._put_out(_Case(member, terms, change.time, change), now)
            if not case.out:
                case.since = change.time
                yield self._ejected(case, now)

    def found(self, member: bytes, terms: Terms | None, server: Server, steering: Steering, now: int) -> Iterator[News]:
        """Compare a server with what the maps say of it.

        This is for the start, for lost reports, and for servers that are out and not probed.
        """
        health = health_of(server, steering, now, checked=bool(terms and terms.checked))
        case = self._cases.get(member)
        if health is Health.ACTIVE:
            if case and (case.out or not server.suspect):  # else its probe still decides
                yield self._closed(case, max(server.changed_at, steering.decided_at) or now)
        elif case is None:
            change = Change(server.changed_at, 0, server.began, ChangeKind.EJECTED, server.in_row, server.cause)
            if health is Health.SUSPECT:
                yield self._suspected(member, terms, change._replace(kind=ChangeKind.SUSPECT))
            elif server.ejected_until:  # else the checks alone keep it out, and log that
                case = self._put_out(_Case(member, terms, server.changed_at, change), now)
                case.decided_at = steering.decided_at if steering.decided_at > server.changed_at else 0
                yield self._ejected(case, now)

    def probed(self, endpoint: Endpoint, is_up: bool | None, began: int, now: int, *, reached: bool) -> Iterator[News]:
        """Draw the conclusions from a probe, for every virtual server with a case there.

        :param is_up: None if the probe failed on this host.
        :param began: when it began.
        :param reached: whether a failure counts, because this endpoint has been reached before.
        """
        if is_up or self.is_doubtful(endpoint, now):
            self._doubt(endpoint, now)
        for case in self._waiting(endpoint):
            before, case.probed_at = case.decided_at, now
            self._of[_vip_of(case.member)].move_to_end(case.member)
            if now < case.changed_at:  # it has failed connects since; the programs would not heed a verdict from before
                self._probe_first(case, case.changed_at)
            elif is_up:
                moment = began if began > case.changed_at else now
                yield self._closed(case, moment)._replace(verdict=Steering(moment, 0), decided_at=before)
            elif is_up is None or not reached:
                if case.out:
                    self._plan(case, now)
                else:
                    self._remove(case)
                    yield News(Kind.UNKNOWN, case.member, change=case.change)
            else:
                yield self._failed(case, now)._replace(decided_at=before)

    def due(self, now: int, most: int) -> list[Endpoint]:
        """Return endpoints to probe now; `probed` has to be called for each, and then `release`."""
        found: list[Endpoint] = []
        while self._urgent and len(found) < most:
            self._take(self._urgent.popleft(), now, found)
        while self._later and self._later[0][0] <= now and len(found) < most:
            self._take(heappop(self._later)[1], now, found)
        return found

    @property
    def next_due(self) -> int | None:
        """When the next probe is due; 0 for at once, None for never."""
        if self._urgent:
            return 0
        return self._later[0][0] if self._later else None

    def claim(self, endpoint: Endpoint) -> bool:
        """Take an endpoint that is probed for another reason; return whether no probe of it is running."""
        if endpoint in self._running:
            return False
        self._running.add(endpoint)
        return True

    def waits_for(self, endpoint: Endpoint) -> bool:
        """Tell whether there is a case that a probe of this endpoint decides."""
        return bool(self._waiting(endpoint))

    def is_doubtful(self, endpoint: Endpoint, now: int) -> bool:
        """Tell whether a server has passed a probe lately: if it has a case again, one more answer proves nothing."""
        return endpoint in self._doubtful and now - self._doubtful[endpoint] < DOUBT

    def release(self, endpoint: Endpoint, now: int) -> None:
        """End a probe, whether or not its conclusions could be drawn."""
        self._running.discard(endpoint)
        for case in self._waiting(endpoint):
            if case.due <= now:
                self._plan(case, now)

    def retime(self, member: bytes, terms: Terms | None) -> None:
        """Adopt other terms of the virtual server of a case, if there is one."""
        case = self._cases.get(member)
        if case is None or case.terms == terms:
            return
        probed, case.terms = case.terms is not None, terms
        if terms is None and not case.out:
            self._remove(case)
        elif not probed:
            self._hurry(case)

    def forget(self, member: bytes) -> None:
        """Drop the case of a server that has left, if there is one."""
        case = self._cases.get(member)
        if case:
            self._remove(case)

    def end(self, member: bytes, now: int) -> Iterator[News]:
        """Close the case of a server that takes connects again, because its virtual server ejects no more.

        It has a verdict, because the programs let an ejection end when a connect has chosen the server: least-conn
        chooses others until then.
        """
        case = self._cases.get(member)
        if case:
            yield self._closed(case, now)._replace(verdict=Steering(now, 0), decided_at=case.decided_at)

    def overrule(self, member: bytes, moment: int) -> bool:
        """Drop the case of a server that its checks have brought back; return whether it has none now.

        :param moment: when the checks decided that; a later report of the programs counts.
        """
        case = self._cases.get(member)
        if case and case.changed_at <= moment:
            self._remove(case)
        return member not in self._cases

    def recall(self, member: bytes, now: int) -> None:
        """Probe a server that is out soon, if it is probed at all."""
        case = self._cases.get(member)
        if case and case.out and case.terms:
            self._probe_soon(case, now)

    def _take(self, endpoint: Endpoint, now: int, found: list[Endpoint]) -> None:
        """Take an endpoint, unless it is being probed or its cases are over or due later."""
        due = [case.due for case in self._waiting(endpoint)]
        if endpoint not in self._running and due and min(due) <= now:
            self._running.add(endpoint)
            found.append(endpoint)

    def _suspected(self, member: bytes, terms: Terms | None, change: Change) -> News:
        if terms:
            self._hurry(self._opened(_Case(member, terms, change.time, change)))
        return News(Kind.SUSPECTED, member, change=change)

    def _recall(self, needed: bytes, terms: Terms | None, now: int) -> None:
        """Probe servers that are out again, those first that have waited longest; none if they are not probed."""
        others: Mapping[bytes, _Case] = self._of.get(_vip_of(needed), {}) if terms else {}
        out = (case for case in others.values() if case.out and case.terms)
        for case in islice(out, MOST_RECALLED):
            self._probe_soon(case, now)

    def _probe_soon(self, case: _Case, now: int) -> None:
        soon = max(now, case.probed_at + LEAST_INTERVAL)
        if soon < case.due:
            case.recalled = True
            self._schedule(case, soon)

    def _hurry(self, case: _Case) -> None:
        case.due = 0
        self._urgent.append(endpoint_of(case.member))

    def _waiting(self, endpoint: Endpoint) -> list[_Case]:
        return [case for case in self._at.get(endpoint, {}).values() if case.terms]

    def _doubt(self, endpoint: Endpoint, now: int) -> None:
        self._doubtful.pop(endpoint, None)
        self._doubtful[endpoint] = now
        while now - self._doubtful[oldest := next(iter(self._doubtful))] >= DOUBT:
            del self._doubtful[oldest]

    def _again(self, case: _Case, change: Change) -> None:
        case.changed_at = max(case.changed_at, change.time)
        case.change = change

    def _put_out(self, case: _Case, now: int) -> _Case:
        """Open a case that was not suspect before: its probe is not due at once."""
        if case.terms:
            self._probe_first(case, now)
        return self._opened(case)

    def _probe_first(self, case: _Case, now: int) -> None:
        low, high = FIRST_WITHIN
        self._schedule(case, now + low + round((high - low) * self._chance()))

    def _ejected(self, case: _Case, now: int) -> News:
        case.out = True
        probe_in = max(0, case.due - now) if case.terms else None
        return News(Kind.EJECTED, case.member, change=case.change, probe_in=probe_in)

    def _failed(self, case: _Case, now: int) -> News:
        """Let a server stay out because it did not answer; that is an ejection if it was only suspect."""
        kind = Kind.STAYS_OUT if case.out else Kind.EJECTED
        if not case.out:
            case.out = True
            case.since = case.changed_at
        self._plan(case, now)
        case.decided_at = now
        verdict = Steering(now, now + LEASE * case.interval)
        probe_in = case.due - now
        return News(kind, case.member, verdict, case.change, probe_in, failed_probe=True)

    def _plan(self, case: _Case, now: int) -> None:
        """Schedule the next probe after one that has failed."""
        terms = case.terms or Terms(LEAST_INTERVAL, LEAST_INTERVAL)
        longer = case.interval * (1 if case.recalled else 2) or terms.first
        case.recalled = False
        case.interval = max(LEAST_INTERVAL, min(longer, terms.most))
        # Many hosts may have ejected it at the same moment.
        self._schedule(case, now + round(case.interval * (0.9 + 0.1 * self._chance())))

    def _closed(self, case: _Case, moment: int) -> News:
        self._remove(case)
        if not case.out:
            return News(Kind.CLEARED, case.member, change=case.change)
        out_for = None if case.since is None else max(0, moment - case.since)
        return News(Kind.RETURNED, case.member, change=case.change, out_for=out_for)

    def _opened(self, case: _Case) -> _Case:
        member = case.member
        self._cases[member] = self._at[endpoint_of(member)][member] = self._of[_vip_of(member)][member] = case
        return case

    def _remove(self, case: _Case) -> None:
        member = case.member
        del self._cases[member]
        for cases, key in ((self._at, endpoint_of(member)), (self._of, _vip_of(member))):
            del cases[key][member]
            if not cases[key]:
                del cases[key]

    def _schedule(self, case: _Case, due: int) -> None:
        case.due = due
        heappush(self._later, (due, endpoint_of(case.member)))
