"""Plain DNS names with the whole sidecar and real connects: changes, rotation, outages, and answers in part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from clb_discovery.model.service import RemovalPolicy
from clb_discovery.sources.dns.addresses import AddressSource
from clb_discovery.sources.dns.resolvers import Resolvers
from tests.support.clients import connecting, serving
from tests.support.dataplane import dial, refusal
from tests.support.fake_dns import FakeDns, Reply
from tests.support.in_process import running_daemon
from tests.support.knot import KnotServer
from tests.support.process import free_port, wait_until
from tests.support.sidecar import clb, pool, rejected, sidecar, status, wait_for_pool
from tests.support.spares import loaded_instance
from tests.support.srv_web import generations, resolver

instance = loaded_instance

VIP4: Final = "10.64.0.1"
VIP6: Final = "fd00:64::1"
NAME: Final = "db.example"
SOA: Final = "example. 1 SOA ns. admin. 1 3600 600 86400 1"


def records(*hosts: int, name: str = "db") -> str:
    """Return A records for 127.0.0.x."""
    return "\n".join(f"{name} A 127.0.0.{host}" for host in hosts)


def members(port: int, *hosts: int) -> dict[str, int]:
    """Return the pool of such records."""
    return {f"127.0.0.{host}:{port}": 1 for host in hosts}


def test_no_connect_fails_while_the_zone_changes(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Addresses come, go, are all replaced, rotate, and move behind a CNAME, while an application connects."""
    port = free_port()
    options = ["--dns", f"{NAME}:{port}={VIP4}:5432", "--hold", "1s", *resolver(knot)]
    knot.write(records(1, 2, 3))
    zones = [
        (records(2, 3, 4), (2, 3, 4)),
        (records(5, 6, 7), (5, 6, 7)),
        (f"db 1 CNAME db-2\n{records(7, 8, name='db-2')}", (7, 8)),
        (f"db 1 CNAME db-3.test.\n{records(7, 8, name='db-2')}", (9,)),
        (records(*range(20, 220)), tuple(range(20, 220))),
        (records(1), (1,)),
    ]
    knot.write(records(9, name="db-3"), "test")
    with serving(port, tmp_path), sidecar(instance, cgroup, tmp_path, options) as found:
        wait_for_pool(instance, VIP4, members(port, 1, 2, 3))
        with connecting(cgroup, 5432, tmp_path, VIP4, serve=False) as connects:
            rotated_publishes_nothing(instance, knot)
            for zone, hosts in zones:
                knot.write(zone)
                wait_for_pool(instance, VIP4, members(port, *hosts))
                time.sleep(0.2)
        assert {line["event"] for line in found.lines() if line["level"] != "info"} <= {"removal held"}
    reached = {connect.reached[-1] for connect in connects}
    assert len(connects) > 1000
    assert [connect for connect in connects if connect.error] == []
    assert reached >= {1, 2, 3, 4, 5, 6, 7, 8, 9}


def rotated_publishes_nothing(instance: str, knot: KnotServer) -> None:
    """Write the same addresses in another order, and wait for two more answers."""
    before = generations(instance)
    for order in ((3, 1, 2), (2, 3, 1)):
        knot.write(records(*order))
        wait_for_another_answer(instance)
    assert generations(instance) == before


def wait_for_another_answer(instance: str) -> None:
    """Wait until the source has answered again."""

    def answered() -> str:
        return str(status(instance)["sources"][0]["last_success"])

    before = answered()
    wait_until(lambda: answered() > before, "the name is queried again")


def test_vip_and_loopback_in_an_answer_are_no_real_servers(
    instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path
) -> None:
    """As from any source: a connect cannot be led in a circle, to this host, or to a group."""
    knot.write("\n".join(f"db A {host}" for host in (VIP4, "127.0.0.1", "0.0.0.0", "224.0.0.1", "10.0.0.1")))
    options = ["--dns", f"{NAME}:80={VIP4}", "--resolver", knot.address]
    with sidecar(instance, cgroup, tmp_path, options) as found:
        wait_for_pool(instance, VIP4, {"10.0.0.1:80": 1})
        assert rejected(found.lines()).keys() == {f"{VIP4}:80", "127.0.0.1:80", "0.0.0.0:80", "224.0.0.1:80"}
        (source,) = status(instance)["sources"]
        assert source["name"] == "dns:db.example:80"


def test_automatic_vip_has_the_first_label(instance: str, cgroup: Path, knot: KnotServer, tmp_path: Path) -> None:
    """Without a VIP the service gets one of each family for every port, and its name in the hosts file."""
    knot.write("db A 10.0.0.1\ndb AAAA fd00::1")
    hosts = tmp_path / "hosts"
    options = ["--dns", f"{NAME}:5432", "--resolver", knot.address, "--hosts-file", str(hosts)]
    with sidecar(instance, cgroup, tmp_path, options):
        servers = status(instance)["virtual_servers"]
    assert [(one["service"], one["port"], len(one["real_servers"])) for one in servers] == [("db", 0, 1)] * 2
    assert {one["address"] for one in servers} <= set(hosts.read_text().split())
    assert "db.clb" in hosts.read_text()


def test_check_and_plan_know_plain_names(instance: str, cgroup: Path, knot: KnotServer) -> None:
    """Both count the real servers, and `check` gives the reason why there are none."""
    knot.write("db A 10.0.0.1\ndb A 10.0.0.2\nsix AAAA fd00::1")
    place = ("--instance", instance, "--resolver", knot.address)
    good = clb("check", "--cgroup", cgroup, *place, "--dns", f"{NAME}:80={VIP4}:80")
    assert f"dns:{NAME}:80: 2 real servers at {VIP4}:80" in good.stdout
    for name, why in (
        ("none.example", "the name does not exist (NXDOMAIN)"),
        ("six.example", "the name has AAAA records only"),
        ("db.elsewhere", "A of db.elsewhere.: REFUSED"),
    ):
        bad = clb("check", "--cgroup", cgroup, *place, "--dns", f"{name}:80={VIP4}:80")
        assert bad.returncode != 0
        assert why in bad.stdout
    planned = clb("plan", *place, "--dns", f"{NAME}:80={VIP4}:80")
    assert planned.returncode == 2
    assert "10.0.0.2:80" in planned.stdout


class World:
    """A name server, the pools and the connects."""

    def __init__(self, server: FakeDns, instance: str, cgroup: Path, port: int) -> None:
        self.server = server
        self._instance = instance
        self._cgroup = cgroup
        self._port = port

    def reply(self, kind: str, *addresses: str, rcode: str = "NOERROR", silent: bool = False) -> None:
        """Set the answer for one type."""
        lines = [f"{NAME}. 1 {kind} {address}" for address in addresses]
        soa = [] if addresses else [SOA]
        self.server.replies[f"{NAME}.", kind] = Reply(lines, authority=soa, rcode=rcode, silent=silent)

    async def wait_for(self, ipv4: Iterable[str], ipv6: Iterable[str], state: str, words: str = "") -> None:
        """Wait until pools, and the state and the words of the source, are these."""
        wanted = (
            {f"{host}:{self._port}" for host in ipv4},
            {f"{host}:{self._port}" for host in ipv6},
        )  # as `pool` writes it

        def found() -> bool:
            source = next(iter(status(self._instance)["sources"]), {"state": "none yet"})
            pools = tuple(set(pool(self._instance, vip) or {}) for vip in (VIP4, VIP6))
            return (pools, source["state"], words in str(source)) == (wanted, state, True)

        await asyncio.to_thread(wait_until, found, f"the pools are {wanted}, and the source is {state}: {words}")

    async def dial(self) -> list[str]:
        """Connect to both VIPs; return each outcome once."""
        found = [await asyncio.to_thread(dial, self._cgroup, vip, 80, 20) for vip in (VIP4, VIP6)]
        return sorted({*found[0], *found[1]})


async def test_failures_in_part_and_in_full(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A family that fails stays; a whole outage changes nothing; an empty answer is held, and then counts."""
    port, hold = free_port(), 10.0
    async with FakeDns() as server:
        world = World(server, instance, cgroup, port)
        world.reply("A", "127.0.0.1", "127.0.0.2")
        world.reply("AAAA", "::1")
        source = AddressSource(NAME, port, Resolvers([server.address], lifetime=1.0))
        policy, vips = RemovalPolicy(hold=hold), (f"{VIP4}:80", f"[{VIP6}]:80")
        with serving(port, tmp_path):
            async with running_daemon(instance, cgroup, source, policy, vips=vips):
                both = ["127.0.0.1", "127.0.0.2"]
                await world.wait_for(both, ["::1"], "fresh")

                world.reply("AAAA", silent=True)
                world.reply("A", "127.0.0.2", "127.0.0.3")
                await world.wait_for(["127.0.0.2", "127.0.0.3"], ["::1"], "fresh", "AAAA of db.example.: no answer")
                assert await world.dial() == ["ok"]

                world.reply("AAAA", "::1")
                world.reply("A", rcode="SERVFAIL")
                await world.wait_for(["127.0.0.2", "127.0.0.3"], ["::1"], "fresh", "A of db.example.: SERVFAIL")
                assert await world.dial() == ["ok"]

                world.reply("AAAA", rcode="REFUSED")
                await world.wait_for(["127.0.0.2", "127.0.0.3"], ["::1"], "retrying", "A of db.example.: SERVFAIL")
                await asyncio.sleep(hold)
                assert await world.dial() == ["ok"]

                for kind in ("A", "AAAA"):
                    world.reply(kind, rcode="NXDOMAIN")
                await world.wait_for(["127.0.0.2", "127.0.0.3"], ["::1"], "held", "3 of 3 real servers absent")
                await world.wait_for([], [], "fresh")
                assert await world.dial() == [refusal()]

                world.reply("A", "127.0.0.1")
                world.reply("AAAA", "::1")
                await world.wait_for(["127.0.0.1"], ["::1"], "fresh")
                assert await world.dial() == ["ok"]
