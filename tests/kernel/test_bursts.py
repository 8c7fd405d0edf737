"""Answers that arrive faster than they can be published: they are merged, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.model.answer import Answer
from tests.support.fake_source import FakeSource
from tests.support.in_process import real_servers, running_daemon, wait_for_names
from tests.support.process import wait_until
from tests.support.spares import loaded_instance

instance = loaded_instance


class Interrupting(FakeSource):
    """A source that answers a second time, with one server more, as soon as its first answer is being written."""

    name = "fake:interrupting"

    def __init__(self, instance: str, servers: int) -> None:
        super().__init__()
        self._instance = instance
        self._servers = real_servers(servers)
        self._asked = 0

    async def next(self) -> Answer:
        """Return the first answer, then the second, then nothing more."""
        self._asked += 1
        if self._asked == 1:
            return Answer(self._servers[:-1])
        if self._asked == 2:
            await asyncio.to_thread(wait_for_names, self._instance)
            return self.answer(Answer(self._servers))
        return await self.nothing_new()


async def test_answer_during_a_publication_is_not_lost(instance: str, cgroup: Path) -> None:
    """An answer that arrives while the maps are being written is published next."""
    servers = 40_000
    source = Interrupting(instance, servers)

    def published() -> int:
        if not loader.is_current(Pins(instance), cgroup):
            return 0
        with Maps(Pins(instance)) as maps:
            return max(len(virtual.pool or ()) for virtual in maps.read().virtual.values())

    async with running_daemon(instance, cgroup, source):
        await asyncio.to_thread(wait_until, lambda: published() >= servers - 1, "the first answer is published")
        await asyncio.to_thread(wait_until, lambda: published() == servers, "the second answer is published")


class Bursting(FakeSource):
    """A source whose answers all differ from the one before: they have 1 to 200 real servers in turn."""

    name = "fake:bursting"

    def __init__(self, most: int) -> None:
        super().__init__()
        self.given = 0
        self.most = most

    async def next(self) -> Answer:
        """Return the next answer after 5 ms, so that no quiet period occurs; after `most` answers, wait for ever."""
        if self.given == self.most:
            return await self.nothing_new()
        await asyncio.sleep(0.005)
        self.given += 1
        return self.answer(Answer(real_servers((self.given - 1) % 200 + 1)))


def published(logs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the number of real servers of each publication."""
    return [line["servers"] for line in logs if line["event"] == "pool published"]


async def test_burst_is_merged(instance: str, cgroup: Path) -> None:
    """A hundred answers within about half a second are published a few times, and the last one always is."""
    with capture_logs() as logs:
        async with running_daemon(instance, cgroup, Bursting(100)):
            await asyncio.to_thread(wait_until, lambda: published(logs)[-1:] == [100], "the last answer is published")
    assert len(published(logs)) <= 20


async def test_burst_without_end_is_applied_meanwhile(instance: str, cgroup: Path) -> None:
    """If answers never pause for the quiet period, they are still published twice a second."""
    source = Bursting(1_000_000)
    with capture_logs() as logs:
        async with running_daemon(instance, cgroup, source):
            await asyncio.to_thread(wait_until, lambda: len(published(logs)) >= 2, "two of its states are published")
            assert len(published(logs)) <= source.given / 4
