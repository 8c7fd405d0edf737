"""The data plane of an instance from a test's view: publish without a sidecar, connect in a cgroup, compare states."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clb_discovery.datapath import bpf, probe
from clb_discovery.datapath.instance import RUN, Instance
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.layout.elements import Info
from clb_discovery.layout.installed import Installed
from clb_discovery.layout.structs import FEATURE_ERRNO, Map
from clb_discovery.model import own_servers
from clb_discovery.model.address import parse_address
from clb_discovery.model.servers import Algorithm, RealServer, Vip, VirtualServer
from clb_discovery.model.text_forms import parse_vip
from clb_discovery.publication.plan import plan
from tests.support.cgroups import run_inside
from tests.support.kernel_objects import KernelObject, pinned


def wipe(instance: str) -> None:
    """Remove everything of an instance, including its lock file, which no process may hold."""
    loader.unload(Pins(instance))
    shutil.rmtree(RUN / instance, ignore_errors=True)


def memory_of_maps(pins: Pins) -> int:
    """Return how many bytes the pinned maps take, by the kernel's own account."""
    total = 0
    for map_ in Map:
        fd = bpf.open_pin(pins.map(map_), read_only=True)
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        os.close(fd)
        total += next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))
    return total


def publish(instance: str, pools: Mapping[str, Sequence[str]]) -> None:
    """Publish these as the virtual servers of a loaded instance.

    :param pools: by VIP, in the form of the command line, the real servers: `127.0.0.1:6379`, with `*3` for weight 3.
    """
    virtual = {vip: _virtual_server(vip, servers) for vip, servers in _parsed(pools).items()}
    with Instance(instance).locked(), Maps(Pins(instance)) as maps:
        maps.apply(plan(maps.read(), own_servers.virtual_servers(instance) | virtual, complete=True).steps)


def dial(cgroup: Path, address: str, port: int, times: int = 1, *, udp: bool = False) -> list[str]:
    """Connect inside the cgroup with an ordinary program; return the result of each connect, ok or its errno."""
    program = [sys.executable, "-m", "tests.programs.dial", "udp" if udp else "tcp"]
    result = run_inside(cgroup, *program, str(times), address, str(port))
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def refusal() -> str:
    """Return the error of a connect to an empty pool, by the features of the kernel."""
    return "ECONNREFUSED" if probe.features() & FEATURE_ERRNO else "EPERM"


class Snapshot(NamedTuple):
    """All objects of an instance in the kernel and in /run, without counters, because connects go on."""

    objects: Mapping[str, KernelObject]
    installed: Installed | None
    info: Info | None
    files: Mapping[str, str]


def snapshot(instance: str) -> Snapshot:
    """Return the state of an instance, loaded or not."""
    pins, installed, info = Pins(instance), None, None
    if pins.are_there():
        with Maps(pins) as maps:
            installed, info = maps.read(), maps.info()
    directory = RUN / instance
    files = {file.name: file.read_text() for file in directory.iterdir()} if directory.exists() else {}
    return Snapshot(pinned(pins.home), installed, info, files)


def _parsed(pools: Mapping[str, Sequence[str]]) -> dict[Vip, list[RealServer]]:
    return {parse_vip(vip): [_real_server(server) for server in servers] for vip, servers in pools.items()}


def _virtual_server(vip: Vip, servers: Sequence[RealServer]) -> VirtualServer:
    return VirtualServer(vip, "test", "test:by-hand", Algorithm.RANDOM, tuple(sorted(servers)))


def _real_server(text: str) -> RealServer:
    endpoint, _, weight = text.partition("*")
    host, _, port = endpoint.rpartition(":")
    return RealServer(0, parse_address(host.strip("[]")), int(port), int(weight or 1))
