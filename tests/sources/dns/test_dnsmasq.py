"""The sources of DNS with a real dnsmasq, which refuses AAAA queries, and hides that Consul trims its answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from clb_discovery.model.address import format_address
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.consul import ConsulAgent
from tests.support.dnsmasq import dnsmasq
from tests.support.knot import KnotServer

NAME = "_redis._tcp.example"
RECORDS = ("--host-record=a.example,10.0.0.1", f"--srv-host={NAME},a.example,6379,1,2", "--local-ttl=9")


async def test_refused_aaaa_does_not_hurt_a_service_with_ipv4_vips(tmp_path: Path) -> None:
    """Dnsmasq refuses AAAA of a name that has only an A record: without IPv6 VIPs it is not queried or reported."""
    with dnsmasq(tmp_path, *RECORDS) as port:
        answer = await SrvSource(NAME, Resolvers([f"127.0.0.1:{port}"]), families=(True,)).next()

    assert [str(server) for server in answer.servers] == ["10.0.0.1:6379"]
    assert (answer.unread, answer.left_out, answer.note) == ((), (), None)


async def test_refused_aaaa_does_not_hurt_the_other_family(tmp_path: Path) -> None:
    """With VIPs of both families the IPv4 servers count, and a note explains why there are no others."""
    with dnsmasq(tmp_path, *RECORDS) as port:
        answer = await SrvSource(NAME, Resolvers([f"127.0.0.1:{port}"])).next()

    assert [str(server) for server in answer.servers] == ["10.0.0.1:6379"]
    assert [(one.identity, one.is_ipv4) for one in answer.unread] == [("a.example.", False)]
    assert "AAAA of a.example.: REFUSED" in str(answer.note)


async def test_consul_behind_a_forwarder_is_whole(tmp_path: Path) -> None:
    """Consul trims answers to the forwarder over UDP; over TCP the forwarder passes all 60 instances, each time."""
    with ConsulAgent(tmp_path) as agent, dnsmasq(tmp_path, f"--server=/consul/127.0.0.1#{agent.dns_port}") as port:
        for number in range(60):
            agent.register("redis", 7000 + number, f"10.0.0.{number + 1}")
        one = SrvSource("_redis._tcp.service.consul", Resolvers([f"127.0.0.1:{port}"]), 0.05, families=(True,))
        async with asyncio.timeout(60):
            while len((answer := await one.next()).servers) < 60:
                pass
        later = [await one.next() for _ in range(10)]

    assert {format_address(server.address) for server in answer.servers} == {f"10.0.0.{i + 1}" for i in range(60)}
    assert [len(answer.servers) for answer in later] == [60] * 10
    assert all(answer.out == () for answer in later)


async def test_refused_aaaa_does_not_hurt_a_plain_name(tmp_path: Path) -> None:
    """The IPv4 addresses count, and a note explains why there are no others."""
    with dnsmasq(tmp_path, *RECORDS) as port:
        answer = await AddressSource("a.example", 6379, Resolvers([f"127.0.0.1:{port}"])).next()

    assert [str(server) for server in answer.servers] == ["10.0.0.1:6379"]
    assert [one.is_ipv4 for one in answer.unread] == [False]
    assert "AAAA of a.example.: REFUSED" in str(answer.note)


async def test_rotating_answers_of_a_cache_are_one_answer(tmp_path: Path) -> None:
    """A caching forwarder rotates the addresses from one answer to the next, and counts their TTL down."""
    with KnotServer() as knot, dnsmasq(tmp_path, f"--server=127.0.0.1#{knot.port}", "--cache-size=100") as port:
        knot.write("\n".join(f"db A 10.0.0.{number}" for number in range(1, 21)), ttl=30)
        resolvers = Resolvers([f"127.0.0.1:{port}"])
        one = AddressSource("db.example", 80, resolvers, 0.02, 0.02, families=(True,))
        answers = [await one.next() for _ in range(30)]

    assert len(answers[0].servers) == 20
    assert answers == [answers[0]] * 30


async def test_consul_name_behind_a_forwarder_is_whole(tmp_path: Path) -> None:
    """Consul trims the addresses of a service over UDP, too; over TCP all 60 are there, each time."""
    with ConsulAgent(tmp_path) as agent, dnsmasq(tmp_path, f"--server=/consul/127.0.0.1#{agent.dns_port}") as port:
        for number in range(60):
            agent.register("redis", 6379, f"10.0.0.{number + 1}")
        one = AddressSource("redis.service.consul", 6379, Resolvers([f"127.0.0.1:{port}"]), 0.05, families=(True,))
        async with asyncio.timeout(60):
            while len((await one.next()).servers) < 60:
                pass
        later = [await one.next() for _ in range(10)]

    assert [len(answer.servers) for answer in later] == [60] * 10
