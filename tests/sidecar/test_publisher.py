"""The writer of the maps, with a small fake kernel that has little room."""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from clb_discovery.config.options import Options
from clb_discovery.config.settings import Settings
from clb_discovery.datapath.maps import FullError
from clb_discovery.datapath.sockets.closing import Destroyed
from clb_discovery.errors import ClbError
from clb_discovery.layout import elements
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import Map
from clb_discovery.metrics.meters import Meters
from clb_discovery.model import own_servers
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.servers import Protocol, RealServer, Vip, pools
from clb_discovery.model.service import Service
from clb_discovery.publication import admission
from clb_discovery.publication.admission import Room
from clb_discovery.publication.plan import plan
from clb_discovery.publication.steps import Step
from clb_discovery.sidecar import publisher as publishing
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.publisher import Published, Publisher
from tests.support.fake_plane import FakePlane
from tests.support.simulator import EMPTY, Put, State, carry_out, find, operations, read

OWN: Final = 2
"""Virtual servers of the self-test."""
FIRST: Final = int.from_bytes(parse_address("10.64.0.0"))
ONE, TWO = (RealServer(0, parse_address(f"10.0.0.{host}"), 80, 1) for host in (1, 2))


class SmallMaps:
    """Maps with room for a given number of labels."""

    def __init__(self) -> None:
        self.state: State = EMPTY
        self.room = 0
        self.broken = False
        self.written = 0
        self.fails_at: int | None = None
        """Number of the operation that fails, once."""
        self.meanwhile: Callable[[], None] = lambda: None
        """Called before each change."""

    def read(self) -> Installed:
        """Decode everything."""
        return read(self.state)

    def apply(self, steps: Iterable[Step]) -> None:
        """Carry out steps until there is no room."""
        self.meanwhile()
        for operation in operations(steps):
            if self.broken:
                raise ClbError("the maps are frozen")
            if self.written == self.fails_at:
                self.fails_at = None
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            if isinstance(operation, Put) and operation.map is Map.LABELS:
                labels = self.state[Map.LABELS]
                if operation.key not in labels and len(labels) >= self.room:
                    raise FullError(Map.LABELS, operation.key, "clb_labels is full")
            self.state = carry_out(self.state, operation)
            self.written += 1

    def reopen(self) -> None:
        """Open others, which are as a load leaves them."""
        self.state = EMPTY
        self.apply(plan(Installed(), own_servers.virtual_servers("test"), complete=False).steps)

    def labels(self) -> int:
        """Return how many there are."""
        return len(self.state[Map.LABELS])


class Clock:
    """Seconds that only the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


class ClosingPlane(FakePlane):
    """Closes sockets, and can be lost."""

    cgroup = Path("/")

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[bytes] = []
        self.service: asyncio.Future[Destroyed] | None = None
        """What a service that closes sockets will say; None if there is no service."""

    async def request_closing(self, *_: object) -> Destroyed | None:
        """Ask the service."""
        return await self.service if self.service else None

    def close_sockets(self, members: Collection[bytes], *_: object) -> Destroyed:
        """Close them here."""
        self.closed += members
        return Destroyed(0, frozenset(), 0)

    def is_lost(self) -> bool:
        """Say so."""
        return True

    def bring_up(self) -> None:
        """Do nothing."""


class World:
    """A publisher, its maps and its services."""

    def __init__(self, services: int, protocol: Protocol = Protocol.TCP) -> None:
        self.maps = SmallMaps()
        self.maps.room = OWN
        self.maps.reopen()
        vips = (Vip(Address((FIRST + number).to_bytes(16)), 80, protocol) for number in range(services))
        self.services = [Service(f"s{number}", f"srv:s{number}", (vip,)) for number, vip in enumerate(vips)]
        self.known: dict[str, tuple[RealServer, ...]] = {service.source: (ONE,) for service in self.services}
        self.plane = ClosingPlane()
        plane: Any = self.plane
        maps: Any = self.maps
        self.publisher = Publisher(plane, maps, Announcer(), Meters())

    def publish(self) -> Published:
        """Publish once, and close sockets."""

        async def publish() -> Published:
            try:
                return await self.publishing()
            finally:
                await self.publisher.end()

        return asyncio.run(publish())

    async def publishing(self) -> Published:
        """Publish once."""
        settings = Settings(Options(instance="test"), self.services, lambda: nullcontext({}))
        servers = {source: pools(servers) for source, servers in self.known.items()}
        return await self.publisher.publish(settings, (), servers, complete=True)

    def pools(self) -> dict[str, tuple[RealServer, ...]]:
        """Return the pools in the maps, by the names of services."""
        installed = self.maps.read().virtual.values()
        return {one.label.service: one.pool or () for one in installed if one.label and one.label.service}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stop the clock."""
    found = Clock()
    monkeypatch.setattr(publishing, "time", found)
    return found


@pytest.mark.parametrize("services", [3, 15, 60])
def test_all_but_those_without_room_are_published(clock: Clock, services: int) -> None:
    """However many do not fit, the others are served, and each that does not fit is reported."""
    world = World(services)
    world.maps.room = OWN + services // 3
    found = world.publish()
    assert len(world.pools()) == services // 3
    unpublished = {one.service for one in found.unpublished}
    assert unpublished == {service.name for service in world.services} - world.pools().keys()
    assert {one.reason for one in found.unpublished} == {"clb_labels is full"}
    assert found.pending == frozenset()
    assert world.maps.read().orphans == {}
    assert clock.now < world.publisher.next_try <= clock.now + 2


def test_what_is_set_aside_is_left_alone_for_a_growing_while(clock: Clock) -> None:
    """Nothing is written until the pause is over; the pause doubles up to a minute, and ends when there is room."""
    world = World(3)
    world.maps.room = OWN + 2
    world.publish()
    pauses = []
    for _ in range(9):
        pauses.append(world.publisher.next_try - clock.now)
        written = world.maps.written
        world.publish()
        assert world.maps.written == written
        clock.now = world.publisher.next_try
        world.publish()
        assert world.publisher.next_try > clock.now
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    world.maps.room += 1
    clock.now = world.publisher.next_try
    assert world.publish().unpublished == ()
    assert len(world.pools()) == 3
    assert world.publisher.next_try == math.inf


def test_changes_of_others_get_through(clock: Clock) -> None:
    """While one is set aside, a pool that changes is published at once; so is a new state of the one set aside."""
    world = World(3)
    world.maps.room = OWN + 2
    (lacking,) = (one.source for one in world.publish().unpublished)
    changing = next(service for service in world.services if service.source != lacking)
    world.known[changing.source] = (ONE, TWO)
    world.publish()
    assert world.pools()[changing.name] == (ONE, TWO)
    world.maps.room += 1
    world.known[lacking] = (TWO,)
    assert not world.publish().unpublished
    assert world.pools()[lacking.removeprefix("srv:")] == (TWO,)
    assert clock.now == 100


def test_maps_that_take_nothing_are_tried_again_after_a_growing_while(clock: Clock) -> None:
    """A publication that fails as a whole raises an error, and is due again after its pause."""
    world = World(1)
    world.maps.room, world.maps.broken = 10, True
    pauses = []
    for _ in range(8):
        with pytest.raises(ClbError, match="frozen"):
            world.publish()
        assert world.publisher.failed
        pauses.append(world.publisher.next_try - clock.now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    world.maps.broken = False
    world.publish()
    assert not world.publisher.failed
    assert world.publisher.next_try == math.inf
    assert find(world.maps.state, elements.pack_vip(world.services[0].vips[0]))


def test_what_a_failed_publication_has_changed_is_told_and_closed(clock: Clock) -> None:
    """Wherever it fails: connects may have moved already, so the next one has nothing to do."""
    steps = 1
    while True:
        world = World(1, Protocol.UDP)
        world.maps.room = OWN + 1
        world.publish()
        world.known["srv:s0"] = (TWO,)
        world.maps.fails_at = world.maps.written + steps
        with capture_logs() as logs:
            with suppress(OSError):
                world.publish()
            failed = world.maps.fails_at is None
            clock.now = min(world.publisher.next_try, clock.now + 1)
            world.publish()
        vip = elements.pack_vip(world.services[0].vips[0])
        assert set(world.plane.closed) == {elements.pack_member(vip, ONE)}
        (line,) = (line for line in logs if line["event"] == "pool published")
        assert (line["added"], line["removed"]) == (["10.0.0.2:80"], ["10.0.0.1:80"])
        assert world.publisher.next_try == math.inf
        if not failed:
            break
        steps += 1
    assert steps > 5


def test_what_is_set_aside_stays_so_if_its_pause_ends_while_others_are_published(clock: Clock) -> None:
    """It was not in that plan, so it is due, and not published."""

    def take_long() -> None:
        clock.now += 2

    world = World(3)
    world.maps.room, world.maps.meanwhile = OWN + 2, take_long
    assert len(world.publish().unpublished) == 1
    assert world.publisher.next_try < math.inf
    world.maps.room += 1
    assert not world.publish().unpublished
    assert len(world.pools()) == 3


def test_what_is_set_aside_is_tried_in_new_maps_at_once(clock: Clock) -> None:
    """The maps that had no room for it are gone."""
    world = World(3)
    world.maps.room = OWN + 2
    world.publish()
    world.maps.room += 1
    assert asyncio.run(world.publisher.keep_up())
    world.publish()
    assert (len(world.pools()), clock.now) == (3, 100)
    assert world.plane.closed == []


def test_maps_that_are_attached_again_are_no_news(clock: Clock) -> None:
    """They have what they had; if they cannot be read at once, what is installed is not forgotten."""
    world = World(2, Protocol.UDP)
    world.maps.room = OWN + 2
    world.publish()
    installed, reads = world.publisher.installed, iter([True, False, False])

    def read_later() -> Installed:
        if next(reads):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return read(world.maps.state)

    world.maps.reopen, world.maps.read = (lambda: None), read_later  # type: ignore[method-assign]
    with capture_logs() as logs:
        assert not asyncio.run(world.publisher.keep_up())
        assert world.publisher.installed is installed
        clock.now += 1
        world.publish()
        assert asyncio.run(world.publisher.keep_up())
    assert [line["event"] for line in logs if "published" in line["event"] or "removed" in line["event"]] == []
    assert world.plane.closed == []


async def closing(services: int) -> World:
    """Return a world in which all servers were replaced, while the service that closes sockets is silent."""
    world = World(services, Protocol.UDP)
    world.maps.room = OWN + services
    world.plane.service = asyncio.get_running_loop().create_future()
    for servers in (ONE,), (TWO,):
        world.known = dict.fromkeys(world.known, servers)
        await asyncio.wait_for(world.publishing(), 10)
    return world


async def test_nothing_waits_for_the_service_that_closes_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is silent, pools are published and the maps are free; what leaves meanwhile is closed next."""
    monkeypatch.setattr(publishing, "_PATIENCE", 0.01)
    world = await closing(2)
    async with world.publisher.using_maps():
        pass
    world.known["srv:s0"] = (ONE,)
    await asyncio.wait_for(world.publishing(), 10)
    assert world.publisher.next_try == math.inf
    assert world.pools() == {"s0": (ONE,), "s1": (TWO,)}
    silent, world.plane.service = world.plane.service, None
    assert silent is not None
    silent.set_result(Destroyed(0, frozenset(), 0))
    await world.publisher.end()
    members = [elements.pack_member(elements.pack_vip(one.vips[0]), TWO) for one in world.services]
    assert world.plane.closed == members[:1]


async def test_the_end_does_not_wait_for_the_service_that_closes_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may never answer."""
    monkeypatch.setattr(publishing, "_PATIENCE", 0.01)
    world = await closing(1)
    await asyncio.wait_for(world.publisher.end(), 10)
    assert world.plane.service is not None
    assert world.plane.service.cancelled()


def test_what_admission_refuses_in_the_end_is_not_due_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual server that was set aside and then finds no room at all waits for a change."""
    world = World(3)
    world.maps.room = OWN + 2
    world.publish()
    clock.now = world.publisher.next_try
    for name in ("SIZES", "OF_CATALOG"):
        monkeypatch.setattr(admission, name, Room(virtual=OWN + 2, elements=100, rows=100, servers=100))
    (refused,) = world.publish().unpublished
    assert refused.reason.startswith("no room: at most 4 virtual servers are possible")
    assert world.publisher.next_try == math.inf


def test_a_server_that_is_gone_leaves_although_its_pool_may_not_grow(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a larger pool finds no room, the old pool takes as many of the new servers as it had."""
    world = World(2)
    world.maps.room = OWN + 2
    world.publish()
    used = admission.used(world.publisher.installed)
    monkeypatch.setattr(admission, "SIZES", used.plus(Room(0, 4, 4, 0)))
    monkeypatch.setattr(admission, "OF_CATALOG", used)
    world.publisher.installed = replace(
        world.publisher.installed, free=tuple(range(50, 60))
    )  # for the old and the new at once
    three, four = (TWO._replace(address=parse_address(f"10.0.0.{host}")) for host in (3, 4))
    world.known["srv:s0"] = (TWO, three)
    (refused,) = world.publish().unpublished
    assert refused.reason.endswith(
        "its pool stays as large as it is; use fewer VIPs or real servers, or a second --instance for some services"
    )
    assert world.pools() == {"s0": (TWO,), "s1": (ONE,)}
    written = world.maps.written
    assert world.publish().unpublished == (refused,)
    assert world.maps.written == written
    world.known["srv:s0"] = (three, four)
    assert world.publish().unpublished
    assert world.pools()["s0"] == (three,)
    world.known["srv:s0"] = (four,)
    assert not world.publish().unpublished
    assert world.pools()["s0"] == (four,)
    assert world.publisher.next_try == math.inf
    assert clock.now == 100
