"""`check`, `plan` and `run` agree on any configuration and answer: on servers, rejections and mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from tests.support.agreement import Case, assert_agreement
from tests.support.consul import ConsulAgent
from tests.support.dataplane import wipe
from tests.support.knot import KnotServer
from tests.support.sidecar import clb_here, status
from tests.support.spares import loaded_instance

instance = loaded_instance

V4, V6 = "10.64.0.1:80", "[fd00:64::1]:80"
REDIS: Final = "10.64.0.1:6379"
SRV: Final = "_web._tcp.example"


@pytest.fixture(scope="module")
def knot() -> Iterator[KnotServer]:
    """Run a DNS server."""
    with KnotServer() as server:
        yield server


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """Run a Consul."""
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as running:
        yield running


def tiers(count: int) -> str:
    """Return a zone with one server in each of this many tiers."""
    return "\n".join(f"_web._tcp SRV {tier} 1 {80 + tier} a" for tier in range(count)) + "\na A 10.0.0.1"


@pytest.mark.parametrize(
    "case",
    [
        Case("_web._tcp SRV 0 0 80 a\na A 10.0.0.1", {V4: 1}),
        Case("_web._tcp SRV 0 0 80 a\n_web._tcp SRV 0 9 81 a\na A 10.0.0.1", {V4: 2}),
        Case("_web._tcp SRV 0 1 0 a\n_web._tcp SRV 0 1 80 a\na A 10.0.0.1", {V4: 1}, ["a port that is not 1 to"]),
        Case(tiers(16), {V4: 16}),
        Case(tiers(18), {V4: 16}, ["10.0.0.1:96, 10.0.0.1:97 ", "at most 16 priorities"]),
        Case("_web._tcp SRV 0 1 80 a\na A 10.0.0.1\na AAAA fd00::1", {V4: 1, V6: 1}),
        Case("_web._tcp SRV 0 1 80 a\na AAAA fd00::1", {V4: 0, V6: 1}),
        Case("_web._tcp SRV 0 1 80 a\na A 127.0.0.1\na A 10.0.0.1\na AAAA ::1", {V4: 1, V6: 0}),
        Case("_web._tcp SRV 0 1 80 a", {V4: 0}, ["has no address"]),
        Case("_web._tcp SRV 0 0 0 .", {V4: 0}, ["the target is '.'"]),
        Case("_web._tcp TXT nothing", {V4: 0}, ["exists, but has no SRV record"]),
        Case("@ TXT nothing", {V4: 0}, ["does not exist (NXDOMAIN)"]),
    ],
    ids=lambda case: case.answer[:60],
)
def test_answers_of_dns(instance: str, cgroup: Path, knot: KnotServer, case: Case) -> None:
    """SRV records of any weight, port, priority and family are the same real servers for all three commands."""
    knot.write(case.answer)
    assert_agreement(instance, cgroup, case, ["--srv", f"{SRV}={','.join(case.used)}", "--resolver", knot.address])


@contextmanager
def registered(agent: ConsulAgent, *instances: Mapping[str, Any]) -> Iterator[None]:
    """Register instances while the block runs."""
    found = [agent.register(**one) for one in instances]
    try:
        yield
    finally:
        for service in found:
            agent.deregister(service)


@pytest.mark.parametrize(
    "case",
    [
        Case("", {REDIS: 0}, ["1 of 8 fail, 1 warning"]),
        Case("", {REDIS: 3}, ["all 8 work"], ["--real-range", "127.0.0.0/8"]),
        Case("", {REDIS: 3}, ["all 8 work"], ["--real-range", "127.0.0.0/8", "--real-range", "10.0.0.0/8"]),
        Case("", {REDIS: 0}, ["1 of 8 fail, 1 warning"], ["--real-range", "10.0.0.0/8"]),
    ],
    ids=lambda case: " ".join(case.options),
)
def test_readme_on_one_host(instance: str, cgroup: Path, agent: ConsulAgent, case: Case) -> None:
    """Servers on this host's loopback, as in a first trial: check fails if and only if run rejects all of them."""
    with registered(agent, *({"name": "redis", "port": port} for port in (7001, 7002, 7003))):
        given = ["--consul", agent.url, "--service", f"redis={REDIS}"]
        assert_agreement(instance, cgroup, case, given)


def test_catalog_whose_registrations_are_rejected(instance: str, cgroup: Path, agent: ConsulAgent) -> None:
    """VIPs outside the range, claimed twice or misspelt, and services without VIP or server, are the same for all."""
    claims = {
        "shop": ("10.0.0.1", "10.64.0.1:80,10.99.0.1:80"),
        "shop2": ("10.0.0.2", "10.64.0.1:80,10.64.0.2:80"),
        "typo": ("10.0.0.3", "10.64.0.300:80,10.64.0.4:80"),
        "lost": ("127.0.0.1", "10.64.0.5:80"),
    }
    used = {"10.64.0.1:80": 1, "10.64.0.2:80": 1, "10.64.0.4:80": 1, "10.64.0.5:80": 0}
    case = Case("", used, ["catalog:consul: 4 services opt in", "VIP 10.99.0.1:80 is outside", "'10.64.0.300"])
    instances = [
        {"name": name, "port": 80, "address": address, "Meta": {"clb-vip": vips}}
        for name, (address, vips) in claims.items()
    ]
    with registered(agent, {"name": "plain", "port": 80, "address": "10.0.0.9"}, *instances):
        output = assert_agreement(instance, cgroup, case, ["--consul", agent.url, "--vip-range", "10.64.0.0/16"])
    assert "plain" not in output


@pytest.mark.parametrize(
    "case",
    [
        Case('{ address = "10.0.0.1:1", weight = 5 }, { address = "10.0.0.2:2", priority = 9 }', {V4: 2}),
        Case('"10.0.0.1:1", "[fd00::1]:1", "[fd00::2]:1"', {V4: 1, V6: 2}),
        Case('"10.0.0.1:1", "127.0.0.1:1"', {V4: 1}),
        Case('"10.0.0.1:1"', {"10.64.0.1": 1, "10.64.0.1:53/udp": 1}),
    ],
    ids=lambda case: case.answer,
)
def test_static_servers(instance: str, cgroup: Path, tmp_path: Path, case: Case) -> None:
    """Static servers of a file are the same for all three commands."""
    file = tmp_path / "clb.toml"
    file.write_text(f'[[service]]\nname = "web"\nvip = {json.dumps(list(case.used))}\nservers = [{case.answer}]\n')
    assert_agreement(instance, cgroup, case, ["--config", file])


WEB: Final = '[[service]]\nname = "web"\nvip = "10.64.0.1:80"\n'
MISTAKES: Final = {
    "syntax": 'hold = "30s',
    "value": 'srv = ["_web._tcp.example=10.64.0.1:80"]\nhold = "long"',
    "VIP twice": f'{WEB}servers = ["10.0.0.1:1"]\n{WEB.replace("web", "api")}servers = ["10.0.0.2:1"]',
    "server at a VIP": f'{WEB}servers = ["10.64.0.1:80"]',
    "port 0": f'{WEB}servers = ["10.0.0.1:0"]',
    "name of a record": f'srv = ["{"x" * 64}.example=10.64.0.1:80"]',
    "name in Consul": f'consul = true\n{WEB}consul = "../x"',
    "resolver": 'resolver = ["nowhere"]\nsrv = ["_web._tcp.example=10.64.0.1:80"]',
    "no service": "",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_a_file(instance: str, cgroup: Path, tmp_path: Path, name: str) -> None:
    """Each command reports a mistake by the same line, and with exit code 2."""
    file = tmp_path / "clb.toml"
    file.write_text(MISTAKES[name])
    given = ["--config", str(file), "--instance", instance]
    commands = (
        clb_here("run", "--once", *given, "--cgroup", cgroup),
        clb_here("plan", *given),
        clb_here("plan", "--offline", *given),
        clb_here("check", *given, "--cgroup", cgroup),
        clb_here("check", "--offline", *given, "--cgroup", cgroup),
    )
    assert [one.returncode for one in commands] == [2] * len(commands)
    (line,) = {one.stderr.splitlines()[-1].removeprefix("<3>") for one in commands}
    assert line.startswith("clb-discovery: ")


@pytest.mark.parametrize("relation", ["same", "above"])
def test_another_instance_on_the_vip(instance: str, cgroup: Path, tmp_path: Path, relation: str) -> None:
    """If another instance serves the VIP to the same processes, check fails, and status reports it after run."""
    other, ours = f"test-{uuid4().hex[:8]}", cgroup if relation == "same" else cgroup / "inner"
    ours.mkdir(exist_ok=True)
    file = tmp_path / "clb.toml"
    file.write_text(f'[[service]]\nname = "web"\nvip = "{V4}"\nservers = ["10.0.0.1:1"]\n')
    try:
        assert clb_here("run", "--once", "--config", file, "--instance", other, "--cgroup", cgroup).returncode == 0
        words = [f"FAIL  instance {other}: ", V4]
        assert_agreement(instance, ours, Case("", {V4: 1}, words), ["--config", file])
        assert [one["relation"] for one in status(instance)["datapath"]["overlaps"]] == [relation]
        assert clb_here("check", "--config", file, "--instance", instance, "--cgroup", ours).returncode == 3
    finally:
        wipe(other)
        wipe(instance)
        if ours != cgroup:
            ours.rmdir()
