"""The conditions for every connect, at any time. Pure: it reads the records of clients and the history.

- A connect fails only if it may have reached a real server that was dead then: servers of a service without mortal ones
  never refuse, so its connects never fail at all.
- Failures end soon: passive health ejects a dead server after three of them, and probes it now and then.
- A connect reaches a real server that discovery had at that time, or until `LAG` before it; time in which the soak
  itself delays the sidecar (it was killed, a leader is lost, DNS misbehaves) does not count.
- The application sees the VIP as its peer.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from soak.history import SECOND, History, outside
from soak.record import Record, Stage
from soak.scene import Service, Target

LAG: Final = 2 * SECOND
"""Maximum time from a change until it is in the kernel, without disturbance.

The longest burst and the DNS refresh are 0.7 s of it, the remaining part is for two busy processors.
"""
EJECT_AFTER: Final = 3
EJECT_SECONDS: Final = 1
UNDER_WAY: Final = 16
"""Failures of connects under way during an ejection, and of interrupted probes."""
_DIED: Final = frozenset({0, errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.EAGAIN})


class Client(NamedTuple):
    """A client, and its targets."""

    name: str
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
        self._refusals: dict[tuple[str, str], list[int]] = {}
        self._arrivals: dict[tuple[str, str, int, int], int] = {}

    def take(self, client: Client, records: Iterable[Record]) -> None:
        """Judge the records of a client."""
        keys = [Key(client.instance, target.vip, target.protocol) for target in client.targets]
        for record in records:
            key, target = keys[record.target], client.targets[record.target]
            self.tries[key] += 1
            self.by_client[client.name] += 1
            objection = self._objection(client, target, key, record)
            if objection:
                took = (record.end - record.start) / 1e6
                what = f"{client.name}, connect to {target}, {took:.1f} ms: {objection}"
                self.violations.append(Violation(record.end, what))

    def _objection(self, client: Client, target: Target, key: Key, record: Record) -> str | None:
        stage = record.stage
        if stage in {Stage.REACHED, Stage.WRONG_PEER}:
            self.reached[key, record.reached] += 1
            if record.reached in target.service.rotating:
                self._arrive(client, target.service, record)
            if stage == Stage.WRONG_PEER:
                return "the peer is not the VIP"
            return self._misplaced(client, target.service, record)
        error = errno.errorcode.get(record.error, str(record.error))
        # A reset follows right after the handshake: the server died with connections that it had not accepted.
        if stage == Stage.CONNECT_FAILED and record.error != errno.ECONNRESET:
            self.failed[key] += 1
            self._refusals.setdefault((client.instance, target.service.name), []).append(record.end)
            refused = record.error == errno.ECONNREFUSED
            return None if refused and self._some_dead(target.service, record) else f"{error} with every server alive"
        self.unanswered[key] += 1
        if record.error in _DIED and self._some_dead(target.service, record):
            return None
        if (
            target.protocol == "udp"
            and record.error == errno.ECONNABORTED
            and self._some_left(client, target.service, record)
        ):
            return None  # its server has left the pool, so the application has to connect again
        return f"connected, and no answer: {error} with every server alive"

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
        troubled = [self._history.troubled[what] for what in (service.source, instance, "machine")]
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
        troubled = (self._history.troubled[what] for what in (service.source, client.instance, "machine"))
        return outside(left, record.start, *troubled)

    def _some_dead(self, service: Service, record: Record) -> bool:
        dead = self._history.dead
        return any(dead[number].within(record.start, record.end) for number in service.mortal if number in dead)

    def _some_left(self, client: Client, service: Service, record: Record) -> bool:
        late = (self._late(client, service, number, record) for number in service.rotating)
        return any(one is not None and 0 < one <= LAG for one in late)

    def judge_refusals(self, services: Iterable[Service]) -> None:
        """Judge the number of connects to dead servers: passive health limits them, for each death."""
        for (instance, name), moments in self._refusals.items():
            service = next(service for service in services if service.name == name)
            allowed = 0.0
            for number in service.mortal:
                for first, last in self._history.dead[number].within(0, max(moments)):
                    seconds = (min(last, max(moments)) - first) / SECOND
                    # The limit is doubled, because each family has a pool of its own.
                    allowed += 2 * (EJECT_AFTER + UNDER_WAY + 1 + seconds / EJECT_SECONDS)
            if len(moments) > allowed:
                most = f"passive health allows {allowed:.0f}"
                what = f"{name} ({instance}): {len(moments)} connects met dead servers; {most}"
                self.violations.append(Violation(max(moments), what))
