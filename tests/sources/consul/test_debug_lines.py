"""The lines of `--log-level debug` about queries to Consul: one for each rule that decided something."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from clb_discovery.errors import SourceError
from clb_discovery.sources.consul import change_watch
from clb_discovery.sources.consul import server as server_module
from clb_discovery.sources.consul import source as source_module
from clb_discovery.sources.consul.address import ConsulAddress
from clb_discovery.sources.consul.change_watch import ChangeWatch
from clb_discovery.sources.consul.client import ALL, OWN, STALE, Client, Indexed, Mode
from clb_discovery.sources.consul.names import Names
from clb_discovery.sources.consul.server import LOCAL, ConsulServer
from clb_discovery.sources.consul.source import ConsulCatalog, ConsulSource
from clb_discovery.sources.consul.transport import Transport
from clb_discovery.sources.dns.host_names import HostNames
from clb_discovery.sources.dns.resolvers import Resolvers
from tests.support.fake_consul import FakeConsul, Reply, instance
from tests.support.fake_dns import FakeDns
from tests.support.fake_dns import Reply as DnsReply

SOON = 5.0
PATH = "/v1/health/service/redis"

Lines = Collection[MutableMapping[str, Any]]


def lines_of(logs: Lines, event: str) -> list[dict[str, Any]]:
    """Return the fields of the lines with this event; all of them have level debug."""
    found = [dict(line) for line in logs if line["event"] == event]
    assert all(line.pop("log_level") == "debug" for line in found)
    return [{name: value for name, value in line.items() if name != "event"} for line in found]


async def test_each_rule_of_indexes_is_a_line() -> None:
    """A new, an unchanged and a lower index have different lines; after a lower one the next query does not wait."""
    async with FakeConsul(*(Reply(index=index) for index in ("900", "900", "3", "3", "8"))) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        with capture_logs() as logs:
            for _ in range(4):
                await source.next()
        await server.close()
    assert lines_of(logs, "index has changed") == [
        {"path": PATH, "previous": 0, "index": 900},
        {"path": PATH, "previous": 0, "index": 8},
    ]
    assert lines_of(logs, "index has not changed") == [{"path": PATH, "index": 900}]
    assert lines_of(logs, "index went backwards; the next query does not wait") == [
        {"path": PATH, "previous": 900, "index": "3"}
    ]
    assert lines_of(logs, "answer is complete") == [{"source": "consul:redis", "servers": 1}] * 4


async def test_each_kind_of_query_is_a_line() -> None:
    """Queries that wait show index and wait; others show the consistency mode, and whether they follow a failure."""
    async with FakeConsul(Reply(index="5"), Reply(index="6"), Reply(status=500), Reply(index="7")) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        with capture_logs() as logs:
            await source.next()
            await source.next()
            with pytest.raises(SourceError):
                await source.next()
            await source.next()
        await server.close()
    assert lines_of(logs, "querying without waiting") == [
        {"service": "redis", "mode": "stale", "after_failure": False},
        {"service": "redis", "mode": "consistent", "after_failure": True},
    ]
    assert lines_of(logs, "waiting for a change by a blocking query") == [
        {"service": "redis", "index": 5, "wait": 50.0},
        {"service": "redis", "index": 6, "wait": 50.0},
    ]


async def test_a_stale_answer_that_is_not_used_is_a_line() -> None:
    """The line about a server without contact to its leader shows its headers, which are bounded."""
    headers = {"X-Consul-KnownLeader": "false", "X-Consul-LastContact": "9" * 5000}
    async with FakeConsul(Reply(index="6", headers=headers), Reply(index="7")) as fake:
        server = ConsulServer(fake.url)
        with capture_logs() as logs:
            await ConsulSource(server, "redis").next()
        await server.close()
    (line,) = lines_of(logs, "stale answer is not used; the query is repeated at the leader")
    assert line == {
        "path": PATH,
        "mode": "default",
        "index": "6",
        "last_contact": "9" * 200,
        "known_leader": "false",
    }


async def test_a_long_poll_that_was_cut_is_a_line() -> None:
    """So is a later answer that is older than the last one; the query is then repeated at the leader."""
    async with FakeConsul(Reply(index="9"), Reply(hang=True), Reply(index="3"), Reply(index="9")) as fake:
        server = ConsulServer(fake.url, wait=0.1, margin=1.0)
        source = ConsulSource(server, "redis")
        await source.next()
        with capture_logs() as logs:
            await source.next()
        await server.close()
    (cut,) = lines_of(logs, "long poll was cut; it is repeated without waiting")
    assert cut["seconds"] > 1
    (line,) = lines_of(logs, "stale answer is not used; the query is repeated at the leader")
    assert (line["mode"], line["index"]) == ("consistent", "3")


async def test_a_wait_that_is_cut_short_is_a_line() -> None:
    """A hastened source logs it once."""
    async with FakeConsul(Reply(), Reply(hang=True), Reply()) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        await source.next()
        with capture_logs() as logs:
            waiting = asyncio.create_task(source.next())
            await asyncio.sleep(0.1)
            source.hasten()
            await asyncio.wait_for(waiting, SOON)
        await server.close()
    assert lines_of(logs, "wait was cut short; the leader is queried at once") == [{"source": "consul:redis"}]
    (line,) = lines_of(logs, "querying without waiting")
    assert line["mode"] == "consistent"


async def test_a_pause_of_the_rate_limit_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that waits for its turn logs for how many seconds; others log nothing."""
    monkeypatch.setattr(source_module, "BURST", 1.0)
    monkeypatch.setattr(source_module, "RATE", 2.0)
    async with FakeConsul(Reply()) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        with capture_logs() as logs:
            await source.next()
            await source.next()
        await server.close()
    assert len(lines_of(logs, "answer is complete")) == 2
    (line,) = lines_of(logs, "rate limit: pausing before the next query")
    assert line["source"] == "consul:redis"
    assert 0 < line["seconds"] <= 0.5


async def test_a_list_of_services_that_has_not_changed_is_a_line() -> None:
    """The list of services has an index, too, and the leader is not queried while it has not changed."""
    names = Reply(entries={"redis": ["clb"]})
    async with FakeConsul(names, Reply(entries=[{"Name": "web"}]), names) as fake:
        server = ConsulServer(fake.url)
        catalog = ConsulCatalog(server)
        with capture_logs() as logs:
            await catalog.next()
            await catalog.next()
        await server.close()
    assert lines_of(logs, "index has not changed") == [{"path": "/v1/catalog/services", "index": 7}]
    assert lines_of(logs, "the list of services has not changed; their meta is not queried") == [{}]
    assert lines_of(logs, "answer is complete") == [{"source": "catalog:consul", "services": 2}]


async def test_services_beyond_the_direct_ones_log_their_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without a blocking query of its own waits for the whole catalog, whose queries have lines, too."""
    monkeypatch.setattr(server_module, "REFRESH", 0.3)
    async with FakeConsul(Reply(index="5"), Reply(hang=True)) as fake:
        server = ConsulServer(fake.url, limits=LOCAL._replace(direct=0))
        source = ConsulSource(server, "redis")
        with capture_logs() as logs:
            await source.next()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(source.next(), 1.0)
        await server.close()
    assert [line["mode"] for line in lines_of(logs, "querying without waiting")] == ["consistent"] * 2
    assert lines_of(logs, "waiting for a change of the whole catalog: too many services") == [
        {"service": "redis", "direct": 0}
    ]
    assert lines_of(logs, "watching the whole catalog for changes") == [{"starts_in": 0.0}]
    assert lines_of(logs, "no news of a service for long; it is queried again") == [{"service": "redis"}]


class OnlyChecks(Client):
    """A client whose services and nodes never change."""

    async def services(self, index: int, wait: float, mode: Mode = STALE) -> Indexed:
        """Wait without end."""
        del index, wait, mode
        return await asyncio.Future[Indexed]()

    async def nodes(self, index: int, wait: float) -> Indexed:
        """Wait without end."""
        del index, wait
        return await asyncio.Future[Indexed]()


def check(service: str) -> dict[str, str]:
    """Return a check that is not passing."""
    return {"Node": "n1", "CheckID": "c1", "ServiceName": service, "Status": "critical"}


async def test_changes_of_the_catalog_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer concerns all services, a check some of them; rate limits and a failure have lines, too."""
    monkeypatch.setattr(change_watch, "WATCH_BURST", 1.0)
    monkeypatch.setattr(change_watch, "WATCH_RATE", 10.0)
    replies = (Reply(entries=[], index="5"), Reply(entries=[check("Redis")], index="6"), Reply(status=500))
    async with FakeConsul(*replies) as fake:
        transport = Transport(ConsulAddress.parse(fake.url), None)
        watch = ChangeWatch(OnlyChecks(transport, None, OWN), 50.0)
        with capture_logs() as logs:
            for _ in range(2):
                watch.note_query(("ldap", ALL), leader=True)
                watch.note_query(("redis", ALL), leader=True)
                await asyncio.wait_for(watch.changed(("redis", ALL), 1e9), SOON)
            with pytest.raises(SourceError):
                await asyncio.wait_for(watch.changed(("ldap", ALL), 1e9), SOON)
        await watch.close()
        await transport.close()
    assert lines_of(logs, "the catalog has changed; all services are queried again") == [{"services": 2, "pause": 0.0}]
    (line,) = lines_of(logs, "checks have changed; their services are queried again")
    assert line == {"checked": 1, "services": 1}
    assert lines_of(logs, "watching the catalog failed; services are queried again") == [{"error": "StatusError"}]
    pauses = lines_of(logs, "rate limit: pausing before the next query")
    assert pauses[0] == {"path": "/v1/health/state/any", "seconds": 0.1}
    assert {line["path"] for line in lines_of(logs, "index has changed")} == {"/v1/health/state/any"}


async def test_an_answer_that_waits_for_host_names_is_a_line(tmp_path: Path) -> None:
    """The line shows the longest wait for host names."""
    async with FakeDns() as dns, FakeConsul(Reply(entries=[instance("web.example")]), Reply(hang=True)) as fake:
        dns.replies["web.example.", "A"] = DnsReply(["web.example. 0 A 10.0.0.1"])
        host_names = HostNames(Resolvers([dns.address]), hosts=tmp_path / "hosts", bounds=(0.1, 60.0))
        server = ConsulServer(fake.url, names=Names(lambda: host_names))
        with capture_logs() as logs:
            await asyncio.wait_for(ConsulSource(server, "redis").next(), SOON)
        await server.close()
    assert lines_of(logs, "answer is complete") == [{"source": "consul:redis", "servers": 1}]
    changed = {"name": "web.example", "addresses": 1, "failed_families": 0}
    (line,) = lines_of(logs, "host name has changed")
    assert 0 <= line.pop("next_query_in") <= 60
    assert line == changed
    (line, *_) = lines_of(logs, "answer waits for host names")
    assert line["source"] == "consul:redis"
    assert 10 < line["seconds"] <= 11
