"""Real servers in the maps: which a report names, which are out, and about which a verdict is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clb_discovery.layout import elements
from clb_discovery.layout.elements import Change, ChangeKind, Steering
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.servers import PassiveHealth
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar.health import servers
from clb_discovery.sidecar.health.cases import Kind, News, Terms
from tests.support.fake_servers import HEALTHY, FakeServers
from tests.support.plane import real

VIP = parse_vip("10.64.0.1:80")
KEY = elements.pack_vip(VIP)
ONE, TWO = (elements.pack_member(KEY, real(f"10.0.0.{host}:80")) for host in (1, 2))
LEFT = elements.pack_member(KEY, real("10.0.0.9:80"))
TERMS = Terms(5_000_000_000, 60_000_000_000)


@pytest.fixture
def maps() -> Any:  # noqa: ANN401 - it is no `Maps`
    """Return maps with four healthy servers; the refusal has index 0, and index 3 is free."""
    return FakeServers(4)


def installed(health: PassiveHealth | None = None, vip: str = "10.64.0.1:80") -> Installed:
    """Return a state with one virtual server."""
    members = {elements.refusal(KEY): 0, ONE: 1, TWO: 2}
    published = Published(1, 1, 0, (0,), None, (), health or PassiveHealth(), None, members)
    return Installed({parse_vip(vip): published}, top=3)


def change(server: int, began: int = 1, time: int = 10) -> Change:
    """Return a report."""
    return Change(time, server, began, ChangeKind.SUSPECT, 1, 1)


def test_reports_name_servers(maps: Any) -> None:  # noqa: ANN401
    """Passed over are those about a server that has left, about an earlier one, and from before the last verdict."""
    maps.said[2] = Steering(11, 0)
    reports = [change(1), change(2), change(2, time=12), change(1, began=3), change(3), change(0)]
    found = servers.reported(maps, installed(), reports)
    assert [(one, seen.member, seen.terms) for one, seen in found] == [
        (reports[0], ONE, TERMS),
        (reports[2], TWO, TERMS),
    ]


@pytest.mark.parametrize("checked", [False, True])
def test_a_return_from_before_the_verdict_is_heeded_without_checks(maps: Any, *, checked: bool) -> None:  # noqa: ANN401
    """The programs had taken the server back already, and do not heed the verdict of a failed probe then."""
    maps.said[1] = Steering(11, 99)
    back = change(1)._replace(kind=ChangeKind.RETURNED)
    found = servers.reported(maps, installed(PassiveHealth(checked=checked)), [back])
    assert [one for one, _ in found] == ([] if checked else [back])


@pytest.mark.parametrize(
    ("health", "vip"),
    [
        (PassiveHealth(suspicion=False), "10.64.0.1:80"),
        (PassiveHealth(eject_after=0), "10.64.0.1:80"),
        (PassiveHealth(), "10.64.0.1:80/udp"),
    ],
)
def test_who_is_not_probed(health: PassiveHealth, vip: str) -> None:
    """Services without suspicion, those that never eject, and those of UDP."""
    ((key, published),) = installed(health, vip).virtual.items()
    assert servers.terms_of(key, published) is None


def test_a_look_at_all_finds_those_that_are_out(maps: Any) -> None:  # noqa: ANN401
    """One that is ejected, one that a verdict is about, and those that are asked for."""
    assert servers.out(maps, installed(), ()) == []
    assert [seen.member for seen in servers.out(maps, installed(), [TWO, LEFT])] == [TWO]
    maps.servers[1] = HEALTHY._replace(ejected_until=9)
    maps.said[2] = Steering(5, 9)
    found = servers.out(maps, installed(), ())
    assert [(seen.member, seen.server.ejected_until, seen.steering) for seen in found] == [
        (ONE, 9, Steering(0, 0)),
        (TWO, 0, Steering(5, 9)),
    ]
    never = replace(next(iter(installed().virtual.values())), health=PassiveHealth(eject_after=0))
    assert servers.out(maps, Installed({VIP: never}, top=3), ()) == []


def test_a_verdict_is_about_a_member_and_not_an_index(maps: Any) -> None:  # noqa: ANN401
    """Of a server that has left, nothing is written."""
    left = Installed({}, top=3)
    assert servers.steer(maps, left, {ONE: Steering(5, 9)}) == {}
    assert servers.steer(maps, installed(), {TWO: Steering(5, 9)}) == {TWO: HEALTHY}
    assert maps.said == [Steering(0, 0), Steering(0, 0), Steering(5, 9), Steering(0, 0)]


def test_a_server_that_is_out_because_of_its_check_is_left_to_that(maps: Any) -> None:  # noqa: ANN401
    """The check tells of it, unless the programs have put the server out since, or the check has brought it back."""
    checked = installed(PassiveHealth(checked=True))
    maps.servers[1] = maps.servers[2] = HEALTHY._replace(ejected_until=9, changed_at=5)
    for said, listed in ((Steering(6, 9), [TWO]), (Steering(4, 9), [ONE, TWO]), (Steering(6, 0), [ONE, TWO])):
        maps.said[1] = said
        assert [seen.member for seen in servers.out(maps, checked, (), [ONE])] == listed


def test_an_ejected_server_is_left_to_probes_by_a_new_sidecar(maps: Any) -> None:  # noqa: ANN401
    """The verdict about it may be one of a probe; that about another server, or where nothing is probed, is not."""
    checked = installed(PassiveHealth(checked=True))
    maps.servers[1] = HEALTHY._replace(ejected_until=9, changed_at=5)
    maps.said[1:3] = Steering(6, 90), Steering(7, 90)
    assert [seen.member for seen in servers.out(maps, checked, ())] == [ONE]
    assert servers.leases(maps, checked, 30) == {TWO: Steering(7, 90)}
    unprobed = installed(PassiveHealth(checked=True, suspicion=False))
    assert servers.out(maps, unprobed, ()) == []
    assert servers.leases(maps, unprobed, 30) == {ONE: Steering(6, 90), TWO: Steering(7, 90)}


def test_leases_are_the_verdicts_that_are_valid(maps: Any) -> None:  # noqa: ANN401
    """By which members are out now; not those that are over, that say that it is back, or that came before it was."""
    maps.said[1:3] = Steering(10, 50), Steering(20, 30)
    assert servers.leases(maps, installed(), 30) == {ONE: Steering(10, 50)}
    maps.servers[1] = HEALTHY._replace(changed_at=11)
    assert servers.leases(maps, installed(), 30) == {}
    maps.servers[1], maps.said[1] = HEALTHY, Steering(40, 0)
    assert servers.leases(maps, installed(), 30) == {}


@pytest.mark.parametrize(
    ("said", "previous", "written"),
    [
        (Steering(0, 0), 0, True),
        (Steering(9, 0), 0, True),  # from before the report
        (Steering(12, 40), 12, True),  # that of the previous probe
        (Steering(12, 40), 0, False),  # of the checks, since the report
        (Steering(12, 0), 11, False),  # likewise
        (Steering(9, 40), 0, False),  # they keep it out
        (Steering(9, 20), 0, True),  # they do not any more
    ],
)
def test_checks_overrule_probes(maps: Any, said: Steering, previous: int, *, written: bool) -> None:  # noqa: ANN401
    """Their word stays if it came after the report, or keeps the server out."""
    maps.said[1] = said
    news = News(Kind.RETURNED, ONE, Steering(30, 0), change(1), decided_at=previous)
    checked = installed(PassiveHealth(checked=True))
    assert servers.conclude(maps, checked, [news], 30) == ({ONE: HEALTHY} if written else {})
    assert maps.said[1] == (Steering(30, 0) if written else said)
    assert servers.conclude(maps, installed(), [news], 30) == {ONE: HEALTHY}
    assert servers.conclude(maps, Installed({}, top=3), [news], 30) == {}
