"""Shares of parts over a hundred thousand TCP connections."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from benchmarks.client import SOURCE, client
from benchmarks.process import compiled
from tests.support.chisquare import p_value
from tests.support.process import wait_until
from tests.support.sidecar import Sidecar, sidecar, status
from tests.support.spares import loaded_instance

instance = loaded_instance

VIP: Final = "10.64.0.1"
CONNECTS: Final = 100_000
LEAST: Final = 0.001
"""A fair split is less likely than this once in a thousand times, so it has two attempts."""
SHARES: Final = (90, 10)
STABLE: Final = 3
"""Servers of the first part."""


def members(first: int, count: int, port: int) -> list[str]:
    """Return real servers with consecutive addresses."""
    return [f"127.0.{number // 256}.{number % 256}:{port}" for number in range(first, first + count)]


def configuration(port: int, canaries: int) -> str:
    """Return the configuration of a pool of two parts."""
    parts = [members(256, STABLE, port), members(512, canaries, port)]
    lines = ", ".join(f"{{ servers = {own}, share = {share} }}" for own, share in zip(parts, SHARES, strict=True))
    service = f'[[service]]\nname = "web"\nvip = "{VIP}:{port}"\nfrom = [{lines}]\n'
    return f'real-range = ["127.0.0.0/8"]\n{service}'.replace("'", '"')


def servers(instance: str) -> list[dict[str, Any]]:
    """Return the real servers that `status` shows."""
    (virtual,) = status(instance)["virtual_servers"]
    found: list[dict[str, Any]] = virtual["real_servers"]
    return found


def connects(instance: str) -> dict[str, int]:
    """Return how many connects each real server has had."""
    return {real["address"]: real["connects"] for real in servers(instance)}


def test_shares_hold_over_many_connections_while_a_part_grows(instance: str, cgroup: Path, config: Path) -> None:
    """90 to 10 by a chi-square test at p > 0.001 over 100,000 connects each: with 3 servers in the small part, with 30.

    Inside a part each server has the same share.
    """
    with socket.create_server(("0.0.0.0", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        config.write_text(configuration(port, 3))
        with (
            sidecar(instance, cgroup, config.parent, ["--config", str(config)]) as found,
            client(compiled(SOURCE, config.parent), listener, cgroup) as connecting,
        ):
            for canaries in (3, 30):
                grow(found, config, port, canaries)
                for is_last in (False, True):
                    before = connects(instance)
                    connecting.connect(VIP, CONNECTS)
                    counts = {host: count - before[host] for host, count in connects(instance).items()}
                    assert sum(counts.values()) == CONNECTS
                    found_p = list(likelihoods(counts, canaries))
                    print(f"{canaries} canaries: p = {found_p}")
                    if min(found_p) > LEAST:
                        break
                    assert not is_last, (found_p, counts)


def grow(found: Sidecar, config: Path, port: int, canaries: int) -> None:
    """Give the second part so many servers."""
    config.write_text(configuration(port, canaries))
    found.reload()
    wait_until(lambda: len(servers(found.instance)) == STABLE + canaries, "the part has its servers")


def likelihoods(counts: dict[str, int], canaries: int) -> Iterable[float]:
    """Yield how likely the split between the parts is, and that between all servers."""
    stable = sum(count for host, count in counts.items() if host.startswith("127.0.1."))
    yield p_value((stable, CONNECTS - stable), SHARES)
    weights = [SHARES[0] / STABLE if host.startswith("127.0.1.") else SHARES[1] / canaries for host in counts]
    yield p_value([*counts.values()], weights)
