"""Real caching resolvers in front of a real server: unbound, and systemd-resolved without systemd."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from tests.support.documents import ROOT
from tests.support.process import accepts, free_port, running, wait_until
from tests.support.tun import open_tun

ZONES: Final = ("example", "other")
"""Zones that are queried at the server behind it."""

_UNBOUND: Final = """\
server:
    interface: 127.0.0.1
    port: {port}
    directory: "{folder}"
    chroot: ""
    username: ""
    pidfile: ""
    logfile: ""
    use-syslog: no
    module-config: "iterator"
    do-not-query-localhost: no
    rrset-roundrobin: yes
    infra-host-ttl: 1
remote-control:
    control-enable: no
"""
_STUB: Final = """\
stub-zone:
    name: "{zone}"
    stub-addr: 127.0.0.1@{behind}
"""
_RESOLVED: Final = """\
[Resolve]
DNS=127.0.0.1:{behind}
FallbackDNS=
Domains=~.
LLMNR=no
MulticastDNS=no
DNSSEC=no
DNSOverTLS=no
ReadEtcHosts=no
CacheFromLocalhost=yes
DNSStubListener=no
DNSStubListenerExtra=127.0.0.1:{port}
"""
_ALONE: Final = """\
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o mode=755 none /etc/systemd
install -D -m 755 "$0" /run/systemd-resolved
install -m 644 "$1" /etc/systemd/resolved.conf
install -d -o 65534 -g 65534 /run/systemd/resolve
exec setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --inh-caps=-all /run/systemd-resolved
"""
"""Runs it with files of its own, as a user without rights: it has no bus, and changes nothing outside."""


class CachingServer:
    """A resolver on 127.0.0.1, UDP and TCP, in front of `knotd` on the same address.

    As a context manager it is started on entry and ended on exit. The port stays the same over `kill` and `start`.
    """

    def __init__(
        self, command: Sequence[str | Path], port: int, log: Path, around: contextlib.AbstractContextManager[None]
    ) -> None:
        """Prepare.

        :param around: entered before the first start, and left at the end.
        """
        self.port: Final = port
        self._command: Final = command
        self._log: Final = log
        self._around: Final = around
        self._stack: Final = contextlib.ExitStack()

    @property
    def address(self) -> str:
        """The address in the form of `--resolver`."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it accepts."""
        self._process = self._stack.enter_context(running(self._command, self._log))
        wait_until(lambda: self._process.poll() is not None or accepts(self.port), "the resolver accepts")
        assert self._process.poll() is None, self._log.read_text()

    def kill(self) -> None:
        """End it at once (SIGKILL), with all that it remembers; its port then refuses."""
        self._process.kill()
        self._stack.close()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._around)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._around.__exit__(None, None, None)


def unbound(folder: Path, behind: int) -> CachingServer:
    """Return unbound, which rotates the records of an answer; not started yet.

    :param folder: for its configuration and log.
    :param behind: the port of the server of `ZONES`.
    """
    port, file = free_port(), folder / "unbound.conf"
    stubs = "".join(_STUB.format(zone=zone, behind=behind) for zone in ZONES)
    file.write_text(_UNBOUND.format(port=port, folder=folder) + stubs)
    return CachingServer(["unbound", "-d", "-c", file], port, folder / "unbound.log", contextlib.nullcontext())


def resolved(folder: Path, behind: int) -> CachingServer:
    """Return systemd-resolved, as `unbound`; `scripts/setup test` unpacks the program."""
    port, file = free_port(), folder / "resolved.conf"
    file.write_text(_RESOLVED.format(port=port, behind=behind))
    program = ROOT / ".cache" / "resolved" / "systemd-resolved"
    return CachingServer(
        ["unshare", "--mount", "sh", "-ec", _ALONE, program, file], port, folder / "resolved.log", _link()
    )


@contextlib.contextmanager
def _link() -> Iterator[None]:
    """Add a link with an address, without which systemd-resolved sends no query; the loopback does not count."""
    link, _ = open_tun("192.0.2.1/32")
    try:
        yield
    finally:
        os.close(link)


CACHING: Final = (unbound, resolved)
"""Makers of all of them."""
