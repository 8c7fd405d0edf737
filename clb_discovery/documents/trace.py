"""One line for each connect, joined from the decision and the outcome that the kernel programs report.

The decision names the process and the outcome does not. The socket's cookie joins the two.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from clb_discovery.documents.causes import Cause, cause_of
from clb_discovery.documents.origin import Origin, origin
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Event
from clb_discovery.model.address import format_endpoint
from clb_discovery.model.servers import Protocol

_REMEMBERED: Final = 65536  # at most so many connects wait for their outcome


class Kind(IntEnum):
    """CLB_EVENT_* of bpf/clb.h."""

    SENT = 1
    REFUSED = 2
    ESTABLISHED = 3
    FAILED = 4
    GIVEN_UP = 5
    EJECTED = 6


OUTCOMES: Final = tuple(kind.name.lower().replace("_", "-") for kind in Kind)
"""The kinds as `trace` prints them."""
DROPPED: Final = "dropped"
"""The outcome of a line that stands for connects that came faster than they were read."""
_LONGEST_COMMAND: Final = 15  # bytes of a program's name that the kernel keeps (TASK_COMM_LEN)
_UNREACHABLE: Final = ("EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED")
_ERRORS: Final[Mapping[int, tuple[str, ...]]] = {
    Cause.REFUSED: ("ECONNREFUSED",),
    Cause.TIMED_OUT: ("ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH"),  # the latter after an ICMP error on the way
    Cause.SILENT: (),
    Cause.UNREACHABLE: _UNREACHABLE,
}
"""The errors of failed connects by their cause. An application that gave up by itself has none."""


@dataclass(frozen=True, slots=True)
class Line:
    """One connect and its outcome."""

    time: int
    """When the outcome came, in nanoseconds of CLOCK_MONOTONIC."""
    process: int | None
    command: str | None
    cgroup: int | None
    """Id of the process's cgroup."""
    key: bytes | None
    """The virtual server, packed."""
    vip: str | None
    real_server: str | None
    outcome: str
    cause: str | None
    """Why it failed; None if it did not, or if the cause is not known."""
    latency: int | None
    """Nanoseconds from the decision to the outcome; None unless this outcome ends a connect."""
    errors: tuple[str, ...] = ()
    """The errors that the application may have got, by their names in errno(3), the likeliest first; one if it is
    certain. Empty if nothing failed or nothing is known, because events do not have the error itself."""

    def document(self, time: str, cgroup: str | None, service: str | None) -> dict[str, Any]:
        """Return the object that `trace --json` prints, with the time in the format of RFC 3339."""
        found = Origin() if cgroup is None else origin(cgroup)
        return {
            "time": time,
            "pid": self.process,
            "command": self.command,
            "cgroup": cgroup,
            "unit": found.unit,
            "container": found.container,
            "service": service,
            "virtual_server": self.vip,
            "real_server": self.real_server,
            "outcome": self.outcome,
            "cause": self.cause,
            "errno": list(self.errors),
            "latency_ms": None if self.latency is None else self.latency / 1e6,
        }


def dropped(time: int) -> Line:
    """Return the line that stands for connects that were not read in time."""
    return Line(time, None, None, None, None, None, None, DROPPED, None, None)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The filters of `trace`. A line has to match one value of each kind; a kind without values matches all lines."""

    services: frozenset[str] = frozenset()
    commands: frozenset[str] = frozenset()
    outcomes: frozenset[str] = frozenset()

    def takes(self, line: Line, service: str | None) -> bool:
        """Return whether a line, which is of this service, matches. The line of dropped connects always does."""
        if line.outcome == DROPPED:
            return True
        kept = {name.encode()[:_LONGEST_COMMAND].decode(errors="replace") for name in self.commands}
        return (
            (not self.outcomes or line.outcome in self.outcomes)
            and (not self.services or service in self.services)
            and (not self.commands or line.command in kept)
        )


class Joiner:
    """Remembers decisions until their outcomes come."""

    def __init__(self, refusal: str = "ECONNREFUSED", since: int | None = None) -> None:
        """Start without decisions.

        :param refusal: the error of a connect to an empty pool.
        :param since: the time, as in events, before which connects have no line. A previous trace has marked them, and
            perhaps nothing has followed them since: they would seem given up when their sockets are closed.
        """
        self._since = since
        self._refusal = refusal
        self._decisions: OrderedDict[int, Event] = OrderedDict()

    def feed(self, event: Event) -> Line | None:
        """Take an event, and return the line that it completes, if any."""
        key, address, port = elements.unpack_member(event.member)
        vip = elements.unpack_vip(key)
        if event.kind == Kind.SENT and vip.protocol is Protocol.TCP:
            self._decisions[event.socket] = event
            if len(self._decisions) > _REMEMBERED:
                self._decisions.popitem(last=False)
            return None
        ends = event.kind in {Kind.ESTABLISHED, Kind.FAILED, Kind.GIVEN_UP}
        if ends and self._since is not None and event.time - event.latency < self._since:
            return None
        decision = self._decisions.get(event.socket) if event.process == 0 else event
        if ends:
            self._decisions.pop(event.socket, None)
        return Line(
            time=event.time,
            process=decision.process if decision else None,
            command=decision.command if decision else None,
            cgroup=decision.cgroup if decision else None,
            key=key,
            vip=str(vip),
            real_server=format_endpoint(address, port) if port else None,
            outcome=OUTCOMES[event.kind - 1] if event.kind in Kind.__members__.values() else f"unknown {event.kind}",
            cause=cause_of(event.cause),
            latency=event.latency if ends else None,
            errors=self._errors(event),
        )

    def _errors(self, event: Event) -> tuple[str, ...]:
        if event.kind == Kind.FAILED:
            return _ERRORS.get(event.cause, ("ETIMEDOUT", *_UNREACHABLE))
        return (self._refusal,) if event.kind == Kind.REFUSED else ()
