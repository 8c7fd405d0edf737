"""The log tells of each server that was ejected and each that returned, in a bounded number of lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from clb_discovery.documents.causes import Cause
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Change, ChangeKind, Label, Steering
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.servers import PassiveHealth
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar.burst_log import MOST, BurstLog
from clb_discovery.sidecar.health.cases import SECOND, Kind, News
from clb_discovery.sidecar.health.lines import Lines, Side, cause_in_words
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
    return Lines(BurstLog(clock), clock)


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
    for kind in (Kind.SUSPECTED, Kind.NEEDED, Kind.CLEARED, Kind.UNKNOWN, Kind.STAYS_OUT):
        lines.tell(News(kind, MEMBER, Steering(1, 0), change(1)), INSTALLED, ejections=None)
    assert [line.pop("log_level") for line in written] == ["debug"] * 5
    assert written == [
        {"event": "server suspected", **NAMES, "cause": "unanswered"},
        {"event": "server needed", **NAMES, "cause": "unanswered"},
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


def test_connect_that_waits_is_no_failed_one() -> None:
    """It makes a server suspect before it has failed."""
    suspect = change(0, Cause.SILENT)._replace(kind=ChangeKind.SUSPECT)
    news = EJECTED._replace(change=suspect, failed_probe=True)
    assert cause_in_words(news) == "an unanswered connect and a failed probe"


def test_lines_of_a_burst_are_bounded(lines: Lines, written: list[Any]) -> None:
    """If a whole site goes down, some servers are named."""
    for _ in range(50):
        lines.tell(EJECTED, INSTALLED, ejections=1)
        lines.tell(RETURNED, INSTALLED, ejections=None)
    assert [event for event, _ in events(written)] == ["server ejected", "server returned"] * MOST


def events(written: list[Any]) -> list[tuple[str, object]]:
    """Return the lines with the cause of each ejection, and with the time out of each return."""
    return [(line["event"], line.get("cause", line.get("out_for"))) for line in written]


def test_a_server_that_both_sides_put_out_has_one_line_each_way(lines: Lines, clock: Clock, written: list[Any]) -> None:
    """It has the cause that came first, and returns with the last side; the time out is that of both."""
    lines.check_failed(MEMBER, INSTALLED, "HTTP 503", early=False)
    clock.now += 5
    lines.tell(EJECTED, INSTALLED, ejections=1)
    clock.now += 5
    lines.check_passed(MEMBER, INSTALLED, 10 * SECOND)
    clock.now += 5
    lines.tell(RETURNED._replace(out_for=10 * SECOND), INSTALLED, ejections=1)
    assert events(written) == [("server ejected", "check: HTTP 503"), ("server returned", 15.0)]


def test_a_check_that_fails_after_connects_adds_no_line(lines: Lines, clock: Clock, written: list[Any]) -> None:
    """Connects put it out, a probe reaches it, and its check keeps it out for longer."""
    lines.tell(EJECTED, INSTALLED, ejections=1)
    clock.now += 5
    lines.check_failed(MEMBER, INSTALLED, "no answer", early=False)
    lines.tell(RETURNED, INSTALLED, ejections=1)
    lines.tell(EJECTED, INSTALLED, ejections=2)
    lines.lets_in(MEMBER, Side.CONNECTS)
    clock.now += 20
    lines.check_passed(MEMBER, INSTALLED, 20 * SECOND)
    cause = "3 failed connects in a row, the last one unanswered"
    assert events(written) == [("server ejected", cause), ("server returned", 25.0)]


def test_of_a_server_that_was_out_before_only_what_is_known_is_told(
    lines: Lines, clock: Clock, written: list[Any]
) -> None:
    """The sidecar has not seen it go out, so its own clock does not count."""
    lines.check_failed(MEMBER, INSTALLED, "failed earlier", early=True)
    clock.now += 5
    lines.check_passed(MEMBER, INSTALLED, 60 * SECOND)
    assert events(written) == [("server ejected", "check: failed earlier"), ("server returned", 60.0)]


def test_a_server_that_left_begins_anew(lines: Lines, written: list[Any]) -> None:
    """If it comes back and fails again, that is a line."""
    lines.tell(EJECTED, INSTALLED, ejections=1)
    lines.flush(Installed())
    lines.tell(EJECTED, INSTALLED, ejections=1)
    assert [event for event, _ in events(written)] == ["server ejected"] * 2


@given(st.lists(st.tuples(st.sampled_from(Side), st.booleans()), max_size=30))
def test_lines_of_a_server_take_turns(steps: list[tuple[Side, bool]]) -> None:
    """In whatever order both sides put it out and let it in: out with the first one, in with the last one."""
    clock, sides = Clock(), set[Side]()
    lines = Lines(BurstLog(clock), clock)
    with capture_logs() as written:
        for side, out in steps:
            if out == (side in sides):
                continue  # a side repeats nothing
            before, sides = bool(sides), sides ^ {side}
            said = len(written)
            if side is Side.CONNECTS:
                lines.tell(EJECTED if out else RETURNED, INSTALLED, ejections=1)
            elif out:
                lines.check_failed(MEMBER, INSTALLED, "x", early=False)
            else:
                lines.check_passed(MEMBER, INSTALLED, 0)
            assert len(written) - said == (before != bool(sides))
