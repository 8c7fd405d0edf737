"""Sockets that belong to a cgroup and are used by the test itself.

The kernel runs a cgroup's programs for the sockets that were made in it, in any process.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.programs.socket_maker import MOST, REQUEST
from tests.support.cgroups import inside

Target = tuple[str, int]
"""The address and port of a connect."""

RESET: Final = struct.pack("ii", 1, 0)
"""For SO_LINGER: a close is a reset."""


class SocketMaker:
    """Makes sockets in a cgroup, and closes the open ones at the end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._made = ExitStack()

    def close(self) -> None:
        """Close every socket that is still open."""
        self._made.close()

    def make(self, target: Target, count: int = 1, *, udp: bool = False) -> list[socket.socket]:
        """Make sockets of the target's family, which block for five seconds at most.

        Over TCP the kernel gives a silent server up at the first repetition, after about a second.
        """
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        made: list[socket.socket] = []
        while len(made) < count:
            self._control.send(REQUEST.pack(family, kind, min(MOST, count - len(made))))
            message, fds, _, _ = socket.recv_fds(self._control, 16, MOST)
            assert (message, self._control.recv(16)) == (b"made", b"yours")
            assert fds, "no descriptors have come: there is a limit on open files"
            made += [self._made.enter_context(socket.socket(fileno=fd)) for fd in fds]
        for sock in made:
            sock.settimeout(5)
            if not udp:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1)
        return made

    def connected(self, target: Target, count: int = 1, *, udp: bool = False) -> list[socket.socket]:
        """Make sockets and connect them one after the other; each connect has to succeed."""
        made = self.make(target, count, udp=udp)
        for sock in made:
            sock.connect(target)
        return made

    def begun(self, target: Target, count: int = 1) -> list[socket.socket]:
        """Make TCP sockets and begin their connects one after the other, without waiting for the server."""
        made = self.make(target, count)
        for sock in made:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
            sock.setblocking(False)
            sock.connect_ex(target)
        return made

    def dial(self, target: Target, times: int = 1) -> list[str]:
        """Connect and reset some times, over TCP; return the result of each, as `outcome` does."""
        outcomes = []
        for sock in self.make(target, times):
            outcomes.append(outcome(sock, target))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        return outcomes


@contextmanager
def socket_maker(cgroup: Path, namespace: Path | None = None) -> Iterator[SocketMaker]:
    """Make sockets in the cgroup while the block runs.

    :param namespace: file of the network namespace to make them in; by default that of the test.
    """
    enter = ["nsenter", f"--net={namespace}"] if namespace else []
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.settimeout(20)
        command = inside(cgroup, [*enter, sys.executable, "-m", "tests.programs.socket_maker", str(there.fileno())])
        process = subprocess.Popen(command, pass_fds=[there.fileno()])
        there.close()
        maker = SocketMaker(here)
        try:
            yield maker
        finally:
            maker.close()
            here.close()
            assert process.wait(timeout=20) == 0


def outcome(sock: socket.socket, target: Target) -> str:
    """Connect; return the result, `ok` or the errno's name."""
    try:
        sock.connect(target)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Keep this thread on one CPU while the block runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def names(targets: Sequence[Target]) -> list[str]:
    """Return the targets as text."""
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in targets]
