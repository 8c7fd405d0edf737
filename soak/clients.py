"""Clients that are ordinary programs: `python -m soak.clients KIND FOLDER ADDRESS,PORT...`.

KIND is blocking or asyncio, sockets in Python, or curl or redis-cli, a process for each connect. SIGTERM ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from soak.record import Stage, Writer

PATIENCE: Final = 20.0
AT_ONCE: Final = 8
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: reset instead of TIME_WAIT, which would use up the ports
_CURL_CANNOT_CONNECT: Final = 7
_ended = False


def _end(*_: object) -> None:
    global _ended  # noqa: PLW0603 - a signal handler sets a flag
    _ended = True


def _socket(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return sock


def _seen(sock: socket.socket, address: str, port: int, answer: bytes) -> tuple[Stage, int, int]:
    if len(answer) != 4:
        return Stage.NO_ANSWER, 0, 0
    stage = Stage.REACHED if sock.getpeername()[:2] == (address, port) else Stage.WRONG_PEER
    return stage, 0, int.from_bytes(answer, "big")


def blocking(address: str, port: int) -> tuple[Stage, int, int]:
    """Connect and query the server; return stage, error and the number of the server."""
    stage = Stage.CONNECT_FAILED
    with _socket(address) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect((address, port))
            stage = Stage.NO_ANSWER
            sock.sendall(b"?")
            return _seen(sock, address, port, sock.recv(4))
        except OSError as error:
            return stage, error.errno or errno.ETIMEDOUT, 0


async def nonblocking(address: str, port: int) -> tuple[Stage, int, int]:
    """As `blocking`, for an event loop."""
    stage, loop = Stage.CONNECT_FAILED, asyncio.get_running_loop()
    with _socket(address) as sock:
        sock.setblocking(False)  # noqa: FBT003 - the socket's own interface
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, (address, port))
                stage = Stage.NO_ANSWER
                await loop.sock_sendall(sock, b"?")
                return _seen(sock, address, port, await loop.sock_recv(sock, 4))
        except OSError as error:
            if error.errno == errno.ECONNRESET:  # after the connect, because the server has died since
                stage = Stage.NO_ANSWER
            return stage, error.errno or errno.ETIMEDOUT, 0


def by_curl(address: str, port: int) -> tuple[Stage, int, int]:
    """Query the server with curl."""
    host = f"[{address}]" if ":" in address else address
    return _by_command(["curl", "-s", "-m", str(PATIENCE), f"http://{host}:{port}/"])


def by_redis_cli(address: str, port: int) -> tuple[Stage, int, int]:
    """Query the server with redis-cli."""
    return _by_command(["redis-cli", "-h", address, "-p", str(port), "get", "number"])


def _by_command(command: list[str]) -> tuple[Stage, int, int]:
    result = subprocess.run(command, check=False, capture_output=True, text=True, start_new_session=True)
    if result.returncode == 0 and result.stdout.strip().isdigit():
        return Stage.REACHED, 0, int(result.stdout)
    failed = result.returncode == _CURL_CANNOT_CONNECT or "Could not connect" in result.stderr
    print(command, result, flush=True)
    return (Stage.CONNECT_FAILED if failed else Stage.NO_ANSWER), errno.ECONNREFUSED, 0


async def _many(writer: Writer, targets: list[tuple[str, int]]) -> None:
    turns = itertools.cycle(enumerate(targets))

    async def one_by_one() -> None:
        while not _ended:
            index, (address, port) = next(turns)
            start = time.monotonic_ns()
            stage, error, reached = await nonblocking(address, port)
            writer.note(start, index, stage, error, reached)

    await asyncio.gather(*(one_by_one() for _ in range(AT_ONCE)))


def main(kind: str, folder: Path, texts: list[str]) -> None:
    """Connect until SIGTERM."""
    signal.signal(signal.SIGTERM, _end)
    targets = [(address, int(port)) for address, _, port in (text.partition(",") for text in texts)]
    with contextlib.closing(Writer(folder)) as writer:
        if kind == "asyncio":
            asyncio.run(_many(writer, targets))
            return
        connect = {"blocking": blocking, "curl": by_curl, "redis-cli": by_redis_cli}[kind]
        for index, (address, port) in itertools.cycle(enumerate(targets)):
            if _ended:
                break
            start = time.monotonic_ns()
            stage, error, reached = connect(address, port)
            writer.note(start, index, stage, error, reached)


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
