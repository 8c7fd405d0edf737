"""The systems that `make bench-failure` compares, each in a network namespace of its clients."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

from benchmarks import haproxy
from benchmarks.ways import DNS_PORT, VIP, VIP_PORT, in_namespace, listener
from tests.support import namespaces
from tests.support.cgroups import made_cgroup
from tests.support.dataplane import wipe
from tests.support.knot import KnotServer
from tests.support.sidecar import Sidecar, sidecar, wait_for_pool
from tests.support.tun import ip

CHECK: Final = 'check = "http://bench/"\n'
_NGINX: Final = """\
load_module modules/ngx_stream_module.so;
daemon off;
error_log /dev/null;
pid {folder}/nginx.pid;
events {{}}
stream {{
    upstream bench {{ {servers} }}
    server {{ listen {vip}:{port}; proxy_pass bench; proxy_connect_timeout 1s; proxy_next_upstream on; }}
}}
"""


class Pool(NamedTuple):
    """Addresses and ports of real servers."""

    first: Sequence[str]
    further: Sequence[str] = ()
    """The servers of the next tier."""


class System(NamedTuple):
    """A running way to balance."""

    set_servers: Callable[[Pool], None]
    """Gives it the servers that discovery lists now."""
    cgroup: Path | None = None
    """The cgroup that clients need, if any."""


def _records(pool: Pool) -> str:
    lines = []
    for priority, tier in enumerate(pool):
        for address, _, port in (server.partition(":") for server in tier):
            name = address.replace(".", "-")
            lines += [f"{name} A {address}", f"_bench._tcp SRV {priority} 1 {port} {name}"]
    return "\n".join(lines)


@contextmanager
def ours(near: Path, pool: Pool, folder: Path, *, settings: str = "", killed: bool = False) -> Iterator[System]:
    """Run a sidecar that follows an SRV record; its network namespace is that of the clients.

    :param settings: lines of the service's table, for what is not at its default.
    :param killed: kill it before the server fails.
    """
    instance, config, knot = f"bench-{uuid4().hex[:8]}", folder / "clb.toml", KnotServer(port=DNS_PORT)
    service = f'name = "bench"\nsrv = "_bench._tcp.example"\nvip = "{VIP}:{VIP_PORT}"\n{settings}'
    config.write_text(f'resolver = "{knot.address}"\n[[service]]\n{service}')

    def set_servers(now: Pool) -> None:
        knot.write(_records(now))

    set_servers(pool)
    with ExitStack() as stack:
        namespaces.inside(near, partial(stack.enter_context, knot))
        cgroup = stack.enter_context(made_cgroup())
        stack.callback(wipe, instance)
        run = sidecar(instance, cgroup, folder, ["--config", str(config)])
        running: Sidecar = namespaces.inside(near, partial(stack.enter_context, run))
        wait_for_pool(instance, VIP, dict.fromkeys([*pool.first, *pool.further], 1))
        if killed:
            running.kill()
        yield System(set_servers, cgroup)


@contextmanager
def iptables(near: Path, pool: Pool, _: Path) -> Iterator[System]:
    """Let iptables choose a server of the first tier at random."""

    def set_servers(now: Pool) -> None:
        rules = [
            f"-A OUTPUT -p tcp -d {VIP} --dport {VIP_PORT} {chance(len(now.first) - at)} -j DNAT --to-destination {to}"
            for at, to in enumerate(now.first)
        ]
        text = "\n".join(["*nat", *rules, "COMMIT", ""])
        subprocess.run(in_namespace(near, ["iptables-restore"]), input=text, text=True, check=True)

    def chance(left: int) -> str:
        return f"-m statistic --mode random --probability {1 / left:.6f}" if left > 1 else ""

    set_servers(pool)
    behind_the_link = pool.first[0].partition(":")[0]  # the VIP is routed before its address is changed
    namespaces.inside(near, partial(ip, "route", "add", "default", "via", behind_the_link))
    yield System(set_servers)


@contextmanager
def haproxy_with_checks(near: Path, pool: Pool, folder: Path, *, closes: bool = False) -> Iterator[System]:
    """Run HAProxy with checks, and another server if a connect fails.

    :param closes: close the connections to a server that fails its checks.
    """
    config, control = folder / "haproxy.cfg", folder / "haproxy.socket"
    config.write_text(haproxy.checking(control, f"{VIP}:{VIP_PORT}", pool.first, pool.further, closes=closes))

    def set_servers(now: Pool) -> None:
        for number, server in enumerate(pool.first):
            if server not in now.first:
                haproxy.ask(control, f"disable server bench/s{number}")

    namespaces.inside(near, partial(ip, "address", "add", f"{VIP}/32", "dev", "lo"))
    with listener(["haproxy", "-f", config], near, VIP, VIP_PORT):
        yield System(set_servers)


@contextmanager
def nginx(near: Path, pool: Pool, folder: Path) -> Iterator[System]:
    """Run nginx as a proxy of TCP, which takes the next server if a connect fails."""
    config = folder / "nginx.conf"

    def write(now: Pool) -> None:
        lines = [
            *(f"server {server};" for server in now.first),
            *(f"server {server} backup;" for server in now.further),
        ]
        config.write_text(_NGINX.format(folder=folder, servers=" ".join(lines), vip=VIP, port=VIP_PORT))

    def set_servers(now: Pool) -> None:
        write(now)
        subprocess.run(in_namespace(near, ["nginx", "-c", config, "-s", "reload"]), check=True, capture_output=True)

    write(pool)
    namespaces.inside(near, partial(ip, "address", "add", f"{VIP}/32", "dev", "lo"))
    with listener(["nginx", "-c", config], near, VIP, VIP_PORT):
        yield System(set_servers)


Systems = dict[str, Callable[[Path, Pool, Path], AbstractContextManager[System]]]
SYSTEMS: Final[Systems] = {
    "clb-discovery": ours,
    "clb-discovery, checks": partial(ours, settings=CHECK),
    "clb-discovery, sidecar killed": partial(ours, killed=True),
    "iptables DNAT": iptables,
    "HAProxy, checks": haproxy_with_checks,
    "nginx stream": nginx,
}
FOR_POOLS: Final[Systems] = {
    "clb-discovery": ours,
    "clb-discovery, `dead-after = 15s`": partial(ours, settings='dead-after = "15s"\n'),
    "clb-discovery, checks": partial(ours, settings=CHECK),
    "iptables DNAT": iptables,
    "HAProxy, checks": haproxy_with_checks,
    "HAProxy, `on-marked-down shutdown-sessions`": partial(haproxy_with_checks, closes=True),
    "nginx stream": nginx,
}
"""Those for connections that stay open."""
