"""A real Knot DNS server with zones that a test edits while it runs."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.support.pace import patient
from tests.support.process import accepts, free_port, running, wait_until

_CONFIG = """\
server:
    rundir: "{folder}"
    listen: [ 127.0.0.1@{port}, ::1@{port} ]
    tcp-workers: 2
    udp-workers: 2
    background-workers: 1
control:
    listen: "{folder}/control"
database:
    storage: "{folder}/db"
log:
  - target: stderr
    any: info
template:
  - id: default
    storage: "{folder}"
    file: "%s.zone"
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: none
    semantic-checks: off
zone:
"""


class KnotServer:
    """`knotd` on 127.0.0.1 and ::1, UDP and TCP, in a temporary folder.

    As a context manager it is started on entry, and on exit stopped and its folder removed. The port stays the same
    over `stop` and `start`.
    """

    def __init__(self, zones: dict[str, str] | None = None, *, port: int | None = None) -> None:
        """Write the configuration.

        :param zones: for each zone name its records, as in `write`; one empty zone, `example`, by default.
        :param port: a free one by default.
        """
        self.port = port or free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="knot-")
        self._path = Path(self._folder.name)
        self._serial = 0
        self._running: contextlib.ExitStack | None = None
        zones = {"example": ""} if zones is None else zones
        config = _CONFIG.format(folder=self._path, port=self.port)
        (self._path / "knot.conf").write_text(config + "".join(f"  - domain: {name}\n" for name in zones))
        for name, records in zones.items():
            self.write(records, name)

    @property
    def address(self) -> str:
        """The address in the form of `--resolver`."""
        return f"127.0.0.1:{self.port}"

    def write(self, records: str, zone: str = "example", ttl: int = 1, negative_ttl: int = 1) -> None:
        """Replace all records of a zone, live if the server runs; return when the new zone is served.

        :param records: zone file lines, relative to the zone; SOA and NS records are added.
        :param ttl: seconds, for lines without one.
        :param negative_ttl: seconds; the SOA's minimum (RFC 2308).
        """
        self._serial += 1
        head = f"$ORIGIN {zone}.\n$TTL {ttl}\n@ SOA ns. admin. {self._serial} 3600 600 86400 {negative_ttl}\n@ NS ns.\n"
        target = self._path / f"{zone}.zone"
        fresh = self._path / f"{zone}.zone.new"
        fresh.write_text(head + records + "\n")
        fresh.replace(target)
        if self._running is not None:
            reload = self._knotc("--blocking", "zone-reload", zone)
            assert reload.returncode == 0, f"knot refuses the zone: {reload.stderr}{self.log()}"

    def purge(self, zone: str = "example") -> None:
        """Make the running server lose a configured zone: it answers SERVFAIL until the next `write`."""
        (self._path / f"{zone}.zone").unlink()
        purge = self._knotc("--blocking", "--force", "zone-purge", zone)
        assert purge.returncode == 0, purge.stderr

    def start(self) -> None:
        """Start the server and wait until it serves; otherwise fail the test with its log."""
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(running(["knotd", "-c", self._path / "knot.conf"], self._path / "log"))
            wait_until(
                lambda: process.poll() is not None or (accepts(self.port) and self._serves_all()),
                "knotd serves its zones",
            )
            assert process.poll() is None, f"knotd has ended: {self.log()}"
            self._running = stack.pop_all()

    def stop(self) -> None:
        """Stop the server; its port then refuses."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def log(self) -> str:
        """Return what the server has logged."""
        return (self._path / "log").read_text()

    def _serves_all(self) -> bool:
        status = self._knotc("zone-status", "+serial")
        return status.returncode == 0 and "serial: -" not in status.stdout

    def _knotc(self, *command: str) -> subprocess.CompletedProcess[str]:
        run = ["knotc", "-c", str(self._path / "knot.conf"), *command]
        return subprocess.run(run, check=False, capture_output=True, text=True, timeout=patient(20))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()
