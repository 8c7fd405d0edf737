"""Pools of several parts on the real kernel: shares, failover and its way back, and starts without discovery."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tests.support.chisquare import p_value
from tests.support.consul import ConsulAgent
from tests.support.dataplane import dial
from tests.support.knot import KnotServer
from tests.support.listeners import Listener, listening
from tests.support.process import wait_until
from tests.support.sidecar import clb, pool, sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP: Final = "10.64.0.1"
RANGE: Final = 'real-range = ["127.0.0.0/8"]\n'
CONNECTS: Final = 20_000
CHANCE: Final = 1e-6
"""A fair split is less likely than this once in a million times."""


def table(*parts: str, vip: str = f"{VIP}:80") -> str:
    """Return the table of a service with these parts."""
    return f'{RANGE}[[service]]\nname = "web"\nvip = "{vip}"\nfrom = [{", ".join(parts)}]\n'


def static(servers: Sequence[Listener], more: str) -> str:
    """Return a static part."""
    names = ", ".join(f'"{server.name}"' for server in servers)
    return f"{{ servers = [{names}], {more} }}"


def parts(instance: str) -> list[dict[str, Any]]:
    """Return the parts that `status` shows."""
    (virtual,) = status(instance)["virtual_servers"]
    found: list[dict[str, Any]] = virtual["parts"]
    return found


def sources(instance: str) -> list[str]:
    """Return the states of the sources."""
    return [one["state"] for one in status(instance)["sources"]]


def connects(instance: str) -> list[int]:
    """Return how many connects each part has had since its servers joined."""
    (virtual,) = status(instance)["virtual_servers"]
    counts = [0] * len(virtual["parts"])
    for real in virtual["real_servers"]:
        counts[real["part"]] += real["connects"]
    return counts


def test_connects_are_split_by_shares_however_many_servers_a_part_has(
    instance: str, cgroup: Path, config: Path
) -> None:
    """90 to 10 with three servers and one, with three and thirty, and all for the other part when one is empty."""
    hosts = [f"127.0.1.{number}" for number in range(1, 34)]
    with listening(*hosts, udp=True) as servers, ExitStack() as stack:
        first, second = servers[:3], servers[3:]
        sizes = (1, 30)
        config.write_text(table(static(first, "share = 90"), static(second[:1], "share = 10"), vip=f"{VIP}:80/udp"))
        found = stack.enter_context(sidecar(instance, cgroup, config.parent, ["--config", str(config)]))
        before = [0, 0]
        for size in sizes:
            config.write_text(
                table(static(first, "share = 90"), static(second[:size], "share = 10"), vip=f"{VIP}:80/udp")
            )
            found.reload()
            wait_until(lambda size=size: parts(instance)[1]["real_servers"] == size, "the part has its servers")  # type: ignore[misc]
            assert [round(part["target_share"], 9) for part in parts(instance)] == [0.9, 0.1]
            assert set(dial(cgroup, VIP, 80, CONNECTS, udp=True)) == {"ok"}
            now = connects(instance)
            split = [count - earlier for count, earlier in zip(now, before, strict=True)]
            assert sum(split) == CONNECTS
            assert p_value(split, (90, 10)) > CHANCE, split
            before = now
        config.write_text(table(static(first, "share = 90"), static((), "share = 10"), vip=f"{VIP}:80/udp"))
        found.reload()
        wait_until(lambda: parts(instance)[1]["real_servers"] == 0, "the part is empty")
        assert [part["target_share"] for part in parts(instance)] == [1.0, 0.0]
        assert (
            "no real servers of its own, its share goes to the others" in clb("status", "--instance", instance).stdout
        )


def test_connects_follow_the_parts_there_and_back(instance: str, cgroup: Path, config: Path) -> None:
    """Servers of the first part turn critical and end; no connect after the publication fails; they come back."""
    directory = config.parent
    with ConsulAgent(directory) as agent, listening("127.0.0.1", "127.0.0.2", "127.0.0.3") as (one, two, last):
        ids = [agent.register("web", server.port, f"127.0.0.{host}") for host, server in ((1, one), (2, two))]
        config.write_text(f'consul = "{agent.url}"\n' + table('{ consul = "web" }', static([last], "priority = 1")))
        with sidecar(instance, cgroup, directory, ["--config", str(config)]) as found:
            wait_until(lambda: len(pool(instance, VIP) or ()) == 3, "both parts are there")
            assert dial(cgroup, VIP, 80, 50) == ["ok"] * 50
            assert (one.taken() + two.taken(), last.taken()) == (50, 0)
            for server in ids:
                agent.set_status(server, "critical")
            wait_until(lambda: pool(instance, VIP) == {last.name: 1}, "critical servers are out at once")
            assert [part["real_servers"] for part in parts(instance)] == [0, 1]
            assert dial(cgroup, VIP, 80, 50) == ["ok"] * 50
            assert (one.taken() + two.taken(), last.taken()) == (0, 50)
            assert {source["state"] for source in status(instance)["sources"]} == {"fresh"}
            agent.set_status(ids[0], "passing")
            wait_until(lambda: len(pool(instance, VIP) or ()) == 2, "a server is back")
            assert dial(cgroup, VIP, 80, 50) == ["ok"] * 50
            assert (one.taken(), two.taken(), last.taken()) == (50, 0, 0)
            assert {"part has no real servers", "part has real servers again"} <= set(found.events())


def test_an_outage_of_one_source_is_one_of_its_part(instance: str, cgroup: Path, config: Path) -> None:
    """DNS is down: its part keeps its servers, also over a restart, and changes of the other part still arrive."""
    config_of = table('{ srv = "_web._tcp.example", share = 1 }', '{ srv = "_new._tcp.test", share = 3 }')
    with ExitStack() as stack:
        knot = stack.enter_context(KnotServer({"example": "", "test": ""}))
        one, two, three = stack.enter_context(listening("127.0.0.1", "127.0.0.2", "127.0.0.3"))
        options = ["--config", str(config), "--min-ttl", "100ms", "--max-ttl", "100ms"]
        knot.write(f"_web._tcp SRV 0 5 {one.port} s\ns A 127.0.0.1")
        knot.write(f"_new._tcp SRV 7 1 {two.port} s\ns A 127.0.0.2", zone="test")
        config.write_text(f'resolver = "{knot.address}"\n' + config_of)
        before = {one.name: 5, two.name: 1}
        with sidecar(instance, cgroup, config.parent, options) as found:
            wait_until(lambda: pool(instance, VIP) == before, "both parts are there, each in a tier of its own")
            knot.purge("test")
            knot.write(
                f"_web._tcp SRV 0 5 {one.port} s\n_web._tcp SRV 0 5 {three.port} t\ns A 127.0.0.1\nt A 127.0.0.3"
            )
            after = {one.name: 5, three.name: 5, two.name: 1}
            wait_until(lambda: pool(instance, VIP) == after, "the other part has changed")
            knot.stop()
            wait_until(lambda: all(one["stale"] for one in status(instance)["sources"]), "both sources fail")
            assert pool(instance, VIP) == after
            found.kill()
        with sidecar(instance, cgroup, config.parent, options) as found:
            states = {source["name"]: source["stale"] for source in status(instance)["sources"]}
            assert states == {"srv:_web._tcp.example": True, "srv:_new._tcp.test": True}
            assert pool(instance, VIP) == after
            assert [part["real_servers"] for part in parts(instance)] == [2, 1]
            assert dial(cgroup, VIP, 80, 20) == ["ok"] * 20


def test_a_reload_with_other_parts_empties_nothing(instance: str, cgroup: Path, config: Path) -> None:
    """Parts behind a silent one end no hold; new parts, of which one fails and one is empty, replace nothing."""
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        silent.bind(("127.0.0.1", 0))
        agent = stack.enter_context(ConsulAgent(config.parent))
        first, second, last = stack.enter_context(listening(*["127.0.0.1"] * 3))
        head = f'consul = "{agent.url}"\nresolver = "127.0.0.1:{silent.getsockname()[1]}"\n'
        names = [agent.register("web", one.port, "127.0.0.1") for one in (first, second)]
        config.write_text(head + table('{ consul = "web" }'))
        found = stack.enter_context(sidecar(instance, cgroup, config.parent, ["--config", str(config)]))
        wait_until(lambda: len(pool(instance, VIP) or ()) == 2, "it has servers")
        for name in names:
            agent.set_status(name, "critical")
        found.wait_for(lambda: "removal held" in found.events(), "they are held")
        unknown = '{ srv = "_web._tcp.example", priority = 1 }'
        config.write_text(head + table('{ consul = "web" }', unknown, static([last], "priority = 2")))
        found.reload()
        while pool(instance, VIP) != {last.name: 1}:
            assert set(dial(cgroup, VIP, 80, 5)) == {"ok"}
        config.write_text(head + table('{ consul = "nobody" }', '{ srv = "_other._tcp.example" }'))
        found.reload()
        found.wait_for(lambda: sources(instance) == ["fresh", "retrying"], "one is empty, and one fails")
        assert set(dial(cgroup, VIP, 80, 20)) == {"ok"}
        assert pool(instance, VIP) == {last.name: 1}


def test_after_a_restart_all_members_are_in_the_tier_of_their_records(
    instance: str, cgroup: Path, config: Path
) -> None:
    """Members that the first answer lacks are held, and get no more than their share."""
    hosts = [f"127.0.0.{number}" for number in range(1, 6)]
    with KnotServer() as knot, ConsulAgent(config.parent) as agent, listening(*hosts) as servers:
        records = [f"_web._tcp SRV 10 5 {one.port} t{at}\nt{at} A 127.0.0.{at}" for at, one in enumerate(servers, 1)]
        knot.write("\n".join(records))
        more = table('{ srv = "_web._tcp.example" }', '{ consul = "web" }')
        config.write_text(f'consul = "{agent.url}"\nresolver = "{knot.address}"\nmax-ttl = "1s"\n{more}')
        with sidecar(instance, cgroup, config.parent, ["--config", str(config)]) as found:
            wait_until(lambda: len(pool(instance, VIP) or ()) == 5, "it has servers")
            found.kill()
        knot.write("\n".join(records[:2]))
        with sidecar(instance, cgroup, config.parent, ["--config", str(config)]) as found:
            found.wait_for(lambda: "removal held" in found.events(), "they are held")
            wait_until(lambda: sources(instance)[0] == "held", "it is told")
            shares = [one["target_share"] for one in status(instance)["virtual_servers"][0]["real_servers"]]
            assert [round(share, 3) for share in shares] == [0.2] * 5


def test_plan_and_check_show_parts(instance: str, config: Path) -> None:
    """`plan` has the parts with their shares; a part without an answer is a note there, and a failure of `check`."""
    with KnotServer() as knot, listening("127.0.0.1", "127.0.0.2") as (one, two):
        knot.write(f"_web._tcp SRV 0 1 {one.port} s\ns A 127.0.0.1")
        head = f'resolver = "{knot.address}"\n'
        config.write_text(head + table('{ srv = "_web._tcp.example", share = 9 }', static([two], "share = 1")))
        planned = clb("plan", "--instance", instance, "--config", config)
        assert planned.returncode == 2, planned.stderr
        assert "part 0  srv:_web._tcp.example  share 9  1 real server in tier 0  90.0% of connects" in planned.stdout
        assert "part 1  static:web  share 1  1 real server in tier 0  10.0% of connects" in planned.stdout
        checked = clb("check", "--instance", instance, "--config", config)
        assert "srv:_web._tcp.example: part of web, priority 0, share 9: 1 real server\n" in checked.stdout
        assert "2 real servers at 10.64.0.1:80" in checked.stdout
        knot.stop()
        planned = clb("plan", "--instance", instance, "--config", config)
        assert planned.returncode == 2, planned.stderr
        assert "web: srv:_web._tcp.example does not answer, so its real servers stay as they are" in planned.stdout
        assert "FAIL  srv:_web._tcp.example" in clb("check", "--instance", instance, "--config", config).stdout
