"""When sockets of removed servers are closed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clb_discovery.layout import elements
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.slots import pool_members
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, PassiveHealth, Protocol, RealServer, Vip, VirtualServer
from clb_discovery.publication.leaving import FIRST_PAUSE, MOST_TRIES, Leaving
from clb_discovery.publication.plan import plan

VIP = Vip(parse_address("10.64.0.1"), 53, Protocol.UDP)
POOL = (RealServer(0, parse_address("10.0.0.1"), 53, 1),)
SERVER = VirtualServer(VIP, "dns", "static:dns", Algorithm.RANDOM, POOL, PassiveHealth(eject_after=0))
(MEMBER,) = (one for one in pool_members(elements.pack_vip(VIP), POOL) if not elements.is_refusal(one))
OTHER = elements.pack_member(elements.pack_vip(VIP), RealServer(0, parse_address("10.0.0.2"), 53, 1))
BOTH = (Protocol.TCP, Protocol.UDP)
EMPTY = Installed()


def test_what_has_left_is_closed_once() -> None:
    """After a success there is no further attempt."""
    leaving = Leaving()
    leaving.add([MEMBER])
    assert leaving.due(EMPTY, BOTH, 0.0) == {MEMBER}
    leaving.tried({MEMBER}, 0.0, succeeded=True)
    assert leaving.due(EMPTY, BOTH, 100.0) == frozenset()
    assert leaving.next_try is None


def test_what_could_not_be_closed_is_tried_again_and_not_for_ever() -> None:
    """With a pause that doubles, for a limited number of attempts."""
    leaving, now, pause = Leaving(), 0.0, FIRST_PAUSE
    leaving.add([MEMBER])
    for _ in range(MOST_TRIES - 1):
        assert leaving.due(EMPTY, BOTH, now) == {MEMBER}
        leaving.tried({MEMBER}, now, succeeded=False)
        assert leaving.due(EMPTY, BOTH, now) == frozenset()
        assert leaving.next_try == now + pause
        now, pause = now + pause, 2 * pause
    assert leaving.due(EMPTY, BOTH, now) == {MEMBER}
    leaving.tried({MEMBER}, now, succeeded=False)
    assert leaving.next_try is None
    assert leaving.due(EMPTY, BOTH, now + 1000) == frozenset()


def test_a_new_one_does_not_wait_for_others() -> None:
    """A new member is due at once, together with those that wait."""
    leaving = Leaving()
    leaving.add([MEMBER])
    leaving.tried({MEMBER}, 0.0, succeeded=False)
    leaving.add([OTHER])
    assert leaving.due(EMPTY, BOTH, 0.0) == {MEMBER, OTHER}


@pytest.mark.parametrize("succeeded", [False, True])
def test_one_that_is_added_meanwhile_is_due_at_once(*, succeeded: bool) -> None:
    """The result of a try says nothing about it."""
    leaving = Leaving()
    leaving.add([MEMBER])
    tried = leaving.due(EMPTY, BOTH, 0.0)
    leaving.add([OTHER])
    leaving.tried(tried, 0.0, succeeded=succeeded)
    assert OTHER in leaving.due(EMPTY, BOTH, 0.0)


def test_one_that_was_back_meanwhile_is_due_again() -> None:
    """Applications may have connected to it since the sockets were looked for."""
    leaving = Leaving()
    leaving.add([MEMBER])
    tried = leaving.due(EMPTY, BOTH, 0.0)
    leaving.add([MEMBER])
    leaving.tried(tried, 0.0, succeeded=True)
    assert leaving.due(EMPTY, BOTH, 0.0) == {MEMBER}


def test_each_is_given_up_by_itself() -> None:
    """Otherwise members would pile up while servers keep changing and closing keeps failing."""
    leaving = Leaving()
    for number in range(100):
        member = elements.pack_member(elements.pack_vip(VIP), RealServer(0, parse_address(f"10.1.0.{number}"), 53, 1))
        leaving.add([member])
        due = leaving.due(EMPTY, BOTH, float(number))
        assert member in due
        assert len(due) <= MOST_TRIES
        leaving.tried(due, float(number), succeeded=False)


def test_what_is_back_or_drains_keeps_its_sockets() -> None:
    """A server that is back in its pool, and protocols that drain."""
    installed = plan(EMPTY, {VIP: SERVER}, complete=True).result
    leaving = Leaving()
    leaving.add([MEMBER])
    assert leaving.due(installed, BOTH, 0.0) == frozenset()
    assert leaving.due(EMPTY, BOTH, 0.0) == frozenset()
    leaving.add([MEMBER])
    assert leaving.due(EMPTY, (Protocol.TCP,), 0.0) == frozenset()
    gone = plan(installed, {VIP: replace(SERVER, pool=())}, complete=True)
    leaving.add(gone.dropped)
    assert leaving.due(gone.result, BOTH, 0.0) == {MEMBER}
