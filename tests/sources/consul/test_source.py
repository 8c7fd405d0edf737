"""The Consul source with a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from clb_discovery.cli.parser import make_parser
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.services import read_services
from clb_discovery.config.sources import open_sources
from clb_discovery.errors import ClbError, HostError, SourceError, UsageError
from clb_discovery.model.address import parse_address
from clb_discovery.model.answer import Answer, Failure, Outcome
from clb_discovery.model.servers import RealServer
from clb_discovery.sources.base import Source
from clb_discovery.sources.consul.client import Scope, Selection
from clb_discovery.sources.consul.environment import OPTIONS
from clb_discovery.sources.consul.secret_files import SecretFile
from clb_discovery.sources.consul.server import ConsulServer
from clb_discovery.sources.consul.source import BURST, RATE, ConsulCatalog, ConsulSource, server_from_environment
from clb_discovery.sources.follow import follow
from tests.support.fake_consul import FakeConsul, Reply, instance
from tests.support.pace import patient
from tests.support.process import free_port

TOKEN = "5d1c2b7e-very-secret"  # noqa: S105  # not a real one


async def failure(source: Source) -> str:
    """Return the message of the SourceError that `next` raises."""
    with pytest.raises(SourceError) as caught:
        await source.next()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


async def _for_ever(source: ConsulSource) -> None:
    while True:
        await source.next()


BAD_REPLIES = [
    (Reply(status=500, body=b"No cluster leader"), "returned 500 'No cluster leader'"),
    (Reply(status=503, entries=[]), "returned 503"),
    (Reply(status=429, body=b"Your IP is issuing too many concurrent connections"), "http_max_conns_per_client"),
    (Reply(status=403, body=b"ACL not found"), "service:read and node:read"),
    (Reply(status=401, body=b"unauthorized"), "CONSUL_HTTP_TOKEN"),
    (Reply(status=404, body=b""), "returned 404"),
    (Reply(status=301, headers={"Location": "/elsewhere"}), "returned 301"),
    (Reply(status=204, body=b""), "returned 204"),
    (Reply(body=b"<html>\n\x1b[31m"), "invalid JSON"),
    (Reply(body=b'[{"Node": '), "invalid JSON"),
    (Reply(body=b"\xff\xfe"), "invalid JSON"),
    (Reply(body=b""), "invalid JSON"),
    (Reply(body=b"[" * 200_000), "invalid JSON"),
    (Reply(body=b"null"), "is this Consul"),
    (Reply(body=b"{}"), "is this Consul"),
    (Reply(index=None), "no X-Consul-Index"),
    (Reply(index="soon"), "not an index"),
    (Reply(entries=[], headers={"X-Consul-Results-Filtered-By-ACLs": "true"}), "by ACLs"),
    (Reply(body=b"[\n]\n", headers={"X-Consul-Results-Filtered-By-ACLs": "true"}), "by ACLs"),
]


@pytest.mark.parametrize(("bad", "complaint"), BAD_REPLIES, ids=[complaint for _, complaint in BAD_REPLIES])
async def test_a_bad_answer_is_an_error_and_then_everything_is_read_afresh(bad: Reply, complaint: str) -> None:
    """Only a complete good answer counts, and the query after a bad one does not wait for an index."""
    async with FakeConsul(Reply(index="5"), bad, Reply(index="4")) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        await source.next()
        message = await failure(source)
        assert complaint in message
        assert message.startswith(f"Consul at {fake.url}")
        answer = await source.next()
        await server.close()
    assert answer.servers == (RealServer(0, parse_address("10.0.0.1"), 80, 1),)
    assert [query.get("index") for query in fake.queries] == [None, "5", None]
    assert ["consistent" in query for query in fake.queries] == [False, False, True]
    assert ["stale" in query for query in fake.queries] == [True, True, False]


async def test_instances_of_which_none_can_be_used_are_an_error_until_there_is_another_answer() -> None:
    """Consul did answer, so the leader is not queried while the registrations stay the same."""
    bad = Reply(entries=[instance(port=0)], index="6")
    async with FakeConsul(Reply(index="5"), bad, bad, Reply(index="7")) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        await source.next()
        for _ in range(2):
            message = await failure(source)
            assert message.startswith(f"Consul at {fake.url}: no instance can be used: instance 's1' on node 'n1' has ")
        assert (await source.next()).servers
        await server.close()
    assert [query.get("index") for query in fake.queries] == [None, "5", "6", "6"]
    assert all("stale" in query for query in fake.queries)


async def test_a_correction_of_what_cannot_be_used_counts_at_once() -> None:
    """However many such answers came before it, the query that waits for a change is open."""
    bad = [Reply([instance(port=0)], index=f"{index}") for index in range(5, 11)]
    async with FakeConsul(*bad, Reply(index="11"), Reply(hang=True)) as fake:
        server = ConsulServer(fake.url)
        heard: asyncio.Queue[Outcome] = asyncio.Queue()
        following = asyncio.create_task(follow(ConsulSource(server, "redis"), heard.put_nowait))
        for _ in bad:
            assert isinstance(await heard.get(), Failure)
        correction = await asyncio.wait_for(heard.get(), patient(1.0))
        following.cancel()
        await server.close()
    assert isinstance(correction, Answer)
    assert [query.get("index") for query in fake.queries][:7] == [None, *map(str, range(5, 11))]


async def test_a_service_that_leaves_its_catalog_may_have_instances_that_nobody_can_use() -> None:
    """It has left all the same: as an error it would keep its VIPs for ever. What is no registration is an error."""
    claiming, leaving = instance(), instance(port=0)
    claiming["Service"]["Meta"] = {"clb-vip": "10.64.0.1:80"}
    replies = [[claiming], [leaving], [{}], [leaving, {}], [claiming | {"Checks": "passing"}], [leaving]]
    async with FakeConsul(*(Reply(entries=entries, index=f"{at + 5}") for at, entries in enumerate(replies))) as fake:
        server = ConsulServer(fake.url)
        source = ConsulCatalog(server).service("redis")
        assert (await source.next()).opt_in
        assert await source.next() == Answer(())
        for _ in replies[2:5]:
            assert "no instance can be used" in await failure(source)
        assert await source.next() == Answer(())
        await server.close()


async def test_later_queries_wait_for_news() -> None:
    """The first query does not wait; later ones carry index and wait; all of them are stale."""
    async with FakeConsul(Reply(index="5"), Reply(index="5"), Reply(index="9"), Reply(index="9")) as fake:
        server = ConsulServer(fake.url, scope=Scope("dc 2"))
        source = ConsulSource(server, "redis")
        assert source.name == "consul:redis"
        for _ in range(4):
            await source.next()
        await server.close()
    common = {"dc": "dc 2", "stale": ""}
    assert fake.queries == [
        common,
        common | {"index": "5", "wait": "50s"},
        common | {"index": "5", "wait": "50s"},
        common | {"index": "9", "wait": "50s"},
    ]


async def test_a_query_that_does_not_wait_is_answered_before_the_leader_is_asked() -> None:
    """A hastened source loses no answer that is on its way."""
    slow = Reply(entries=[instance("10.0.0.1")], late=0.2)
    async with FakeConsul(Reply(), Reply(status=500), slow, Reply(entries=[instance("10.0.0.2")])) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        await source.next()
        await failure(source)
        waiting = asyncio.create_task(source.next())
        await asyncio.sleep(0.1)
        hastened = time.monotonic()
        source.hasten()
        early, fresh = await waiting, await source.next()
        await server.close()
    assert [one.address for one in early.servers] == [parse_address("10.0.0.1")]
    assert [one.address for one in fresh.servers] == [parse_address("10.0.0.2")]
    assert early.asked < hastened <= fresh.asked
    assert ["consistent" in query for query in fake.queries[-2:]] == [True, True]


async def test_the_wait_is_that_of_the_options(tmp_path: Path) -> None:
    """The command line overrides the file, and every query that waits has this wait."""
    file = tmp_path / "clb.toml"
    async with FakeConsul(Reply()) as fake:
        for arguments, wait in (([], "120s"), (["--consul-wait", "2s"], "2s")):
            file.write_text(
                f'consul = "{fake.url}"\nconsul-wait = "2m"\n[[service]]\nname = "redis"\nconsul = "redis"\n'
            )
            options = read_options(make_parser().parse_args(["run", "--config", str(file), *arguments]), {})
            async with open_sources(options, read_services(options)) as sources:
                (source,) = sources.values()
                await source.next()
                await source.next()
            assert fake.queries[-1] == {"stale": "", "index": "7", "wait": wait}


async def test_an_index_that_goes_back_is_dropped() -> None:
    """After a restore of the servers the leader's answer counts, and the next query does not wait."""
    replies = [Reply(index=index) for index in ("900", "3", "3", "0", "8")]
    async with FakeConsul(*replies) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        for _ in range(4):
            assert (await source.next()).servers
        await server.close()
    assert [query.get("index") for query in fake.queries] == [None, "900", None, None, "1"]


async def test_an_answer_older_than_the_last_is_overruled_by_the_leader() -> None:
    """The wait may end at a server that has restarted and has not applied its whole log yet."""
    older = Reply(index="3", entries=[instance(port=79)])
    async with FakeConsul(Reply(index="900"), older, Reply(index="901"), Reply(index="902")) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        for _ in range(3):
            assert (await source.next()).servers == (RealServer(0, parse_address("10.0.0.1"), 80, 1),)
        await server.close()
    assert [query.get("index") for query in fake.queries] == [None, "900", None, "901"]
    assert "consistent" in fake.queries[2]


async def test_an_empty_list_is_an_answer() -> None:
    """Consul may return an empty list, if it cannot report rights, or ACLs are off."""
    async with FakeConsul(Reply(entries=[])) as fake:
        server = ConsulServer(fake.url)
        for status in (401, 404, 405):
            fake.grants = Reply(status=status, body=b"")
            assert (await ConsulSource(server, "redis").next()).servers == ()
        await server.close()


def grant(resource: str, *, allow: bool) -> dict[str, object]:
    """Return one line of Consul's answer about the rights of a token."""
    return {"Resource": resource, "Access": "read", "Allow": allow}


NEW = {"X-Consul-Default-ACL-Policy": "deny"}
"""Of Consul 1.9 and later: it does not show whether this Consul reports what it has filtered."""


@pytest.mark.parametrize(
    ("grants", "complaint"),
    [
        (Reply([grant("service", allow=False), grant("node", allow=True)]), "every service that"),
        (Reply([grant("service", allow=True), grant("node", allow=False)]), "every node that"),
        (Reply([grant("service", allow=False), grant("node", allow=False)]), "every service and node that"),
        (Reply([grant("service", allow=False), grant("node", allow=True)], headers=NEW), "every service that"),
        (Reply([grant("service", allow=True), grant("node", allow=False)], headers=NEW), "every node that"),
        (Reply([grant("service", allow=True)]), "every node that"),
        (Reply([grant("service", allow=True), {"Resource": ["node"], "Allow": True}]), "every node that"),
        (Reply(status=500, body=b"No cluster leader"), "returned 500"),
        (Reply(body=b"7"), "invalid JSON"),
    ],
)
async def test_an_empty_list_without_rights_is_an_error(grants: Reply, complaint: str) -> None:
    """If the token may not read the service or its nodes, or the rights are unknown, an empty list proves nothing."""
    async with FakeConsul(Reply(entries=[])) as fake:
        fake.grants = grants
        server = ConsulServer(fake.url, token=TOKEN)
        assert complaint in await failure(ConsulSource(server, "redis"))
        await server.close()


@pytest.mark.parametrize("headers", [{}, NEW])
async def test_an_empty_list_with_rights_is_an_answer(headers: Mapping[str, str]) -> None:
    """If the token may read the service and all nodes, an empty list is true."""
    async with FakeConsul(Reply(entries=[])) as fake:
        fake.grants = Reply([grant("service", allow=True), grant("node", allow=True)], headers=headers)
        server = ConsulServer(fake.url, token=TOKEN)
        assert (await ConsulSource(server, "redis").next()).servers == ()
        await server.close()


@pytest.mark.parametrize(
    "headers",
    [{"X-Consul-LastContact": "10001"}, {"X-Consul-LastContact": "soon"}, {"X-Consul-KnownLeader": "false"}],
)
async def test_a_server_out_of_touch_is_overruled_by_the_leader(headers: Mapping[str, str]) -> None:
    """One query without stale and without waiting follows; its answer and its index count."""
    replies = (Reply(index="5"), Reply(entries=[], index="6", headers=headers), Reply(index="7"), Reply(index="7"))
    async with FakeConsul(*replies) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        await source.next()
        assert (await source.next()).servers
        await source.next()
        await server.close()
    assert [("stale" in query, query.get("index")) for query in fake.queries] == [
        (True, None),
        (True, "5"),
        (False, None),
        (True, "7"),
    ]


async def test_a_server_in_touch_is_believed() -> None:
    """Up to ten seconds without contact to the leader are fine."""
    async with FakeConsul(Reply(headers={"X-Consul-LastContact": "10000", "X-Consul-KnownLeader": "true"})) as fake:
        server = ConsulServer(fake.url)
        await ConsulSource(server, "redis").next()
        await server.close()
    assert len(fake.asked) == 1


async def test_all_sources_share_the_connections() -> None:
    """Consecutive queries of several services use one connection."""
    async with FakeConsul(Reply()) as fake:
        server = ConsulServer(fake.url)
        for service in ("redis", "ldap", "mail", "redis"):
            await ConsulSource(server, service).next()
        await server.close()
    assert len(fake.connections) == 1


async def test_a_query_that_hangs_is_given_up() -> None:
    """A query fails after its wait, the sixteenth and the margin; one that does not wait after the margin."""
    async with FakeConsul(Reply(), Reply(hang=True)) as fake:
        server = ConsulServer(fake.url, wait=0.16, margin=1.0)
        source = ConsulSource(server, "redis")
        await source.next()
        started = time.monotonic()
        assert "did not answer within 1 s" in await failure(source)
        assert time.monotonic() - started > 2
        await server.close()


async def test_cancelling_leaves_nothing_behind() -> None:
    """A query may be cancelled at any time; the next one does not wait."""
    async with FakeConsul(Reply(), Reply(hang=True), Reply()) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        await source.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(source.next(), 0.1)
        await source.next()
        await server.close()
    assert [query.get("index") for query in fake.queries] == [None, "7", None]


@pytest.mark.parametrize("port", [80, 0], ids=["usable", "unusable"])
async def test_a_hot_loop_is_braked(port: int) -> None:
    """A server that answers at once each time gets no more queries than burst and rate allow, usable or not."""
    async with FakeConsul(Reply([instance(port=port)])) as fake:
        server = ConsulServer(fake.url)
        asking = asyncio.create_task(follow(ConsulSource(server, "redis"), lambda _: None))
        await asyncio.sleep(1.5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await server.close()
    assert BURST <= len(fake.asked) <= BURST + RATE * 1.5 + 1


async def test_a_service_that_takes_long_to_read_rests_meanwhile() -> None:
    """A service with thousands of instances that change all the time gets a fraction of a processor."""
    many = [instance(address=f"10.0.{number // 256}.{number % 256}") for number in range(4200)]
    for number, entry in enumerate(many):
        entry["Service"] |= {
            "ID": f"s{number}",
            "Meta": {"clb-vip": ",".join(f"10.{number % 256}.1.{n}" for n in range(40))},
        }
    body = json.dumps(many).encode()
    async with FakeConsul(*(Reply(body=body, index=str(number)) for number in range(1, 200))) as fake:
        server = ConsulServer(fake.url)
        source = ConsulSource(server, "redis")
        await source.next()
        asking = asyncio.create_task(_for_ever(source))
        started, before = time.monotonic(), time.thread_time()
        await asyncio.sleep(4)
        share = (time.thread_time() - before) / (time.monotonic() - started)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await server.close()
    assert 2 <= len(fake.asked) <= 20
    assert share < 0.3


async def test_a_refused_connection_is_an_error() -> None:
    """If no agent listens, the error has the address, the cause and what to check."""
    port = free_port()
    server = ConsulServer(f"127.0.0.1:{port}")
    message = await failure(ConsulSource(server, "redis"))
    assert message == (
        f"Consul at http://127.0.0.1:{port} cannot be reached: Connection refused; is the agent running there?"
    )
    await server.close()


async def test_a_name_that_does_not_resolve_is_an_error() -> None:
    """An unknown host name is a failure of discovery, not of the configuration."""
    server = ConsulServer("http://consul.invalid:8500")
    message = await failure(ConsulSource(server, "redis"))
    assert "Consul at http://consul.invalid:8500 cannot be reached: cannot look up consul.invalid: " in message
    await server.close()


async def test_no_tls_where_it_was_expected_is_an_error() -> None:
    """An https address of a plain server gives another error than a server that does not run."""
    async with FakeConsul(Reply()) as fake:
        server = ConsulServer(fake.url.replace("http", "https"))
        assert "failed in TLS" in await failure(ConsulSource(server, "redis"))
        await server.close()


async def test_a_body_without_end_is_an_error() -> None:
    """Reading stops at 64 MiB."""
    async with FakeConsul(Reply(body=b" " * (64 << 20) + b"[]")) as fake:
        server = ConsulServer(fake.url)
        assert "more than 64 MiB" in await failure(ConsulSource(server, "redis"))
        assert "more than 64 MiB" in await failure(ConsulCatalog(server))
        await server.close()


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([Reply(status=500, body=b"No cluster leader")], "returned 500 'No cluster leader'"),
        ([Reply(entries={})], "listed no service at all: the token lacks rights"),
        ([Reply(entries=["redis"])], "the list of services is"),
        ([Reply(entries={"redis": ["clb"]}, index=None), Reply(entries=[])], "no X-Consul-Index"),
        ([Reply(entries={"redis": ["clb"]}), Reply(status=404, body=b"")], "returned 404"),
        ([Reply(entries={"redis": ["clb"]}), Reply(entries={"a": 1})], "instead of a list of services"),
        (
            [Reply(entries={"redis": []}), Reply(entries=[], headers={"X-Consul-Results-Filtered-By-ACLs": "true"})],
            "filtered the whole answer by ACLs",
        ),
    ],
)
async def test_a_catalog_that_does_not_say_is_an_error(replies: list[Reply], words: str) -> None:
    """Half a list is not an answer, and the next query does not wait."""
    async with FakeConsul(*replies) as fake:
        server = ConsulServer(fake.url)
        catalog = ConsulCatalog(server)
        assert words in await failure(catalog)
        fake.replies = [Reply(entries={"redis": ["clb"]}), Reply(entries=[{"Name": "web"}])]
        assert (await catalog.next()).names == {"redis", "web"}
        assert "index" not in fake.queries[-2]
        assert fake.queries[-1]["filter"] == '"clb-vip" in Service.Meta and Service.Kind == ""'
        await server.close()


async def test_the_leader_is_not_queried_for_an_unchanged_catalog() -> None:
    """A wait that ends without a change costs one query, which any server may answer."""
    names = Reply(entries={"redis": ["clb"]})
    async with FakeConsul(names, Reply(entries=[{"Name": "web"}]), names) as fake:
        server = ConsulServer(fake.url)
        catalog = ConsulCatalog(server)
        for _ in range(3):
            assert (await catalog.next()).names == {"redis", "web"}
        fake.replies = [names, Reply(entries=[{"Name": "db"}])]
        catalog.hasten()
        assert (await catalog.next()).names == {"redis", "db"}
        await server.close()
    assert [request.path.rpartition("/")[2] for request in fake.asked] == ["services"] * 6
    assert ["stale" in query for query in fake.queries] == [True, False, True, True, False, False]


@asynccontextmanager
async def closing_after(answer: bytes) -> AsyncIterator[ConsulServer]:
    """Run a server that closes each connection after these bytes, whatever the request is."""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with listener:
        server = ConsulServer(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        yield server
        await server.close()


async def test_a_connection_that_breaks_off_is_an_error() -> None:
    """A server that closes the connection in the middle of an answer has not answered."""
    async with closing_after(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: 100\r\n\r\n[]") as server:
        assert "broke off" in await failure(ConsulSource(server, "redis"))


async def test_a_connection_closed_unanswered_hints_at_the_limit() -> None:
    """Above its limit of connections per client the agent closes them; the message names this limit."""
    async with closing_after(b"") as server:
        assert "http_max_conns_per_client" in await failure(ConsulSource(server, "redis"))


async def test_the_token_is_sent_and_never_shown() -> None:
    """The token is sent in its header, and never shown in messages, even if the server repeats it."""
    async with FakeConsul(Reply(status=403, body=f"token {TOKEN} not found".encode())) as fake:
        server = ConsulServer(fake.url, token=TOKEN)
        message = await failure(ConsulSource(server, "redis"))
        await server.close()
    assert fake.asked[0].headers["X-Consul-Token"] == TOKEN
    assert "token <token> not found" in message
    assert TOKEN not in message
    assert TOKEN not in f"{server} {server!r} {server.url}"


async def test_every_query_of_a_catalog_has_the_current_token(tmp_path: Path) -> None:
    """Names and meta take two queries; after the token's file was replaced both have the new token."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with FakeConsul(Reply(entries={"redis": ["clb"]}), Reply(entries=[{"Name": "web"}])) as fake:
        server = ConsulServer(fake.url, SecretFile("token", [file], file.read_text))
        catalog = ConsulCatalog(server)
        await catalog.next()
        file.write_text(f"{TOKEN}-new")
        fake.replies = [Reply(entries={"redis": ["clb"]}, index="8"), Reply(entries=[{"Name": "web"}])]
        await catalog.next()
        await server.close()
    assert [request.headers["X-Consul-Token"] for request in fake.asked] == [
        TOKEN,
        TOKEN,
        f"{TOKEN}-new",
        f"{TOKEN}-new",
    ]


@pytest.mark.parametrize("service", ["a b", "a/b", "a?stale=1#x", "a%2Fb", "käse", "...", "a;b&c=d"])
async def test_a_service_name_is_escaped(service: str) -> None:
    """For any name, Consul receives exactly that name."""
    async with FakeConsul(Reply()) as fake:
        server = ConsulServer(fake.url)
        await ConsulSource(server, service).next()
        await server.close()
    assert fake.asked[0].url.raw_path.startswith("/v1/health/service/")
    assert fake.asked[0].path == f"/v1/health/service/{service}"
    assert fake.queries == [{"stale": ""}]


@pytest.mark.parametrize("service", ["", ".", "..", "a/../b", "a//b", "/a", "a\n", "\x00", "x" * 256, "\udcff"])
async def test_a_name_that_cannot_be_asked_for_is_refused(service: str) -> None:
    """A name that would be another path of Consul's interface, or is not text, is wrong usage."""
    with pytest.raises(UsageError, match="cannot be a Consul service") as caught:
        ConsulSource(ConsulServer("127.0.0.1:8500"), service)
    assert str(caught.value).isprintable()


async def test_the_environment_does_not_override_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONSUL_HTTP_* of the process do not affect a server made with explicit arguments, and are not changed."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "[::1]:1")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "another")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    async with FakeConsul(Reply()) as fake:
        server = ConsulServer(fake.url)
        await ConsulSource(server, "redis").next()
        await server.close()
    assert "X-Consul-Token" not in fake.asked[0].headers
    assert os.environ["CONSUL_HTTP_TOKEN"] == "another"  # noqa: S105  # not a real one


async def test_a_unix_socket_serves(tmp_path: Path) -> None:
    """An agent can be queried over its Unix socket."""

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.json_response([instance()], headers={"X-Consul-Index": "1"})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "consul.sock")).start()
    server = ConsulServer(f"unix://{tmp_path}/consul.sock")
    assert (await ConsulSource(server, "redis").next()).servers
    await server.close()
    await runner.cleanup()
    assert "cannot be reached: " in await failure(ConsulSource(server, "redis"))
    await server.close()


@pytest.mark.parametrize(
    ("environ", "explicit", "url"),
    [
        ({}, None, "http://127.0.0.1:8500"),
        ({"CONSUL_HTTP_ADDR": "10.0.0.1:80"}, None, "http://10.0.0.1:80"),
        ({"CONSUL_HTTP_ADDR": "10.0.0.1:80"}, "10.0.0.2:80", "http://10.0.0.2:80"),
        ({"CONSUL_HTTP_ADDR": "10.0.0.1:80", "CONSUL_HTTP_SSL": "1"}, None, "https://10.0.0.1:80"),
        ({"CONSUL_HTTP_ADDR": "http://10.0.0.1:80", "CONSUL_HTTP_SSL": "true"}, None, "http://10.0.0.1:80"),
        ({"CONSUL_HTTP_ADDR": "unix:///run/c.sock", "CONSUL_HTTP_SSL": "true"}, None, "unix:///run/c.sock"),
        ({"CONSUL_HTTP_ADDR": "[::1]:8500", "CONSUL_HTTP_SSL": "false"}, "", "http://[::1]:8500"),
    ],
)
def test_the_address_comes_from_the_argument_or_the_environment(
    environ: Mapping[str, str], explicit: str | None, url: str
) -> None:
    """An explicit address takes precedence, then CONSUL_HTTP_ADDR, then the agent on this host."""
    assert server_from_environment(explicit, environ).url == url


async def test_the_token_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """CONSUL_HTTP_TOKEN_FILE overrides CONSUL_HTTP_TOKEN, as in the consul command line."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    environments = ({"CONSUL_HTTP_TOKEN": "plain"}, {"CONSUL_HTTP_TOKEN": "plain", "CONSUL_HTTP_TOKEN_FILE": str(file)})
    async with FakeConsul(Reply()) as fake:
        for environ in environments:
            server = server_from_environment(fake.url, environ)
            await ConsulSource(server, "redis").next()
            await server.close()
    assert [request.headers["X-Consul-Token"] for request in fake.asked] == ["plain", TOKEN]


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"CONSUL_HTTP_TOKEN_FILE": "/nonexistent"}, "CONSUL_HTTP_TOKEN_FILE '/nonexistent': No such file"),
        ({"CONSUL_HTTP_TOKEN_FILE": "/dev/null"}, "is empty"),
        ({"CONSUL_HTTP_TOKEN": "a\nb"}, "characters that a token cannot have"),
        ({"CONSUL_HTTP_SSL": "yes"}, "CONSUL_HTTP_SSL is 'yes'"),
        ({"CONSUL_CACERT": "/nonexistent"}, "CONSUL_CACERT '/nonexistent': No such file"),
        ({"CONSUL_CACERT": "/dev/null"}, "CONSUL_CACERT '/dev/null'"),
        ({"CONSUL_CAPATH": "/nonexistent"}, "CONSUL_CAPATH '/nonexistent': No such file"),
        ({"CONSUL_CAPATH": "/dev/null"}, "CONSUL_CAPATH '/dev/null': Not a directory"),
        ({"CONSUL_CAPATH": "/proc/self/fdinfo"}, "in CONSUL_CAPATH '/proc/self/fdinfo': "),
        ({"CONSUL_CLIENT_CERT": "/nonexistent"}, "set both or none"),
        (
            {"CONSUL_CLIENT_CERT": "/nonexistent", "CONSUL_CLIENT_KEY": "/dev/null"},
            "CONSUL_CLIENT_CERT '/nonexistent': No such",
        ),
        (
            {"CONSUL_CLIENT_CERT": "/dev/null", "CONSUL_CLIENT_KEY": "/nonexistent"},
            "CONSUL_CLIENT_KEY '/nonexistent': No such",
        ),
        (
            {"CONSUL_CLIENT_CERT": "/dev/null", "CONSUL_CLIENT_KEY": "/dev/null"},
            "CONSUL_CLIENT_CERT '/dev/null' with CONSUL_CLIENT_KEY '/dev/null'",
        ),
        ({"CONSUL_HTTP_TOKEN_FILE": "/etc/passwd"}, "contains more than a token"),
        ({"CONSUL_HTTP_AUTH": "user:a\nb"}, "set it to user:password"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(environ: Mapping[str, str], complaint: str) -> None:
    """The message names the variable; a bad value is wrong usage, and a file may be there later."""
    with pytest.raises(ClbError, match=re.escape(complaint)) as caught:
        server_from_environment(None, environ)
    names_file = any(f"{variable} '/" in complaint for variable in environ) or "TOKEN_FILE" in str(environ)
    assert isinstance(caught.value, HostError if names_file else UsageError)


@pytest.mark.parametrize("variable", ["CONSUL_HTTP_TOKEN_FILE", "CONSUL_CACERT", "CONSUL_CAPATH"])
def test_an_option_wins_over_its_variable_and_is_named(variable: str) -> None:
    """If the option's value cannot be used the message names the option; the variable is not read."""
    with pytest.raises(HostError, match=re.escape(f"{OPTIONS[variable]} '/nonexistent': No such file")):
        server_from_environment(None, {variable: "/from-the-environment"}, {variable: "/nonexistent"})


async def test_a_password_for_a_proxy_is_sent_and_never_shown() -> None:
    """CONSUL_HTTP_AUTH becomes basic authentication, in addition to the token."""
    environ = {"CONSUL_HTTP_AUTH": "wall:hunter2:x", "CONSUL_HTTP_TOKEN": TOKEN}
    async with FakeConsul(Reply(status=401, body=b"no")) as fake:
        server = server_from_environment(fake.url, environ)
        message = await failure(ConsulSource(server, "redis"))
        await server.close()
        alone = server_from_environment(fake.url, {"CONSUL_HTTP_AUTH": "wall"})
        await failure(ConsulSource(alone, "redis"))
        await alone.close()
    assert "hunter2" not in message
    assert "CONSUL_HTTP_AUTH" in message
    assert [request.headers["Authorization"] for request in fake.asked] == [
        "Basic d2FsbDpodW50ZXIyOng=",
        "Basic d2FsbDo=",
    ]
    assert fake.asked[0].headers["X-Consul-Token"] == TOKEN


async def test_what_is_asked_for_stands_in_every_query() -> None:
    """Datacenter, namespace, partition, distance, filter and all tags are sent with the first and all later queries.

    A cache on the way has to let each of them through.
    """
    environ = {"CONSUL_NAMESPACE": "other", "CONSUL_PARTITION": "p 1"}
    wanted = Selection(near="_agent", filter='Service.Meta.a == "b c"', tags=("x", "y=1"))
    async with FakeConsul(Reply()) as fake:
        server = server_from_environment(fake.url, environ, {"CONSUL_NAMESPACE": "n1"}, "dc2")
        source = ConsulSource(server, "redis", wanted)
        await source.next()
        await source.next()
        await server.close()
    common = [
        ("dc", "dc2"),
        ("filter", 'Service.Meta.a == "b c"'),
        ("near", "_agent"),
        ("ns", "n1"),
        ("partition", "p 1"),
    ]
    common += [("stale", ""), ("tag", "x"), ("tag", "y=1")]
    assert {request.headers["Cache-Control"] for request in fake.asked} == {"no-cache"}
    assert sorted(fake.asked[0].query.items()) == common
    assert sorted(fake.asked[1].query.items()) == sorted([*common, ("index", "7"), ("wait", "50s")])


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "127.0.0.1",
        "::1",
        "::1:8500",
        "host:0",
        "host:70000",
        "host:port",
        "http://",
        "http://:8500",
        "ftp://host:1",
        "unix://relative",
        "unix:///a b",
        "http://host:1?x=1",
        "http://host:1#x",
        "http://[::1:8500",
        "http://a\nb:1",
        "x" * 2000 + ":1",
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """The message has the bounded value and shows how to write it."""
    with pytest.raises(UsageError, match="write it like") as caught:
        ConsulServer(address)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_password_in_the_address_is_refused_unseen() -> None:
    """Secrets are not allowed in an address, nor shown in the message about it."""
    with pytest.raises(UsageError, match="user name or password") as caught:
        ConsulServer("http://user:hunter2@host:8500")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("wait", [0.0, -1.0, 601.0, float("nan")])
def test_a_wait_that_consul_does_not_take_is_refused(wait: float) -> None:
    """Consul holds a query for ten minutes at most."""
    with pytest.raises(UsageError, match="cannot wait"):
        ConsulServer("127.0.0.1:8500", wait=wait)
