"""The zone of the host: a name, or that of an agent, which may come late or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from clb_discovery.config.options import Options
from clb_discovery.sidecar import own_zone
from clb_discovery.sidecar.announcer import Announcer
from clb_discovery.sidecar.own_zone import OwnZone
from tests.support.fake_consul import FakeConsul, Reply
from tests.support.pace import patient


@asynccontextmanager
async def following(options: Options) -> AsyncIterator[tuple[OwnZone, list[str | None]]]:
    """Follow the zone of these options; return also each zone that was known after a change."""
    changes: list[str | None] = []
    zone = OwnZone(Announcer(), lambda: changes.append(zone.name))
    zone.follow(options)
    try:
        yield zone, changes
    finally:
        await zone.end()


def known(zone: OwnZone) -> str | None:
    """Return the zone; a type checker would take an attribute as unchanged."""
    return zone.name


async def until_known(zone: OwnZone, name: str) -> None:
    """Wait until a zone is known."""
    async with asyncio.timeout(patient(10)):
        while known(zone) != name:  # noqa: ASYNC110 - what is tested has no event
            await asyncio.sleep(0.01)


def agent(consul: FakeConsul) -> Options:
    """Return options that have the zone of an agent."""
    return Options(consul=consul.url, zone="auto")


@pytest.fixture(autouse=True)
def _pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry soon; and wait for the first result of an agent that answers, however busy this machine is."""
    monkeypatch.setattr(own_zone, "BACKOFF_FIRST", 0.01)
    monkeypatch.setattr(own_zone, "PATIENCE", patient(10))


async def test_a_name_is_known_at_once() -> None:
    """And no zone at all is one, too: then nothing follows zones."""
    async with following(Options(zone="eu-1a")) as (zone, changes):
        assert (zone.name, zone.is_tried, zone.kept, changes) == ("eu-1a", True, None, ["eu-1a"])
        assert zone.document() == {"name": "eu-1a", "auto": False, "error": None}
        zone.remember("eu-1b")
        assert zone.name == "eu-1a"
        zone.follow(Options())
        assert (known(zone), zone.document(), changes[1:]) == (None, None, [None])


async def test_the_zone_of_an_agent_is_read_once() -> None:
    """The first publication waits for it; the disk keeps it."""
    async with FakeConsul(Reply({"Meta": {"zone": "eu-1a"}})) as consul, following(agent(consul)) as (zone, changes):
        assert (zone.name, zone.is_tried) == (None, False)
        await zone.first()
        assert (zone.name, zone.kept, changes) == ("eu-1a", "eu-1a", ["eu-1a"])
        await asyncio.sleep(0.05)
        assert len(consul.asked) == 1
        assert zone.document() == {"name": "eu-1a", "auto": True, "error": None}


async def test_an_error_is_retried_and_the_zone_of_the_disk_stays() -> None:
    """Errors are shown until the agent returns a zone, which then counts."""
    replies = Reply(status=500, body=b"no leader"), Reply(status=403, body=b"denied"), Reply({"Meta": {"zone": "new"}})
    async with FakeConsul(*replies) as consul, following(agent(consul)) as (zone, changes):
        zone.remember("old")
        await zone.first()
        assert (zone.name, zone.is_tried) == ("old", True)
        assert zone.error
        await until_known(zone, "new")
        assert zone.document() == {"name": "new", "auto": True, "error": None}
        assert (changes[0], changes[-1]) == ("old", "new")
        assert len(consul.asked) == 3


async def test_a_reload_reads_it_again_and_keeps_it_meanwhile() -> None:
    """Also if the agent does not answer now."""
    async with FakeConsul(Reply({"Meta": {"zone": "eu-1a"}})) as consul, following(agent(consul)) as (zone, _):
        await zone.first()
        consul.replies = [Reply(status=500, body=b"no")]
        zone.follow(agent(consul))
        assert (zone.name, zone.is_tried) == ("eu-1a", False)
        await zone.first()
        assert (zone.name, zone.error is not None) == ("eu-1a", True)
        consul.replies = [Reply({"Meta": {"zone": "eu-1b"}})]
        await until_known(zone, "eu-1b")


async def test_a_silent_agent_delays_the_start_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first publication then goes without a zone; the end does not wait either."""
    monkeypatch.setattr(own_zone, "PATIENCE", 0.05)
    async with FakeConsul(Reply(hang=True)) as consul, following(agent(consul)) as (zone, changes):
        await zone.first()
        assert (zone.name, zone.is_tried, changes) == (None, False, [])


async def test_a_bug_does_not_end_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported as an error, and the query is repeated."""
    asked = 0

    async def ask(_: Options) -> str:
        nonlocal asked
        asked += 1
        return f"eu-{1 // (asked - 1)}a"

    monkeypatch.setattr(own_zone, "own_zone", ask)
    async with following(Options(zone="auto")) as (zone, _):
        await zone.first()
        assert zone.error
        assert "internal error: ZeroDivisionError" in zone.error
        await until_known(zone, "eu-1a")
