"""Operations of an application on its sockets, and their results."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.datapath.cgroup import find_root
from clb_discovery.model.servers import PassiveHealth
from tests.support.sockets import Target
from tests.support.sysctls import sysctl
from tests.support.tellers import Teller

COUNTED: Final = PassiveHealth(active=True, eject_after=0)
WATCHED: Final = PassiveHealth(active=True, eject_after=3)
PORT: Final = 53
IPPROTO_MPTCP: Final = 262
MPTCP_ENABLED: Final = Path("/proc/sys/net/mptcp/enabled")
"""Exists if the kernel has MPTCP sockets."""

_libc = ctypes.CDLL(None, use_errno=True)
_OWN: Final = Path("/proc/self/cgroup")


class Side(NamedTuple):
    """One of the ways in which applications address virtual servers."""

    name: str
    host: str
    """The host that the application connects to; N stands for the number of the VIP."""
    vip: str
    """The VIP's host as it is published."""
    real: str
    """The host of its real servers."""

    @property
    def real_host(self) -> str:
        """Return the host of its real servers in the form before a port."""
        return f"[{self.real}]" if ":" in self.real else self.real

    def target(self, port: int, number: int = 1) -> Target:
        """Return the address and port that an application connects to."""
        return self.host.replace("N", str(number)), port

    def at(self, port: int | None, number: int = 1, *, udp: bool = False) -> str:
        """Return the VIP as it is published."""
        suffix = "" if port is None else f":{port}"
        return self.vip.replace("N", str(number)) + suffix + ("/udp" if udp else "")


SIDES: Final = (
    Side("ipv4", "10.64.0.N", "10.64.0.N", "127.0.0.1"),
    Side("ipv6", "fd00:64::N", "[fd00:64::N]", "::1"),
    Side("mapped", "::ffff:10.64.0.N", "10.64.0.N", "127.0.0.1"),
)


def peer(sock: socket.socket) -> Target:
    """Return address and port of getpeername(2)."""
    host, port = sock.getpeername()[:2]
    return host, port


def as_seen_by(side: Side, target: Target) -> Target:
    """Return a real server's address as a socket of this side sees it."""
    host, port = target
    return (f"::ffff:{host}" if side.name == "mapped" else host), port


def ask(sock: socket.socket, message: bytes = b"hello") -> str:
    """Send to the peer; return the name of the server that answers."""
    sock.sendall(message)
    return heard(sock.recv(65536), message)


def ask_at(sock: socket.socket, target: Target, message: bytes = b"hello") -> tuple[str, Target]:
    """Send a datagram there; return the name of the server that answers, and the source address of the answer."""
    sock.sendto(message, target)
    return hear_from(sock, message)


def hear_from(sock: socket.socket, message: bytes = b"hello") -> tuple[str, Target]:
    """Receive the answer to a message; return the name of the server, and the source address."""
    answer, source = sock.recvfrom(65536)
    return heard(answer, message), (source[0], source[1])


def heard(answer: bytes, message: bytes) -> str:
    """Return the name of the server that gave an answer to this message."""
    name, _, echo = answer.partition(b" ")
    assert echo == message
    return name.decode()


def names(servers: Sequence[Teller]) -> list[str]:
    """Return the names of the servers."""
    return [server.name for server in servers]


def error_of(call: Callable[..., object], *arguments: object) -> str:
    """Return the name of the errno of a call, `ok` without one."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def ask_at_peer(sock: socket.socket) -> tuple[str, Target]:
    """Send to the peer of a connected socket; return the name of the server that answers, and the source address."""
    sock.send(b"hello")
    return hear_from(sock)


def dissolve(sock: socket.socket) -> None:
    """Connect to AF_UNSPEC, which undoes the previous connect."""
    nowhere = bytes(28)
    assert _libc.connect(sock.fileno(), nowhere, len(nowhere)) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def entered(cgroup: Path) -> Iterator[None]:
    """Move this process into a cgroup while the block runs: sockets that are made there stay in it."""
    (own,) = [line.split(":", 2)[2] for line in _OWN.read_text().splitlines() if line.startswith("0:")]
    _move_to(cgroup)
    try:
        yield
    finally:
        _move_to(find_root() / own.lstrip("/"))


def _move_to(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def multipath(cgroup: Path, target: Target) -> socket.socket:
    """Make an MPTCP socket in a cgroup."""
    assert MPTCP_ENABLED.read_text().strip() == "1", "sysctl net.mptcp.enabled=1 allows such sockets"
    with entered(cgroup):
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP)
    sock.settimeout(5)
    return sock


@contextmanager
def fast_open_allowed() -> Iterator[None]:
    """Allow TCP Fast Open in this network namespace for clients and servers, at once and without a cookie."""
    with sysctl("net/ipv4/tcp_fastopen", 0x1 | 0x2 | 0x4 | 0x200):
        yield
