"""The program that learns outcomes is attached exactly while something needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from clb_discovery.layout import elements
from clb_discovery.layout.elements import Server
from clb_discovery.layout.installed import Installed
from clb_discovery.model.servers import PassiveHealth, VirtualServer
from clb_discovery.publication.outcomes import services_in_need
from clb_discovery.publication.plan import Plan, plan
from clb_discovery.sidecar.outcomes import PAUSE, Outcomes
from tests.support.fake_plane import FakePlane
from tests.support.plane import NO_TRACKING, virtual_server

TCP: Final = "10.64.0.1:80"
UDP: Final = "10.64.0.2:53/udp"
EJECTS: Final = PassiveHealth(active=False, connect_timeout_ms=0)
COUNTS: Final = PassiveHealth(eject_after=0, connect_timeout_ms=0)
LIMITS: Final = PassiveHealth(active=False, eject_after=0)


def publication(before: Installed, *servers: VirtualServer) -> Plan:
    """Return the plan that makes these the virtual servers."""
    return plan(before, {server.vip: server for server in servers}, complete=True)


def service(vip: str, health: PassiveHealth) -> VirtualServer:
    """Return a virtual server with one real server."""
    return virtual_server(vip, ["10.0.0.1:80"], health=health)


class World:
    """What is installed, how many connections each server has, and a clock that is set by hand."""

    def __init__(self, plane: FakePlane) -> None:
        self.plane = plane
        self.installed = Installed()
        self.now = 100.0
        self.active = 0
        self.reads = 0
        fake: Any = plane
        self.outcomes = Outcomes(fake, lambda: self.now)

    def publish(self, *servers: VirtualServer) -> bool:
        """Publish these; return whether the program was attached before that."""
        found = publication(self.installed, *servers)
        self.outcomes.prepare(found)
        self.installed = found.result
        return self.plane.attached

    def look(self, after: float = 0.0) -> None:
        """Look after a time in seconds."""
        self.now += after
        self.outcomes.look(self.installed, self.read)

    def read(self, installed: Installed) -> Mapping[bytes, Server]:
        """Return the counters of all servers."""
        self.reads += 1
        counters = elements.unpack_server(elements.NEW_SERVER)._replace(active=self.active)
        return {member: counters for one in installed.virtual.values() for member in one.servers}


@pytest.fixture
def world() -> World:
    """Return a world in which nothing is attached."""
    return World(FakePlane())


@pytest.mark.parametrize("health", [EJECTS, COUNTS, PassiveHealth()])
def test_it_is_attached_before_the_first_service_that_needs_it(world: World, health: PassiveHealth) -> None:
    """A service that ejects, or that counts connections, has it from its first connect on."""
    assert not world.publish(service("10.64.0.9:80", NO_TRACKING))
    assert world.publish(service("10.64.0.9:80", NO_TRACKING), service(TCP, health))
    assert world.publish(service("10.64.0.9:80", NO_TRACKING), service(TCP, health))
    assert world.plane.done == ["attached"]


@pytest.mark.parametrize("server", [service(TCP, NO_TRACKING), service(UDP, PassiveHealth())], ids=["lean", "UDP"])
def test_without_need_it_is_never_attached(world: World, server: VirtualServer) -> None:
    """Without ejection and counts, and for UDP, which has no outcomes, it stays away."""
    world.publish(server)
    for _ in range(5):
        world.look(after=PAUSE)
    assert world.plane.done == []
    assert world.reads == 0


def test_change_of_a_setting_attaches_it(world: World) -> None:
    """A published service that begins to eject has it before its new settings count."""
    assert not world.publish(service(TCP, NO_TRACKING))
    assert world.publish(service(TCP, EJECTS))


def test_it_is_detached_after_a_pause_and_without_counted_connections(world: World) -> None:
    """It stays for a while after the last need, and as long as a connection is counted."""
    world.publish(service(TCP, COUNTS))
    world.look()
    world.publish(service(TCP, NO_TRACKING))
    world.active = 1
    world.look(after=PAUSE - 1)
    assert (world.plane.attached, world.reads) == (True, 0)
    world.look(after=1)
    assert (world.plane.attached, world.reads) == (True, 1)
    world.active = 0
    world.look(after=PAUSE - 1)
    assert (world.plane.attached, world.reads) == (True, 1)
    world.look(after=1)
    assert (world.plane.attached, world.reads) == (False, 2)
    world.look(after=PAUSE)
    assert world.reads == 2


def test_connected_udp_sockets_do_not_keep_it(world: World) -> None:
    """They are counted without it."""
    world.publish(service(TCP, EJECTS), service(UDP, COUNTS))
    world.look()
    world.publish(service(UDP, COUNTS))
    world.active = 1
    world.look(after=PAUSE)
    assert not world.plane.attached


def test_trace_has_it_while_it_runs(world: World) -> None:
    """A trace keeps it and attaches it; it goes after the same pause."""
    world.plane.traced = True
    world.look()
    assert world.plane.attached
    world.look(after=10 * PAUSE)
    world.plane.traced = False
    world.look(after=PAUSE - 1)
    assert world.plane.attached
    world.look(after=1)
    assert world.plane.done == ["attached", "detached"]


def test_one_that_was_lost_is_attached_again(world: World) -> None:
    """A link that another program removed comes back at the next look, if it is needed."""
    world.publish(service(TCP, EJECTS))
    world.plane.attached = False
    world.look()
    assert world.plane.attached


def test_refusal_is_an_objection_until_it_succeeds(world: World) -> None:
    """The objection names what is lost and the cause; it ends when the program is attached, or not needed."""
    world.plane.refusal = "cannot attach clb_sock_ops: Operation not permitted"
    assert not world.publish(service(TCP, EJECTS))
    effect = "no server is ejected, no active connection is counted, and no connect has a limit"
    assert world.outcomes.objection == f"{effect}: {world.plane.refusal}"
    world.look()
    assert world.outcomes.objection
    world.publish(service(TCP, NO_TRACKING))
    world.look()
    assert world.outcomes.objection is None
    world.publish(service(TCP, EJECTS))
    world.plane.refusal = None
    world.look()
    assert (world.outcomes.objection, world.plane.attached) == (None, True)


def test_sidecar_that_does_not_load_leaves_it() -> None:
    """It neither detaches the program nor reads the counters for that."""
    world = World(FakePlane(loads=False, attached=True))
    world.publish(service(TCP, NO_TRACKING))
    for _ in range(3):
        world.look(after=PAUSE)
    assert (world.plane.attached, world.reads) == (True, 0)


def test_services_in_need_are_named(world: World) -> None:
    """Each service once, and only those that need outcomes."""
    world.publish(service(TCP, EJECTS), service("10.64.0.1:81", COUNTS), service(UDP, COUNTS))
    assert services_in_need(world.installed) == ["test"]
    world.publish(service(UDP, COUNTS))
    assert services_in_need(world.installed) == []
