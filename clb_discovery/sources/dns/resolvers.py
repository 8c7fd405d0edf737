"""The DNS servers to query: those of the command line, else those of the current resolv.conf."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog
from dns.nameserver import Do53Nameserver

from clb_discovery.errors import SourceError
from clb_discovery.sources.dns.exchange import Servers
from clb_discovery.sources.dns.gate import Gate
from clb_discovery.sources.dns.memory import Memory
from clb_discovery.sources.dns.nameservers import DNS_PORT, StreamNameserver, destination, parse_nameserver
from clb_discovery.sources.dns.resolv_conf import ResolvConf, parse_resolv_conf
from clb_discovery.sources.dns.target_cache import Addresses
from clb_discovery.sources.file_state import FileState, file_state

RESOLV_CONF: Final = Path("/etc/resolv.conf")
LIFETIME: Final = 5.0
"""Seconds for one query over all servers and attempts, for servers of the command line."""
_LONGEST: Final = 15.0
"""The same limit for servers of resolv.conf, whatever its time-outs are, so that one silent server leaves time."""
_ATTEMPTS: Final = 2
AT_ONCE: Final = 128
"""Sources that query their SRV records at the same time; thousands of services may have the same TTL."""
_LOCAL: Final = "127.0.0.1"
"""The server to query if resolv.conf names none, or does not exist (resolv.conf(5))."""
_MISSING: Final[FileState] = (-1,)

_log = structlog.stdlib.get_logger()


class Resolvers:
    """The DNS servers that all sources of this sidecar share, with the state of these servers and cached addresses."""

    def __init__(
        self, nameservers: Sequence[str] = (), *, resolv_conf: Path = RESOLV_CONF, lifetime: float | None = None
    ) -> None:
        """Check the servers; nothing is sent or read yet.

        :param nameservers: in the form of `parse_nameserver`, queried in this order. Names are then absolute, because
            search domains belong to resolv.conf.
        :param resolv_conf: read if `nameservers` is empty, and again when the file has changed.
        :param lifetime: seconds for one query over all servers and attempts; None for `LIFETIME`, or with resolv.conf
            for the sum of its time-outs, at most 15 s.
        :raises UsageError: if one of `nameservers` is invalid.
        """
        self._resolv_conf = resolv_conf
        self._lifetime = lifetime
        self._seen: FileState = ()
        self._gate = Gate()
        self.addresses = Addresses(self._gate)
        """The cached addresses of targets and host names from these servers."""
        self.places = asyncio.Semaphore(AT_ONCE)
        """Places for queries of SRV records; each needs a socket."""
        self._from_file = not nameservers
        seconds = lifetime or LIFETIME
        self._servers = Servers(
            [parse_nameserver(text) for text in nameservers], (seconds,), _ATTEMPTS, seconds, memory=Memory()
        )

    def current(self) -> Servers:
        """Return the servers to query in the next round.

        :raises SourceError: if resolv.conf cannot be used. The next call tries again.
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


def _state(path: Path) -> FileState:
    """Return the state of a file; raises OSError if the file exists but may not be examined."""
    try:
        return file_state(path)
    except FileNotFoundError:
        return _MISSING
