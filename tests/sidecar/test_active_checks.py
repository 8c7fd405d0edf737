"""What the main loop and the results of checks tell of servers, without a kernel and without checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from clb_discovery.checks.health import Result
from clb_discovery.checks.table import Member
from clb_discovery.layout import elements
from clb_discovery.layout.elements import Label, Steering
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.metrics.meters import Meters
from clb_discovery.model.check import Check, Target
from clb_discovery.model.servers import PassiveHealth
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar import active_checks
from clb_discovery.sidecar.active_checks import ActiveChecks
from clb_discovery.sidecar.announcer import Announcer
from tests.checks.test_table import target
from tests.support.fake_servers import FakeServers
from tests.support.pace import patient
from tests.support.plane import real

VIP = parse_vip("10.64.0.1:80")
CHECK = Check(interval=3600.0)  # so none is made
PASSED, FAILED, UNKNOWN = Result(passed=True), Result(passed=False, reason="HTTP 503"), Result(None, "No route to host")


class World(FakeServers):
    """Maps with three checked servers, their publisher, and what failed connects have ejected."""

    times_recreated = 0

    def __init__(self) -> None:
        super().__init__(4)
        self.broken = False
        self.refused = 0
        self.out: set[bytes] = set()
        self.calls: list[tuple[str, bytes]] = []
        pool = tuple(real(f"10.0.0.{number}:80") for number in (1, 2, 3))
        vip = elements.pack_vip(VIP)
        members = [Member(elements.pack_member(vip, one), Target(one.address, one.port, CHECK)) for one in pool]
        self.members = dict(enumerate(members, 1))
        servers = {member.key: index for index, member in self.members.items()}
        label = Label("web", "web")
        published = Published(1, 1, 0, (0,), None, pool, PassiveHealth(checked=True), label, servers)
        self.installed = Installed({VIP: published}, top=4)
        self.checks = ActiveChecks(Announcer(), Meters(), lambda: None)

    @asynccontextmanager
    async def using_maps(self) -> AsyncIterator[tuple[Any, Installed]]:
        """Return itself as the maps."""
        yield self, self.installed

    def steer(self, said: Mapping[int, Steering]) -> None:
        """Say something of some, unless that is broken."""
        if self.broken:
            self.refused += 1
            raise OSError(12, "Cannot allocate memory")
        super().steer(said)

    def overrule(self, member: bytes, _moment: int) -> None:
        """Take it as a passed check."""
        self.calls.append(("overrule", member))

    def recall(self, member: bytes) -> None:
        """Take it as a probe that is due."""
        self.calls.append(("recall", member))

    def hear(self, index: int, *results: Result) -> None:
        """Hear results of the checks of a server."""
        for result in results:
            self.checks._heard(self.members[index].target, result)  # noqa: SLF001 - as its runner calls it

    async def follow(self, checks: Mapping[str, Check]) -> None:
        """Come by as the main loop."""
        publisher: Any = self
        await self.checks.follow(self.installed, checks, publisher)

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        """Play a story."""
        world: Any = self

        async def play() -> None:
            await self.follow({"web": CHECK})
            async with self.checks.running(world, world):
                await asyncio.wait_for(story(), patient(20))

        asyncio.run(play())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    while not condition():  # noqa: ASYNC110 - many things change it
        await asyncio.sleep(0.01)


def test_a_late_result_of_a_server_that_is_not_followed_is_no_trouble() -> None:
    """Its check was running when a reload removed it: nothing would ever end that trouble."""
    publisher: Any = SimpleNamespace(times_recreated=0)

    async def story() -> None:
        checks = ActiveChecks(Announcer(), Meters(), lambda: None)
        await checks.follow(Installed(), {}, publisher)
        checks._heard(target(1), Result(None, "No route to host"))  # noqa: SLF001 - as its runner calls it
        await checks.follow(Installed(), {}, publisher)

    with capture_logs() as lines:
        asyncio.run(story())
    assert lines == []


def test_only_a_passed_check_overrules_failed_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """If checks fail on this host until the lease is over, the server is probed, and nothing is written."""
    world = World()
    member = world.members[2].key

    async def story() -> None:
        world.hear(2, FAILED, FAILED, FAILED)
        await until(lambda: world.said[2].out_until > 0)
        lease = world.said[2]
        world.out = {member}
        with monkeypatch.context() as later:
            later.setattr(time, "monotonic_ns", lambda: lease.out_until + 1)
            world.hear(2, UNKNOWN)
            await until(lambda: bool(world.calls))
        assert world.calls == [("recall", member)]
        assert world.said[2] == lease
        world.hear(2, FAILED)
        await until(lambda: world.said[2] != lease)
        world.hear(2, PASSED, PASSED)
        await until(lambda: len(world.calls) > 1)
        assert world.calls[1:] == [("overrule", member)]
        assert world.said[2].out_until == 0

    world.run(story)


def test_a_return_that_cannot_be_written_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of a server that is not checked any more; the log has them when they are in effect."""
    monkeypatch.setattr(active_checks, "_AFTER_ERROR", 0.01)
    world = World()

    async def out(index: int) -> None:
        world.hear(index, FAILED, FAILED, FAILED)
        await until(lambda: world.said[index].out_until > 0)

    async def refused() -> None:
        before = world.refused
        await until(lambda: world.refused > before + 1)
        assert "server returned" not in events()
        world.broken = False

    def events() -> list[str]:
        return [line["event"] for line in lines]

    async def story() -> None:
        await out(2)
        world.broken = True
        world.hear(2, PASSED, PASSED)
        await refused()
        await until(lambda: not world.said[2].out_until and "server returned" in events())
        lines.clear()
        await out(3)
        world.broken = True
        await world.follow({})
        await refused()
        await until(lambda: not world.said[3].out_until and "server returned" in events())

    with capture_logs() as lines:
        world.run(story)


def test_troubles_that_go_on_are_one_line() -> None:
    """However late checks are, and whichever servers cannot be checked just now."""
    world = World()

    async def story() -> None:
        await world.follow({"web": CHECK})
        for number in range(30):
            world.checks._runner.late = 2.0 + number  # noqa: SLF001 - as if checks were late
            world.hear(number % 3 + 1, UNKNOWN)
            world.hear((number + 1) % 3 + 1, PASSED)
            await world.follow({"web": CHECK})

    with capture_logs() as lines:
        asyncio.run(story())
    assert sorted(line["event"] for line in lines) == ["checks are late", "servers cannot be checked"]
    (unchecked,) = (line for line in lines if "servers" in line)
    assert unchecked["error"] == "No route to host; they take connects unchecked"
    assert unchecked["servers"] == ["10.0.0.1:80"]
