"""What a real server that fails may cost. Pure: it reads the history, the failed connects, and the logs' ejections.

Passive health is per virtual server, and of each service at most one server fails at a time. So a failed connect to a
virtual server belongs to the failure of the service that it overlaps with. For each failure:

- With the sidecar alive one connect fails, and those that had begun before its application knew. No more follow.
- In any case three fail, and those that had begun before the third was known. Then at most one follows for each probe.
- Servers that do not fail are not ejected.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from soak.history import BUSY, MACHINE, SECOND, History
from soak.record import Record
from soak.scene import SERVICES, Service, Way

EJECT_AFTER: Final = 3
EJECT_SECONDS: Final = 1
"""The first, shortest ejection (`--eject-time`), and so the shortest interval of probes."""
CONNECT_LIMIT: Final = round((5 * 1.1 + 0.05) * SECOND)
"""Maximum time of a connect without a time limit of the application, with the default `--connect-timeout`."""
LATE: Final = SECOND // 2
"""A process may be late by this although the machine counts as running."""
SETTLED: Final = 10 * SECOND
"""A sidecar that has run for this long has reached all servers, so that its probes count."""
KNOWN_LATE: Final = 2 * SECOND
"""Maximum time from the end of a failure to the log line about an ejection that it has caused."""


class Where(NamedTuple):
    """A virtual server of one instance."""

    instance: str
    vip: str


class Ejection(NamedTuple):
    """A line of a log."""

    time: int
    """When it was seen."""
    instance: str
    server: int
    """The number of the real server."""
    cause: str


class Failure(NamedTuple):
    """One failure of a real server."""

    way: Way
    number: int
    start: int
    end: int


class Objection(NamedTuple):
    """A violation: time, and text."""

    time: int
    what: str


class Costs:
    """The failed connects of all virtual servers."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._failed: defaultdict[tuple[Service, Where], list[Record]] = defaultdict(list)
        self.kinds: Counter[str] = Counter()
        """How many failures there were at virtual servers, by their way and how they were judged."""
        self.most = 0
        """The most connects that one failure has cost with the sidecar alive, at one virtual server."""

    def add(self, service: Service, where: Where, record: Record) -> None:
        """Take a failed connect."""
        self._failed[service, where].append(record)

    def objections(self) -> Iterator[Objection]:
        """Judge all failures, after the end of the last one."""
        for (service, where), records in self._failed.items():
            by_failure = defaultdict(list)
            for record in records:
                overlapping = failures_in(self._history, service, record.start, record.end)
                if overlapping:  # else it is a violation of its own
                    by_failure[overlapping[0]].append(record)
            for failure, its in by_failure.items():
                yield from self._judge(service, where, failure, sorted(its, key=lambda record: record.end))

    def _judge(self, service: Service, where: Where, failure: Failure, its: list[Record]) -> Iterator[Objection]:
        last, troubled = its[-1].end, self._history.troubled
        what = f"{service.name} ({where.instance} at {where.vip}): real server {failure.number} {failure.way}"
        if troubled[MACHINE].within(failure.start, last):
            self._count(failure, "not judged")
            return
        if troubled[where.instance].within(failure.start - SETTLED, last):
            self._count(failure, "sidecar killed")
        else:
            yield from self._judge_late(what, failure, its)
        if len(its) >= EJECT_AFTER:
            known = its[EJECT_AFTER - 1].end
            probes = sum(record.start > known for record in its)
            allowed = 1 + max(0, min(failure.end, last) - known) / SECOND / EJECT_SECONDS
            if probes > allowed:
                text = f"{probes} connects failed after the first {EJECT_AFTER}; probes may cost {allowed:.1f}"
                yield Objection(last, f"{what}, and {text}")

    def _judge_late(self, what: str, failure: Failure, its: list[Record]) -> Iterator[Objection]:
        """Judge failed connects that began when the first one had failed, with the sidecar alive."""
        known, busy = its[0].end, self._history.troubled[BUSY]
        late = [record for record in its if record.start > known and not busy.within(known, record.start)]
        if late:
            seconds = ", ".join(f"{(record.start - known) / SECOND:.3f} s" for record in late[:8])
            text = f"{len(late)} of {len(its)} failed connects began after the first had failed, by {seconds}"
            yield Objection(late[0].end, f"{what}, the sidecar is alive, and {text}")
        if busy.within(known, known + SECOND):
            self._count(failure, "machine busy")
        else:
            self._count(failure, "probed")
            self.most = max(self.most, len(its))

    def _count(self, failure: Failure, how: str) -> None:
        self.kinds[f"{failure.way}: {how}"] += 1


def failures_in(history: History, service: Service, start: int, end: int) -> list[Failure]:
    """Return the failures of a service's real servers that overlap with an interval, earliest first."""
    found = [
        Failure(way, number, first, last)
        for way in service.ways
        for number in service.mortal
        if (way, number) in history.failing
        for first, last in history.failing[way, number].within(start, end)
    ]
    return sorted(found, key=lambda failure: failure.start)


def wrong_ejections(history: History, ejections: Iterable[Ejection]) -> Iterator[Objection]:
    """Judge the ejections that sidecars have logged."""
    for ejection in ejections:
        service = next(one for one in SERVICES if ejection.server in one.servers)
        # A sidecar finds those from before its start when it starts.
        late = [
            ejection.time,
            *(first for first, _ in history.troubled[ejection.instance].within(ejection.time - SETTLED, ejection.time)),
        ]
        failures = failures_in(history, service, min(late) - KNOWN_LATE, ejection.time)
        if not any(failure.number == ejection.server for failure in failures):
            what = f"{ejection.instance} ejects real server {ejection.server} of {service.name}"
            yield Objection(ejection.time, f"{what}, which has not failed: {ejection.cause}")
