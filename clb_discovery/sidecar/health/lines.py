"""The log lines about servers that were ejected or returned.

A server can be out because of failed connects and because of its checks at the same time: that is one line, with the
cause that came first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import structlog

from clb_discovery.documents.causes import cause_of
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Change, ChangeKind
from clb_discovery.layout.installed import Installed
from clb_discovery.model.address import format_endpoint
from clb_discovery.sidecar.burst_log import BurstLog
from clb_discovery.sidecar.health.cases import Kind, News

_WORDS: Final = {"silent": "unanswered", "timed-out": "timed out"}
"""Causes that read better in other words."""

_log = structlog.stdlib.get_logger()


class Side(Enum):
    """What keeps a server out."""

    CONNECTS = auto()
    """The programs, because of failed connects, and then probes."""
    CHECKS = auto()


@dataclass(slots=True)
class _Out:
    sides: set[Side]
    since: float | None  # when it was logged; None if it was out before this sidecar started


class Lines:
    """Logs what happens to servers: a line when the first side puts one out, and one when the last side lets it in."""

    def __init__(self, log: BurstLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock  # returns seconds, and does not go backwards
        self._out: dict[bytes, _Out] = {}

    def tell(self, news: News, installed: Installed, *, ejections: int | None, early: bool = False) -> None:
        """Log a change of a server because of connects and probes.

        :param ejections: how often it was ejected in total; None if that is not known.
        :param early: it was ejected before this sidecar started.
        """
        service, vip, server = _names(news.member, installed)
        if news.kind is Kind.EJECTED:
            cause = cause_in_words(news) + (", before this sidecar started" if early else "")
            if self._goes_out(news.member, Side.CONNECTS, early=early):
                self._ejected(news.member, installed, cause, probe_in=news.probe_in, ejections=ejections)
        elif news.kind is Kind.RETURNED:
            self._returned(news.member, installed, Side.CONNECTS, news.out_for)
        elif news.kind is Kind.SUSPECTED:
            _log.debug("server suspected", service=service, vip=vip, server=server, cause=_last(news.change))
        elif news.kind is Kind.NEEDED:
            _log.debug("server needed", service=service, vip=vip, server=server, cause=_last(news.change))
        elif news.kind is not Kind.CLEARED or news.verdict:  # else a connect of an application has cleared it
            _log.debug("server probed", service=service, vip=vip, server=server, result=str(news.kind))

    def check_failed(self, member: bytes, installed: Installed, reason: str, *, early: bool) -> None:
        """Log that a server is out because of its checks.

        :param early: since before this sidecar started.
        """
        if self._goes_out(member, Side.CHECKS, early=early):
            self._ejected(member, installed, f"check: {reason}")

    def check_passed(self, member: bytes, installed: Installed, out_for: int) -> None:
        """Log that a server is back because of its checks.

        :param out_for: nanoseconds for which they kept it out.
        """
        self._returned(member, installed, Side.CHECKS, out_for)

    def lets_in(self, member: bytes, side: Side) -> None:
        """Note that this side has no objection to a server any more, without a line: the other side knows more."""
        found = self._out.get(member)
        if found:
            found.sides.discard(side)
            if not found.sides:
                del self._out[member]

    def flush(self, installed: Installed) -> None:
        """Forget servers that have left; for the main loop."""
        self._out = {member: out for member, out in self._out.items() if installed.index_of(member) is not None}

    def _goes_out(self, member: bytes, side: Side, *, early: bool) -> bool:
        """Note that a server is out; return whether it was not before."""
        found = self._out.get(member)
        if found:
            found.sides.add(side)
        else:
            self._out[member] = _Out({side}, None if early else self._clock())
        return not found

    def _ejected(
        self,
        member: bytes,
        installed: Installed,
        cause: str,
        *,
        probe_in: int | None = None,
        ejections: int | None = None,
    ) -> None:
        service, vip, server = _names(member, installed)
        seconds = None if probe_in is None else _seconds(probe_in)
        self._log.warning(
            "server ejected",
            service=service,
            vip=vip,
            server=server,
            cause=cause,
            probe_in=seconds,
            ejections=ejections,
        )

    def _returned(self, member: bytes, installed: Installed, side: Side, out_for: int | None) -> None:
        """Log that a server takes connects again, unless the other side keeps it out.

        :param out_for: nanoseconds for which this side kept it out; None if that is not known.
        """
        found = self._out.get(member)
        self.lets_in(member, side)
        if member in self._out:
            return
        seconds = None if out_for is None else _seconds(out_for)
        if found and found.since is not None:
            seconds = max(seconds or 0.0, round(self._clock() - found.since, 1))
        service, vip, server = _names(member, installed)
        self._log.info("server returned", service=service, vip=vip, server=server, out_for=seconds)


def cause_in_words(news: News) -> str:
    """Return what is known of the cause of an ejection: a server that has returned has no failures in a row."""
    in_row, last = news.change.in_row if news.change else 0, _last(news.change)
    if news.change and news.change.kind == ChangeKind.SUSPECT and not in_row:
        return "an unanswered connect and a failed probe"  # the connect still waits
    cause = "a failed connect" if in_row == 1 else f"{in_row} failed connects in a row" if in_row else "failed connects"
    if last:
        cause += f", {last}" if in_row == 1 else f", the last one {last}"
    if news.failed_probe:
        cause += f"{',' if last else ''} and a failed probe"
    return cause


def _last(change: Change | None) -> str | None:
    last = cause_of(change.cause) if change else None
    return _WORDS.get(last, last) if last else None


def _names(member: bytes, installed: Installed) -> tuple[str | None, str, str]:
    """Return the names of the service, the virtual server and the real server."""
    key, address, port = elements.unpack_member(member)
    vip = elements.unpack_vip(key)
    published = installed.virtual.get(vip)
    label = published.label if published else None
    return label.service if label else None, str(vip), format_endpoint(address, port)


def _seconds(nanoseconds: int) -> float:
    return round(max(nanoseconds, 0) / 1e9, 1)
