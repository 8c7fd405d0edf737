"""The ways from a client to the real servers, one for each case, set up in its machine.

The real servers are ten addresses of one network namespace, behind a veth pair; the client is outside of it. Every way
leads from a VIP to these addresses at the same port, because direct routing cannot change the port. The set-up is the
same for all cases but for the way itself. Nothing is removed: the machine is switched off.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.vm.figures import DIRECT, OURS
from benchmarks.ways import REAL, VIP, add_iptables
from clb_discovery.datapath.cgroup import find_root
from tests.support.sidecar import sidecar

INSTANCE: Final = "default"
REDIS_PORT: Final = 6379
OWN_PORT: Final = 7000
"""The port that leads to the client itself, which listens in the namespace of the real servers."""
PORTS: Final = (REDIS_PORT, OWN_PORT)
_CLIENT: Final = "10.1.0.100"
_HERE: Final = Path("/proc/self/ns/net")


def connect_place(servers: Path) -> None:
    """Connect the namespace of the real servers with that of the client, which is this process's.

    Direct routing needs the VIP at the real servers. The client has a route to it, as to any destination; the
    destination is changed after routing.

    :param servers: the file of the namespace.
    """
    name = servers.name
    _do("ip", "link", "add", "veth-client", "type", "veth", "peer", "name", "veth-servers", "netns", name)
    _do("ip", "address", "add", f"{_CLIENT}/24", "dev", "veth-client")
    _do("ip", "link", "set", "veth-client", "up")
    for address in REAL:
        _do("ip", "-n", name, "address", "add", f"{address}/24", "dev", "veth-servers")
    _do("ip", "-n", name, "address", "add", f"{VIP}/32", "dev", "lo")
    _do("ip", "-n", name, "link", "set", "veth-servers", "up")
    _do("ip", "route", "add", f"{VIP}/32", "dev", "veth-client", "src", _CLIENT)


@contextmanager
def _clb_discovery(folder: Path) -> Iterator[None]:
    """Run the sidecar as shipped, with only services in its configuration."""
    config = folder / "clb-discovery.toml"
    config.write_text("".join(map(_service, PORTS)))
    with sidecar(INSTANCE, find_root(), folder, ["--config", str(config)]):
        yield


def _service(port: int) -> str:
    servers = ", ".join(f'"{address}:{port}"' for address in REAL)
    return f'[[service]]\nname = "port-{port}"\nvip = "{VIP}:{port}"\nservers = [{servers}]\n'


@contextmanager
def _ipvs(method: str, _folder: Path) -> Iterator[None]:
    for port in PORTS:
        _do("ipvsadm", "-A", "-t", f"{VIP}:{port}", "-s", "rr")
        for address in REAL:
            _do("ipvsadm", "-a", "-t", f"{VIP}:{port}", "-r", f"{address}:{port}", method)
    yield


@contextmanager
def _iptables(_folder: Path) -> Iterator[None]:
    add_iptables(_HERE, [(port, port) for port in PORTS])
    yield


@contextmanager
def _direct(_folder: Path) -> Iterator[None]:
    yield


WAYS: Final[dict[str, tuple[str, Callable[[Path], AbstractContextManager[None]]]]] = {
    DIRECT: (REAL[0], _direct),
    OURS: (VIP, _clb_discovery),
    "ipvs-dr": (VIP, partial(_ipvs, "-g")),
    "ipvs-nat": (VIP, partial(_ipvs, "-m")),
    "iptables": (VIP, _iptables),
}
"""For each case the address that its client connects to, and the context in which it is measured."""


def _do(*command: str) -> None:
    subprocess.run(command, check=True)
