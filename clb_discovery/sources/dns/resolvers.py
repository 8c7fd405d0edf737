"""Which DNS servers to ask: those of the command line, else those of resolv.conf as it is now."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog
from dns.nameserver import Do53Nameserver

from clb_discovery.errors import SourceError
from clb_discovery.sources.dns.exchange import Memory, Servers
from clb_discovery.sources.dns.gate import Gate
from clb_discovery.sources.dns.nameservers import DNS_PORT, StreamNameserver, destination, parse_nameserver
from clb_discovery.sources.dns.resolv_conf import ResolvConf, parse_resolv_conf
from clb_discovery.sources.dns.target_cache import Addresses

RESOLV_CONF: Final = Path("/etc/resolv.conf")
LIFETIME: Final = 5.0
"""Seconds for one question over all servers and tries, of those that the command line names."""
_LONGEST: Final = 15.0
"""Likewise of those of resolv.conf, whatever its time-outs are: a silent server leaves time for the others."""
_ATTEMPTS: Final = 2
AT_ONCE: Final = 128
"""Sources that ask for their SRV records at once; thousands of services have the same TTL."""
_LOCAL: Final = "127.0.0.1"
"""Whom to ask where resolv.conf names no server, or is not there (resolv.conf(5))."""
_MISSING: Final = (-1,)

_log = structlog.stdlib.get_logger()


class Resolvers:
    """The DNS servers that every source of this sidecar asks, and what is known of them and of addresses."""

    def __init__(
        self, nameservers: Sequence[str] = (), *, resolv_conf: Path = RESOLV_CONF, lifetime: float | None = None
    ) -> None:
        """Check the servers; nothing is sent or read yet.

        :param nameservers: as `parse_nameserver` reads them, asked in this order. Names are then absolute: search
            domains belong to resolv.conf.
        :param resolv_conf: read when `nameservers` is empty, and again whenever the file has changed.
        :param lifetime: seconds for one question over all servers and tries; None for `LIFETIME`, and with resolv.conf
            for as long as its time-outs take, at most 15 s.
        :raises UsageError: if one is no server.
        """
        self._resolv_conf = resolv_conf
        self._lifetime = lifetime
        self._seen: tuple[int, ...] = ()
        self._gate = Gate()
        self.addresses = Addresses(self._gate)
        """What these servers said of targets and host names."""
        self.places = asyncio.Semaphore(AT_ONCE)
        """For questions about SRV records, each of which has a socket."""
        self._from_file = not nameservers
        seconds = lifetime or LIFETIME
        self._servers = Servers(
            [parse_nameserver(text) for text in nameservers], (seconds,), _ATTEMPTS, seconds, memory=Memory()
        )

    def current(self) -> Servers:
        """Return the servers to ask in the next round of questions.

        :raises SourceError: if resolv.conf cannot be used. The next call looks again.
        """
        if not self._from_file:
            return self._servers
        try:
            seen = _state(self._resolv_conf)
            if seen != self._seen:
                text = self._resolv_conf.read_text("utf-8", "replace") if seen != _MISSING else ""
                self._servers = self._of_file(parse_resolv_conf(text, socket.gethostname()))
                self._seen = seen
                servers = [str(server) for server in self._servers.nameservers]
                _log.debug("resolv.conf was read", file=str(self._resolv_conf), servers=servers)
                self.addresses = Addresses(self._gate)
        except OSError as error:
            raise self._unusable(error.strerror or type(error).__name__) from None
        return self._servers

    def _of_file(self, conf: ResolvConf) -> Servers:
        kind = StreamNameserver if conf.use_tcp else Do53Nameserver
        return Servers(
            [kind(destination(server), DNS_PORT) for server in conf.nameservers or (_LOCAL,)],
            conf.waits(),
            conf.attempts,
            self._lifetime or min(_LONGEST, conf.attempts * sum(conf.waits())),
            conf.search,
            conf.bad_search,
            conf.ndots,
            conf.rotate,
        )

    def _unusable(self, cause: str) -> SourceError:
        return SourceError(f"{self._resolv_conf}: {cause}; correct it, or name a DNS server with --resolver IP[:PORT]")


def _state(path: Path) -> tuple[int, ...]:
    """Return what tells one state of a file from another; raises OSError where it is there and may not be looked at."""
    try:
        stat = os.stat(path)  # noqa: PTH116 -- follows the link of systemd-resolved, as open does
    except FileNotFoundError:
        return _MISSING
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
