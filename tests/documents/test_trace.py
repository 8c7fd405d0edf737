"""The lines of `trace`: filters, causes, errors and origins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.documents.causes import Cause
from clb_discovery.documents.trace import OUTCOMES, Joiner, Kind, Line, Wanted, dropped
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Event
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import RealServer
from clb_discovery.model.text_forms import parse_vip

LINE = Line(1, 42, "a-long-program-", 7, bytes(20), "10.64.0.1:80", "10.0.0.1:80", "failed", "refused", 5)


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (Wanted(), True),
        (Wanted(services=frozenset({"web", "mail"})), True),
        (Wanted(services=frozenset({"mail"})), False),
        (Wanted(commands=frozenset({"a-long-program-of-mine"})), True),
        (Wanted(commands=frozenset({"a-long"})), False),
        (Wanted(outcomes=frozenset({"failed", "refused"})), True),
        (Wanted(outcomes=frozenset({"refused"})), False),
        (Wanted(services=frozenset({"web"}), outcomes=frozenset({"refused"})), False),
    ],
)
def test_filters(wanted: Wanted, *, taken: bool) -> None:
    """One value of each kind has to match. A program's name is compared in the length that the kernel keeps."""
    assert wanted.takes(LINE, "web") is taken


def test_unknown_names_match_no_filter() -> None:
    """An outcome without its decision has no program, and a VIP without a label has no service."""
    assert not Wanted(commands=frozenset({"x"})).takes(replace(LINE, command=None), "web")
    assert not Wanted(services=frozenset({"web"})).takes(LINE, None)


def test_the_line_of_dropped_connects_matches_every_filter() -> None:
    """The dropped connects may be among those that the filters select. The line has the keys of all others."""
    wanted = Wanted(frozenset({"web"}), frozenset({"x"}), frozenset({"failed"}))
    assert wanted.takes(dropped(1), None)
    assert dropped(1).document("now", None, None).keys() == LINE.document("now", "/", "web").keys()
    assert dropped(1).outcome not in OUTCOMES


def event(kind: Kind, *, latency: int = 0, process: int = 9, cause: int = 0) -> Event:
    """Return an event of one connect."""
    server = RealServer(0, parse_address("10.0.0.1"), 81, 1)
    member = elements.pack_member(elements.pack_vip(parse_vip("10.64.0.1:80")), server)
    return Event(1, latency, 7, 8, process, kind, cause, member, "curl")


@pytest.mark.parametrize(
    ("kind", "cause", "shown", "expected"),
    [
        (Kind.ESTABLISHED, 0, None, ()),
        (Kind.GIVEN_UP, 0, None, ()),
        (Kind.EJECTED, Cause.SILENT, "silent", ()),
        (Kind.REFUSED, 0, None, ("EPERM",)),
        (Kind.FAILED, Cause.REFUSED, "refused", ("ECONNREFUSED",)),
        (Kind.FAILED, Cause.TIMED_OUT, "timed-out", ("ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH")),
        (Kind.FAILED, Cause.SILENT, "silent", ()),
        (Kind.FAILED, Cause.UNREACHABLE, "unreachable", ("EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED")),
        (Kind.FAILED, 5, None, ("ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED")),
    ],
)
def test_cause_and_errors_of_a_connect(kind: Kind, cause: int, shown: str | None, expected: tuple[str, ...]) -> None:
    """A refusal has the error that the kernel gives; a failure those of its cause."""
    line = Joiner("EPERM").feed(event(kind, cause=cause))
    assert line is not None
    document = line.document("now", None, "web")
    assert (document["cause"], document["errno"]) == (shown, list(expected))


@given(st.integers(0, 2**32 - 1))
def test_any_cause_can_be_shown(number: int) -> None:
    """The kernel's programs may be of a newer version, which has more causes."""
    line = Joiner().feed(event(Kind.FAILED, cause=number))
    assert line is not None
    assert line.cause in {None, *map(str, Cause)}


def test_connects_from_before_the_trace_have_no_line() -> None:
    """An outcome counts only if its connect began after the given moment; whatever has no outcome counts."""
    joiner, now = Joiner(since=1_000), event(Kind.GIVEN_UP, latency=5)._replace(time=1_004)
    assert joiner.feed(now) is None
    assert joiner.feed(now._replace(latency=4)) is not None
    assert joiner.feed(event(Kind.REFUSED)._replace(time=999)) is not None


def test_unit_and_container_are_those_of_the_cgroup() -> None:
    """The document has the path of the cgroup, and the names in it; none without a path."""
    number = "a" * 64
    document = LINE.document("now", f"/system.slice/docker-{number}.scope", "web")
    assert (document["unit"], document["container"]) == (f"docker-{number}.scope", f"docker:{number}")
    assert document["cgroup"] == f"/system.slice/docker-{number}.scope"
    document = LINE.document("now", None, "web")
    assert (document["cgroup"], document["unit"], document["container"]) == (None, None, None)
