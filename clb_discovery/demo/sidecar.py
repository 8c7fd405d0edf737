"""The real sidecar as a process, observed from outside."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from clb_discovery.datapath import instance
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.demo.sandbox import end
from clb_discovery.documents.names import endpoint
from clb_discovery.documents.status import virtual_servers
from clb_discovery.errors import ClbError, HostError
from clb_discovery.model.servers import Pool, Vip


class Sidecar:
    """A running `clb-discovery run`."""

    def __init__(self, process: subprocess.Popen[bytes], pins: Pins, log: Path) -> None:
        self.pid: Final = process.pid
        self._process = process
        self._pins = pins
        self._log = log

    def kill(self) -> None:
        """Kill it, so that it cannot clean up."""
        self._process.kill()
        self._process.wait()

    def check(self) -> None:
        """Raise an error with its last message if it has ended: HostError after that exit code, else ClbError."""
        code = self._process.poll()
        if code is None:
            return
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it said nothing"]
        reason = lines[-1].removeprefix("clb-discovery: ")
        if code == HostError.exit_code:
            raise HostError(reason)
        raise ClbError(f"the sidecar ended with {code}: {reason}")

    def error(self) -> str | None:
        """Return the error of its source, as in `status`; None if there is none."""
        sources = instance.Instance(self._pins.instance).read_state().get("sources", [])
        return next((str(source["error"]) for source in sources if source["error"]), None)

    def pools(self) -> Mapping[Vip, Pool | None]:
        """Return the pools in the kernel."""
        if not self._pins.are_there():
            return {}
        with Maps(self._pins) as maps:
            return {vip: published.pool for vip, published in maps.read().virtual.items()}


def target_shares(pins: Pins) -> Mapping[str, Mapping[str, float]]:
    """Return the target shares of `status`: by VIP, then by the address and port of the real server."""
    with Maps(pins) as maps:
        installed = maps.read()
        found = virtual_servers(installed, maps.servers(installed), words=maps.words(installed))
    return {
        endpoint(virtual): {endpoint(real): real["target_share"] for real in virtual["real_servers"]}
        for virtual in found
    }


@contextlib.contextmanager
def running(arguments: Sequence[str], pins: Pins) -> Iterator[Sidecar]:
    """Run the sidecar while the block runs."""
    with tempfile.TemporaryDirectory(prefix="clb-demo-") as directory:
        path = Path(directory) / "log"
        with path.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
                [sys.executable, "-P", "-m", "clb_discovery", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C reaches only the demo, which ends its children in order
            )
        try:
            yield Sidecar(process, pins, path)
        finally:
            end(process)


def as_typed(arguments: Sequence[str]) -> list[str]:
    """Return the command as it is typed, with one option a line."""
    lines = ["clb-discovery"]
    for argument in arguments:
        if argument.startswith("--"):
            lines.append(f"  {argument}")
        else:
            lines[-1] += f" {shlex.quote(argument)}"
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
