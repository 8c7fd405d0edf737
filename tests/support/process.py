"""Start a real server for a test, wait until it answers, and end it in any case."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.pace import patient

START_TIMEOUT = patient(60)
_PORTS = range(20000, 32768)
"""Below the kernel's ephemeral ports: one of the many clients could take a port before its server does."""
_CHANCE = random.SystemRandom()
_GIVEN: deque[int] = deque(maxlen=1000)


def free_port() -> int:
    """Return a port that is free on 127.0.0.1 and ::1, in TCP and UDP, and that was not returned lately."""
    trouble: OSError | None = None
    for port in _CHANCE.sample(_PORTS, 100):
        if port not in _GIVEN:
            try:
                _bind_all(port)
            except OSError as error:
                trouble = error
            else:
                _GIVEN.append(port)
                return port
    raise AssertionError("no port is free on 127.0.0.1 and ::1") from trouble


def _bind_all(port: int) -> None:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as candidate:
                candidate.bind((address, port))


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT) -> None:
    """Poll until the condition holds; after the time-out fail the test, with the description of the condition.

    The longer it takes the less often it is asked, because asking may be work for the processor that others wait for.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        if waited > timeout:
            raise AssertionError(f"waited {timeout:g} s in vain until {what}")
        time.sleep(min(0.2, 0.02 + waited / 10))


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server with its output in `log`; end it (SIGTERM, then SIGKILL after 5 s) when the block is left."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=patient(5))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
