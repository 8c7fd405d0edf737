"""Catalog mode: the sidecar follows services of a real Consul that opt in, as they come and go."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.model.address import format_address, parse_network
from clb_discovery.model.servers import PassiveHealth
from clb_discovery.publication.automatic_vips import automatic_addresses
from tests.support.consul import ConsulAgent
from tests.support.dataplane import dial
from tests.support.listeners import listening
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, clb, pool, sidecar, status
from tests.support.spares import loaded_instance
from tests.support.web import get

instance = loaded_instance

RANGES: Final = ("10.64.0.0/16", "fd00:64::/64")
LIMITS: Final = (
    *("--vip-range", RANGES[0], "--vip-range", RANGES[1]),
    *("--real-range", "127.0.0.0/8", "--real-range", "10.0.0.0/8", "--real-range", "::1/128"),
)
HOSTS: Final = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "::1")
SOON: Final = ("--hold", "1s")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ConsulAgent]:
    """Run a Consul without services."""
    with ConsulAgent(tmp_path) as running:
        yield running


@contextmanager
def following(agent: ConsulAgent, instance: str, cgroup: Path, directory: Path, *options: str) -> Iterator[Sidecar]:
    """Run a sidecar that follows the whole catalog."""
    with sidecar(instance, cgroup, directory, ["--consul", agent.url, *LIMITS, *options]) as found:
        yield found


def put(agent: ConsulAgent, name: str, vip: str | None, host: str = "10.0.0.1", port: int = 80, **meta: str) -> str:
    """Register an instance with a VIP in its meta; return its id."""
    named = {} if vip is None else {"clb-vip": vip}
    return agent.register(name, port, host, Meta=named | {f"clb-{key}": value for key, value in meta.items()})


def served(instance: str) -> dict[str, str]:
    """Return the service of each VIP."""
    return {
        f"{server['address']}:{server['port'] or '*'}": server["service"]
        for server in status(instance)["virtual_servers"]
    }


def wait_for_served(instance: str, expected: dict[str, str]) -> None:
    """Wait until exactly these services have VIPs."""
    wait_until(lambda: served(instance) == expected, f"{expected} are served")


def source(instance: str, name: str) -> dict[str, Any]:
    """Return a source as status reports it."""
    (found,) = (one for one in status(instance)["sources"] if one["name"] == name)
    return dict(found)


def generations(instance: str) -> list[int]:
    """Return a value for each pool that changes with every write of it."""
    return [server["generation"] for server in status(instance)["virtual_servers"]]


def test_services_come_and_go(instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent) -> None:
    """Meta, tags and auto opt in, before the start and after it; connects arrive; opting out counts after the hold."""
    ipv4, ipv6 = map(format_address, automatic_addresses(["auto"], [*map(parse_network, RANGES)])["auto"])
    with listening(*HOSTS) as (one, two, three, four):
        put(agent, "meta", "10.64.0.1:6379, [fd00:64::1]:6379", HOSTS[0], one.port, algorithm="least-conn")
        put(agent, "meta", "10.64.0.1:6379", HOSTS[3], four.port)
        tagged = agent.register("tag", two.port, HOSTS[1], Tags=["v1", "clb.vip=10.64.0.2"])
        put(agent, "other", None, HOSTS[1], two.port)
        with following(agent, instance, cgroup, tmp_path, *SOON) as found:
            first = {"10.64.0.1:6379": "meta", "fd00:64::1:6379": "meta", "10.64.0.2:*": "tag"}
            assert served(instance) == first
            assert {server["algorithm"] for server in status(instance)["virtual_servers"]} == {"random", "least-conn"}
            for address, port in (("10.64.0.1", 6379), ("fd00:64::1", 6379), ("10.64.0.2", 9)):
                assert dial(cgroup, address, port, 3) == ["ok"] * 3

            agent.register("auto", three.port, HOSTS[2], Tags=["clb"])
            wait_for_served(instance, first | {f"{ipv4}:*": "auto", f"{ipv6}:*": "auto"})
            assert dial(cgroup, ipv4, 80, 3) == ["ok"] * 3
            assert [server.taken() for server in (one, two, three, four)] == [3, 3, 3, 3]

            agent.deregister(tagged)
            agent.register("auto", three.port, HOSTS[2], service_id=f"auto-{HOSTS[2]}-{three.port}")  # opts out
            del first["10.64.0.2:*"]
            wait_for_served(instance, first)
            wait_until(lambda: len(status(instance)["sources"]) == 2, "only meta and the catalog are followed")
            events = found.events()
            assert events.count("removal held") == 2
            assert events.index("removal held") < events.index("virtual server removed")


def test_what_instances_say_is_followed_live(instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent) -> None:
    """A VIP that changes moves with its pool; while instances disagree both VIPs work, and they vote on schedulers."""
    for host in ("10.0.0.1", "10.0.0.2"):
        put(agent, "web", "10.64.0.1:80", host, algorithm="least-conn")
    with following(agent, instance, cgroup, tmp_path):
        put(agent, "web", "10.64.0.2:80", "10.0.0.1", algorithm="random")
        wait_for_served(instance, {"10.64.0.1:80": "web", "10.64.0.2:80": "web"})
        both = {"10.0.0.1:80": 1, "10.0.0.2:80": 1}
        assert pool(instance, "10.64.0.1") == pool(instance, "10.64.0.2") == both
        assert (
            "clb-algorithm 'random' is outvoted by instances that register least-conn; register all of them with one"
            in (source(instance, "consul:web")["reason"])
        )
        put(agent, "web", "10.64.0.2:80", "10.0.0.2", algorithm="random")
        wait_for_served(instance, {"10.64.0.2:80": "web"})
        assert pool(instance, "10.64.0.2") == both
        assert source(instance, "consul:web")["reason"] is None
        put(agent, "web", "10.64.0.300", "10.0.0.1")
        put(agent, "web", "10.65.0.1", "10.0.0.2")
        wait_until(lambda: "10.64.0.300" in (source(instance, "consul:web")["reason"] or ""), "the mistake is told")
        wait_until(lambda: "10.65.0.1" in (source(instance, "consul:web")["reason"] or ""), "both are")
        assert served(instance) == {"10.64.0.2:80": "web"}


def test_claim_of_an_instance_that_is_gone_is_held(
    instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent
) -> None:
    """The VIP that it alone names stays for the hold, for no other service to take; then the source is queried."""
    put(agent, "web", "10.64.0.1:80", "10.0.0.1")
    put(agent, "web", "10.64.0.1:80", "10.0.0.2")
    gone = put(agent, "web", "10.64.0.2:80", "10.0.0.3")
    with following(agent, instance, cgroup, tmp_path, "--hold", "4s") as found:
        agent.deregister(gone)
        found.wait_for(lambda: told(instance, "consul:web", "no instance claims 10.64.0.2:80 since"), "it is held")
        put(agent, "api", "10.64.0.2:80", "10.0.0.9")
        found.wait_for(lambda: told(instance, "consul:api", "belongs to consul:web"), "the other has to wait")
        assert served(instance) == {"10.64.0.1:80": "web", "10.64.0.2:80": "web"}
        assert pool(instance, "10.64.0.2") == {"10.0.0.1:80": 1, "10.0.0.2:80": 1}
        wait_for_served(instance, {"10.64.0.1:80": "web", "10.64.0.2:80": "api"})


def health(instance: str, vip: str) -> PassiveHealth | None:
    """Return the settings of passive health of a virtual server in the kernel; None if it is not there."""
    with Maps(Pins(instance)) as maps:
        found = {str(one): published.health for one, published in maps.read().virtual.items()}
    return found.get(vip)


def test_settings_of_passive_health_are_those_that_a_service_registers(
    instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent
) -> None:
    """They come and go with its meta; what it does not register is as the options say."""
    meta = {"silent-after": "2s", "eject-after": "7", "eject-time": "90s", "connect-timeout": "off"}
    put(agent, "web", "10.64.0.1:80", "10.0.0.1", 80, **meta)
    with following(agent, instance, cgroup, tmp_path):
        wait_for_served(instance, {"10.64.0.1:80": "web"})
        expected = PassiveHealth(
            silent_after_ms=2_000, eject_after=7, eject_first_ms=90_000, eject_most_ms=90_000, connect_timeout_ms=0
        )
        assert health(instance, "10.64.0.1:80") == expected
        put(agent, "web", "10.64.0.1:80", "10.0.0.1")
        wait_until(lambda: health(instance, "10.64.0.1:80") == PassiveHealth(), "the options are in use")


def test_claims_that_are_refused_are_told(instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent) -> None:
    """A clash, a VIP outside the range, bad meta, a bad instance: reported in log and status; all others are served."""
    put(agent, "z-first", "10.64.0.1:80")
    with following(agent, instance, cgroup, tmp_path, *SOON) as found:
        put(agent, "a-second", "10.64.0.1:80", "10.0.0.2")
        put(agent, "outside", "10.65.0.1:80")
        put(agent, "wrong", "10.64.0.1:http\x1b[2J")
        put(agent, "portless", "10.64.0.3:80", port=0)
        put(agent, "forbidden", "10.64.0.4:80", "224.0.0.1")
        expected = {"10.64.0.1:80": "z-first", "10.64.0.4:80": "forbidden"}
        wait_for_served(instance, expected)
        reasons = {
            "consul:a-second": ("held", "VIP 10.64.0.1:80 belongs to consul:z-first; register another one"),
            "consul:outside": ("held", f"VIP 10.65.0.1:80 is outside --vip-range {', '.join(RANGES)}; register one"),
            "consul:wrong": ("held", r"clb-vip '10.64.0.1:http\x1b[2J' is longer than 512 characters or not printable"),
            "consul:portless": ("retrying", "has the port 0; register one from 1 to 65535"),
            "consul:forbidden": ("fresh", "real server 224.0.0.1:80 rejected: it is multicast; register the address"),
        }
        for name, (state, reason) in reasons.items():
            found.wait_for(lambda name=name, reason=reason: told(instance, name, reason), f"{name}: {reason}")  # type: ignore[misc]
            assert source(instance, name)["state"] == state
        told_in_log = found.log.read_text()
        for words in (
            "belongs to consul:z-first",
            "is outside --vip-range",
            "not printable",
            "has the port 0",
            "multicast",
        ):
            assert words in told_in_log
        assert "\x1b" not in told_in_log + clb("status", "--instance", instance).stdout

        found.stop()
    with following(agent, instance, cgroup, tmp_path, *SOON):  # ready, although one instance is unusable
        assert served(instance) == expected
        agent.deregister("z-first-10.0.0.1-80")
        wait_for_served(instance, expected | {"10.64.0.1:80": "a-second"})
        wait_until(lambda: source(instance, "consul:a-second")["state"] == "fresh", "the second has it")


def told(instance: str, name: str, reason: str) -> bool:
    """Return whether status reports this reason for a source."""
    return any(one["name"] == name and reason in (one["reason"] or "") for one in status(instance)["sources"])


def test_consul_that_stops_changes_nothing(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """All services stay while Consul is down, over a restart of the sidecar and, from the disk, over a reboot."""
    options = ("--state-dir", str(tmp_path / "state"))
    with ConsulAgent(tmp_path, persistent=True) as agent:
        put(agent, "web", "10.64.0.1:80", algorithm="round-robin")
        put(agent, "auto", "auto")
        with following(agent, instance, cgroup, tmp_path, *options) as found:
            before, published = served(instance), generations(instance)
            assert len(before) == 3
            agent.stop()
            names = {"catalog:consul", "consul:web", "consul:auto"}
            found.wait_for(
                lambda: {one["name"] for one in status(instance)["sources"] if one["state"] == "retrying"} == names,
                "all sources are retrying",
            )
            assert generations(instance) == published

        down = ["--consul", agent.url, *LIMITS, *options]
        with sidecar(instance, cgroup, tmp_path, down):  # it becomes ready, because the kernel has all of them
            assert (served(instance), generations(instance)) == (before, published)
            assert {one["name"] for one in status(instance)["sources"] if one["stale"]} == names

        loader.unload(Pins(instance))
        with sidecar(instance, cgroup, tmp_path, down) as found:  # it becomes ready, because the disk has them
            assert served(instance) == before
            assert pool(instance, "10.64.0.1") == {"10.0.0.1:80": 1}
            assert "round-robin" in {server["algorithm"] for server in status(instance)["virtual_servers"]}
            published = generations(instance)
            agent.start()
            found.wait_for(
                lambda: {one["state"] for one in status(instance)["sources"]} == {"fresh"}, "all sources are fresh"
            )
            assert (served(instance), generations(instance)) == (before, published)


def test_catalog_that_nobody_has_seen_keeps_it_from_being_ready(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """If Consul is down at the first start, the sidecar is not ready; an empty catalog that was read once is enough."""
    options = ["--state-dir", str(tmp_path / "state")]
    with ConsulAgent(tmp_path) as agent:
        agent.stop()
        with sidecar(instance, cgroup, tmp_path, ["--consul", agent.url, *LIMITS, *options], ready=False) as found:
            found.manager.until("STATUS=1 of 1 without any answer: catalog:consul")
            assert "ready" not in found.events()
            agent.start()
            found.wait_until_ready()
            found.stop()
        agent.stop()
        with following(agent, instance, cgroup, tmp_path, *options):
            assert source(instance, "catalog:consul")["stale"]


def test_metrics_show_the_catalog(instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent) -> None:
    """The list and services that opt in are sources: a rejected claim is `held`, a service without port `retrying`."""
    port = free_port()
    put(agent, "web", "10.64.0.1:80")
    put(agent, "web2", "10.64.0.1:80")
    put(agent, "portless", "10.64.0.3:80", port=0)
    with following(agent, instance, cgroup, tmp_path, "--metrics", f"127.0.0.1:{port}"):
        assert get(port, "/healthz") == "ready\n"
        lines = get(port, "/metrics").splitlines()
        document = json.loads(get(port, "/status.json"))
    states = {"catalog:consul": "fresh", "consul:web": "fresh", "consul:web2": "held", "consul:portless": "retrying"}
    for name, state in states.items():
        assert f'clb_source_state{{source="{name}",state="{state}"}} 1.0' in lines
        assert f'clb_source_stale{{source="{name}"}} 0.0' in lines
    assert 'clb_source_refused{source="consul:web"} 0.0' in lines
    assert 'clb_source_refused{source="consul:web2"} 1.0' in lines
    assert 'clb_pool_servers{service="web",vip="10.64.0.1:80",protocol="tcp",source="consul:web"} 1' in lines
    assert {one["name"]: one["state"] for one in document["sources"]} == states


def test_what_is_configured_goes_first(instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent) -> None:
    """A service of --service or a file keeps its VIPs beside the catalog; without --catalog there are no others."""
    put(agent, "web", "10.64.0.9:80")
    put(agent, "thief", "10.64.0.1:80,10.64.0.2:80")
    put(agent, "shop", "10.64.0.3:80")
    config = tmp_path / "clb.toml"
    config.write_text(
        '[[service]]\nname = "hand"\nvip = "10.64.0.2:80"\nservers = ["10.0.0.9:80"]\n'
        '[[service]]\nname = "web"\nconsul = "web"\nvip = "10.64.0.1:80"\ntags = ["x"]\n'
    )
    explicit = {"10.64.0.1:80": "web", "10.64.0.2:80": "hand"}
    with following(agent, instance, cgroup, tmp_path, *SOON, "--config", str(config), "--catalog") as found:
        assert served(instance) == explicit | {"10.64.0.3:80": "shop"}
        assert pool(instance, "10.64.0.1") == {}  # the VIP comes from the tags
        reason = source(instance, "consul:thief")["reason"]
        assert "10.64.0.1:80 belongs to consul:web" in reason
        assert "10.64.0.2:80 belongs to static:hand" in reason

        config.write_text('[[service]]\nname = "hand"\nvip = "10.64.0.2:80"\nservers = ["10.0.0.9:80"]\n')
        found.process.send_signal(signal.SIGHUP)
        wait_for_served(
            instance,
            {"10.64.0.2:80": "hand", "10.64.0.3:80": "shop", "10.64.0.9:80": "web"} | {"10.64.0.1:80": "thief"},
        )
        config.write_text('[[service]]\nname = "shop"\nconsul = "shop"\nvip = "10.64.0.5:80"\n')
        found.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served(instance).get("10.64.0.5:80") == "shop", "the service is configured now")
    with following(agent, instance, cgroup, tmp_path, "--service", "web=10.64.0.1:80"):
        assert served(instance) == {"10.64.0.1:80": "web"}


def test_plan_and_once(instance: str, cgroup: Path, agent: ConsulAgent) -> None:
    """Both read the whole catalog once; the plan shows rejected claims; a start after that has nothing to do."""
    put(agent, "web", "10.64.0.1:80")
    put(agent, "web2", "10.64.0.1:80")
    put(agent, "portless", "10.64.0.3:80", port=0)
    options = ["--instance", instance, "--consul", agent.url, *LIMITS]
    planned = clb("plan", "--json", *options)
    assert planned.returncode == 2, planned.stderr
    document = json.loads(planned.stdout)
    assert [(change["action"], change["service"]) for change in document["changes"]] == [("add", "web")]
    assert {
        "service": "web2",
        "server": "VIP 10.64.0.1:80",
        "reason": "belongs to consul:web; register another one",
    } in (document["refused"])
    once = clb("run", "--once", *options, "--cgroup", cgroup)
    assert once.returncode == 0, once.stderr
    assert served(instance) == {"10.64.0.1:80": "web"}
    assert clb("plan", *options).returncode == 0
    agent.deregister("web-10.0.0.1-80")
    (change,) = json.loads(clb("plan", "--json", *options).stdout)["changes"]
    assert (change["action"], change["settings"]["service"]) == ("change", ["web", "web2"])
    assert "ok    catalog:consul: 1 service opts in\n" in clb("check", *options, "--cgroup", cgroup).stdout


def test_services_choose_their_instances(instance: str, cgroup: Path, tmp_path: Path, agent: ConsulAgent) -> None:
    """Two services of a file use one name with different filters and tags; an invalid filter is reported."""
    for host, version, tags in (("10.0.0.1", "1", ["a"]), ("10.0.0.2", "2", ["a", "b"]), ("10.0.0.3", "2", ["b"])):
        agent.register("web", 80, host, Meta={"version": version}, Tags=tags)
        agent.register("shop", 80, host, Meta={"version": version}, Tags=tags)
    config = tmp_path / "clb.toml"
    config.write_text(
        "tag = ['a']\n"
        '[[service]]\nname = "web"\nconsul = "web"\nvip = "10.64.0.1:80"\ntags = ["b"]\n'
        "filter = 'Service.Meta.version == \"2\"'\n"
        '[[service]]\nname = "shop"\nconsul = "shop"\nvip = "10.64.0.2:80"\n'
    )
    with following(agent, instance, cgroup, tmp_path, "--config", str(config)) as found:
        assert pool(instance, "10.64.0.1") == {"10.0.0.2:80": 1, "10.0.0.3:80": 1}
        assert pool(instance, "10.64.0.2") == {"10.0.0.1:80": 1, "10.0.0.2:80": 1}
        config.write_text(config.read_text().replace('"2"', '"2'))
        found.process.send_signal(signal.SIGHUP)
        found.wait_for(lambda: told(instance, "consul:web", "is a --filter"), "the filter is told")
        assert pool(instance, "10.64.0.1") == {"10.0.0.2:80": 1, "10.0.0.3:80": 1}
