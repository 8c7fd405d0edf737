"""The log tells of each server that was ejected and each that returned, from a look at the counters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from clb_discovery.documents.causes import Cause
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Label
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.servers import PassiveHealth, RealServer
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar.ejections import Ejections
from tests.support.plane import real

SECOND = 1_000_000_000
VIP = parse_vip("10.64.0.1:80")
HEALTH = PassiveHealth(eject_after=3, eject_first_ms=5_000, eject_most_ms=60_000)


def installed(servers: Mapping[str, int], health: PassiveHealth = HEALTH) -> Installed:
    """Return the state with one virtual server, from its real servers and their indexes."""
    key = elements.pack_vip(VIP)
    members = {elements.pack_member(key, real(name)): index for name, index in servers.items()}
    pool: tuple[RealServer, ...] = tuple(map(real, servers))
    published = Published(1, 1, 0, (0,), None, pool, health, Label("web", "srv:web"), members)
    return Installed({VIP: published}, top=max(servers.values()) + 1)


def server(
    until: int = 0, *, times: int = 0, turned: int = 0, in_row: int = 0, connects: int = 0, cause: int = 0
) -> bytes:
    """Return an element of `clb_servers`."""
    new = elements.unpack_server(elements.NEW_SERVER)
    found = new._replace(connects=connects, ejected_until=until, changed_at=turned, began=1, in_row=in_row)
    found = found._replace(ejections=min(times, 1), times_ejected=times, cause=cause)
    return structs.SERVER.struct.pack(*found)


class World:
    """A pool of two servers with the indexes 1 and 2, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100 * SECOND
        self.installed = installed({"10.0.0.1:80": 1, "10.0.0.2:80": 2})
        self.ejections = Ejections(lambda: self.now)
        self.reads = 0

    def look(self, *servers: bytes, at: float = 100) -> list[dict[str, Any]]:
        """Look at these elements; return the lines without their names."""
        self.now = round(at * SECOND)

        def read(count: int) -> bytes:
            self.reads += 1
            return b"".join((server(), *servers))[: count * structs.SERVER.size]

        with capture_logs() as lines:
            self.ejections.look(self.installed, read)
        return [dict(line) for line in lines]


@pytest.fixture
def world() -> World:
    """Return a world in which nothing is ejected at the first look."""
    found = World()
    assert found.look(server(), server()) == []
    return found


def test_ejection_and_return_are_a_line_each(world: World) -> None:
    """They name service, VIP, server and cause, the time until the probe, and how long the server was out."""
    names = {"service": "web", "vip": "10.64.0.1:80", "server": "10.0.0.2:80"}
    out = server(106 * SECOND, times=1, turned=101 * SECOND, in_row=3, cause=Cause.SILENT)
    assert world.look(server(connects=7), out, at=102) == [
        {
            "log_level": "warning",
            "event": "server ejected",
            **names,
            "cause": "3 failed connects in a row, the last one unanswered",
            "probe_in": 4.0,
            "ejections": 1,
        }
    ]
    assert world.look(server(connects=9), server(106 * SECOND, times=1, in_row=4), at=104) == []
    assert world.look(server(), server(120 * SECOND, times=2, in_row=4), at=108) == []
    assert world.look(server(), server(times=2, turned=121 * SECOND), at=122) == [
        {"log_level": "info", "event": "server returned", **names, "out_for": 20.0}
    ]


def test_ejection_between_two_looks_is_not_lost(world: World) -> None:
    """A server that was ejected and is back at the next look has both lines."""
    lines = world.look(server(times=1, turned=round(101.5 * SECOND)), server(), at=102)
    assert [(line["event"], line["server"]) for line in lines] == [
        ("server ejected", "10.0.0.1:80"),
        ("server returned", "10.0.0.1:80"),
    ]
    assert lines[0]["probe_in"] is None
    assert 0 <= lines[1]["out_for"] <= 1.5


def test_ejection_from_before_the_start_is_said_once() -> None:
    """The first look names servers that are out already, and does not claim to know since when."""
    world = World()
    lines = world.look(server(130 * SECOND, times=4, in_row=5), server(times=9, turned=1))
    assert [line["cause"] for line in lines] == ["5 failed connects in a row, before this sidecar started"]
    assert [line["out_for"] for line in world.look(server(times=4, turned=131 * SECOND), server(times=9))] == [None]


def test_counters_alone_are_no_news(world: World) -> None:
    """Connects, failures and indexes of new servers change nothing."""
    assert world.look(server(connects=9, in_row=2), server(connects=3), at=102) == []
    world.installed = installed({"10.0.0.1:80": 1, "10.0.0.2:80": 2, "10.0.0.3:80": 3})
    assert world.look(server(connects=10), server(connects=4), server(), at=104) == []


def test_removed_server_does_not_return(world: World) -> None:
    """A server that leaves the pool while it is ejected is forgotten, and so is its index."""
    world.look(server(), server(106 * SECOND, times=1, in_row=3), at=102)
    world.installed = installed({"10.0.0.1:80": 1, "10.0.0.9:80": 2})
    assert world.look(server(), server(), at=104) == []
    lines = world.look(server(), server(120 * SECOND, times=1, in_row=3), at=106)
    assert [(line["event"], line["server"]) for line in lines] == [("server ejected", "10.0.0.9:80")]


def test_lines_of_one_look_are_bounded() -> None:
    """If a whole site goes down, some servers are named and the others counted."""
    world = World()
    world.installed = installed({f"10.0.1.{host}:80": host for host in range(1, 101)})
    world.look(*[server()] * 100)
    lines = world.look(*[server(200 * SECOND, times=1, in_row=3)] * 100, at=102)
    assert len(lines) == 33
    assert lines[-1] == {"log_level": "warning", "event": "more servers ejected or returned", "count": 68}
    assert len(world.look(*[server(times=1, turned=300 * SECOND)] * 100, at=300)) == 33


def test_no_look_where_nothing_is_ejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are for pools that eject, and pause longer if there are so many servers that a look takes long."""
    times = iter([0.0, 0.0, 0.05, 1.0, 9.9, 10.1])
    monkeypatch.setattr("clb_discovery.sidecar.ejections.time.monotonic", lambda: next(times))
    without = installed({"10.0.0.1:80": 1}, PassiveHealth(eject_after=0))
    assert not Ejections().is_due(without)
    world = World()
    assert world.ejections.is_due(world.installed)
    world.look(server(), server())
    assert [world.ejections.is_due(world.installed) for _ in range(3)] == [False, False, True]
