"""Services without a VIP: their automatic addresses lead to their real servers."""

from __future__ import annotations

from pathlib import Path

from clb_discovery.model.address import format_address
from clb_discovery.publication.automatic_vips import DEFAULT_RANGES, automatic_addresses
from tests.support.dataplane import dial
from tests.support.knot import KnotServer
from tests.support.listeners import listening
from tests.support.sidecar import sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance


def test_automatic_vips_are_balanced(instance: str, cgroup: Path, tmp_path: Path) -> None:
    """A service without a VIP in its option is reached on one address of each family, on any port."""
    ipv4, ipv6 = map(format_address, automatic_addresses(["web"], DEFAULT_RANGES)["web"])
    with KnotServer() as knot, listening("127.0.0.1", "127.0.0.2", "::1") as servers:
        lines = [f"_web._tcp SRV 0 1 {server.port} t{number}" for number, server in enumerate(servers)]
        knot.write("\n".join([*lines, "t0 A 127.0.0.1", "t1 A 127.0.0.2", "t2 AAAA ::1"]))
        loopback = ["--real-range", "127.0.0.0/8", "--real-range", "::1/128"]
        options = ["--srv", "_web._tcp.example", "--resolver", knot.address, *loopback]
        with sidecar(instance, cgroup, tmp_path, options):
            assert {(server["address"], server["port"]) for server in status(instance)["virtual_servers"]} == {
                (ipv4, 0),
                (ipv6, 0),
            }
            for address, port in ((ipv4, 80), (ipv4, 6379), (ipv6, 80)):
                assert dial(cgroup, address, port, 20) == ["ok"] * 20
            one, two, three = (server.taken() for server in servers)
    assert one > 0
    assert two > 0
    assert (one + two, three) == (40, 20)
