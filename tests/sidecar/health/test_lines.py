"""The log tells of each server that was ejected and each that returned, in a bounded number of lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from clb_discovery.documents.causes import Cause
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Change, ChangeKind, Label, Steering
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.servers import PassiveHealth
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar.health.cases import SECOND, Kind, News
from clb_discovery.sidecar.health.lines import BURST, Lines, cause_in_words
from tests.support.plane import real

VIP = parse_vip("10.64.0.1:80")
SERVER = real("10.0.0.2:80")
MEMBER = elements.pack_member(elements.pack_vip(VIP), SERVER)
INSTALLED = Installed(
    {VIP: Published(1, 1, 0, (0,), None, (SERVER,), PassiveHealth(), Label("web", "srv:web"), {MEMBER: 1})}
)
NAMES = {"service": "web", "vip": "10.64.0.1:80", "server": "10.0.0.2:80"}


def change(in_row: int, cause: int = Cause.SILENT) -> Change:
    """Return a report of the programs."""
    return Change(1, 1, 1, ChangeKind.EJECTED, in_row, cause)


EJECTED = News(Kind.EJECTED, MEMBER, None, change(3), 4 * SECOND)
RETURNED = News(Kind.RETURNED, MEMBER, Steering(1, 0), out_for=20 * SECOND)


class Clock:
    """Seconds that only the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> Lines:
    """Return a log without lines."""
    return Lines(clock)


@pytest.fixture
def written() -> Iterator[list[Any]]:
    """Return the lines that are logged during the test."""
    with capture_logs() as found:
        yield found


def test_ejection_and_return_are_a_line_each(lines: Lines, written: list[Any]) -> None:
    """They name service, VIP, server and cause, the time until the probe, and how long the server was out."""
    lines.tell(EJECTED, INSTALLED, ejections=2)
    lines.tell(RETURNED, INSTALLED, ejections=None)
    cause = "3 failed connects in a row, the last one unanswered"
    assert written == [
        {"log_level": "warning", "event": "server ejected", **NAMES, "cause": cause, "probe_in": 4.0, "ejections": 2},
        {"log_level": "info", "event": "server returned", **NAMES, "out_for": 20.0},
    ]


def test_what_is_not_known_is_left_out(lines: Lines, written: list[Any]) -> None:
    """A server that is not probed, one that was out before the start, and one of a pool that is gone."""
    lines.tell(EJECTED._replace(probe_in=None), Installed(), ejections=None, early=True)
    lines.tell(RETURNED._replace(out_for=None), INSTALLED, ejections=None)
    assert written[0]["cause"].endswith(", before this sidecar started")
    assert (written[0]["service"], written[0]["probe_in"], written[1]["out_for"]) == (None, None, None)


def test_a_short_suspicion_is_for_debugging(lines: Lines, written: list[Any]) -> None:
    """It is no ejection; nor is another failed probe, or a suspicion that a connect has ended."""
    lines.tell(News(Kind.CLEARED, MEMBER), INSTALLED, ejections=None)
    for kind in (Kind.SUSPECTED, Kind.CLEARED, Kind.UNKNOWN, Kind.STAYS_OUT):
        lines.tell(News(kind, MEMBER, Steering(1, 0), change(1)), INSTALLED, ejections=None)
    assert [line.pop("log_level") for line in written] == ["debug"] * 4
    assert written == [
        {"event": "server suspected", **NAMES, "cause": "unanswered"},
        {"event": "server probed", **NAMES, "result": "cleared"},
        {"event": "server probed", **NAMES, "result": "unknown"},
        {"event": "server probed", **NAMES, "result": "stays out"},
    ]


@pytest.mark.parametrize(
    ("in_row", "cause", "failed_probe", "expected"),
    [
        (3, Cause.TIMED_OUT, False, "3 failed connects in a row, the last one timed out"),
        (3, 0, False, "3 failed connects in a row"),
        (1, Cause.REFUSED, False, "a failed connect, refused"),
        (0, 0, False, "failed connects"),
        (0, Cause.REFUSED, False, "failed connects, the last one refused"),
        (1, Cause.SILENT, True, "a failed connect, unanswered, and a failed probe"),
        (1, 0, True, "a failed connect and a failed probe"),
        (2, Cause.REFUSED, True, "2 failed connects in a row, the last one refused, and a failed probe"),
    ],
)
def test_causes_in_words(in_row: int, cause: int, expected: str, *, failed_probe: bool) -> None:
    """What the programs have seen, and then the probe."""
    news = EJECTED._replace(change=change(in_row, cause), failed_probe=failed_probe)
    assert cause_in_words(news) == expected


def test_lines_of_a_burst_are_bounded(lines: Lines, clock: Clock, written: list[Any]) -> None:
    """If a whole site goes down, some servers are named and the others counted, once the burst is over."""
    for _ in range(100):
        lines.tell(EJECTED, INSTALLED, ejections=1)
    lines.flush()
    assert len(written) == 32
    clock.now += BURST
    lines.flush()
    lines.flush()
    assert written[32:] == [{"log_level": "warning", "event": "more servers ejected or returned", "count": 68}]
    lines.tell(RETURNED, INSTALLED, ejections=None)
    assert len(written) == 34
