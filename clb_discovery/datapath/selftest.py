"""Test that the programs are in effect in a cgroup, by a UDP connect to a virtual server that is always empty.

The same connect can teach them which network namespace is home.

An existing link is no proof: its cgroup may be gone, or another hierarchy may be in use. Unless this process is in the
cgroup, a short-lived child (`selftest_child.py`) makes the sockets for the connect, in a temporary cgroup below it.
In a frozen cgroup that child would freeze, too. No process connects there either, so there is no test then.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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

_CHILD: Final = Path(__file__).with_name("selftest_child.py")
_TIMEOUT: Final = 10.0
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_SO_COOKIE: Final = 57  # of asm-generic/socket.h


def run(instance: str, cgroup: Path, home: int | None = None) -> str | None:
    """Make the self-test connects in both families.

    :param home: descriptor of `clb_home`; the programs then learn that the network namespace of this process is home.
    :returns: None if the programs are in effect in the cgroup, or if it is frozen; else the reason.
    """
    if cgroups.is_frozen(cgroup):
        return None
    load = load_command(instance, cgroup)
    try:
        with _made_here() if cgroups.contains_self(cgroup) else _made_inside(cgroup) as sockets:
            refused = all(_is_refused(sockets, vip, home) for vip in own_servers.virtual_servers(instance))
    except (OSError, subprocess.SubprocessError, HostError) as error:
        if isinstance(error, OSError) and cgroups.identity(cgroup) is None:
            return f"{cgroup} is gone; when it is back a sidecar attaches to it again, or run: {load}"
        return f"the self-test could not run in {cgroup}: {error}"
    return None if refused else f"connects in {cgroup} do not run the programs; run: {load}"


@contextmanager
def _made_here() -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        made = []
        for family in _FAMILIES:
            with suppress(OSError):
                made.append(stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
        yield made


@contextmanager
def _made_inside(cgroup: Path) -> Iterator[list[socket.socket]]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as stack, here, there:
        child = stack.enter_context(cgroups.temporary_child(cgroup, "clb-discovery-selftest"))
        # Isolated: never from the current directory, and without the packages of the site, which it does not need.
        command = [sys.executable, "-IS", str(_CHILD), str(child), str(there.fileno())]
        result = subprocess.run(  # noqa: S603 - our own interpreter and code
            command, check=False, capture_output=True, timeout=_TIMEOUT, pass_fds=[there.fileno()]
        )
        if result.returncode != 0:
            said = result.stderr.decode(errors="replace").strip().splitlines()
            raise OSError(said[-1] if said else f"it ended with {result.returncode}")
        _, descriptors, _, _ = socket.recv_fds(here, 16, len(_FAMILIES))
        yield [stack.enter_context(socket.socket(fileno=descriptor)) for descriptor in descriptors]


def _is_refused(sockets: Sequence[socket.socket], vip: Vip, home: int | None) -> bool:
    family = socket.AF_INET if is_ipv4(vip.address) else socket.AF_INET6
    sock = next((one for one in sockets if one.family == family), None)
    if sock is None:  # without this family in the kernel there are no connects to balance
        return True
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
    known = elements.unpack_home(bpf.lookup(home, elements.FIRST, HOME.size) or bytes(HOME.size))
    bpf.update(home, elements.FIRST, elements.pack_home(known._replace(learner=cookie)))
