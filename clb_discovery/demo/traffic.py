"""The running clients, and their reports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from clb_discovery.errors import ClbError
from clb_discovery.model.address import format_address
from clb_discovery.model.servers import Vip

_ENTER_CGROUP: Final = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


class Report(NamedTuple):
    """The counts of one client since its start."""

    at: float = 0.0
    """Time of the report, in seconds of CLOCK_MONOTONIC, which all processes share."""
    answers: Mapping[str, int] = {}
    """Connects by the name of the server that responded."""
    failures: Mapping[str, int] = {}
    """Failed connects by reason."""

    @property
    def connects(self) -> int:
        """Return the number of connects, failed ones included."""
        return sum(self.answers.values()) + sum(self.failures.values())


class Client:
    """One client process, and its last report."""

    def __init__(self, vip: Vip, cgroup: Path) -> None:
        self.vip: Final = vip
        self.report = Report()
        target = [format_address(vip.address), str(vip.port)]
        command = [sys.executable, "-P", "-m", "clb_discovery.demo.client", *target]
        self.process: Final = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            ["/bin/sh", "-c", _ENTER_CGROUP, str(cgroup), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C reaches only the demo, which ends its children in order
        )
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        self._output: Final = self.process.stdout
        self._partial = b""
        self.finished = False
        os.set_blocking(self._output.fileno(), False)
        asyncio.get_running_loop().add_reader(self._output, self._read)

    def _read(self) -> None:
        data = os.read(self._output.fileno(), 65536)
        if not data:
            self.finished = True
            asyncio.get_running_loop().remove_reader(self._output)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        if lines:
            self.report = Report(**json.loads(lines[-1]))

    def close(self) -> None:
        """End it at once."""
        asyncio.get_running_loop().remove_reader(self._output)
        self.process.kill()
        self.process.wait()
        self._output.close()


class Traffic:
    """All clients."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self.clients: Final = clients

    @property
    def connects(self) -> int:
        """Connects since the start, failed ones included."""
        return sum(client.report.connects for client in self.clients)

    @property
    def failures(self) -> Counter[str]:
        """Failed connects since the start, by reason."""
        return sum((Counter(client.report.failures) for client in self.clients), Counter())

    @property
    def finished(self) -> bool:
        """Whether every client has made its last report."""
        return all(client.finished for client in self.clients)

    def check(self) -> None:
        """Raise ClbError if a client has ended."""
        for client in self.clients:
            if client.finished:
                raise ClbError(f"the client of {client.vip} ended with {client.process.wait()}")

    def stop(self) -> None:
        """Let each client finish its current connect, report, and end."""
        for client in self.clients:
            client.process.terminate()


class Window:
    """The connects since a moment. It counts only connects that began after that moment."""

    def __init__(self, traffic: Traffic) -> None:
        """Begin now. Counting starts at the first report that each client makes from now on."""
        self._traffic = traffic
        self._begin = time.monotonic()
        self._first: dict[Vip, Report] = {}

    def has_begun(self) -> bool:
        """Take the first reports, and return whether every client has made one."""
        for client in self._traffic.clients:
            if client.vip not in self._first and client.report.at >= self._begin:
                self._first[client.vip] = client.report
        return len(self._first) == len(self._traffic.clients)

    def answers(self, vip: Vip) -> Counter[str]:
        """Return the connects to a virtual server by the name of the real server."""
        report = next(client.report for client in self._traffic.clients if client.vip == vip)
        return Counter(report.answers) - Counter(self._first[vip].answers)

    def fewest(self) -> int:
        """Return the fewest connects to any virtual server, failed ones included."""
        return min(client.report.connects - self._first[client.vip].connects for client in self._traffic.clients)


@contextlib.contextmanager
def running(vips: Sequence[Vip], cgroup: Path) -> Iterator[Traffic]:
    """Run a client for each virtual server while the block runs."""
    with contextlib.ExitStack() as stack:
        yield Traffic([stack.enter_context(contextlib.closing(Client(vip, cgroup))) for vip in vips])
