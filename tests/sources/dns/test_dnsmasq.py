"""The SRV source with a real dnsmasq, which refuses AAAA queries, and hides that Consul trims its answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from clb_discovery.model.address import format_address
from clb_discovery.sources.dns.resolvers import Resolvers
from clb_discovery.sources.dns.srv import SrvSource
from tests.support.consul import ConsulAgent
from tests.support.dnsmasq import dnsmasq

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
