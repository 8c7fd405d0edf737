"""Whatever addresses Consul or DNS return: only those that are allowed as real servers get into the kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.consul import ConsulAgent
from tests.support.knot import KnotServer
from tests.support.sidecar import pool, rejected, sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance

VIPS: Final = "10.64.0.1:80,[fd00:64::1]:80"
OTHER_VIP: Final = "10.64.0.9:80"
GOOD: Final = ("10.0.0.1", "fd00::1")
LOOPBACK: Final = "loopback addresses are rejected by default; allow with --real-range"
THEN: Final = " (then only listed ranges are accepted)"
FORBIDDEN: Final = {
    "0.1.2.3": "it is unspecified; register the address",
    "224.0.0.1": "it is multicast; register the address",
    "ff02::1": "it is multicast; register the address",
    "255.255.255.255": "it is broadcast; register the address",
    "169.254.169.254": "it is link-local; register the address",
    "fe80::1": "it is link-local; register the address",
    "10.64.0.1": "it is a VIP; register the address",
    "10.64.0.9": "it is a VIP; register the address",
    "fd00:64::1": "it is a VIP; register the address",
    "127.0.0.1": f"{LOOPBACK} 127.0.0.0/8{THEN}",
    "::1": f"{LOOPBACK} ::1/128{THEN}",
}

UNSPECIFIED: Final = dict.fromkeys(("0.0.0.0", "::"), "it is unspecified; register the address")
"""Addresses that Consul itself rejects."""


def register(agent: ConsulAgent, **more: object) -> None:
    """Register an instance at each address in the catalog."""
    for number, address in enumerate((*GOOD, *FORBIDDEN)):
        body = {"Service": "web", "ID": f"web-{number}", "Address": address, "Port": 8000}
        agent.register_external("outside", "10.0.0.254", body | more)


def by_consul(agent: ConsulAgent) -> list[str]:
    """Register all addresses; return the options that follow them and another service."""
    register(agent)
    return ["--consul", agent.url, "--service", f"web={VIPS}", "--service", f"other={OTHER_VIP}"]


def by_catalog(agent: ConsulAgent) -> list[str]:
    """Do the same for services that opt in."""
    register(agent, Meta={"clb-vip": VIPS})
    agent.register("other", 8000, "10.0.0.2", Tags=[f"clb.vip={OTHER_VIP}"])
    return ["--consul", agent.url, "--vip-range", "10.64.0.0/16", "--vip-range", "fd00:64::/64"]


@pytest.mark.parametrize("named", [by_consul, by_catalog])
def test_addresses_that_consul_names(
    instance: str, cgroup: Path, tmp_path: Path, named: Callable[[ConsulAgent], list[str]]
) -> None:
    """Each address that is not allowed is left out, and the log has its reason and the fix."""
    with ConsulAgent(tmp_path) as agent, sidecar(instance, cgroup, tmp_path, named(agent)) as found:
        assert_only_good_ones(instance, "consul:web", found.lines(), FORBIDDEN)


def test_addresses_that_dns_names(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """The same holds for addresses that DNS returns."""
    with KnotServer() as knot:
        targets = [
            f"_web._tcp SRV 0 1 8000 t{number}\nt{number} {'AAAA' if ':' in address else 'A'} {address}"
            for number, address in enumerate((*GOOD, *FORBIDDEN, *UNSPECIFIED))
        ]
        knot.write("\n".join([*targets, "_other._tcp SRV 0 1 8000 t0"]))
        options = ["--srv", f"_web._tcp.example={VIPS}", "--srv", f"_other._tcp.example={OTHER_VIP}"]
        with sidecar(instance, cgroup, tmp_path, [*options, "--resolver", knot.address]) as found:
            assert_only_good_ones(instance, "srv:_web._tcp.example", found.lines(), FORBIDDEN | UNSPECIFIED)


def assert_only_good_ones(instance: str, source: str, log: list[dict[str, str]], forbidden: Mapping[str, str]) -> None:
    """Check which servers the kernel has, and which of the others are reported."""
    assert pool(instance, "10.64.0.1") == {"10.0.0.1:8000": 1}
    assert pool(instance, "fd00:64::1") == {"fd00::1:8000": 1}
    said = rejected(log)
    expected = {f"[{host}]:8000" if ":" in host else f"{host}:8000": reason for host, reason in forbidden.items()}
    assert said.keys() == expected.keys()
    assert [server for server, reason in said.items() if not reason.startswith(expected[server])] == []
    (found,) = (one for one in status(instance)["sources"] if one["name"] == source)
    assert found["state"] == "fresh"
    assert found["reason"].startswith("real server")
    assert found["reason"].endswith(f"; and {len(set(forbidden.values())) - 4} more")


def test_addresses_outside_the_ranges(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """With --real-range only addresses in the ranges are used, including loopback if a range contains it."""
    with ConsulAgent(tmp_path) as agent:
        for address in ("10.0.0.1", "10.1.0.1", "127.0.0.1", "127.0.0.2"):
            agent.register("web", 8000, address)
        ranges = ["--real-range", "10.0.0.0/16", "--real-range", "127.0.0.1"]
        options = ["--consul", agent.url, "--service", "web=10.64.0.1:80", *ranges]
        with sidecar(instance, cgroup, tmp_path, options) as found:
            assert pool(instance, "10.64.0.1") == {"10.0.0.1:8000": 1, "127.0.0.1:8000": 1}
            assert rejected(found.lines()) == {
                "10.1.0.1:8000": "it is outside every --real-range; allow with a --real-range that contains it",
                "127.0.0.2:8000": f"{LOOPBACK} 127.0.0.0/8",
            }
