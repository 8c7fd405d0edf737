"""What has to hold for every connect, whatever happens meanwhile. Pure: it reads what clients wrote and what was done.

- A connect fails only where it may have met a real server that was dead then: servers of a service without mortal ones
  never refuse, so its connects never fail at all.
- Failures end soon: passive health leaves a dead server out after three of them, and probes it with one now and then.
- A connect comes out at a real server that discovery named at that time, or had named until `LAG` before it; time in
  which the soak itself keeps the news from the sidecar (it was killed, a leader is lost, DNS lies) does not count.
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
"""How long a change may take to be in the kernel while nothing keeps it away: the longest burst and the DNS refresh are
0.7 s of it, the rest is for two busy processors."""
EJECT_AFTER: Final = 3
EJECT_SECONDS: Final = 1
UNDER_WAY: Final = 16
"""Failures of connects that were under way when a server was ejected, and of probes that were cut off."""
_DIED: Final = frozenset({0, errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.EAGAIN})


class Client(NamedTuple):
    """A client, and what it connects to."""

    name: str
    instance: str
    """The instance of the sidecar in whose cgroup it is."""
    targets: Sequence[Target]


class Violation(NamedTuple):
    """Something that must not happen."""

    time: int
    what: str


class Key(NamedTuple):
    """What counters are counted by."""

    instance: str
    vip: str
    protocol: str


class Judge:
    """Reads connects, keeps their counts, and finds violations."""

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
        """Judge what a client wrote down."""
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
        # A reset comes right after the handshake: the server died with what it had not accepted.
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
            return None  # its server has left the pool, and the application is told to ask again
        return f"connected, and no answer: {error} with every server alive"

    def _arrive(self, client: Client, service: Service, record: Record) -> None:
        """Keep when a real server was first reached after discovery was told of it."""
        spans = self._history.members.get((service.name, record.reached))
        found = spans.within(record.end, record.end) if spans else []
        if found:
            about = (client.instance, service.name, record.reached, found[-1][0])
            self._arrivals[about] = min(self._arrivals.get(about, record.end), record.end)

    def delays(self, instance: str, service: Service) -> list[float]:
        """Return, sorted, the seconds from telling discovery of a real server to the first connect that reached it.

        Only where nothing kept the news from the sidecar meanwhile.
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
        """Return how long a server had not been a member any more, without what excuses it; None if it never was."""
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
        """Judge how many connects met dead servers: passive health bounds them, for each death."""
        for (instance, name), moments in self._refusals.items():
            service = next(service for service in services if service.name == name)
            allowed = 0.0
            for number in service.mortal:
                for first, last in self._history.dead[number].within(0, max(moments)):
                    seconds = (min(last, max(moments)) - first) / SECOND
                    # Of each family, since each has a pool of its own.
                    allowed += 2 * (EJECT_AFTER + UNDER_WAY + 1 + seconds / EJECT_SECONDS)
            if len(moments) > allowed:
                most = f"passive health allows {allowed:.0f}"
                what = f"{name} ({instance}): {len(moments)} connects met dead servers; {most}"
                self.violations.append(Violation(max(moments), what))
