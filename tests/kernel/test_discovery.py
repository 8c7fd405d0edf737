"""From real discovery to real connects: Consul, Knot and Consul's own DNS, with unmodified Redis clients."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.cgroups import run_inside
from tests.support.chisquare import p_value
from tests.support.consul import ConsulAgent
from tests.support.dataplane import refusal
from tests.support.knot import KnotServer
from tests.support.pace import effort
from tests.support.redis import RedisServer, redis_servers
from tests.support.sidecar import Sidecar, pool, rejected, sidecar, status, wait_for_pool
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP4: Final = "10.64.0.1"
VIP6: Final = "fd00:64::1"
VIPS: Final = f"{VIP4}:6379,[{VIP6}]:6379"
LOOPBACK: Final = ("--real-range", "127.0.0.0/8", "--real-range", "::1/128")
WEIGHTS: Final = (1, 3, 6)
CONNECTS: Final = effort(10_000, 1000)


class Backends:
    """Three Redis servers of each family."""

    def __init__(self, ipv4: list[RedisServer], ipv6: list[RedisServer]) -> None:
        self.ipv4 = ipv4
        self.ipv6 = ipv6

    def weighted(self) -> list[tuple[RedisServer, int]]:
        """Return every server with its weight."""
        return [*zip(self.ipv4, WEIGHTS, strict=True), *zip(self.ipv6, WEIGHTS, strict=True)]


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[Backends]:
    """Run the Redis servers."""
    with redis_servers(tmp_path, "127.0.0.1", "127.0.0.2", "127.0.0.3", "::1", "::1", "::1") as servers:
        yield Backends(servers[:3], servers[3:])


@contextmanager
def consul_sidecar(agent: ConsulAgent, instance: str, cgroup: Path, directory: Path) -> Iterator[Sidecar]:
    """Run a sidecar that follows the service redis of an agent."""
    options = ["--consul", agent.url, "--service", f"redis={VIPS}", *LOOPBACK]
    with sidecar(instance, cgroup, directory, options) as found:
        yield found


def register(agent: ConsulAgent, backends: Backends) -> list[str]:
    """Register every server with its weight; return the service ids."""
    return [
        agent.register("redis", server.port, server.host, weights=(weight, weight))
        for server, weight in backends.weighted()
    ]


def expected(servers: Sequence[RedisServer], weights: Sequence[int] = WEIGHTS) -> Mapping[str, int]:
    """Return the pool that status should report."""
    return {str(server): weight for server, weight in zip(servers, weights, strict=True)}


def hammer(cgroup: Path, vip: str, connects: int) -> None:
    """Make connects with an unmodified redis-benchmark that opens one for each request."""
    result = run_inside(
        cgroup,
        "redis-benchmark",
        "-h",
        vip,
        "-p",
        "6379",
        "-k",
        "0",
        "-c",
        "8",
        "-n",
        str(connects),
        "-t",
        "ping_mbulk",
    )
    assert result.returncode == 0, result.stderr
    assert "rror" not in result.stderr, result.stderr


def assert_in_proportion(cgroup: Path, vip: str, servers: Sequence[RedisServer]) -> None:
    """Make connects and compare their distribution with the weights; one run in a thousand gets a second sample."""
    for server in servers:
        server.take_connections()
    samples: list[list[int]] = []
    while not samples or (len(samples) < 2 and p_value(samples[-1], WEIGHTS) <= 0.001):
        hammer(cgroup, vip, CONNECTS)
        samples.append([server.take_connections() for server in servers])
        assert sum(samples[-1]) >= CONNECTS
    assert p_value(samples[-1], WEIGHTS) > 0.001, samples


def ask_each(cgroup: Path, vip: str, times: int = 120) -> set[str]:
    """Send requests with redis-cli, a process for each connect; return the ports of the servers that answered."""
    script = f"for i in $(seq {times}); do redis-cli -h {vip} config get port; done"
    result = run_inside(cgroup, "/bin/sh", "-c", script)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split()) - {"port"}


def ports(servers: Sequence[RedisServer]) -> set[str]:
    """Return the ports of servers as text."""
    return {str(server.port) for server in servers}


def test_consul_instances_are_reached_in_proportion(
    instance: str, cgroup: Path, tmp_path: Path, backends: Backends
) -> None:
    """Three weighted instances of each family in Consul get their shares of an unmodified client's connects."""
    with ConsulAgent(tmp_path) as agent:
        register(agent, backends)
        with consul_sidecar(agent, instance, cgroup, tmp_path):
            for vip, servers in ((VIP4, backends.ipv4), (VIP6, backends.ipv6)):
                assert pool(instance, vip) == expected(servers)
                assert ask_each(cgroup, vip) == ports(servers)
                assert_in_proportion(cgroup, vip, servers)


def test_consul_changes_are_followed(instance: str, cgroup: Path, tmp_path: Path, backends: Backends) -> None:
    """A critical check or a deregistration removes an instance; passing again or a new weight brings it back."""
    with ConsulAgent(tmp_path) as agent:
        ids = register(agent, backends)
        with consul_sidecar(agent, instance, cgroup, tmp_path):
            agent.set_status(ids[0], "critical")
            wait_for_pool(instance, VIP4, expected(backends.ipv4[1:], WEIGHTS[1:]))
            assert ask_each(cgroup, VIP4) == ports(backends.ipv4[1:])

            agent.set_status(ids[0], "passing")
            wait_for_pool(instance, VIP4, expected(backends.ipv4))
            agent.deregister(ids[2])
            wait_for_pool(instance, VIP4, expected(backends.ipv4[:2], WEIGHTS[:2]))
            assert ask_each(cgroup, VIP4) <= ports(backends.ipv4[:2])

            agent.register("redis", backends.ipv4[0].port, backends.ipv4[0].host, weights=(7, 7), service_id=ids[0])
            wait_for_pool(instance, VIP4, expected(backends.ipv4[:2], (7, 3)))
            assert pool(instance, VIP6) == expected(backends.ipv6)


def test_stopped_and_restarted_consul_changes_nothing(
    instance: str, cgroup: Path, tmp_path: Path, backends: Backends
) -> None:
    """While Consul is down, and when it is back with the same services, the pools are not touched."""
    with ConsulAgent(tmp_path, persistent=True) as agent:
        register(agent, backends)
        with consul_sidecar(agent, instance, cgroup, tmp_path) as found:
            before = [server["generation"] for server in status(instance)["virtual_servers"]]
            agent.stop()
            found.wait_for(lambda: status(instance)["sources"][0]["state"] == "retrying", "the source is retrying")
            failing = status(instance)["sources"][0]
            assert agent.url in failing["error"]
            assert failing["last_success"] is not None
            assert ask_each(cgroup, VIP4) == ports(backends.ipv4)
            agent.start()
            found.wait_for(lambda: status(instance)["sources"][0]["state"] == "fresh", "the source is fresh again")
            assert [server["generation"] for server in status(instance)["virtual_servers"]] == before
            assert ask_each(cgroup, VIP6) == ports(backends.ipv6)


def test_forbidden_instances_in_consul_are_refused(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Instances with addresses that are not allowed stay out, and other instances of the same service are used.

    Consul accepts all of these addresses except the unspecified one.
    """
    with ConsulAgent(tmp_path) as agent:
        for address in ("224.0.0.1", "255.255.255.255", "169.254.0.1", VIP4, "127.0.0.1", "10.0.0.1"):
            body = {"Service": "redis", "ID": address, "Address": address, "Port": 6379}
            agent.register_external("outside", "10.0.0.254", body)
        options = ["--consul", agent.url, "--service", f"redis={VIP4}:6379", "--real-range", "10.0.0.0/8"]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            wait_for_pool(instance, VIP4, {"10.0.0.1:6379": 1})
            assert len(rejected(found.lines())) == 5


def zone(servers: Sequence[tuple[RedisServer, int]]) -> str:
    """Return SRV records, every second target behind a CNAME."""
    lines = []
    for number, (server, weight) in enumerate(servers):
        kind = "AAAA" if ":" in server.host else "A"
        lines.append(f"_redis._tcp SRV 0 {weight} {server.port} s{number}")
        lines.append(f"s{number} CNAME h{number}" if number % 2 else f"s{number} {kind} {server.host}")
        lines.append(f"h{number} {kind} {server.host}")
    return "\n".join(lines)


def test_srv_targets_are_reached_in_proportion(instance: str, cgroup: Path, tmp_path: Path, backends: Backends) -> None:
    """SRV targets of both families, some behind a CNAME, get their shares; edits of the zone are followed."""
    with KnotServer() as knot:
        knot.write(zone(backends.weighted()))
        options = ["--srv", f"_redis._tcp.example={VIPS}", "--resolver", knot.address, *LOOPBACK]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            for vip, servers in ((VIP4, backends.ipv4), (VIP6, backends.ipv6)):
                assert pool(instance, vip) == expected(servers)
                assert ask_each(cgroup, vip) == ports(servers)
                assert_in_proportion(cgroup, vip, servers)

            fewer = [(server, 10 * weight) for server, weight in backends.weighted()[1:]]
            knot.write(zone(fewer))
            wait_for_pool(instance, VIP4, expected(backends.ipv4[1:], (30, 60)))
            wait_for_pool(instance, VIP6, expected(backends.ipv6, (10, 30, 60)))
            assert ask_each(cgroup, VIP4) == ports(backends.ipv4[1:])

            before = [server["generation"] for server in status(instance)["virtual_servers"]]
            knot.stop()
            found.wait_for(lambda: status(instance)["sources"][0]["state"] == "retrying", "the source is retrying")
            assert ask_each(cgroup, VIP4) == ports(backends.ipv4[1:])
            knot.start()
            found.wait_for(lambda: status(instance)["sources"][0]["state"] == "fresh", "the source is fresh again")
            assert [server["generation"] for server in status(instance)["virtual_servers"]] == before


def test_large_srv_answer_is_complete(instance: str, cgroup: Path, tmp_path: Path, backends: Backends) -> None:
    """An SRV answer of more than 4 kB comes over TCP and is used in full."""
    server = backends.ipv4[0]
    many = "\n".join(
        f"_redis._tcp SRV 0 1 {server.port} a-target-with-a-name-of-some-length-{number}\n"
        f"a-target-with-a-name-of-some-length-{number} A 127.1.0.{number}"
        for number in range(1, 201)
    )
    with KnotServer() as knot:
        knot.write(many)
        options = ["--srv", f"_redis._tcp.example={VIP4}:6379", "--resolver", knot.address, *LOOPBACK]
        with sidecar(instance, cgroup, tmp_path, options):
            assert pool(instance, VIP4) == {f"127.1.0.{number}:{server.port}": 1 for number in range(1, 201)}


def test_consul_dns_is_followed(instance: str, cgroup: Path, tmp_path: Path, backends: Backends) -> None:
    """Consul's own DNS, whose answers have TTL 0, gives the same pools as its HTTP interface, without extra writes."""
    with ConsulAgent(tmp_path) as agent:
        ids = register(agent, backends)
        options = ["--srv", f"redis.service.consul={VIPS}", "--resolver", f"127.0.0.1:{agent.dns_port}", *LOOPBACK]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            for vip, servers in ((VIP4, backends.ipv4), (VIP6, backends.ipv6)):
                assert pool(instance, vip) == expected(servers)
                assert_in_proportion(cgroup, vip, servers)
            published = [line for line in found.lines() if line["event"] == "pool published"]
            assert len(published) == 2, published
            agent.set_status(ids[0], "critical")
            wait_for_pool(instance, VIP4, expected(backends.ipv4[1:], WEIGHTS[1:]))


def test_mapped_address_is_balanced(instance: str, cgroup: Path, tmp_path: Path, backends: Backends) -> None:
    """An IPv6 socket that connects to the IPv4-mapped VIP reaches the IPv4 pool, as in dual-stack programs."""
    with KnotServer() as knot:
        knot.write(zone(backends.weighted()))
        options = ["--srv", f"_redis._tcp.example={VIPS}", "--resolver", knot.address, *LOOPBACK]
        with sidecar(instance, cgroup, tmp_path, options):
            assert ask_each(cgroup, f"::ffff:{VIP4}") == ports(backends.ipv4)


def test_empty_family_refuses_while_the_other_serves(
    instance: str, cgroup: Path, tmp_path: Path, backends: Backends
) -> None:
    """A service with only IPv6 servers refuses on its IPv4 VIP, at once, and serves on its IPv6 VIP."""
    with KnotServer() as knot:
        knot.write(zone(backends.weighted()[3:]))
        options = ["--srv", f"_redis._tcp.example={VIPS}", "--resolver", knot.address, *LOOPBACK]
        with sidecar(instance, cgroup, tmp_path, options):
            refused = run_inside(cgroup, "redis-cli", "-h", VIP4, "ping")
            assert os.strerror(getattr(errno, refusal())) in refused.stderr + refused.stdout
            assert ask_each(cgroup, VIP6) == ports(backends.ipv6)
            by_address = {server["address"]: server for server in status(instance)["virtual_servers"]}
            assert by_address[VIP4]["refused"] >= 1  # redis-cli retries
            assert by_address[VIP4]["connects"] == 0
            assert by_address[VIP6]["connects"] == 120
