"""Reports, probes of real servers and verdicts together, without a kernel: the maps and the ring buffer are fakes."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from clb_discovery.layout import elements
from clb_discovery.layout.elements import Change, ChangeKind, Steering
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.layout.structs import CHANGE
from clb_discovery.metrics.meters import Meters
from clb_discovery.model.servers import PassiveHealth
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.health import watch
from clb_discovery.sidecar.health.probe import Result
from clb_discovery.sidecar.health.watch import HealthWatch
from tests.support.fake_servers import HEALTHY, FakeServers
from tests.support.moody import moody_servers
from tests.support.pace import patient
from tests.support.plane import real

VIP: Final = parse_vip("10.64.0.1:80")
HEALTH: Final = PassiveHealth(eject_first_ms=1_000, eject_most_ms=1_000)


class FakeRing:
    """A ring buffer of reports, readable while there are any."""

    def __init__(self, fd: int, _: int) -> None:
        self._fd = os.dup(fd)
        self.full = False

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._fd

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def skip(self) -> None:
        """Do nothing: nothing is in it before."""

    def was_full(self) -> bool:
        """Tell whether reports were lost."""
        was, self.full = self.full, False
        return was

    def records(self, _: float) -> Iterator[bytes]:
        """Return what is there."""
        yield from _cut(os.read(self._fd, 65536))


def _cut(data: bytes) -> list[bytes]:
    size = CHANGE.size
    return [data[at : at + size] for at in range(0, len(data), size)]


class World(FakeServers):
    """Maps with servers from index 1 on, and the publisher that owns them."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(len(names) + 1)
        self.read, self._write = os.pipe()
        key = elements.pack_vip(VIP)
        members = {elements.pack_member(key, real(name)): index for index, name in enumerate(names, 1)}
        published = Published(1, 1, 0, (0,), None, (), HEALTH, None, members)
        self.installed = Installed({VIP: published}, top=len(names) + 1)
        self.until = 0
        self.broken = False
        self.unreadable = False
        self.refused = 0
        self.times_recreated = 0
        self._lock = asyncio.Lock()
        self.meters = Meters()
        self.failed: list[tuple[set[bytes], bool]] = []
        self.changes_told = 0
        publisher: Any = self
        self.watch = HealthWatch(publisher, Announcer(), self.meters, self._count_change, chance=lambda: 0.0)

    def _count_change(self) -> None:
        self.changes_told += 1

    def _fails(self, members: Collection[bytes], *, needed: bool) -> None:
        self.failed.append((set(members), needed))

    @asynccontextmanager
    async def using_maps(self) -> AsyncIterator[tuple[Any, Installed]]:
        """Return itself as the maps."""
        async with self._lock:
            yield self, self.installed

    def changes(self) -> int:
        """Return the descriptor of the ring buffer."""
        return self.read

    def hear_changes_until(self, moment: int) -> None:
        """Keep the lease."""
        self.until = moment

    def raw_server(self, index: int) -> bytes:
        """Return one server, unless that is broken."""
        if self.unreadable:
            self.refused += 1
            raise PermissionError(1, "Operation not permitted")
        return super().raw_server(index)

    def steer(self, said: Mapping[int, Steering]) -> None:
        """Say something of some, unless that is broken."""
        if self.broken:
            raise PermissionError(1, "Operation not permitted")
        super().steer(said)

    def report(self, kind: ChangeKind, index: int = 1) -> None:
        """Report something of a server."""
        now = asyncio.get_running_loop().time() * 1e9
        os.write(self._write, CHANGE.struct.pack(*Change(round(now), index, 1, kind, 1, 1)))

    def counted(self, result: Result) -> float:
        """Return how many probes had this result."""
        return self.meters.registry.get_sample_value("clb_probes_total", {"result": str(result)}) or 0

    def run(self, story: Callable[[], Awaitable[None]]) -> list[dict[str, Any]]:
        """Play a story, while the main loop comes by often; return the lines of the log."""

        async def main_loop() -> None:
            while True:
                await self.watch.look()
                await asyncio.sleep(0.05)

        async def play() -> None:
            async with self.watch.listening(self._fails):
                looking = asyncio.create_task(main_loop())
                try:
                    await asyncio.wait_for(story(), patient(20))
                finally:
                    looking.cancel()

        with capture_logs() as lines:
            asyncio.run(play())
        return [dict(line) for line in lines]


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "Ring", FakeRing)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something."""
    while not condition():  # noqa: ASYNC110 - many things change it
        await asyncio.sleep(0.01)


def test_a_suspect_is_probed_and_the_programs_are_told() -> None:
    """A server that refuses is out, probed at its interval, and back when it answers; the lease ends with the watch."""
    with moody_servers("127.0.0.1") as (server,):
        world = World([server.name])

        async def story() -> None:
            await until(lambda: world.counted(Result.UP) == 1)
            assert world.until > 0
            server.refuse()
            world.report(ChangeKind.SUSPECT)
            await until(lambda: world.said[1].out_until > 0)
            world.report(ChangeKind.NEEDED)
            await until(lambda: len(world.failed) == 2)
            (member,) = world.installed.virtual[VIP].servers
            assert world.failed == [({member}, False), ({member}, True)]
            first = world.said[1]
            await until(lambda: world.said[1].decided_at > first.decided_at)
            await until(lambda: world.changes_told == 1)
            server.accept()
            await until(lambda: world.said[1].out_until == 0)
            await until(lambda: world.changes_told == 2)

        lines = world.run(story)
    told = [line["event"] for line in lines if line["log_level"] != "debug"]
    assert told == ["server ejected", "server returned"]
    assert world.until == 0


def test_reports_that_come_together_are_passed_on_together() -> None:
    """So a pool that dies as a whole costs its checks one look, and not one for each server."""
    world = World(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])
    first, second, third = world.installed.virtual[VIP].servers

    async def story() -> None:
        await until(lambda: world.until > 0)
        world.report(ChangeKind.SUSPECT, 1)
        world.report(ChangeKind.NEEDED, 2)
        world.report(ChangeKind.EJECTED, 3)
        await until(lambda: len(world.failed) == 2)
        assert world.failed == [({first, third}, False), ({second}, True)]

    world.run(story)


def test_a_verdict_that_cannot_be_written_is_made_up_for() -> None:
    """The kernel refuses; that is a line, and the next look finds the server still out."""
    with moody_servers("127.0.0.1") as (server,):
        world = World([server.name])

        async def story() -> None:
            await until(lambda: world.counted(Result.UP) == 1)
            server.refuse()
            world.broken = True
            world.servers[1] = HEALTHY._replace(ejected_until=1 << 62, changed_at=1, suspect=1)
            world.report(ChangeKind.SUSPECT)
            await until(lambda: world.counted(Result.DOWN) > 2)
            world.broken = False
            await until(lambda: world.said[1].out_until > 0)

        lines = world.run(story)
    assert "cannot follow the health of servers" in [line["event"] for line in lines]


def test_reports_that_cannot_be_looked_into_are_made_up_for() -> None:
    """The kernel refuses; the next look finds the server that they were about."""
    with moody_servers("127.0.0.1") as (server,):
        world = World([server.name])

        async def story() -> None:
            await until(lambda: world.counted(Result.UP) == 1)
            world.servers[1] = HEALTHY._replace(ejected_until=1 << 62, changed_at=1, in_row=3)
            world.unreadable = True
            world.report(ChangeKind.EJECTED)
            await until(lambda: world.refused > 0)
            world.unreadable = False
            await until(lambda: world.said[1].decided_at > 0)

        lines = world.run(story)
    told = [line["event"] for line in lines if line["log_level"] != "debug"]
    assert told == ["cannot follow the health of servers", "server ejected", "server returned"]


def test_a_bug_in_a_probe_is_reported_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no evidence; the next probe of the server comes at its interval."""
    broken = True

    async def buggy(*_: object, **__: object) -> Result:
        await asyncio.sleep(0)
        if broken:
            raise ZeroDivisionError
        return Result.UP

    monkeypatch.setattr(watch, "probe", buggy)
    world = World(["127.0.0.1:9"])

    async def story() -> None:
        nonlocal broken
        world.report(ChangeKind.EJECTED)
        await until(lambda: world.counted(Result.LOCAL) >= 2)
        broken = False
        await until(lambda: world.said[1].decided_at > 0)

    lines = world.run(story)
    (trouble,) = [line["error"] for line in lines if line["event"] == "cannot probe servers"]
    assert "please report it" in trouble


def test_a_server_that_fails_again_is_probed_thoroughly(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lose packets: one answer has brought it back before, and that was not enough."""
    thorough: list[int] = []

    async def losing(_: bytes, port: int) -> Result:
        thorough.append(port)
        return Result.DOWN

    monkeypatch.setattr(watch, "probe_thoroughly", losing)
    with moody_servers("127.0.0.1") as (server,):
        world = World([server.name])

        async def story() -> None:
            await until(lambda: world.counted(Result.UP) == 1)
            world.report(ChangeKind.SUSPECT)
            await until(lambda: world.said[1].decided_at > 0)
            assert (world.said[1].out_until, thorough) == (0, [])
            world.report(ChangeKind.SUSPECT)
            await until(lambda: world.said[1].out_until > 0)

        world.run(story)
        assert set(thorough) == {server.target[1]}


def test_probes_at_the_same_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole site that goes down takes no more sockets than that; each server has its turn."""
    running, most, done, full = 0, 0, set[bytes](), asyncio.Event()

    async def counting(address: bytes, port: int, *, twice: bool) -> Result:
        nonlocal running, most
        if not twice:
            return Result.UP
        running += 1
        most = max(most, running)
        if running == watch.MOST_PROBES:
            full.set()
        await full.wait()
        running -= 1
        done.add(address + bytes([port & 255]))
        return Result.DOWN

    monkeypatch.setattr(watch, "probe", counting)
    names = [f"10.0.{number >> 8}.{number & 255}:80" for number in range(300)]
    world = World(names)

    async def story() -> None:
        await until(lambda: world.until > 0)
        for index in range(1, 301):
            world.report(ChangeKind.SUSPECT, index)
        await until(lambda: len(done) == 300)

    world.run(story)
    assert most == watch.MOST_PROBES


@pytest.mark.parametrize(
    ("settings", "ends"),
    [({"eject_after": 0}, True), ({"suspicion": False}, False), ({"eject_most_ms": 2_000}, False)],
    ids=["no ejection", "no suspicion", "other times"],
)
def test_other_settings_of_a_server_that_is_out(*, settings: dict[str, Any], ends: bool) -> None:
    """If nothing ejects it any more, that is its return; otherwise its return is told when it comes."""
    world = World(["127.0.0.1:9"])

    async def story() -> None:
        world.servers[1] = HEALTHY._replace(ejected_until=1 << 62, changed_at=1, in_row=3)
        await until(lambda: bool(world.watch.out))
        published = world.installed.virtual[VIP]
        changed = replace(published, health=replace(HEALTH, **settings))
        world.installed = replace(world.installed, virtual={VIP: changed})
        await asyncio.sleep(0.2)
        assert bool(world.watch.out) is not ends
        world.servers[1] = HEALTHY
        world.report(ChangeKind.RETURNED)
        await until(lambda: not world.watch.out)

    lines = world.run(story)
    told = [line["event"] for line in lines if line["log_level"] in {"info", "warning"}]
    assert told == ["server ejected", "server returned"]


def test_lost_reports_lead_to_a_look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring buffer was full, or other maps have replaced these."""
    rings = deque[FakeRing]()

    def making(fd: int, size: int) -> FakeRing:
        rings.append(FakeRing(fd, size))
        return rings[-1]

    monkeypatch.setattr(watch, "Ring", making)
    with moody_servers("127.0.0.1", "127.0.0.1") as servers:
        world = World([server.name for server in servers])

        async def story() -> None:
            await until(lambda: world.counted(Result.UP) == 2)
            world.servers[1] = HEALTHY._replace(ejected_until=1, changed_at=1, in_row=3)
            await asyncio.sleep(0.2)
            assert world.said[1] == Steering(0, 0)
            rings[-1].full = True
            await until(lambda: world.said[1].decided_at > 0)
            world.servers[2] = HEALTHY._replace(ejected_until=1, changed_at=1, in_row=3)
            world.times_recreated += 1
            await until(lambda: world.said[2].decided_at > 0)

        lines = world.run(story)
    assert len(rings) == 2
    causes = [line["cause"] for line in lines if line["event"] == "server ejected"]
    assert causes == ["3 failed connects in a row"] * 2
