"""Zones on the real kernel with a real Consul: connects stay in the own zone while it can take them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.chisquare import p_value
from tests.support.consul import ACL_DENY, MASTER_TOKEN, ConsulAgent
from tests.support.dataplane import dial
from tests.support.listeners import Listener, listening
from tests.support.moody import moody_servers
from tests.support.process import wait_until
from tests.support.sidecar import clb, pool, sidecar, status
from tests.support.sockets import socket_maker
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP: Final = "10.64.0.1"
CONNECTS: Final = 20_000
UNLIKELY: Final = 1e-6
"""A fair split is less likely once in a million times."""
SIZES: Final = {"eu-1a": 5, "eu-1b": 3, "eu-1c": 2}
RIGHTS: Final = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'


def register(agent: ConsulAgent, servers: Sequence[Listener], zone: str | None, name: str = "web") -> list[str]:
    """Register servers in a zone; return their ids."""
    meta = {} if zone is None else {"zone": zone}
    return [agent.register(name, one.port, one.name.rpartition(":")[0], Meta=meta) for one in servers]


@contextmanager
def zones_of_servers(sizes: Mapping[str, int]) -> Iterator[dict[str, list[Listener]]]:
    """Listen with servers in each zone, over UDP."""
    hosts = [f"127.0.1.{number}" for number in range(1, 1 + sum(sizes.values()))]
    with listening(*hosts, udp=True) as servers:
        rest = iter(servers)
        yield {zone: [next(rest) for _ in range(size)] for zone, size in sizes.items()}


def write(config: Path, agent: ConsulAgent, *lines: str, udp: bool = True) -> list[str]:
    """Write a configuration with these lines at the top; return the options that name it."""
    vip = f"{VIP}:80/udp" if udp else f"{VIP}:80"
    head = [f'consul = "{agent.url}"', 'real-range = ["127.0.0.0/8"]', *lines]
    config.write_text("\n".join([*head, f'[[service]]\nname = "web"\nconsul = "web"\nvip = "{vip}"\n']))
    return ["--config", str(config)]


def virtual(instance: str) -> dict[str, Any]:
    """Return the virtual server."""
    (found,) = status(instance)["virtual_servers"]
    return dict(found)


def zones(instance: str) -> dict[str | None, float]:
    """Return the share of connects that each zone should get now."""
    return {zone["zone"]: round(zone["target_share"], 9) for zone in virtual(instance).get("zones", [])}


def connects(instance: str) -> dict[str, int]:
    """Return the connects of each real server."""
    return {f"{one['address']}:{one['port']}": one["connects"] for one in virtual(instance)["real_servers"]}


def grown(instance: str, cgroup: Path, count: int) -> dict[str, int]:
    """Connect so many times; return how many connects each real server got."""
    before = connects(instance)
    assert set(dial(cgroup, VIP, 80, count, udp=True)) == {"ok"}
    found = {name: number - before[name] for name, number in connects(instance).items()}
    assert sum(found.values()) == count
    return found


def test_all_connects_stay_in_a_zone_whose_servers_are_usable(instance: str, cgroup: Path, config: Path) -> None:
    """Three zones of unequal size: a hundred thousand connects, and none leaves the own zone, the smallest one."""
    sizes = {"eu-1a": 3, "eu-1b": 4, "eu-1c": 6}
    with ConsulAgent(config.parent) as agent, zones_of_servers(sizes) as servers:
        for zone, some in servers.items():
            register(agent, some, zone)
        with sidecar(instance, cgroup, config.parent, write(config, agent, 'zone = "eu-1a"')):
            wait_until(lambda: len(pool(instance, VIP) or ()) == 13, "all are there")
            assert zones(instance) == {"eu-1a": 1.0, "eu-1b": 0.0, "eu-1c": 0.0}
            assert {(one["zone"], one["priority"]) for one in virtual(instance)["real_servers"]} == {
                ("eu-1a", 0),
                ("eu-1b", 1),
                ("eu-1c", 1),
            }
            found = grown(instance, cgroup, 100_000)
            own = [found[one.name] for one in servers["eu-1a"]]
            assert sum(own) == 100_000
            assert p_value(own, [1] * len(own)) > UNLIKELY
            shown = clb("status", "--instance", instance).stdout
            assert "zone eu-1a (own)  3 real servers in tier 0  100.0% of connects" in shown


def test_a_zone_that_loses_its_servers_one_by_one(instance: str, cgroup: Path, config: Path) -> None:
    """Five servers become critical one after the other: the rest spills by the rule, and comes back with them."""
    with ConsulAgent(config.parent) as agent, zones_of_servers(SIZES) as servers:
        ids = {zone: register(agent, some, zone) for zone, some in servers.items()}
        with sidecar(instance, cgroup, config.parent, write(config, agent, 'zone = "eu-1a"')) as found:
            wait_until(lambda: len(pool(instance, VIP) or ()) == 10, "all are there")
            own, others = servers["eu-1a"], [*servers["eu-1b"], *servers["eu-1c"]]
            for lost, kept in ((1, 1.0), (2, 0.84), (3, 0.56), (4, 1 / 6), (5, 0.0)):
                agent.set_status(ids["eu-1a"][lost - 1], "critical")
                found.wait_for(lambda lost=lost: len(pool(instance, VIP) or ()) == 10 - lost, f"{lost} are out")  # type: ignore[misc]
                found.wait_for(lambda kept=kept: zones(instance)["eu-1a"] == round(kept, 9), f"it keeps {kept}")  # type: ignore[misc]
                split = grown(instance, cgroup, CONNECTS)
                weights = {one.name: kept / (5 - lost) for one in own[lost:]}
                weights |= {one.name: (1 - kept) / 5 for one in others}
                used = {name: weight for name, weight in weights.items() if weight}
                assert all(split[name] == 0 for name in weights.keys() - used.keys())
                assert p_value([split[name] for name in used], list(used.values())) > UNLIKELY, split
            for service in ids["eu-1a"]:
                agent.set_status(service, "passing")
            found.wait_for(lambda: zones(instance)["eu-1a"] == 1.0, "the zone has its servers again")


def test_ejected_servers_count_as_lost_and_a_restart_keeps_the_tiers(instance: str, cgroup: Path, config: Path) -> None:
    """Two of four refuse: 70 % stay. A restart publishes nothing, with or without Consul; then they come back."""
    directory = config.parent
    with ExitStack() as stack:
        agent = stack.enter_context(ConsulAgent(directory))
        near = stack.enter_context(moody_servers(*["127.0.0.1"] * 4))
        far = stack.enter_context(listening("127.0.0.2", "127.0.0.3"))
        for number, one in enumerate(near):
            agent.register("web", one.target[1], one.target[0], service_id=f"near-{number}", Meta={"zone": "eu-1a"})
        register(agent, far, "eu-1b")
        agent.register("web", 9, "127.0.0.9", Meta={"zone": "eu-1b"}, status="critical")
        options = [*write(config, agent, 'zone = "eu-1a"', udp=False), "--state-dir", str(directory / "state")]
        maker = stack.enter_context(socket_maker(cgroup))
        with sidecar(instance, cgroup, directory, options) as found:
            wait_until(lambda: len(pool(instance, VIP) or ()) == 6, "all are there")
            generation = virtual(instance)["generation"]
            for one in near[:2]:
                one.refuse()

            def spilled() -> bool:
                maker.dial((VIP, 80), 20)
                return zones(instance) == {"eu-1a": 0.7, "eu-1b": 0.3}

            found.wait_for(spilled, "both are ejected, and the others take the rest")
            assert virtual(instance)["generation"] > generation
            wait_until(lambda: "eu-1b" in (directory / "state" / f"{instance}.json").read_text(), "it is kept on disk")
            plan = clb("plan", "--instance", instance, *options[:2])
            assert (plan.returncode, plan.stdout) == (0, "no changes\n"), plan.stderr
            generation = virtual(instance)["generation"]
            found.stop()
        with sidecar(instance, cgroup, directory, options) as found:
            assert (virtual(instance)["generation"], zones(instance)["eu-1a"]) == (generation, 0.7)
            found.stop()
        agent.stop()
        with sidecar(instance, cgroup, directory, options) as found:
            assert virtual(instance)["generation"] == generation
            assert zones(instance) == {"eu-1a": 0.7, "eu-1b": 0.3}
            assert maker.dial((VIP, 80), 100).count("ok") >= 97  # a connect may probe where an ejection is over
            for one in near[:2]:
                one.accept()
            found.wait_for(lambda: zones(instance) == {"eu-1a": 1.0, "eu-1b": 0.0}, "the zone keeps all again")
            assert found.events().count("pool published") <= 4  # at first, with the ejections, and with each return


def test_auto_is_the_node_meta_of_the_agent(instance: str, cgroup: Path, config: Path) -> None:
    """Instances without a zone of their own are in that of their node; a restart without Consul keeps the zone."""
    directory, meta = config.parent, {"node_meta": {"zone": "eu-1b"}}
    with ConsulAgent(directory, config=meta) as agent, zones_of_servers({"node": 2, "eu-1a": 2}) as servers:
        register(agent, servers["node"], None)
        register(agent, servers["eu-1a"], "eu-1a")
        options = [*write(config, agent, 'zone = "auto"'), "--state-dir", str(directory / "state")]
        with sidecar(instance, cgroup, directory, options) as found:
            wait_until(lambda: zones(instance) == {"eu-1b": 1.0, "eu-1a": 0.0}, "the zone is that of the agent")
            assert status(instance)["zone"] == {"name": "eu-1b", "auto": True, "error": None}
            assert [line["zone"] for line in found.lines() if line["event"] == "zone of this host"] == ["eu-1b"]
            split = grown(instance, cgroup, 100)
            assert sum(split[one.name] for one in servers["node"]) == 100
            checked = clb("check", "--instance", instance, *options[:2]).stdout
            assert "zone of this host: eu-1b\n" in checked
            kept = directory / "state" / f"{instance}.json"
            wait_until(lambda: kept.exists() and json.loads(kept.read_text()).get("zone") == "eu-1b", "it is kept")
        generation = virtual(instance)["generation"]
        agent.stop()
        with sidecar(instance, cgroup, directory, options) as found:
            assert (virtual(instance)["generation"], zones(instance)["eu-1b"]) == (generation, 1.0)
            found.wait_for(lambda: bool(status(instance)["zone"]["error"]), "the agent does not answer")
            assert status(instance)["zone"]["name"] == "eu-1b"


def test_auto_without_the_right(instance: str, cgroup: Path, config: Path) -> None:
    """Without agent:read pools do not follow zones, and one sentence says why; with it they do, without a restart."""
    directory = config.parent
    extra = {**ACL_DENY, "node_meta": {"zone": "eu-1a"}}
    with (
        ConsulAgent(directory, config=extra, token=MASTER_TOKEN) as agent,
        zones_of_servers({"eu-1a": 2, "eu-1b": 2}) as servers,
    ):
        for zone, some in servers.items():
            register(agent, some, zone)
        policy = agent.request("PUT", "/v1/acl/policy", {"Name": "web", "Rules": RIGHTS})
        token = agent.request("PUT", "/v1/acl/token", {"Policies": [{"Name": "web"}]})["SecretID"]
        (directory / "token").write_text(token)
        options = [*write(config, agent, 'zone = "auto"'), "--consul-token-file", str(directory / "token")]
        reason = "does not return the zone of this host: the token lacks agent:read"
        with sidecar(instance, cgroup, directory, options) as found:
            wait_until(lambda: len(pool(instance, VIP) or ()) == 4, "all are there")
            assert (zones(instance), {*(pool(instance, VIP) or {}).values()}) == ({}, {1})
            assert reason in status(instance)["zone"]["error"]
            shown = clb("status", "--instance", instance).stdout
            assert "pools do not follow zones" in shown
            assert reason in shown
            assert reason in clb("check", "--instance", instance, *options).stdout
            policy["Rules"] = f'{RIGHTS} agent_prefix "" {{ policy = "read" }}'
            agent.request("PUT", f"/v1/acl/policy/{policy['ID']}", policy)
            found.process.send_signal(signal.SIGHUP)
            found.wait_for(lambda: zones(instance) == {"eu-1a": 1.0, "eu-1b": 0.0}, "the zone is read")
            assert status(instance)["zone"] == {"name": "eu-1a", "auto": True, "error": None}
            assert "zone of this host cannot be read" in found.events()


def test_services_that_opt_in_follow_zones(instance: str, cgroup: Path, config: Path) -> None:
    """Catalog mode: the same key of the meta, and the same rule."""
    with ConsulAgent(config.parent) as agent, zones_of_servers({"eu-1a": 3, "eu-1b": 2}) as servers:
        ids = []
        for zone, some in servers.items():
            for one in some:
                meta = {"zone": zone, "clb-vip": f"{VIP}:80/udp"}
                ids.append(agent.register("web", one.port, one.name.rpartition(":")[0], Meta=meta))
        options = ["--consul", agent.url, "--vip-range", "10.64.0.0/16", "--real-range", "127.0.0.0/8"]
        with sidecar(instance, cgroup, config.parent, [*options, "--zone", "eu-1a"]) as found:
            wait_until(lambda: len(pool(instance, VIP) or ()) == 5, "all are there")
            assert zones(instance) == {"eu-1a": 1.0, "eu-1b": 0.0}
            agent.set_status(ids[0], "critical")
            found.wait_for(lambda: zones(instance)["eu-1a"] == round(14 / 15, 9), "one of three is critical")


def test_zones_of_networks_for_static_servers_and_reloads(instance: str, cgroup: Path, config: Path) -> None:
    """Without health of their own, such servers only count against zone-min; each setting is taken by a reload."""
    with listening("127.1.0.1", "127.1.0.2", "127.2.0.1", udp=True) as (one, two, far):
        names = ", ".join(f'"{server.name}"' for server in (one, two, far))
        table = f'[[service]]\nname = "web"\nvip = "{VIP}:80/udp"\nservers = [{names}]\n'
        head = 'real-range = ["127.0.0.0/8"]\nzone = "a"\nzone-map = { "127.1.0.0/16" = "a", "127.0.0.0/8" = "b" }\n'
        config.write_text(head + table)
        with sidecar(instance, cgroup, config.parent, ["--config", str(config)]) as found:
            assert zones(instance) == {"a": 1.0, "b": 0.0}
            planned = clb("plan", "--instance", f"{instance}-new", "--config", config).stdout
            assert "zone a (own)  2 real servers in tier 0  100.0% of connects" in planned
            assert f"{far.name}  weight 1  priority 1  zone b" in planned
            for line, expected in (
                ("zone-min = 3", {"a": round(2 / 3, 9), "b": round(1 / 3, 9)}),
                ("zone = false", {}),
                ("zone-min = 1", {"a": 1.0, "b": 0.0}),
            ):
                config.write_text(f"{head}{table}{line}\n")
                found.process.send_signal(signal.SIGHUP)
                found.wait_for(lambda expected=expected: zones(instance) == expected, f"{line} is taken")  # type: ignore[misc]
            config.write_text(head.replace('zone = "a"', 'zone = "b"') + table)
            found.process.send_signal(signal.SIGHUP)
            found.wait_for(lambda: zones(instance)["b"] == round(1 / 3, 9), "one server is too few for a zone")


@pytest.mark.parametrize("zone", ["eu-1a\n", "x" * 65])
def test_a_strange_zone_is_reported(instance: str, cgroup: Path, config: Path, zone: str) -> None:
    """The instance serves, in no zone, and the source has the reason."""
    with ConsulAgent(config.parent) as agent, zones_of_servers({"eu-1a": 2, "strange": 1}) as servers:
        register(agent, servers["eu-1a"], "eu-1a")
        register(agent, servers["strange"], zone)
        with sidecar(instance, cgroup, config.parent, write(config, agent, 'zone = "eu-1a"')) as found:
            wait_until(lambda: len(pool(instance, VIP) or ()) == 3, "all are there")
            assert zones(instance) == {"eu-1a": 1.0, None: 0.0}
            (source,) = status(instance)["sources"]
            assert "has the zone" in source["reason"]
            assert source["state"] == "fresh"
            assert "answer has a caveat" in found.events()
