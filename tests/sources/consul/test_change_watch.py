"""Waiting for changes of the catalog, with a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from clb_discovery.errors import SourceError
from clb_discovery.sources.consul.address import ConsulAddress
from clb_discovery.sources.consul.blocking import WAIT
from clb_discovery.sources.consul.change_watch import START_BURST, WATCH_BURST, WATCH_RATE, ChangeWatch
from clb_discovery.sources.consul.client import ALL, OWN, Client
from clb_discovery.sources.consul.transport import Transport
from tests.support.fake_consul import FakeConsul, Reply

SOON = 5.0
LATER = 1e9
REDIS = ("redis", ALL)


@asynccontextmanager
async def opened(fake: FakeConsul) -> AsyncIterator[ChangeWatch]:
    """Return the watch of a fake's catalog; it and its connections are closed at the end."""
    transport = Transport(ConsulAddress.parse(fake.url), None)
    catalog = ChangeWatch(Client(transport, None, OWN), WAIT)
    try:
        yield catalog
    finally:
        await catalog.close()
        await transport.close()


async def test_what_was_not_read_from_the_leader_counts_as_changed() -> None:
    """Another server's answer may be older than the change, so the leader is queried at once."""
    async with FakeConsul(Reply(hang=True)) as fake, opened(fake) as catalog:
        await asyncio.wait_for(catalog.changed(REDIS, LATER), SOON)
        catalog.note_query(REDIS, leader=False)
        await asyncio.wait_for(catalog.changed(REDIS, LATER), SOON)
        catalog.note_query(REDIS, leader=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(catalog.changed(REDIS, LATER), 0.2)


async def test_waiting_ends_at_its_deadline() -> None:
    """A service is queried again from time to time although no change was reported."""
    async with FakeConsul(Reply(hang=True)) as fake, opened(fake) as catalog:
        catalog.note_query(REDIS, leader=True)
        started = time.monotonic()
        await catalog.changed(REDIS, started + 0.3)
        assert 0.25 < time.monotonic() - started < SOON


@pytest.mark.parametrize(
    "bad", [Reply(status=500, body=b"No cluster leader"), Reply(index=None), Reply(body=b"<html>")]
)
async def test_a_failure_reaches_all_waiting_callers_and_then_the_watch_restarts(bad: Reply) -> None:
    """A bad answer about the catalog is an error of every service; the next caller starts from the beginning."""
    async with FakeConsul(bad) as fake, opened(fake) as catalog:
        names = [(name, ALL) for name in ("redis", "ldap", "mail")]
        for name in names:
            catalog.note_query(name, leader=True)
        waiting = [asyncio.create_task(catalog.changed(name, LATER)) for name in names]
        for one in waiting:
            with pytest.raises(SourceError, match=f"Consul at {fake.url}"):
                await asyncio.wait_for(one, SOON)
        fake.replies = [Reply(entries=[])]
        await asyncio.wait_for(catalog.changed(REDIS, LATER), SOON)
        assert "index" not in fake.queries[-1]


async def test_a_server_that_always_changes_is_rate_limited() -> None:
    """Answers that come at once, with a change or without, are rate-limited for each of the three queries."""
    async with FakeConsul(*(Reply(index=str(number)) for number in range(1, 200))) as fake, opened(fake) as catalog:
        started = time.monotonic()
        while time.monotonic() - started < 2:
            catalog.note_query(REDIS, leader=True)
            try:
                await asyncio.wait_for(catalog.changed(REDIS, LATER), 0.2)
            except TimeoutError:
                continue
        took = time.monotonic() - started
        assert WATCH_BURST <= len(fake.asked) <= 3 * (WATCH_BURST + WATCH_RATE * took + 1)


async def test_a_catalog_that_cannot_be_watched_is_rate_limited() -> None:
    """If services can be queried but not the catalog, restarts are limited, because each one queries every service."""
    async with FakeConsul(Reply(status=403, body=b"not this path")) as fake, opened(fake) as catalog:
        failures, started = 0, time.monotonic()
        while time.monotonic() - started < 2:
            catalog.note_query(REDIS, leader=True)
            try:
                await asyncio.wait_for(catalog.changed(REDIS, LATER), 0.2)
            except SourceError:
                failures += 1
            except TimeoutError:
                continue
        assert failures == START_BURST
        assert len(fake.asked) <= 3 * START_BURST
