"""A full map, and an oversized registration: only that service is rejected and reported, and all others are served."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from clb_discovery.datapath import bpf
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout import structs
from clb_discovery.layout.structs import Map
from clb_discovery.model.answer import MAX_VIPS
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.claims import MOST_PLACES
from tests.support.consul import ConsulAgent
from tests.support.dataplane import dial
from tests.support.listeners import listening
from tests.support.pace import patient
from tests.support.process import free_port, wait_until
from tests.support.sidecar import Sidecar, clb, pool, sidecar, status
from tests.support.virtual import generation_of
from tests.support.web import get

WEB, NEW, MAIL = "10.64.0.1", "10.64.0.2", "10.64.0.3"
RANGES: Final = ("--vip-range", "10.64.0.0/16", "--real-range", "127.0.0.0/8", "--real-range", "10.0.0.0/8")
CROWD: Final = 4200
"""Instances of an oversized service."""


@contextmanager
def full(instance: str, map_: Map) -> Iterator[None]:
    """Fill a hash map from outside while the block runs."""
    key_size, value_size = structs.SIZES[map_]
    fd = bpf.open_pin(Pins(instance).map(map_))
    keys = [uuid4().bytes.ljust(key_size, b"\xff")[:key_size] for _ in range(70_000)]
    try:
        bpf.update_all(fd, [(key, bytes(value_size)) for key in keys])
    except bpf.BatchError as error:
        keys = keys[: error.done]
    try:
        yield
    finally:
        bpf.delete_all(fd, keys)


def write(config: Path, **services: tuple[str, list[str]]) -> None:
    """Write a configuration with static services: name, VIP and servers."""
    tables = [
        f'[[service]]\nname = "{name}"\nvip = "{vip}"\nservers = {servers}\n'
        for name, (vip, servers) in services.items()
    ]
    config.write_text('real-range = ["127.0.0.0/8"]\n' + "".join(tables))


def unpublished(instance: str) -> dict[str, Any]:
    """Return the services without room, by name, with the reason in status."""
    return {one["service"]: one for one in status(instance)["unpublished"]}


def test_a_full_map_stops_nobody_else(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A change that does not fit into the kernel is reported by name and retried; changes of others go on."""
    config, port = tmp_path / "clb.toml", free_port()
    with listening("127.0.0.1", "127.0.0.2") as (one, two):
        write(config, web=(WEB, [one.name]), mail=(MAIL, [one.name]))
        options = ["--config", str(config), "--metrics", f"127.0.0.1:{port}"]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            with full(instance, Map.LABELS):
                write(config, new=(NEW, [two.name]), web=(WEB, [two.name]), mail=(MAIL, [two.name]))
                found.process.send_signal(signal.SIGHUP)
                for vip in (WEB, MAIL):
                    wait_until(lambda vip=vip: pool(instance, vip) == {two.name: 1}, "changes get through")  # type: ignore[misc]
                wait_until(lambda: unpublished(instance).keys() == {"new"}, "new is told")
                assert dial(cgroup, WEB, 80, 3) == ["ok"] * 3
                assert {server["address"] for server in status(instance)["virtual_servers"]} == {WEB, MAIL}
                reason = unpublished(instance)["new"]["reason"]
                assert reason.startswith("clb_labels is full; use fewer VIPs or real servers")
                (line,) = (line for line in found.lines() if line["event"] == "not published")
                assert (line["source"], line["error"]) == ("static:new", reason)
                assert get(port, "/healthz").splitlines() == [
                    "ready",
                    f"not published: 'new': {reason}",
                ]
                assert 'clb_unpublished{service="new"} 1.0' in get(port, "/metrics")
                shown = clb("status", "--instance", instance).stdout
                assert shown.splitlines()[-1].startswith("wrong  not published in full (see above): new")
            wait_until(lambda: not unpublished(instance), "it is tried again")
            assert dial(cgroup, NEW, 80, 3) == ["ok"] * 3
            assert "published because there is room again" in found.events()
            assert found.stop() == 0


def test_no_room_at_the_start_keeps_nobody_from_being_ready(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A sidecar with more services than fit serves those that fit, reports the others, and idles."""
    config = tmp_path / "clb.toml"
    with listening("127.0.0.1") as (one,):
        addresses = [f"127.{number // 250 + 1}.{number % 250 + 1}.1:80" for number in range(44_000)]
        vips = ",".join(f"10.64.8.{number}:80" for number in range(6))
        write(config, large=(vips, addresses), web=(WEB, [one.name]))
        with sidecar(instance, cgroup, tmp_path, ["--config", str(config)]) as found:
            assert dial(cgroup, WEB, 80) == ["ok"]
            large = unpublished(instance)["large"]
            assert large["virtual_servers"] == 1
            assert "at most 262144 real and virtual servers" in large["reason"]
            time.sleep(3)
            before = found_time(found)
            time.sleep(3)
            assert found_time(found) - before < 0.3
            assert found.stop() == 0


def test_a_large_neighbour_that_changes_all_the_time_delays_no_other_service(
    instance: str, cgroup: Path, tmp_path: Path
) -> None:
    """While 16 pools of 1,024 servers change each second, a change of a small service takes effect at once."""
    vips = ",".join(f"10.64.9.{number}:80" for number in range(MAX_VIPS))
    with ConsulAgent(tmp_path) as agent:
        register_crowd(agent, vips, MOST_PLACES // MAX_VIPS)
        agent.register("web", 80, "10.0.0.1", Meta={"clb-vip": f"{WEB}:80"})
        with (
            sidecar(instance, cgroup, tmp_path, ["--consul", agent.url, *RANGES]) as found,
            generation_of(Pins(instance), parse_vip(f"{WEB}:80")) as now,
        ):
            times = []
            for turn in range(24):
                if turn % 3 == 0:
                    register_crowd(agent, vips, 1, weight=2 + turn)
                before, began = now(), time.monotonic()
                agent.register("web", 80, "10.0.0.1", Meta={"clb-vip": f"{WEB}:80"}, weights=(2 + turn, 1))
                wait_until(lambda before=before: now() > before, "the change is felt")  # type: ignore[misc]
                times.append(time.monotonic() - began)
                time.sleep(0.3)
            assert found.stop() == 0
        times.sort()
        assert times[len(times) // 2] < patient(0.2)
        assert times[-6] < patient(0.6)  # eight are right after changes of the others, and would wait for these


def register_crowd(agent: ConsulAgent, vips: str, count: int = CROWD, weight: int = 1) -> None:
    """Register a service with very many instances, in transactions of the maximum size of Consul."""
    agent.register_external("elsewhere", "10.1.0.1", {"Service": "other"})
    for start in range(0, count, 60):
        instances = [
            {
                "ID": f"crowd-{number}",
                "Service": "crowd",
                "Address": f"10.1.{number // 250}.{number % 250 + 1}",
                "Port": 80,
                "Meta": {"clb-vip": vips},
                "Weights": {"Passing": weight, "Warning": 1},
            }
            for number in range(start, min(start + 60, count))
        ]
        operations = [{"Service": {"Verb": "set", "Node": "elsewhere", "Service": one}} for one in instances]
        agent.request("PUT", "/v1/txn", operations)


def found_time(found: Sidecar) -> float:
    """Return the CPU time of a sidecar in seconds."""
    fields = Path(f"/proc/{found.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_one_registration_that_is_too_large_takes_nothing_from_others(
    instance: str, cgroup: Path, tmp_path: Path
) -> None:
    """A service with thousands of instances and many VIPs is limited; all others are served as without it."""
    vips = ",".join(f"10.64.9.{number}:80" for number in range(MAX_VIPS + 4))
    with ConsulAgent(tmp_path) as agent, listening("127.0.0.1", "127.0.0.2") as (one, two):
        register_crowd(agent, vips)
        agent.register("web", one.port, "127.0.0.1", Meta={"clb-vip": f"{WEB}:80"})
        with sidecar(instance, cgroup, tmp_path, ["--consul", agent.url, *RANGES]) as found:
            assert dial(cgroup, WEB, 80) == ["ok"]
            began = time.monotonic()
            agent.register("new", two.port, "127.0.0.2", Meta={"clb-vip": f"{NEW}:80"})
            wait_until(lambda: dial(cgroup, NEW, 80) == ["ok"], "a new service is served")
            assert time.monotonic() - began < 5
            document = status(instance)
            sizes = [len(one["real_servers"]) for one in document["virtual_servers"] if one["service"] == "crowd"]
            assert sizes == [MOST_PLACES // MAX_VIPS] * MAX_VIPS
            (crowd,) = (one for one in document["sources"] if one["name"] == "consul:crowd")
            assert "20 VIPs are more than 16" in crowd["reason"]
            assert "there are more than 1024 in the pool" in crowd["reason"]
            began = time.monotonic()
            shown = clb("status", "--instance", instance).stdout
            assert time.monotonic() - began < 5
            assert len(shown.splitlines()) < 2_000
            assert shown.splitlines()[-1].startswith("wrong  ")
            assert found.stop() == 0


def test_a_new_service_without_an_answer_holds_up_no_removal(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """While the host name of a new service has no answer, the VIP of a removed service is still withdrawn."""
    with ConsulAgent(tmp_path) as agent, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        web = agent.register("web", 80, "10.0.0.1", Meta={"clb-vip": f"{WEB}:80"})
        resolver = f"127.0.0.1:{silent.getsockname()[1]}"
        options = ["--consul", agent.url, "--resolver", resolver, "--hold", "1s", *RANGES]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            assert [server["address"] for server in status(instance)["virtual_servers"]] == [WEB]
            agent.deregister(web)
            agent.register("new", 80, "nobody.example", Meta={"clb-vip": f"{NEW}:80"})
            wait_until(lambda: not status(instance)["virtual_servers"], "the VIP is withdrawn")
            (new,) = (one for one in status(instance)["sources"] if one["name"] == "consul:new")
            assert (new["last_success"], new["reason"]) == (None, "no answer yet")
            assert found.stop() == 0


def test_services_beyond_the_limit_are_not_followed(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """With --max-services the services already served stay, then the lower name wins; others are counted and named."""
    with ConsulAgent(tmp_path) as agent:
        last = agent.register("m", 80, "10.0.0.1", Meta={"clb-vip": f"{WEB}:80"})
        with sidecar(instance, cgroup, tmp_path, ["--consul", agent.url, *RANGES, "--max-services", "2"]) as found:
            for number, name in enumerate(("z", "c", "d"), 2):
                agent.register(name, 80, "10.0.0.1", Meta={"clb-vip": f"10.64.0.{number}:80"})
                wait_until(lambda n=number: len(status(instance)["virtual_servers"]) == min(2, n), "followed")  # type: ignore[misc]
            served = {server["service"] for server in status(instance)["virtual_servers"]}
            assert served == {"m", "z"}
            wait_until(lambda: "2 services are not followed" in str(catalog(instance)["reason"]), "told")
            assert "--max-services" in catalog(instance)["reason"]
            assert catalog(instance)["state"] == "held"
            assert found.events().count("services not followed") == 1
            assert {one["name"] for one in status(instance)["sources"]} == {"catalog:consul", "consul:m", "consul:z"}
            assert last
            assert found.stop() == 0


def catalog(instance: str) -> dict[str, Any]:
    """Return the list of services as status reports it."""
    return next(dict(one) for one in status(instance)["sources"] if one["name"] == "catalog:consul")
