"""A client that connects and closes, with little cost of its own (`connects.c`)."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.cgroups import inside

SOURCE: Final = Path(__file__).with_name("connects.c")
RST: Final = "rst"
FIN: Final = "fin"
CLOSES: Final = (RST, FIN)
"""How the client closes its connections: by a reset, which leaves nothing behind, or as applications do."""


class Times(NamedTuple):
    """Nanoseconds for one connection that nothing has disturbed, from many."""

    connect: float
    """In connect(2), which includes the whole handshake."""
    whole: float
    """From socket(2) until both ends are closed."""


class Client:
    """The running client."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self._port = port

    def connect(self, address: str, times: int, close: str = RST) -> Times:
        """Make so many connections to the client's port at an address that leads to the other end."""
        assert self._process.stdin
        assert self._process.stdout
        print(address, self._port, times, close, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the client at {address} has failed; it says why above")
        return Times._make(map(float, line.split()))


@contextmanager
def client(program: Path, listener: socket.socket, cgroup: Path | None = None) -> Iterator[Client]:
    """Run a client that connects to itself while the block runs.

    :param program: the compiled client.
    :param listener: where it accepts its connections. That end belongs to the cgroup of this process.
    :param cgroup: that of the client, if not that of this process.
    """
    with _running(program, listener.fileno(), listener.getsockname()[1], cgroup) as found:
        yield found


@contextmanager
def client_of_another_host(program: Path, tun: int, port: int, cgroup: Path | None = None) -> Iterator[Client]:
    """Run a client that connects to another host while the block runs; root only.

    :param tun: the descriptor of a TUN device, to which addresses of that host lead; the client plays that host there.
    :param port: any.
    """
    with _running(program, tun, port, cgroup) as found:
        yield found


@contextmanager
def _running(program: Path, fd: int, port: int, cgroup: Path | None) -> Iterator[Client]:
    command: list[str | Path] = [program, str(fd)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        inside(cgroup, command) if cgroup else command, stdin=pipe, stdout=pipe, text=True, pass_fds=[fd]
    ) as process:
        try:
            yield Client(process, port)
        finally:
            process.kill()
