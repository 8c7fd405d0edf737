"""Members that move or are removed, from real Consul and real DNS to real connects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.clients import connecting, serving
from tests.support.consul import ConsulAgent
from tests.support.knot import KnotServer
from tests.support.pace import patient
from tests.support.process import free_port
from tests.support.sidecar import Sidecar, pool, sidecar, status, wait_for_pool
from tests.support.spares import loaded_instance
from tests.support.srv_web import VIP, WEB, resolver, serve, weighted

instance = loaded_instance

FOR_LONG: Final = ("--max-removal", "0", "--hold", "1h")
"""Every removal is held for longer than a test takes."""
SOON: Final = patient(2)
"""Seconds within which an immediate change of a pool shows in status."""
HOLD: Final = 4.0


def following(agent: ConsulAgent, *options: str) -> Sequence[str]:
    """Return the options that follow the service web."""
    return ["--consul", agent.url, "--service", f"web={VIP}:80", "--real-range", "127.0.0.0/8", *options]


def hosts(count: int) -> list[str]:
    """Return loopback addresses."""
    return [f"127.0.0.{host}" for host in range(1, count + 1)]


def at(port: int, count: int) -> dict[str, int]:
    """Return the pool of instances at one port."""
    return {f"{host}:{port}": 1 for host in hosts(count)}


def wait_until_status(found: Sidecar, address: str, expected: dict[str, int]) -> float:
    """Wait until status has this pool; return after how many seconds."""
    began = time.monotonic()
    found.wait_for(lambda: pool(found.instance, address) == expected, f"the pool is {expected}")
    return time.monotonic() - began


def put_on_node(agent: ConsulAgent, status_of_node: str, count: int) -> None:
    """Register instances of web on a node without an agent, with one check for the whole node."""
    check = {"CheckID": "alive", "Name": "the node is alive", "Node": "other", "Status": status_of_node}
    for number, host in enumerate(hosts(count), 1):
        service = {"ID": f"web-{number}", "Service": "web", "Address": host, "Port": 80}
        body = {"Node": "other", "Address": "127.0.0.9", "Service": service, "Check": check}
        agent.request("PUT", "/v1/catalog/register", body)


@pytest.mark.parametrize("count", [1, 10])
def test_instances_registered_again_at_another_port_refuse_no_connect(
    instance: str, cgroup: Path, tmp_path: Path, count: int
) -> None:
    """One instance, and ten: as soon as they are registered with a new port, no connect goes to the old one."""
    old, new = free_port(), free_port()
    with ConsulAgent(tmp_path) as agent, serving(new, tmp_path):

        def register(port: int) -> None:
            for number, host in enumerate(hosts(count)):
                agent.register("web", port, host, service_id=f"web-{number}")

        with serving(old, tmp_path):
            register(old)
            with sidecar(instance, cgroup, tmp_path, following(agent, *FOR_LONG)) as found:
                wait_for_pool(instance, VIP, at(old, count))
                clients = connecting(cgroup, 80, tmp_path, VIP, serve=False)
                connects = clients.__enter__()
                register(new)
                assert wait_until_status(found, VIP, at(new, count)) < SOON
        time.sleep(0.5)
        clients.__exit__(None, None, None)
    assert len(connects) > 100
    assert [connect for connect in connects if connect.error] == []


def test_node_that_dies_is_out_at_once(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Its check turns critical and removes two of three instances in one answer."""
    with ConsulAgent(tmp_path) as agent:
        put_on_node(agent, "passing", 2)
        agent.register("web", 80, "127.0.0.3")
        with sidecar(instance, cgroup, tmp_path, following(agent, *FOR_LONG)) as found:
            wait_for_pool(instance, VIP, at(80, 3))
            put_on_node(agent, "critical", 2)
            assert wait_until_status(found, VIP, {"127.0.0.3:80": 1}) < SOON
            assert status(instance)["sources"][0]["state"] == "fresh"
            put_on_node(agent, "passing", 2)
            wait_for_pool(instance, VIP, at(80, 3))


def test_instance_that_moves_and_fails_its_check_is_out_at_once(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A member that is critical while it starts at a new port gets no connects at the old one if others can serve."""
    with ConsulAgent(tmp_path) as agent:
        for number, host in enumerate(hosts(2)):
            agent.register("web", 80, host, service_id=f"web-{number}")
        with sidecar(instance, cgroup, tmp_path, following(agent, *FOR_LONG)) as found:
            wait_for_pool(instance, VIP, at(80, 2))
            check = {"CheckID": "started", "Name": "it has started", "TTL": "1h", "Status": "critical"}
            agent.register("web", 81, "127.0.0.1", service_id="web-0", Check=check)
            assert wait_until_status(found, VIP, {"127.0.0.2:80": 1}) < SOON
            agent.request("PUT", "/v1/agent/check/update/started", {"Status": "passing"})
            wait_for_pool(instance, VIP, {"127.0.0.1:81": 1, "127.0.0.2:80": 1})


def test_all_critical_are_served_for_the_hold(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """Critical servers are better than none; after the hold Consul is queried at once, and the pool becomes empty."""
    with ConsulAgent(tmp_path) as agent:
        put_on_node(agent, "passing", 3)
        with sidecar(instance, cgroup, tmp_path, following(agent, "--hold", f"{HOLD:g}s")) as found:
            wait_for_pool(instance, VIP, at(80, 3))
            began = time.monotonic()
            put_on_node(agent, "critical", 3)
            found.wait_for(lambda: status(instance)["sources"][0]["state"] == "held", "the removal is held")
            assert pool(instance, VIP) == at(80, 3)
            wait_for_pool(instance, VIP, {})
            assert HOLD <= time.monotonic() - began < HOLD + SOON


def test_target_with_another_address_is_replaced_at_once(
    instance: str, cgroup: Path, tmp_path: Path, knot: KnotServer
) -> None:
    """If an A record changes, its target is still the same member."""
    serve(knot, "127.0.0.1:80", "127.0.0.2:80")
    with sidecar(instance, cgroup, tmp_path, [*WEB, *resolver(knot), *FOR_LONG]):
        serve(knot, "127.0.0.3:80", "127.0.0.4:80")
        wait_for_pool(instance, VIP, weighted("127.0.0.3:80", "127.0.0.4:80"))
        assert status(instance)["sources"][0]["state"] == "fresh"
