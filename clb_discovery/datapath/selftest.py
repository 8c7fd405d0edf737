"""Test that the programs are in effect in a cgroup, by a UDP connect to a virtual server that is always empty.

The same connect can teach them which network namespace is home.

An existing link is no proof: its cgroup may be gone, or another hierarchy may be in use. Unless this process is in the
cgroup, a short-lived child (this module as a program) makes the connect, in a temporary cgroup below it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from clb_discovery.datapath import bpf
from clb_discovery.datapath import cgroup as cgroups
from clb_discovery.errors import HostError
from clb_discovery.hints import load_command
from clb_discovery.layout import elements
from clb_discovery.layout.structs import HOME
from clb_discovery.model import own_servers
from clb_discovery.model.address import format_address, is_ipv4
from clb_discovery.model.servers import Vip

_TIMEOUT: Final = 10.0
_NOT_REFUSED: Final = 3
_SO_COOKIE: Final = 57  # of asm-generic/socket.h


def run(instance: str, cgroup: Path, home: int | None = None) -> str | None:
    """Make the self-test connects in both families.

    :param home: descriptor of `clb_home`; the programs then learn that the network namespace of this process is home.
    :returns: None if the programs are in effect in the cgroup, else the reason.
    """
    load = load_command(instance, cgroup)
    try:
        inside = cgroups.contains_self(cgroup)
        refused = _are_refused(instance, home) if inside else _are_refused_inside(cgroup, instance, home)
    except (OSError, subprocess.SubprocessError, HostError) as error:
        if isinstance(error, OSError) and cgroups.identity(cgroup) is None:
            return f"{cgroup} is gone; when it is back a sidecar attaches to it again, or run: {load}"
        return f"the self-test could not run in {cgroup}: {error}"
    return None if refused else f"connects in {cgroup} do not run the programs; run: {load}"


def _are_refused_inside(cgroup: Path, instance: str, home: int | None) -> bool:
    passed = [] if home is None else [home]
    with cgroups.temporary_child(cgroup, "clb-discovery-selftest") as child:
        # -P: never from the current directory
        command = [sys.executable, "-P", "-m", __name__, str(child), instance, *map(str, passed)]
        result = subprocess.run(  # noqa: S603 - our own interpreter and code
            command, check=False, capture_output=True, timeout=_TIMEOUT, pass_fds=passed
        )
    if result.returncode not in {0, _NOT_REFUSED}:
        said = result.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(said[-1] if said else f"it ended with {result.returncode}")
    return result.returncode == 0


def _are_refused(instance: str, home: int | None = None) -> bool:
    return all(_is_refused(vip, home) for vip in own_servers.virtual_servers(instance))


def _is_refused(vip: Vip, home: int | None) -> bool:
    try:
        sock = socket.socket(socket.AF_INET if is_ipv4(vip.address) else socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError:  # without this family in the kernel there are no connects to balance
        return True
    with sock:
        if home is not None:
            _announce(sock, home)
        try:
            sock.connect((format_address(vip.address), vip.port))
        except (ConnectionRefusedError, PermissionError):
            return True
        except OSError:
            return False
    return False


def _announce(sock: socket.socket, home: int) -> None:
    """Let the programs learn from the connect of this socket. Nobody else can have its cookie."""
    cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)
    known = elements.unpack_home(bpf.lookup(home, elements.INFO_KEY, HOME.size) or bytes(HOME.size))
    bpf.update(home, elements.INFO_KEY, elements.pack_home(known._replace(learner=cookie)))


if __name__ == "__main__":
    (Path(sys.argv[1]) / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    sys.exit(0 if _are_refused(sys.argv[2], *map(int, sys.argv[3:])) else _NOT_REFUSED)
