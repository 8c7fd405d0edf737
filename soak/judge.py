"""The conditions for every connect, at any time. Pure: it reads the records of clients and the history.

- A connect fails only if it may have reached a real server that failed then, and with an error that fits: servers of a
  service without mortal ones never fail, so its connects never fail at all.
- Failures end soon: `failures` has what one may cost, and a connect without a time limit ends by the limit of ours.
- Active checks find a server that hangs. A connection whose host vanishes ends by `dead-after`.
- A connect reaches a real server that discovery had at that time, or until `LAG` before it; time in which the soak
  itself delays the sidecar (it was killed, a leader is lost, DNS misbehaves) does not count.
- The application sees the VIP as its peer.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from soak.failures import (
    CONNECT_LIMIT,
    LATE,
    SETTLED,
    Costs,
    Ejection,
    Failure,
    Where,
    failures_in,
    wrong_ejections,
)
from soak.history import MACHINE, SECOND, History, outside
from soak.record import Outcome, Record
from soak.scene import CHECKED_WITHIN, DEAD_AFTER, Service, Target, Way

LAG: Final = 2 * SECOND
"""Maximum time from a change until it is in the kernel, without disturbance.

The longest burst and the DNS refresh are 0.7 s of it, the remaining part is for two busy processors.
"""
RECENT: Final = 60 * SECOND
"""Maximum time until a change is in the kernel, with disturbance."""
FIRST_CHECKED: Final = CHECKED_WITHIN * SECOND + LATE
ENDED_WITHIN: Final = (DEAD_AFTER + 2) * SECOND + LATE
"""Maximum time of a read from a host that has vanished."""
_CONNECT_ERRORS: Final = {
    errno.ECONNREFUSED: {Way.DIES},
    errno.ETIMEDOUT: {Way.SILENT, Way.VANISHES},
}
"""The failures that a connect may fail by, by its error."""
_DIED: Final = frozenset({0, errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.EAGAIN})


class Client(NamedTuple):
    """A client, and its targets."""

    name: str
    kind: str
    instance: str
    """The instance of the sidecar that balances the client's cgroup."""
    targets: Sequence[Target]


class Violation(NamedTuple):
    """A violated condition."""

    time: int
    what: str


class Key(NamedTuple):
    """The key of counters."""

    instance: str
    vip: str
    protocol: str


class Judge:
    """Reads connects, counts them, and finds violations."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.tries: Counter[Key] = Counter()
        self.reached: Counter[tuple[Key, int]] = Counter()
        self.failed: Counter[Key] = Counter()
        self.unanswered: Counter[Key] = Counter()
        self.by_client: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.costs = Costs(history)
        self.used: Counter[str] = Counter()
        """Reads on connections that had been in use, by their error."""
        self._arrivals: dict[tuple[str, str, int, int], int] = {}

    def take(self, client: Client, records: Iterable[Record]) -> None:
        """Judge the records of a client."""
        keys = [Key(client.instance, target.vip, target.protocol) for target in client.targets]
        for record in records:
            key, target = keys[record.target], client.targets[record.target]
            if record.stage == Outcome.USED:
                objection = self._objection_to_use(target.service, record)
            else:
                self.tries[key] += 1
                self.by_client[client.name] += 1
                objection = self._objection(client, target, key, record)
            if objection:
                took = (record.end - record.start) / 1e6
                what = f"{client.name}, connect to {target}, {took:.1f} ms: {objection}"
                self.violations.append(Violation(record.end, what))

    def _objection(self, client: Client, target: Target, key: Key, record: Record) -> str | None:
        stage = record.stage
        if stage in {Outcome.REACHED, Outcome.WRONG_PEER}:
            self.reached[key, record.reached] += 1
            if record.reached in target.service.rotating:
                self._arrive(client, target.service, record)
            if stage == Outcome.WRONG_PEER:
                return "the peer is not the VIP"
            return self._misplaced(client, target.service, record)
        # A reset follows right after the handshake: the server died with connections that it had not accepted.
        if stage == Outcome.CONNECT_FAILED and record.error != errno.ECONNRESET:
            self.failed[key] += 1
            self.costs.add(target.service, Where(client.instance, target.vip), record)
            return self._objection_to_failed(target.service, record)
        self.unanswered[key] += 1
        return self._objection_to_unanswered(client, target, record)

    def _objection_to_failed(self, service: Service, record: Record) -> str | None:
        if not self._some_failed(service, record, _CONNECT_ERRORS.get(record.error, set())):
            return f"{_name(record.error)} with every server alive"
        took = record.end - record.start
        return "did not end in time" if took > CONNECT_LIMIT + LATE and not self._stood_still(record) else None

    def _objection_to_unanswered(self, client: Client, target: Target, record: Record) -> str | None:
        service = target.service
        if record.error in _DIED and self._some_failed(service, record, {Way.DIES}):
            return None
        if record.error == errno.ETIMEDOUT and self._some_failed(service, record, {Way.VANISHES}):
            return None
        if record.error == errno.ETIMEDOUT and self._some_failed(service, record, {Way.HANGS}):
            return self._objection_to_hanging(client, service, record)
        if target.protocol == "udp" and record.error == errno.ECONNABORTED and self._some_left(client, service, record):
            return None  # its server has left the pool, so the application has to connect again
        return f"connected, and no answer: {_name(record.error)} with every server alive"

    def _objection_to_hanging(self, client: Client, service: Service, record: Record) -> str | None:
        hangs = self._failures(service, record, {Way.HANGS})[0]
        late = record.start - hangs.start
        troubled = self._history.troubled[client.instance].within(hangs.start - SETTLED, record.end)
        if late <= FIRST_CHECKED or troubled or self._stood_still(record):
            return None
        return f"no answer by real server {hangs.number}, which has hung for {late / SECOND:.1f} s"

    def _objection_to_use(self, service: Service, record: Record) -> str | None:
        """Judge a read on a connection that had been in use, or its close by the client."""
        error = _name(record.error)
        self.used[error] += 1
        before = record._replace(start=record.start - ENDED_WITHIN)  # its host may have vanished some time ago
        its = [one for one in self._failures(service, before, set(Way)) if one.number == record.reached]
        where = f"a read from real server {record.reached}"
        for failure in its:
            took = min(record.end, failure.end) - max(record.start, failure.start)
            if failure.way is Way.VANISHES and took > ENDED_WITHIN and not self._stood_still(record):
                return f"{where} took {took / SECOND:.1f} s after its host had vanished; error: {error}"
        ways = {Way.DIES} if record.error in _DIED else {Way.VANISHES} if record.error == errno.ETIMEDOUT else set()
        if record.error and not any(failure.way in ways for failure in its):
            return f"{where} ended with {error}, which had not failed"
        return None

    def _arrive(self, client: Client, service: Service, record: Record) -> None:
        """Record the first connect to a real server after discovery got it."""
        spans = self._history.members.get((service.name, record.reached))
        found = spans.within(record.end, record.end) if spans else []
        if found:
            about = (client.instance, service.name, record.reached, found[-1][0])
            self._arrivals[about] = min(self._arrivals.get(about, record.end), record.end)

    def delays(self, instance: str, service: Service) -> list[float]:
        """Return, sorted, the seconds from a registration of a real server to the first connect that reached it.

        Only registrations without disturbance of the sidecar are included.
        """
        troubled = [self._history.troubled[what] for what in (service.source, instance, MACHINE)]
        return sorted(
            (reached - joined) / SECOND
            for (where, name, _, joined), reached in self._arrivals.items()
            if where == instance and name == service.name and outside(joined, reached, *troubled) == reached - joined
        )

    def _misplaced(self, client: Client, service: Service, record: Record) -> str | None:
        number = record.reached
        if number not in service.servers:
            return f"came out at real server {number}, which is another service's"
        late = self._late(client, service, number, record)
        if late is None or late > LAG:
            gone = "never was" if late is None else f"was, until {late / SECOND:.2f} s before without a fault,"
            return f"came out at real server {number}, which {gone} a member"
        return None

    def _late(self, client: Client, service: Service, number: int, record: Record) -> int | None:
        """Return for how long a server was no member any more, without excused time; None if it never was one."""
        spans = self._history.members.get((service.name, number))
        if spans is None:
            return None
        if spans.within(record.start, record.end):
            return 0
        left = spans.ended_before(record.start)
        if left is None:
            return None
        troubled = (self._history.troubled[what] for what in (service.source, client.instance, MACHINE))
        return outside(left, record.start, *troubled)

    def _failures(self, service: Service, record: Record, ways: AbstractSet[Way]) -> list[Failure]:
        return [one for one in failures_in(self._history, service, record.start, record.end) if one.way in ways]

    def _some_failed(self, service: Service, record: Record, ways: AbstractSet[Way]) -> bool:
        return bool(self._failures(service, record, ways))

    def _stood_still(self, record: Record) -> bool:
        return bool(self._history.troubled[MACHINE].within(record.start, record.end))

    def _some_left(self, client: Client, service: Service, record: Record) -> bool:
        """Tell whether a server has left the pool so recently that its sockets may have been closed during a record."""
        troubled = [self._history.troubled[what] for what in (service.source, client.instance, MACHINE)]
        spans = (self._history.members[service.name, number] for number in service.rotating)
        ends = (end for one in spans for _, end in one.within(record.start - RECENT, record.end))
        return any(end <= record.end and outside(end, record.start, *troubled) <= LAG for end in ends)

    def judge_failures(self, ejections: Iterable[Ejection]) -> None:
        """Judge what failures have cost, when all have ended."""
        objections = (*self.costs.objections(), *wrong_ejections(self._history, ejections))
        self.violations += [Violation(*objection) for objection in objections]


def _name(error: int) -> str:
    return errno.errorcode.get(error, str(error))
