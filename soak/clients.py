"""Clients that are ordinary programs: `python -m soak.clients KIND FOLDER ADDRESS,PORT...`.

KIND is blocking or asyncio, sockets in Python, or curl or redis-cli, a process for each connect. These connect without
pause. Or it is one of those for servers that fail in silence, each a few threads: brief, with little patience; waiting,
without a time limit for connects; or long, which keeps connections open. SIGTERM ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from soak.record import Outcome, Writer

PATIENCE: Final = 20.0
AT_ONCE: Final = 8
BRIEF: Final = 0.5
"""Patience for a connect, as most client libraries have; in seconds."""
ANSWER: Final = 2.0
"""Patience of these for the answer."""
THREADS: Final = {"brief": 4, "waiting": 4, "long": 18}
PAUSE: Final = 0.01
IDLE: Final = 8.0
"""Longest pause between two exchanges on a connection."""
LONG: Final = 4_000_000_000
"""A read that takes more nanoseconds is recorded."""
KEPT_FOR: Final = 20.0
"""Longest use of a connection."""
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


def _seen(sock: socket.socket, address: str, port: int, answer: bytes) -> tuple[Outcome, int, int]:
    if len(answer) != 4:
        return Outcome.NO_ANSWER, 0, 0
    stage = Outcome.REACHED if sock.getpeername()[:2] == (address, port) else Outcome.WRONG_PEER
    return stage, 0, int.from_bytes(answer, "big")


def blocking(address: str, port: int) -> tuple[Outcome, int, int]:
    """Connect and query the server; return stage, error and the number of the server."""
    return _connected(address, port, PATIENCE, PATIENCE)


def brief(address: str, port: int) -> tuple[Outcome, int, int]:
    """As `blocking`, with little patience."""
    return _connected(address, port, BRIEF, ANSWER)


def waiting(address: str, port: int) -> tuple[Outcome, int, int]:
    """As `blocking`, without a time limit for the connect."""
    return _connected(address, port, None, PATIENCE)


def _connected(address: str, port: int, connect: float | None, answer: float) -> tuple[Outcome, int, int]:
    """Connect and query the server, each with its time limit in seconds; None for none."""
    stage = Outcome.CONNECT_FAILED
    with _socket(address) as sock:
        try:
            sock.settimeout(connect)
            sock.connect((address, port))
            stage = Outcome.NO_ANSWER
            sock.settimeout(answer)
            return _asked(sock, address, port)
        except OSError as error:
            return stage, error.errno or errno.ETIMEDOUT, 0


def _asked(sock: socket.socket, address: str, port: int) -> tuple[Outcome, int, int]:
    sock.sendall(b"?")
    return _seen(sock, address, port, sock.recv(4))


def use(address: str, port: int, note: Callable[[int, Outcome, int, int], None]) -> None:
    """Connect, and use the connection for a while, with pauses in which it waits for data.

    :param note: records the connect, and the end of the connection.
    """
    start, stage, number = time.monotonic_ns(), Outcome.CONNECT_FAILED, 0
    until = time.monotonic() + random.SystemRandom().uniform(0, KEPT_FOR)
    with _socket(address) as sock:
        try:
            sock.connect((address, port))
            stage = Outcome.NO_ANSWER
            _read_for(sock, PATIENCE)
            found = _asked(sock, address, port)
            note(start, *found)
            stage, _, number = found
            if stage == Outcome.NO_ANSWER:
                return
            stage = Outcome.USED
            while not _ended and time.monotonic() < until:
                for step in (_idle, _exchange):
                    start = time.monotonic_ns()
                    if not step(sock):
                        raise BrokenPipeError(errno.EPIPE, "closed by the server")
                    if time.monotonic_ns() - start > LONG:
                        note(start, stage, 0, number)
            start = time.monotonic_ns()
            code = 0
        except OSError as error:
            code = error.errno or errno.ETIMEDOUT
    note(start, stage, code, number)


def _idle(sock: socket.socket) -> bool:
    """Wait for data that never comes; return False at the end of the connection."""
    _read_for(sock, random.SystemRandom().uniform(0.1, IDLE))
    with contextlib.suppress(BlockingIOError):
        return bool(sock.recv(4))
    return True


def _exchange(sock: socket.socket) -> bool:
    """Query the server; return False at the end of the connection."""
    _read_for(sock, PATIENCE)
    sock.sendall(b"?")
    return bool(sock.recv(4))


def _read_for(sock: socket.socket, seconds: float) -> None:
    """Set how long reads wait, which leaves the socket blocking."""
    whole = int(seconds)
    limit = struct.pack("@ll", whole, round((seconds - whole) * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


async def nonblocking(address: str, port: int) -> tuple[Outcome, int, int]:
    """As `blocking`, for an event loop."""
    stage, loop = Outcome.CONNECT_FAILED, asyncio.get_running_loop()
    with _socket(address) as sock:
        sock.setblocking(False)  # noqa: FBT003 - the socket's own interface
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, (address, port))
                stage = Outcome.NO_ANSWER
                await loop.sock_sendall(sock, b"?")
                return _seen(sock, address, port, await loop.sock_recv(sock, 4))
        except OSError as error:
            if error.errno == errno.ECONNRESET:  # after the connect, because the server has died since
                stage = Outcome.NO_ANSWER
            return stage, error.errno or errno.ETIMEDOUT, 0


def by_curl(address: str, port: int) -> tuple[Outcome, int, int]:
    """Query the server with curl."""
    host = f"[{address}]" if ":" in address else address
    return _by_command(["curl", "-s", "-m", str(PATIENCE), f"http://{host}:{port}/"])


def by_redis_cli(address: str, port: int) -> tuple[Outcome, int, int]:
    """Query the server with redis-cli."""
    return _by_command(["redis-cli", "-h", address, "-p", str(port), "get", "number"])


def _by_command(command: list[str]) -> tuple[Outcome, int, int]:
    result = subprocess.run(command, check=False, capture_output=True, text=True, start_new_session=True)
    if result.returncode == 0 and result.stdout.strip().isdigit():
        return Outcome.REACHED, 0, int(result.stdout)
    failed = result.returncode == _CURL_CANNOT_CONNECT or "Could not connect" in result.stderr
    print(command, result, flush=True)
    return (Outcome.CONNECT_FAILED if failed else Outcome.NO_ANSWER), errno.ECONNREFUSED, 0


async def _many(writer: Writer, targets: list[tuple[str, int]]) -> None:
    turns = itertools.cycle(enumerate(targets))

    async def one_by_one() -> None:
        while not _ended:
            index, (address, port) = next(turns)
            start = time.monotonic_ns()
            stage, error, reached = await nonblocking(address, port)
            writer.note(start, index, stage, error, reached)

    await asyncio.gather(*(one_by_one() for _ in range(AT_ONCE)))


def _in_threads(kind: str, writer: Writer, targets: list[tuple[str, int]]) -> None:
    connect = {"brief": brief, "waiting": waiting}.get(kind)

    def go_on(number: int) -> None:
        while not _ended:
            number = (number + 1) % len(targets)
            address, port = targets[number]
            if connect:
                start = time.monotonic_ns()
                stage, error, reached = connect(address, port)
                writer.note(start, number, stage, error, reached)
            else:
                use(address, port, lambda start, *found, number=number: writer.note(start, number, *found))
            time.sleep(PAUSE)

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(THREADS[kind])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(kind: str, folder: Path, texts: list[str]) -> None:
    """Connect until SIGTERM."""
    signal.signal(signal.SIGTERM, _end)
    targets = [(address, int(port)) for address, _, port in (text.partition(",") for text in texts)]
    with contextlib.closing(Writer(folder)) as writer:
        if kind == "asyncio":
            asyncio.run(_many(writer, targets))
            return
        if kind in THREADS:
            _in_threads(kind, writer, targets)
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
