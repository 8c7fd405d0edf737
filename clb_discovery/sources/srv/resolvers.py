"""Which DNS servers to ask: those of the command line, else those of resolv.conf as it is now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dns.asyncresolver import Resolver
from dns.exception import DNSException

from clb_discovery.errors import SourceError
from clb_discovery.sources.srv.addresses import Addresses
from clb_discovery.sources.srv.burst import EDNS_PAYLOAD
from clb_discovery.sources.srv.nameservers import DNS_PORT, DatagramNameserver, Nameserver, parse_nameserver

RESOLV_CONF: Final = Path("/etc/resolv.conf")
LIFETIME: Final = 5.0
"""Seconds for one question over all servers and tries."""


class Resolvers:
    """The DNS servers that every SRV source of this sidecar asks."""

    def __init__(
        self, nameservers: Sequence[str] = (), *, resolv_conf: Path = RESOLV_CONF, lifetime: float = LIFETIME
    ) -> None:
        """Check the servers; nothing is sent or read yet.

        :param nameservers: as `parse_nameserver` reads them, asked in this order. Names are then absolute: search
            domains belong to resolv.conf.
        :param resolv_conf: read when `nameservers` is empty, and again whenever the file has changed.
        :param lifetime: seconds for one question over all servers and tries.
        :raises UsageError: if one is no server.
        """
        self._resolv_conf = resolv_conf
        self._lifetime = lifetime
        self._seen: tuple[int, ...] = ()
        self.addresses = Addresses()
        """What these servers said of targets."""
        self._from_file = not nameservers
        self._resolver = Resolver(configure=False)
        self._set_up(self._resolver, [parse_nameserver(text) for text in nameservers])

    def current(self) -> Resolver:
        """Return the resolver to use for the next round of questions.

        :raises SourceError: if resolv.conf cannot be used. The next call looks again.
        """
        if not self._from_file:
            return self._resolver
        try:
            stat = os.stat(self._resolv_conf)  # noqa: PTH116 -- follows the link of systemd-resolved, as open does
            seen = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen != self._seen:
                self._resolver = self._read()
                self._seen = seen
                self.addresses = Addresses()
        except OSError as error:
            raise self._unusable(error.strerror or type(error).__name__) from None
        except (DNSException, ValueError) as error:
            raise self._unusable(ascii(str(error))[1:-1]) from None
        return self._resolver

    def _read(self) -> Resolver:
        resolver = Resolver(str(self._resolv_conf))
        self._set_up(resolver, [DatagramNameserver(str(server), DNS_PORT) for server in resolver.nameservers])
        resolver.use_search_by_default = True
        return resolver

    def _set_up(self, resolver: Resolver, servers: Sequence[Nameserver]) -> None:
        resolver.nameservers = servers
        resolver.use_edns(0, payload=EDNS_PAYLOAD)
        resolver.lifetime = self._lifetime

    def _unusable(self, cause: str) -> SourceError:
        return SourceError(f"{self._resolv_conf}: {cause}; correct it, or name a DNS server with --resolver IP[:PORT]")
