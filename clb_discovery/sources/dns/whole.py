"""All SRV records of a name, also from a server that cuts its answers short without saying so."""

from __future__ import annotations

import asyncio
from typing import Final

import dns.name
import structlog
from dns.rdatatype import SRV

from clb_discovery.errors import SourceError
from clb_discovery.sources.dns.exchange import EDNS_PAYLOAD
from clb_discovery.sources.dns.lookup import Found, Lookup

_CONSUL: Final = b"consul"
"""Consul's domain, unless its `domain` is another."""
_TCP_TRIMMED_FROM: Final = 64_000
"""Bytes. Over TCP Consul trims to 65,523, which ends within one record and its addresses of that."""
_WITHOUT_TCP: Final = (60.0, 600.0)
"""Seconds for which TCP is not tried again after it failed, the first time and at most; each time they double."""
_TRUSTED: Final = 600.0
"""Seconds after an answer over TCP for which its failure is an error: what UDP has may be less than what is known."""


_log = structlog.stdlib.get_logger()


class WholeSrv:
    """Asks for the SRV records of one name, over TCP where UDP may have cut them short.

    Consul trims an answer over UDP to the buffer size, keeping a random subset, and sets TC only with
    `dns_config.enable_truncate`, which is off by default (Consul's agent/dns.go, trimUDPResponse; HAProxy #1160 is
    what that does to a pool). Its marks are TTL 0, unless `service_ttl` is set, and its domain. With either the
    records are asked for again over TCP, and from then on over TCP first while the mark is there, so that pools do not
    flap; so are answers that do not fit into a datagram. Where there is no TCP what came over UDP counts, with a note.
    """

    def __init__(self, label: str, name: dns.name.Name) -> None:
        """Ask nothing yet.

        :param label: the name of the source, for errors.
        :param name: of the records.
        """
        self._label = label
        self._name = name
        self._tcp_first = False
        self._pause = _WITHOUT_TCP[0]
        self._without_tcp_until = 0.0
        self._last_over_tcp: float | None = None

    async def find(self, lookup: Lookup) -> tuple[Found, str | None]:
        """Return the records, and a note where they may be incomplete.

        :raises SourceError: if they could not be had, or even an answer over TCP may be trimmed: DNS cannot carry it.
        """
        if self._tcp_first and (whole := await self._over_tcp(lookup)):
            found = whole
        else:
            found = await lookup.find(self._name, SRV)
            if _may_be_trimmed(found) and not found.over_tcp and found.size <= EDNS_PAYLOAD:
                _log.debug("UDP answer may be cut short without a mark; querying over TCP", source=self._label)
                found = await self._over_tcp(lookup) or found
        suspect = _may_be_trimmed(found)
        self._tcp_first = suspect or (found.over_tcp and found.size > EDNS_PAYLOAD)
        if suspect and not found.over_tcp:
            return found, "the answer may be incomplete: Consul cuts answers over UDP short, and there is no TCP"
        if found.size > _TCP_TRIMMED_FROM:
            await self._ask_twice(lookup, found)
        return found, None

    async def _over_tcp(self, lookup: Lookup) -> Found | None:
        """Ask over TCP, unless that failed lately; None where it fails.

        :raises SourceError: where it fails although it worked not long ago.
        """
        clock = asyncio.get_running_loop().time
        if clock() < self._without_tcp_until:
            return None
        try:
            found = await lookup.find(self._name, SRV, tcp=True)
        except SourceError as error:
            if self._last_over_tcp is not None and clock() < self._last_over_tcp + _TRUSTED:
                raise SourceError(f"{error}; TCP was chosen here, since answers over UDP may be cut short") from None
            _log.debug("TCP failed; UDP answers are used", source=self._label, seconds=self._pause, error=str(error))
            self._without_tcp_until = clock() + self._pause
            self._pause = min(2 * self._pause, _WITHOUT_TCP[1])
            return None
        self._pause, self._last_over_tcp = _WITHOUT_TCP[0], clock()
        return found

    async def _ask_twice(self, lookup: Lookup, srv: Found) -> None:
        """Make sure that an answer which fills a message is whole.

        Most servers fill it with addresses, which they may cut short (RFC 2181 section 9). What Consul leaves out is
        another random part of the records each time, with TTL 0 as long as nobody sets another.

        :raises SourceError: if the answer has TTL 0, or is another when asked for again.
        """
        _log.debug("answer is at the limit of DNS; querying again to compare", source=self._label, size=srv.size)
        again = await lookup.find(self._name, SRV, tcp=True)
        if srv.records is None or srv.records.ttl == 0 or again.records != srv.records:
            raise SourceError(
                f"{self._label}: an answer of {srv.size} bytes is at the limit of DNS and may lack servers; "
                "use --consul where it is Consul that answers, else a TTL above 0, or split the service"
            )


def _may_be_trimmed(srv: Found) -> bool:
    """Return whether an answer bears a mark of what Consul trims."""
    if srv.records is None:
        return False
    return srv.records.ttl == 0 or _CONSUL in [label.lower() for label in srv.name.labels[-2:-1]]
