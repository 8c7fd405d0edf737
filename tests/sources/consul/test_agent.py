"""The Consul source with the real Consul."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clb_discovery.errors import SourceError
from clb_discovery.model.address import Address, parse_address
from clb_discovery.model.answer import Answer, OptIn
from clb_discovery.model.servers import RealServer, pools
from clb_discovery.model.service import Service
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.desired import desired
from clb_discovery.sources.base import Source
from clb_discovery.sources.consul.blocking import WAIT
from clb_discovery.sources.consul.client import OWN, Scope, Selection
from clb_discovery.sources.consul.server import DIRECT, LOCAL, ConsulServer
from clb_discovery.sources.consul.source import ConsulCatalog, ConsulSource, server_from_environment
from tests.support.consul import ACL_DENY, MASTER_TOKEN, ConsulAgent, make_tls
from tests.support.faulty_consul import FaultyConsul

SOON = 5.0
"""Seconds within which a change must arrive."""


def endpoint(address: str, port: int) -> tuple[Address, int]:
    """Return an endpoint."""
    return parse_address(address), port


def real_server(address: str, port: int, weight: int = 1) -> RealServer:
    """Return a real server of the first tier."""
    return RealServer(0, parse_address(address), port, weight)


async def until(source: ConsulSource, *expected: RealServer) -> None:
    """Follow the source until it returns exactly these real servers."""

    async def follow() -> None:
        while sorted((await source.next()).servers) != sorted(expected):
            pass

    await asyncio.wait_for(follow(), SOON)


async def refusal(source: Source) -> str:
    """Return the message of the SourceError that `next` raises."""
    with pytest.raises(SourceError) as caught:
        await asyncio.wait_for(source.next(), SOON)
    return str(caught.value)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """One agent in development mode for all tests that only register their own services."""
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as running:
        yield running


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., ConsulServer]]:
    """Return a function like ConsulServer; the servers that it made are closed at the end."""
    made: list[ConsulServer] = []

    def make(address: str, token: str | None = None, scope: Scope = OWN, wait: float = WAIT) -> ConsulServer:
        made.append(ConsulServer(address, token, scope, wait=wait))
        return made[-1]

    yield make
    for server in made:
        await server.close()


async def test_instances_of_both_families_with_their_weights(
    agent: ConsulAgent, connect: Callable[..., ConsulServer]
) -> None:
    """Address, port and weight arrive as registered; an instance without its own address has that of the node."""
    agent.register("plain", 31001, "10.0.0.1", weights=(10, 1))
    agent.register("plain", 31002, "fd00::2", weights=(3, 1))
    agent.register("plain", 31003, "10.0.0.3")
    agent.register("plain", 31004)
    agent.register_external("far", "10.7.7.7", {"Service": "plain", "Port": 31005})
    await until(
        ConsulSource(connect(agent.url), "plain"),
        real_server("10.0.0.1", 31001, 10),
        real_server("fd00::2", 31002, 3),
        real_server("10.0.0.3", 31003),
        real_server("127.0.0.1", 31004),
        real_server("10.7.7.7", 31005),
    )


async def test_health_decides_who_serves(agent: ConsulAgent, connect: Callable[..., ConsulServer]) -> None:
    """A warning has its own weight, possibly 0; critical and maintenance take an instance out until it passes again."""
    one = agent.register("health", 1, "10.0.0.1", weights=(10, 2))
    two = agent.register("health", 2, "10.0.0.2", weights=(5, 0))
    source = ConsulSource(connect(agent.url), "health")
    await until(source, real_server("10.0.0.1", 1, 10), real_server("10.0.0.2", 2, 5))
    agent.set_status(one, "warning")
    await until(source, real_server("10.0.0.1", 1, 2), real_server("10.0.0.2", 2, 5))
    agent.set_status(two, "warning")
    await until(source, real_server("10.0.0.1", 1, 2))
    agent.set_status(one, "critical")
    await until(source)
    agent.set_status(one, "passing")
    agent.set_status(two, "passing")
    await until(source, real_server("10.0.0.1", 1, 10), real_server("10.0.0.2", 2, 5))
    agent.set_maintenance(two, enable=True)
    await until(source, real_server("10.0.0.1", 1, 10))
    agent.set_maintenance(two, enable=False)
    await until(source, real_server("10.0.0.1", 1, 10), real_server("10.0.0.2", 2, 5))
    agent.request("PUT", "/v1/agent/maintenance?enable=true")
    await until(source)
    agent.request("PUT", "/v1/agent/maintenance?enable=false")
    await until(source, real_server("10.0.0.1", 1, 10), real_server("10.0.0.2", 2, 5))


async def test_a_deregistered_instance_is_gone(agent: ConsulAgent, connect: Callable[..., ConsulServer]) -> None:
    """Deregistering removes an instance; after the last one there is a real empty answer."""
    one, two = agent.register("leaving", 1, "10.0.0.1"), agent.register("leaving", 2, "10.0.0.2")
    source = ConsulSource(connect(agent.url), "leaving")
    await until(source, real_server("10.0.0.1", 1), real_server("10.0.0.2", 2))
    agent.deregister(one)
    await until(source, real_server("10.0.0.2", 2))
    agent.deregister(two)
    await until(source)


async def test_news_arrive_at_once_and_silence_is_waited_out(
    agent: ConsulAgent, connect: Callable[..., ConsulServer]
) -> None:
    """A blocking query returns with the change, not at the end of its wait; without a change it takes the full wait."""
    agent.register("news", 1, "10.0.0.1")
    source = ConsulSource(connect(agent.url), "news")
    await until(source, real_server("10.0.0.1", 1))
    waiting = asyncio.create_task(until(source, real_server("10.0.0.1", 1), real_server("10.0.0.2", 2)))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    agent.register("news", 2, "10.0.0.2")
    started = time.monotonic()
    await waiting
    assert time.monotonic() - started < 1.0

    quiet = ConsulSource(connect(agent.url, wait=0.5), "quiet")
    agent.register("quiet", 1, "10.0.0.1")
    await until(quiet, real_server("10.0.0.1", 1))
    await asyncio.sleep(0.2)
    await quiet.next()
    started = time.monotonic()
    await quiet.next()
    assert time.monotonic() - started >= 0.45


@pytest.mark.parametrize("service", ["we ird", "sla/sh", "que?ry", "per%cent", "käse", "..."])
async def test_strange_service_names_are_found(
    agent: ConsulAgent, connect: Callable[..., ConsulServer], service: str
) -> None:
    """Every name that Consul accepts is queried by exactly that name."""
    agent.register(service, 1, "10.0.0.1", service_id=f"strange-{service.encode().hex()}")
    await until(ConsulSource(connect(agent.url), service), real_server("10.0.0.1", 1))


async def again(source: ConsulSource) -> Answer:
    """Return the current answer of the source."""
    source.hasten()
    return await asyncio.wait_for(source.next(), SOON)


UNUSABLE: list[dict[str, Any]] = [
    {"port": 0},
    {"address": "http://10.1.1.1"},
    {"address": "10.1.1.1:8080"},
    {"address": "10.1.1.1 "},
    {"address": "$(id)"},
    {"address": "10.1.1.1\n10.1.1.2"},
    {"address": "fe80::1%lo"},
    {"address": "10.1.1"},
    {"service_id": "line\nbreak \x1b[31m", "address": "x y"},
    {"service_id": "x" * 500, "address": "x" * 500},
]


@pytest.mark.parametrize("bad", UNUSABLE, ids=str)
async def test_an_unusable_registration_is_left_out_alone(
    agent: ConsulAgent, connect: Callable[..., ConsulServer], bad: dict[str, Any]
) -> None:
    """An unusable instance is reported and does not affect the others; if it is the only one, that is an error."""
    name = f"unusable-{UNUSABLE.index(bad)}"
    registered: dict[str, Any] = {"port": 3, "address": "10.0.0.3", "service_id": f"{name}-bad"} | bad
    agent.register(name, **registered)
    first = agent.register(name, 1, "10.0.0.1")
    second = agent.register(name, 2, "10.0.0.2")
    source = ConsulSource(connect(agent.url), name)
    await until(source, real_server("10.0.0.1", 1), real_server("10.0.0.2", 2))
    answer = await again(source)
    (report,) = map(str, answer.left_out)
    assert report.isprintable()
    assert len(report) < 500
    assert repr(registered["service_id"][:20])[:-1] in report
    assert answer.identities == {
        endpoint("10.0.0.1", 1): f"test/{first}",
        endpoint("10.0.0.2", 2): f"test/{second}",
    }
    agent.deregister(first)
    await until(source, real_server("10.0.0.2", 2))
    agent.set_status(second, "critical")
    await until(source)
    assert (await again(source)).out == (endpoint("10.0.0.2", 2),)
    agent.deregister(second)
    message = await refusal(source)
    assert report in message
    agent.register(name, 4, "10.0.0.4")
    await until(source, real_server("10.0.0.4", 4))


async def test_who_moves_and_who_is_out_is_named(agent: ConsulAgent, connect: Callable[..., ConsulServer]) -> None:
    """Identities stay when a port or an address changes; a critical check, also of the node, takes the instance out."""
    one = agent.register("moves", 1, "10.0.0.1", service_id="one")
    agent.register("moves", 2, "10.0.0.2", service_id="two")
    source = ConsulSource(connect(agent.url), "moves")
    await until(source, real_server("10.0.0.1", 1), real_server("10.0.0.2", 2))
    agent.register("moves", 11, "10.0.0.1", service_id="one")
    agent.register("moves", 2, "10.0.0.22", service_id="two")
    await until(source, real_server("10.0.0.1", 11), real_server("10.0.0.22", 2))
    identities = {endpoint("10.0.0.1", 11): "test/one", endpoint("10.0.0.22", 2): "test/two"}
    assert (await again(source)).identities == identities
    agent.set_maintenance(one, enable=True)
    await until(source, real_server("10.0.0.22", 2))
    assert (await again(source)).out == (endpoint("10.0.0.1", 11),)
    agent.request("PUT", "/v1/agent/maintenance?enable=true")
    await until(source)
    agent.request("PUT", "/v1/agent/maintenance?enable=false")
    agent.set_maintenance(one, enable=False)
    await until(source, real_server("10.0.0.1", 11), real_server("10.0.0.22", 2))


@pytest.mark.parametrize("direct", [DIRECT, 0])
async def test_a_hastened_source_asks_the_leader_at_once(agent: ConsulAgent, direct: int) -> None:
    """With a blocking query of its own or without, a hastened source cuts its wait, and the leader answers at once."""
    service = f"hastened-{direct}"
    async with FaultyConsul(agent, service) as consul:
        await consul.publish(frozenset({1}))
        server = ConsulServer(consul.url, limits=LOCAL._replace(direct=direct))
        source = ConsulSource(server, service)
        await source.next()
        source.hasten()  # while no call waits
        await asyncio.wait_for(source.next(), SOON)
        for _ in range(3):
            waiting = asyncio.create_task(source.next())
            await asyncio.wait((waiting,), timeout=1)
            if waiting.done():  # at first the whole catalog is new
                continue
            started, asked = time.monotonic(), len(consul.queries)
            source.hasten()
            answer = await asyncio.wait_for(waiting, SOON)
            assert time.monotonic() - started < 1
            assert len(answer.servers) == 1
            assert [query for _, query in consul.queries[asked:]] == [{"consistent": ""}]
        assert [set(query) for _, query in consul.queries].count({"consistent"}) >= 2
        waiting = asyncio.create_task(source.next())
        await asyncio.wait((waiting,), timeout=0.5)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await server.close()


async def test_a_hastened_catalog_asks_the_leader_at_once(agent: ConsulAgent) -> None:
    """A hastened catalog cuts its wait, and the leader answers at once."""
    async with FaultyConsul(agent, "any") as consul:
        server = ConsulServer(consul.url)
        catalog = ConsulCatalog(server)
        await catalog.next()
        waiting = asyncio.create_task(catalog.next())
        await asyncio.wait((waiting,), timeout=1)
        assert not waiting.done()
        asked = len(consul.queries)
        catalog.hasten()
        await asyncio.wait_for(waiting, SOON)
        queries = [(path, query) for path, query in consul.queries[asked:] if not path.endswith("/authorize")]
        assert [path for path, _ in queries] == ["/v1/catalog/services", "/v1/internal/ui/services"]
        assert all("consistent" in query and "index" not in query for _, query in queries)
        await server.close()


async def test_another_datacenter_that_nobody_knows_is_an_error(
    agent: ConsulAgent, connect: Callable[..., ConsulServer]
) -> None:
    """A datacenter without a path to it is an error, not an empty answer."""
    assert "No path to datacenter" in await refusal(ConsulSource(connect(agent.url, None, Scope("nowhere")), "plain"))


async def test_services_without_a_query_of_their_own_are_followed(tmp_path: Path) -> None:
    """A service without a blocking query gets changes of health, weights, instances and node checks at once."""
    with ConsulAgent(tmp_path) as own:
        names = [f"service-{number}" for number in range(DIRECT + 1)]
        ids = [own.register(name, 1, "10.0.0.1") for name in names]
        server = ConsulServer(own.url)
        sources = [ConsulSource(server, name) for name in names]
        for source in sources:
            await until(source, real_server("10.0.0.1", 1))
        waiting = [asyncio.create_task(source.next()) for source in sources[:DIRECT]]
        await asyncio.sleep(0.5)
        last, name, one = sources[-1], names[-1], ids[-1]

        own.set_status(one, "critical")
        await until(last)
        own.set_status(one, "passing")
        await until(last, real_server("10.0.0.1", 1))
        own.register(name, 1, "10.0.0.1", service_id=one, weights=(9, 1))
        await until(last, real_server("10.0.0.1", 1, 9))
        two = own.register(name, 2, "10.0.0.2")
        await until(last, real_server("10.0.0.1", 1, 9), real_server("10.0.0.2", 2))
        own.deregister(two)
        await until(last, real_server("10.0.0.1", 1, 9))
        own.register(name, 3, "10.0.0.3", Tags=["blue"])
        await until(last, real_server("10.0.0.1", 1, 9), real_server("10.0.0.3", 3))
        await until(ConsulSource(server, name, Selection(tags=("blue",))), real_server("10.0.0.3", 3))
        assert not any(task.done() for task in waiting)
        own.request("PUT", "/v1/agent/maintenance?enable=true")
        await until(last)
        answers = await asyncio.wait_for(asyncio.gather(*waiting), SOON)
        assert not any(answer.servers for answer in answers)
        await server.close()


async def test_a_restart_loses_nothing(tmp_path: Path, connect: Callable[..., ConsulServer]) -> None:
    """While the agent is down there are errors and no answer; when it is back, the first answer is complete."""
    with ConsulAgent(tmp_path, persistent=True) as own:
        own.register("redis", 1, "10.0.0.1")
        own.register("redis", 2, "10.0.0.2")
        both = {real_server("10.0.0.1", 1), real_server("10.0.0.2", 2)}
        source = ConsulSource(connect(own.url), "redis")
        await until(source, *both)
        seen: list[Answer | str] = []

        async def watch() -> None:
            while not seen or isinstance(seen[-1], str) or len(seen[-1].servers) < 3:
                try:
                    seen.append(await source.next())
                except SourceError as error:
                    seen.append(str(error))
                    await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        await asyncio.to_thread(own.restart)
        back = len(seen)
        own.register("redis", 3, "10.0.0.3")
        await asyncio.wait_for(watching, SOON)
    assert any("cannot be reached: Connection refused" in str(one) for one in seen[:back])
    assert all(both <= set(one.servers) for one in seen if isinstance(one, Answer))


async def test_a_token_without_rights_is_an_error(tmp_path: Path, connect: Callable[..., ConsulServer]) -> None:
    """Consul 1.8 returns an empty list to a token without rights; that is an error, and so is an unknown token."""
    with ConsulAgent(tmp_path, config=ACL_DENY, token=MASTER_TOKEN) as own:
        own.register("redis", 1, "10.0.0.1")
        good = ConsulSource(connect(own.url, MASTER_TOKEN), "redis")
        await until(good, real_server("10.0.0.1", 1))
        assert (await ConsulSource(connect(own.url, MASTER_TOKEN), "nobody").next()).servers == ()

        message = await refusal(ConsulSource(connect(own.url), "redis"))
        assert "may not read every service and node" in message
        assert "service:read and node:read" in message

        message = await refusal(ConsulSource(connect(own.url, "0f0e0d0c-unknown"), "redis"))
        assert "returned 403 'ACL not found'" in message
        assert "0f0e0d0c" not in message

        rules = 'service "redis" { policy = "read" }'
        own.request("PUT", "/v1/acl/policy", {"Name": "service-only", "Rules": rules})
        token = own.request("PUT", "/v1/acl/token", {"Policies": [{"Name": "service-only"}]})["SecretID"]
        narrow = ConsulSource(connect(own.url, token), "redis")
        assert "may not read every node" in await refusal(narrow)
        policy = own.request("GET", "/v1/acl/policy/name/service-only")
        policy["Rules"] = rules + ' node_prefix "" { policy = "read" }'
        own.request("PUT", f"/v1/acl/policy/{policy['ID']}", policy)
        await until(ConsulSource(connect(own.url, token), "redis"), real_server("10.0.0.1", 1))


async def test_the_catalog_lists_what_may_opt_in(agent: ConsulAgent, connect: Callable[..., ConsulServer]) -> None:
    """Names appear and disappear with meta and tags of any instance; proxies of Connect are recognised by Kind."""
    catalog = ConsulCatalog(connect(agent.url))
    before = (await catalog.next()).names
    proxy: dict[str, object] = {"SidecarService": {}}

    async def until_listed(*names: str) -> None:
        async with asyncio.timeout(SOON):
            while (await catalog.next()).names - before != set(names):
                pass

    agent.register("by-meta", 1, "10.0.0.1", Meta={"clb-vip": "auto"}, Connect=proxy)
    await until_listed("by-meta")
    agent.register("by-meta", 2, "10.0.0.2")
    agent.register("by-tag", 1, "10.0.0.1", Tags=["x", "clb.vip=10.64.0.1"])
    agent.register("bare", 1, "10.0.0.1", Tags=["clb"])
    await until_listed("by-meta", "by-tag", "bare")
    agent.deregister("by-meta-10.0.0.1-1")
    agent.deregister("bare-10.0.0.1-1")
    await until_listed("by-tag")
    answer = await asyncio.wait_for(catalog.service("by-tag").next(), SOON)
    assert answer.servers == (real_server("10.0.0.1", 1),)
    assert answer.opt_in == OptIn((parse_vip("10.64.0.1"),))


async def test_a_catalog_that_a_token_may_not_see_is_an_error(
    tmp_path: Path, connect: Callable[..., ConsulServer]
) -> None:
    """Consul shows no service to one token, and no meta to another; in both cases no service would seem to opt in."""
    with ConsulAgent(tmp_path, config=ACL_DENY, token=MASTER_TOKEN) as own:
        own.register("redis", 1, "10.0.0.1", Meta={"clb-vip": "auto"})
        assert "listed no service at all: the token lacks rights" in await refusal(ConsulCatalog(connect(own.url)))
        rules = 'service_prefix "" { policy = "read" }'
        own.request("PUT", "/v1/acl/policy", {"Name": "services", "Rules": rules})
        token = own.request("PUT", "/v1/acl/token", {"Policies": [{"Name": "services"}]})["SecretID"]
        message = await refusal(ConsulCatalog(connect(own.url, token)))
        assert "may not read every node" in message
        policy = own.request("GET", "/v1/acl/policy/name/services")
        policy["Rules"] = rules + ' node_prefix "" { policy = "read" }'
        own.request("PUT", f"/v1/acl/policy/{policy['ID']}", policy)
        assert (await ConsulCatalog(connect(own.url, token)).next()).names == {"redis"}


async def test_https_with_client_certificates(tmp_path: Path) -> None:
    """Authority, client certificate and server name come from the variables of the consul command line."""
    tls = make_tls(tmp_path)
    good = {"CONSUL_HTTP_ADDR": f"127.0.0.1:{tls.port}", "CONSUL_HTTP_SSL": "true", **tls.client}
    without = {
        "CONSUL_CACERT": {"CONSUL_CACERT": ""},
        "a client certificate": {"CONSUL_CLIENT_CERT": "", "CONSUL_CLIENT_KEY": ""},
        "the server's name": {"CONSUL_TLS_SERVER_NAME": "other.example"},
    }
    with ConsulAgent(tmp_path, config=tls.config) as own:
        own.register("redis", 1, "10.0.0.1")
        server = server_from_environment(None, good)
        await until(ConsulSource(server, "redis"), real_server("10.0.0.1", 1))
        await server.close()
        for change in without.values():
            server = server_from_environment(None, good | change)
            assert f"Consul at https://127.0.0.1:{tls.port} " in await refusal(ConsulSource(server, "redis"))
            await server.close()
        server = server_from_environment(None, good | without["CONSUL_CACERT"] | {"CONSUL_HTTP_SSL_VERIFY": "false"})
        await until(ConsulSource(server, "redis"), real_server("10.0.0.1", 1))
        await server.close()


async def test_only_the_instances_asked_for(agent: ConsulAgent, connect: Callable[..., ConsulServer]) -> None:
    """A filter and tags select instances; with several tags an instance needs all of them."""
    agent.register("chosen", 1, "10.0.0.1", Tags=["blue", "v1"], Meta={"zone": "a b"})
    agent.register("chosen", 2, "10.0.0.2", Tags=["blue"], Meta={"zone": "c"})
    agent.register("chosen", 3, "10.0.0.3", Tags=["v1"])
    server = connect(agent.url, None, Scope("dc1"))
    first, second, third = (real_server(f"10.0.0.{number}", number) for number in (1, 2, 3))
    for selection, expected in (
        (Selection(), [first, second, third]),
        (Selection(tags=("blue",)), [first, second]),
        (Selection(tags=("blue", "v1")), [first]),
        (Selection(filter='Service.Meta.zone == "a b"'), [first]),
        (Selection(filter='"v1" in Service.Tags', near="_agent"), [first, third]),
        (Selection(tags=("green",)), []),
    ):
        await until(ConsulSource(server, "chosen", selection), *expected)


@pytest.mark.parametrize(
    ("scope", "selection", "complaint"),
    [
        (Scope(), Selection(filter="Nonsense =="), "Failed to create boolean expression evaluator"),
        (Scope(), Selection(filter="Service.Colour == red"), "Selector"),
        (Scope(namespace="other"), Selection(), "Enterprise"),
    ],
)
async def test_a_query_that_consul_does_not_take_is_an_error(
    agent: ConsulAgent, connect: Callable[..., ConsulServer], scope: Scope, selection: Selection, complaint: str
) -> None:
    """A bad filter, or a namespace without Consul Enterprise, is an error with Consul's message, not an empty list."""
    message = await refusal(ConsulSource(connect(agent.url, None, scope), "plain", selection))
    assert complaint in message
    assert "--filter" in message


async def test_tagged_addresses_on_request(agent: ConsulAgent, connect: Callable[..., ConsulServer]) -> None:
    """The tagged address of the given name, with its own port, replaces the instance's address if there is one."""
    tagged = {"wan": {"Address": "198.51.100.1", "Port": 8001}}
    agent.register("tagged", 1, "10.0.0.1", TaggedAddresses=tagged)
    agent.register("tagged", 2, "10.0.0.2")
    plain = [real_server("10.0.0.1", 1), real_server("10.0.0.2", 2)]
    await until(ConsulSource(connect(agent.url), "tagged"), *plain)
    wan = Selection(tagged_address="wan")
    public = [real_server("198.51.100.1", 8001), real_server("10.0.0.2", 2)]
    await until(ConsulSource(connect(agent.url), "tagged", wan), *public)


async def test_two_ids_with_one_endpoint_are_one_real_server(
    agent: ConsulAgent, connect: Callable[..., ConsulServer]
) -> None:
    """Two IDs may have the same address and port; the desired state has it once, with the greater weight."""
    agent.register("twice", 80, "10.0.0.1", service_id="twice-a", weights=(2, 1))
    agent.register("twice", 80, "10.0.0.1", service_id="twice-b", weights=(5, 1))
    source = ConsulSource(connect(agent.url), "twice")
    await until(source, real_server("10.0.0.1", 80, 2), real_server("10.0.0.1", 80, 5))
    vip = parse_vip("10.64.0.1:80")
    known = {source.name: pools([real_server("10.0.0.1", 80, 2), real_server("10.0.0.1", 80, 5)])}
    built = desired([Service("twice", source.name, (vip,))], known, [])
    assert built.virtual[vip].pool == (real_server("10.0.0.1", 80, 5),)


async def test_every_way_to_write_where_the_agent_is(tmp_path: Path) -> None:
    """CONSUL_HTTP_ADDR reaches the real agent as an IPv6 literal, as a Unix socket and with http://."""
    config: dict[str, object] = {"addresses": {"http": f"127.0.0.1 ::1 unix://{tmp_path}/consul.sock"}}
    with ConsulAgent(tmp_path, config=config) as own:
        own.register("redis", 1, "10.0.0.1")
        for address in (
            f"[::1]:{own.http_port}",
            f"http://[::1]:{own.http_port}/",
            f"unix://{tmp_path}/consul.sock",
            f"localhost:{own.http_port}",
            own.url,
        ):
            server = server_from_environment(None, {"CONSUL_HTTP_ADDR": address})
            await until(ConsulSource(server, "redis"), real_server("10.0.0.1", 1))
            await server.close()
