"""The oracles of `make soak`: violations that they find, and deviations that they accept."""

from __future__ import annotations

import errno
import io
import signal
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.counters import differences
from soak.failures import Ejection
from soak.history import BUSY, MACHINE, SECOND, History, Spans, outside
from soak.judge import LAG, Client, Judge, Key
from soak.onlookers import objections_to_end, objections_to_lines
from soak.record import Outcome, Record
from soak.scene import CHECKED, CHECKED_WITHIN, DEAD_AFTER, FRAIL, MORTAL, STEADY, Target, Way, port

INSTANCE = "soak-killed"


@pytest.fixture
def history() -> History:
    """Return the history of a run without any events."""
    return History(io.StringIO())


def client(target: Target) -> Client:
    """Return a client of one target."""
    return Client("tcp", "tcp", INSTANCE, [target])


def failing(history: History, way: Way, number: int, start: float, end: float) -> None:
    """Let a real server fail for an interval."""
    spans = history.failing[way, number]
    spans.close(round(end * SECOND), spans.open(round(start * SECOND)))


def verdict(history: History, target: Target, **fields: int) -> str | None:
    """Let a judge see one connect, from 100 to 101 s; return the violation."""
    record = Record(100 * SECOND, 101 * SECOND, 0, 0, 0, Outcome.REACHED)._replace(**fields)
    judge = Judge(history)
    judge.take(client(target), [record])
    return judge.violations[0].what if judge.violations else None


def member(history: History, number: int, start: float, end: float) -> None:
    """Record a real server as a member for an interval."""
    spans = history.members[STEADY.name, number]
    spans.open(round(start * SECOND))
    spans.close(round(end * SECOND))


TCP = Target(STEADY, STEADY.ipv4)


@pytest.mark.parametrize(
    ("start", "end", "objects"),
    [(10, 200, False), (100.5, 200, False), (101.5, 200, True), (10, 99, False), (10, 97.5, True)],
)
def test_a_connect_reaches_a_member(history: History, start: float, end: float, *, objects: bool) -> None:
    """A member is valid during the connect, or at most `LAG` before it; not later or earlier."""
    member(history, 7, start, end)
    assert (verdict(history, TCP, reached=7) is not None) == objects


@pytest.mark.parametrize(
    ("end", "down", "objects"), [(100.5, False, False), (99, False, False), (90, False, True), (90, True, False)]
)
def test_a_datagram_socket_of_a_server_that_left_is_closed(
    history: History, end: float, *, down: bool, objects: bool
) -> None:
    """During the connect or shortly before, without the time in which the sidecar was down."""
    member(history, 7, 10, end)
    if down:
        history.troubled[INSTANCE].open(89 * SECOND)
    target = Target(STEADY, STEADY.ipv4, "udp")
    assert (verdict(history, target, stage=Outcome.NO_ANSWER, error=errno.ECONNABORTED) is not None) == objects


def test_a_server_of_another_service_is_never_right(history: History) -> None:
    """A server of another service is a violation even if discovery has it there."""
    assert "another service" in (verdict(history, TCP, reached=21) or "")
    assert "never was" in (verdict(history, TCP, reached=7) or "")


@pytest.mark.parametrize(
    ("what", "excuses"), [("consul", True), (INSTANCE, True), ("machine", True), ("dns", False), ("soak-kept", False)]
)
def test_time_in_which_news_are_kept_away_does_not_count(history: History, what: str, *, excuses: bool) -> None:
    """Only delays of this source and this sidecar count; those of others are no excuse."""
    member(history, 7, 10, 90)
    history.troubled[what].open(91 * SECOND)
    history.troubled[what].close(99 * SECOND + LAG // 2)
    assert (verdict(history, TCP, reached=7) is None) == excuses


def test_no_connect_to_living_servers_fails(history: History) -> None:
    """Any error is a violation, even if servers of other services are dead."""
    failing(history, Way.DIES, 21, 0, 200)
    for error in (errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EPERM):
        assert verdict(history, TCP, stage=Outcome.CONNECT_FAILED, error=error)
        assert verdict(history, TCP, stage=Outcome.NO_ANSWER, error=error)


@pytest.mark.parametrize(
    ("start", "end", "error", "excused"),
    [
        (90, 100.5, errno.ECONNREFUSED, True),
        (100.5, 200, errno.ECONNREFUSED, True),
        (90, 99, errno.ECONNREFUSED, False),
        (90, 200, errno.ETIMEDOUT, False),
        (90, 100.5, errno.ECONNRESET, True),
        (90, 99, errno.ECONNRESET, False),
    ],
)
def test_a_dead_server_may_refuse(history: History, start: float, end: float, error: int, *, excused: bool) -> None:
    """The server has to be dead during the connect, or die right after its handshake, and the error has to fit."""
    failing(history, Way.DIES, 21, start, end)
    found = verdict(history, Target(MORTAL, MORTAL.ipv4), stage=Outcome.CONNECT_FAILED, error=error)
    assert (found is None) == excused


def test_an_application_has_to_see_the_vip(history: History) -> None:
    """Any other peer is a violation."""
    member(history, 7, 10, 200)
    assert "peer" in (verdict(history, TCP, reached=7, stage=Outcome.WRONG_PEER) or "")


@pytest.mark.parametrize(
    ("way", "error", "excused"),
    [
        (Way.SILENT, errno.ETIMEDOUT, True),
        (Way.VANISHES, errno.ETIMEDOUT, True),
        (Way.VANISHES, errno.ECONNREFUSED, False),
        (Way.SILENT, errno.ECONNREFUSED, False),
        (Way.SILENT, errno.EHOSTUNREACH, False),
    ],
)
def test_a_silent_server_may_cost_a_time_out(history: History, way: Way, error: int, *, excused: bool) -> None:
    """No other error."""
    failing(history, way, 41, 90, 100.5)
    found = verdict(history, Target(FRAIL, FRAIL.ipv4), stage=Outcome.CONNECT_FAILED, error=error)
    assert (found is None) == excused


@pytest.mark.parametrize(("seconds", "objects"), [(5.5, False), (7, True)])
def test_connects_end_by_their_limit(history: History, seconds: float, *, objects: bool) -> None:
    """At the default of `--connect-timeout`, for applications without a limit."""
    failing(history, Way.SILENT, 41, 90, 200)
    fields = {"stage": Outcome.CONNECT_FAILED, "error": errno.ETIMEDOUT, "end": round((100 + seconds) * SECOND)}
    assert (verdict(history, Target(FRAIL, FRAIL.ipv4), **fields) is not None) == objects
    history.troubled[MACHINE].open(102 * SECOND)
    assert verdict(history, Target(FRAIL, FRAIL.ipv4), **fields) is None


@pytest.mark.parametrize(
    ("since", "killed", "objects"),
    [(CHECKED_WITHIN - 1, False, False), (CHECKED_WITHIN + 1, False, True), (CHECKED_WITHIN + 1, True, False)],
)
def test_checks_find_a_server_that_hangs(history: History, since: float, *, killed: bool, objects: bool) -> None:
    """A request that begins later is answered, unless the sidecar was killed."""
    failing(history, Way.HANGS, 51, 100 - since, 200)
    if killed:
        history.troubled[INSTANCE].close(96 * SECOND, history.troubled[INSTANCE].open(95 * SECOND))
    found = verdict(history, Target(CHECKED, CHECKED.ipv4), stage=Outcome.NO_ANSWER, error=errno.ETIMEDOUT)
    assert (found is not None) == objects


@pytest.mark.parametrize(
    ("way", "seconds", "error", "objects"),
    [
        (Way.VANISHES, DEAD_AFTER, errno.ETIMEDOUT, False),
        (Way.VANISHES, DEAD_AFTER + 3, errno.ETIMEDOUT, True),
        (Way.VANISHES, DEAD_AFTER + 3, 0, True),
        (Way.VANISHES, DEAD_AFTER, 0, False),
        (Way.VANISHES, DEAD_AFTER, errno.ECONNRESET, True),
        (Way.SILENT, DEAD_AFTER + 3, 0, False),
        (Way.SILENT, DEAD_AFTER, errno.ETIMEDOUT, True),
        (Way.DIES, 0, errno.EPIPE, False),
        (Way.DIES, 0, errno.ETIMEDOUT, True),
    ],
)
def test_a_read_from_a_host_that_vanished_ends(
    history: History, way: Way, seconds: float, error: int, *, objects: bool
) -> None:
    """By `dead-after`, and not otherwise; a later answer is none."""
    failing(history, way, 41, 101, 200)
    end = round((101 + seconds) * SECOND)
    found = verdict(
        history, Target(FRAIL, FRAIL.ipv4), stage=Outcome.USED, error=error, reached=41, end=end, start=95 * SECOND
    )
    assert (found is not None) == objects


def test_a_read_from_another_server_does_not_end(history: History) -> None:
    """A failure is no excuse for the connections to others."""
    failing(history, Way.VANISHES, 41, 90, 200)
    target = Target(FRAIL, FRAIL.ipv4)
    assert verdict(history, target, stage=Outcome.USED, error=errno.ETIMEDOUT, reached=42)
    assert verdict(history, target, stage=Outcome.USED, error=0, reached=42) is None


def costs(history: History, *failed: tuple[float, float]) -> list[str]:
    """Let a judge see failed connects, by start and end in seconds; return the violations."""
    judge = Judge(history)
    connects = [
        Record(round(start * SECOND), round(end * SECOND), 0, errno.ETIMEDOUT, 0, Outcome.CONNECT_FAILED)
        for start, end in failed
    ]
    judge.take(client(Target(FRAIL, FRAIL.ipv4)), connects)
    judge.judge_failures([])
    return [one.what for one in judge.violations]


ON_THE_WAY: Final = tuple((100 + tenth / 10, 100.5 + tenth / 10) for tenth in range(5))
"""Connects with a patience of half a second that began before the first of them had failed."""


@pytest.mark.parametrize(
    ("busy", "killed", "objects"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_one_failed_connect_is_the_last(history: History, *, busy: bool, killed: bool, objects: bool) -> None:
    """With the sidecar alive; others may be on their way, as many as there are."""
    failing(history, Way.SILENT, 41, 99, 200)
    if busy:
        history.troubled[BUSY].close(101 * SECOND, history.troubled[BUSY].open(round(100.9 * SECOND)))
    if killed:
        history.troubled[INSTANCE].close(98 * SECOND, history.troubled[INSTANCE].open(97 * SECOND))
    assert costs(history, *ON_THE_WAY) == []
    assert ["the sidecar is alive" in one for one in costs(history, *ON_THE_WAY, (101.6, 102.1))] == [True] * objects


@pytest.mark.parametrize(("connects", "objects"), [(10, False), (40, True)])
def test_without_a_sidecar_each_probe_may_fail(history: History, connects: int, *, objects: bool) -> None:
    """After the third failure, which ejects: one each second at most."""
    failing(history, Way.SILENT, 41, 99, 200)
    history.troubled[INSTANCE].open(95 * SECOND)
    probes = [(101 + 10 * number / connects, 101.5 + 10 * number / connects) for number in range(connects)]
    assert ["probes may cost" in one for one in costs(history, *ON_THE_WAY, *probes)] == [True] * objects


@pytest.mark.parametrize(
    ("number", "moment", "objects"),
    [(41, 105, False), (41, 111, False), (41, 120, True), (42, 105, True), (1, 105, True)],
)
def test_a_server_that_does_not_fail_is_not_ejected(
    history: History, number: int, moment: float, *, objects: bool
) -> None:
    """Nor one that has failed, if that was long ago."""
    failing(history, Way.SILENT, 41, 100, 110)
    judge = Judge(history)
    judge.judge_failures([Ejection(round(moment * SECOND), INSTANCE, number, "3 failed connects in a row")])
    assert bool(judge.violations) == objects


def test_a_reset_is_no_failure_of_the_connect(history: History) -> None:
    """The handshake was complete, so the kernel has counted no failure."""
    judge = Judge(history)
    target = Target(MORTAL, MORTAL.ipv4)
    reset = Record(SECOND, SECOND, 0, errno.ECONNRESET, 0, Outcome.CONNECT_FAILED)
    judge.take(client(target), [reset])
    assert judge.tries.total() == judge.unanswered.total() == 1
    assert judge.failed.total() == 0


def test_counters_have_to_add_up(history: History) -> None:
    """The kernel's counters equal those of the clients: connects of each server, and failures of dead ones."""
    judge = Judge(history)
    key = Key(INSTANCE, STEADY.ipv4, "tcp")
    judge.reached.update({(key, number): 3 for number in STEADY.core})

    def document(**wrong: int) -> dict[str, object]:
        servers = [
            {"port": port(number), "connects": 3, "failures": 0, "active": 0} | (wrong if number == 1 else {})
            for number in STEADY.core
        ]
        found = {"address": STEADY.ipv4, "protocol": "tcp", "refused": 0, "real_servers": servers}
        return {"virtual_servers": [found]}

    assert not list(differences(INSTANCE, document(), judge))
    for wrong in ({"connects": 2}, {"connects": 4}, {"failures": 1}, {"active": 1}, {"port": port(9)}):
        assert list(differences(INSTANCE, document(**wrong), judge))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15) | st.none()), max_size=8),
    st.integers(0, 50),
    st.integers(0, 20),
)
def test_spans_are_what_they_are_moment_by_moment(those: list[tuple[int, int | None]], start: int, size: int) -> None:
    """Intersections and differences of spans equal those computed moment by moment."""
    spans, plain = Spans(), []
    for first, length in sorted(those, key=lambda one: one[0]):
        number = spans.open(first)
        if length is not None:
            spans.close(first + length, number)
        plain.append((first, first + length if length is not None else 1 << 63))
    end = start + size
    assert sorted(spans.within(start, end)) == sorted(one for one in plain if one[0] <= end and one[1] >= start)
    free = sum(not any(first <= moment < last for first, last in plain) for moment in range(start, end))
    assert outside(start, end, spans) == free


LINE: Final = '{"outcome": "established", "service": "steady", "real_server": "10.1.0.3:7003"}'


@pytest.mark.parametrize(
    ("line", "objection"),
    [
        (LINE, None),
        (LINE.replace("10.1.0.3:7003", "[fd01::3]:7003"), None),
        (LINE.replace('"10.1.0.3:7003"', "null"), None),
        (LINE.replace("established", "dropped").replace('"steady"', "null"), None),
        (LINE.replace("10.1.0.3:7003", "10.1.0.12:7012"), "not of this service"),
        (LINE.replace('"steady"', "null"), "not of this service"),
        (LINE.replace("established", "arrived"), "unknown outcome"),
        (LINE[:-1], "no line of trace"),
        ("[]", "no line of trace"),
    ],
)
def test_lines_of_a_trace_are_whole_and_true(line: str, objection: str | None) -> None:
    """Each line has a server of the service, or none; lines about dropped events have neither."""
    found = list(objections_to_lines([line]))
    assert [one.split(":")[0] for one in found] == ([objection] if objection else [])


@pytest.mark.parametrize(
    ("code", "errors", "well"),
    [
        (-signal.SIGKILL, "", True),
        (128 + signal.SIGKILL, "", True),
        (3, "clb-discovery: /run/clb-discovery is read-only; make room\n", True),
        (3, "Traceback (most recent call last):\n  File\n", False),
        (0, "", False),
        (1, "", False),
        (-signal.SIGKILL, "warning", False),
    ],
)
def test_trace_ends_by_its_signal_or_with_an_error(code: int, errors: str, well: bool) -> None:
    """A reader of connects ends after its signal without output, or at once with one line."""
    assert (list(objections_to_end(code, errors, signal.SIGKILL)) == []) is well
