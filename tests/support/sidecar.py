"""The real sidecar as a process, as systemd would run it."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from clb_discovery.cli.main import main
from clb_discovery.cli.status import read_status as document_of
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.model.address import format_address
from tests.support.contract import read_status
from tests.support.loading import loading
from tests.support.pace import patient
from tests.support.process import running, wait_until
from tests.support.systemd import ServiceManager, service_manager

COMMAND = (sys.executable, "-m", "clb_discovery")


def clb(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one `clb-discovery` command and wait for it; one that loads uses the loader of the tests.

    A document of `status` is checked against its schema.
    """
    result = subprocess.run(
        [*COMMAND, *map(str, (*arguments[:1], *_loading(arguments), *arguments[1:]))],
        check=False,
        capture_output=True,
        text=True,
        timeout=patient(60),
        env={**os.environ, **(env or {})},
    )
    return _checked(result)


def clb_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself in this process: it starts ten times as fast as in one of its own.

    Not for a test whose subject is the process, nor beside a sidecar in this process, whose locks it would release.
    """
    given = [*map(str, (*arguments[:1], *_loading(arguments), *arguments[1:]))]
    files, collector = resource.getrlimit(resource.RLIMIT_NOFILE), gc.get_threshold()
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        try:
            code = main(given)
        except SystemExit as error:  # wrong usage
            code = int(error.code or 0)
        finally:  # `run` sets both for its process
            resource.setrlimit(resource.RLIMIT_NOFILE, files)
            gc.set_threshold(*collector)
    return _checked(subprocess.CompletedProcess(given, code, output.getvalue(), errors.getvalue()))


def _loading(arguments: Sequence[str | Path]) -> tuple[str, ...]:
    return loading() if arguments and arguments[0] in {"load", "run"} else ()


def _checked(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    if {"status", "--json"} <= {*result.args} and result.stdout:
        read_status(result.stdout)
    return result


def load(instance: str, cgroup: Path, *options: str) -> None:
    """Load the data plane from the command line."""
    result = clb("load", "--instance", instance, "--cgroup", cgroup, *options)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def status(instance: str) -> dict[str, Any]:
    """Return the document of `status --json`, made in this process: tests poll it, and a command takes 200 ms."""
    return read_status(json.dumps(document_of(instance)))


def pool(instance: str, address: str) -> dict[str, int] | None:
    """Return the weights of the real servers of a VIP in the kernel, by `address:port`; None if it is none."""
    pins = Pins(instance)
    if not pins.are_there():
        return None
    with Maps(pins) as maps:
        for vip, published in maps.read().virtual.items():
            if format_address(vip.address) == address:
                return {f"{format_address(one.address)}:{one.port}": one.weight for one in published.pool or ()}
    return None


def wait_for_pool(instance: str, address: str, expected: Mapping[str, int]) -> None:
    """Wait until the kernel holds exactly these real servers and weights for a VIP."""
    wait_until(lambda: pool(instance, address) == expected, f"the pool of {address} is {expected}")


def rejected(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the reason for each real server that the log names as rejected."""
    found = (line for line in lines if line["event"] == "real servers rejected")
    return {server: line["reason"] for line in found for server in line["servers"]}


class Sidecar:
    """A running `clb-discovery run`."""

    def __init__(self, process: subprocess.Popen[bytes], instance: str, log: Path, manager: ServiceManager) -> None:
        self.process = process
        self.instance = instance
        self.log = log
        self.manager = manager

    def wait_until_ready(self) -> list[str]:
        """Wait until it has reported READY=1; return the lines of that message."""
        try:
            return self.manager.until("READY=1")
        except AssertionError as error:
            error.add_note(self.log.read_text())
            raise

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=patient(10))

    def kill(self) -> None:
        """Kill it with SIGKILL, as the kernel does when memory is short."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def reload(self) -> None:
        """Make it reload its configuration (SIGHUP), and wait until it has."""
        before = self.events().count("configuration reloaded")
        self.process.send_signal(signal.SIGHUP)
        self.wait_for(lambda: self.events().count("configuration reloaded") > before, "it has reloaded")

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def events(self) -> list[str]:
        """Return the events of its log."""
        return [line["event"] for line in self.lines()]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; on a time-out show the log."""
        try:
            wait_until(condition, what)
        except AssertionError as error:
            error.add_note(self.log.read_text())
            raise


@contextmanager
def sidecar(
    instance: str,
    cgroup: Path | None,
    directory: Path,
    options: Sequence[str],
    *,
    ready: bool = True,
    wrapper: Sequence[str | Path] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Sidecar]:
    """Run a sidecar while the block runs.

    :param cgroup: None if the data plane is loaded already, and the sidecar has to use it.
    :param ready: wait until it has reported READY=1.
    :param wrapper: a program, with its arguments, that becomes the sidecar, such as setpriv(1).
    :param env: variables beside those of the test.
    """
    log = directory / f"sidecar-{instance}.log"
    loads = (*loading(), "--cgroup", str(cgroup)) if cgroup else ("--loader", "none")
    command = [*wrapper, *COMMAND, "run", *loads, "--instance", instance, "--log-format", "json", *options]
    with (
        service_manager(directory) as manager,
        running(command, log, {**os.environ, "NOTIFY_SOCKET": manager.address, **(env or {})}) as process,
    ):
        found = Sidecar(process, instance, log, manager)
        if ready:
            found.wait_until_ready()
        yield found
