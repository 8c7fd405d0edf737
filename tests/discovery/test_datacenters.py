"""A pool of three parts: two real Consul datacenters, joined over their WAN, and DNS."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

import pytest

from tests.support.cgroups import made_cgroup
from tests.support.consul import ConsulAgent
from tests.support.datacenters import datacenters
from tests.support.dataplane import dial, wipe
from tests.support.knot import KnotServer
from tests.support.listeners import Listener, listening
from tests.support.process import wait_until
from tests.support.sidecar import pool, sidecar, status

pytestmark = pytest.mark.discovery

VIP: Final = "10.64.0.1"
LOCAL, REMOTE, DNS = "consul:web", "consul:web?dc=dc2", "srv:_web._tcp.example"


def state(instance: str, source: str) -> str:
    """Return the state of a source."""
    return next(str(one["state"]) for one in status(instance)["sources"] if one["name"] == source)


def test_connects_go_from_one_part_to_the_next_and_back() -> None:
    """The local servers turn critical, then the other datacenter is gone, then its server is; and all come back."""
    instance = f"test-{uuid4().hex[:8]}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        cgroup = stack.enter_context(made_cgroup())
        stack.callback(wipe, instance)
        here, there = stack.enter_context(datacenters(folder)).agents
        knot = stack.enter_context(KnotServer())
        one, last = stack.enter_context(listening("127.0.0.1", "127.0.0.3"))
        far = stack.enter_context(ExitStack())
        (two,) = far.enter_context(listening("127.0.0.2"))
        local = here.register("web", one.port, "127.0.0.1")
        there.register("web", two.port, "127.0.0.2")
        knot.write(f"_web._tcp SRV 0 1 {last.port} s\ns A 127.0.0.3")
        config = folder / "clb.toml"
        config.write_text(
            f'consul = "{here.url}"\nresolver = "{knot.address}"\nreal-range = "127.0.0.0/8"\n'
            f'[[service]]\nname = "web"\nvip = "{VIP}:80"\n'
            'from = [{ consul = "web" }, { consul = "web", datacenter = "dc2", priority = 1 },'
            ' { srv = "_web._tcp.example", priority = 2 }]\n'
        )

        def serves(server: Listener, failures: int = 0) -> None:
            """Check that connects go to one server, after at most a few that fail."""
            results = dial(cgroup, VIP, 80, 50)
            assert results.count("ok") >= 50 - failures, results
            taken = {listener.name: listener.taken() for listener in (one, last)}
            assert {name for name, count in taken.items() if count} == {server.name} & taken.keys()

        with sidecar(instance, cgroup, folder, ["--config", str(config)]) as found:
            everything = {server.name: 1 for server in (one, two, last)}
            wait_until(lambda: pool(instance, VIP) == everything, "all parts are there")
            serves(one)
            here.set_status(local, "critical")
            wait_until(lambda: pool(instance, VIP) == {two.name: 1, last.name: 1}, "the local part is empty")
            serves(two)
            here.set_status(local, "passing")
            wait_until(lambda: pool(instance, VIP) == everything, "the local part is back")
            there.kill()
            wait_until(lambda: state(instance, REMOTE) == "retrying", "status names the other datacenter")
            assert pool(instance, VIP) == everything
            assert (state(instance, LOCAL), state(instance, DNS)) == ("fresh", "fresh")
            serves(one)
            here.set_status(local, "critical")
            wait_until(lambda: pool(instance, VIP) == {two.name: 1, last.name: 1}, "local changes still arrive")
            serves(two)
            far.close()
            serves(last, failures=3)
            here.set_status(local, "passing")
            wait_until(lambda: pool(instance, VIP) == everything, "the local part is back")
            serves(one)
            assert found.events().count("ready") == 1


def test_an_unknown_datacenter_is_an_error_of_its_part() -> None:
    """The other part is served, and the sidecar is ready without it."""
    instance = f"test-{uuid4().hex[:8]}"
    with made_cgroup() as cgroup, TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with ConsulAgent(folder) as agent, listening("127.0.0.1") as (one,):
                agent.register("web", one.port, "127.0.0.1")
                (folder / "clb.toml").write_text(
                    f'consul = "{agent.url}"\nreal-range = "127.0.0.0/8"\n[[service]]\nname = "web"\nvip = "{VIP}:80"\n'
                    'from = [{ consul = "web" }, { consul = "web", datacenter = "nowhere", priority = 1 }]\n'
                )
                with sidecar(instance, cgroup, folder, ["--config", str(folder / "clb.toml")]):
                    assert dial(cgroup, VIP, 80, 20) == ["ok"] * 20
                    reason = {one["name"]: one["reason"] for one in status(instance)["sources"]}
                    assert reason["consul:web"] is None
                    assert "No path to datacenter" in str(reason["consul:web?dc=nowhere"])
        finally:
            wipe(instance)
