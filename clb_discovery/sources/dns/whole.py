"""Read all SRV records of a name, also from a server that truncates its answers without a mark."""

from __future__ import annotations

import asyncio
from typing import Final

import dns.name
import structlog
from dns.rcode import NXDOMAIN
from dns.rdatatype import SRV

from clb_discovery.errors import SourceError
from clb_discovery.sources.dns.exchange import EDNS_PAYLOAD
from clb_discovery.sources.dns.lookup import Found, Lookup

_CONSUL: Final = b"consul"
"""Consul's default for `domain`."""
_TCP_TRIMMED_FROM: Final = 64_000
"""Bytes. Over TCP Consul trims to 65,523; the last record that fits, with its addresses, may end this far below it."""
_WITHOUT_TCP: Final = (60.0, 600.0)
"""Seconds for which TCP is not tried again after it failed: at first, and at most. They double with each failure."""
_TRUSTED: Final = 600.0
"""Seconds after an answer over TCP during which a failure of TCP is an error: UDP may return fewer records."""


_log = structlog.stdlib.get_logger()


class WholeSrv:
    """Queries the SRV records of one name, over TCP if UDP may have truncated them.

    Consul trims an answer over UDP to the buffer size, keeps a random subset, and sets TC only with
    `dns_config.enable_truncate`, which is off by default (Consul's agent/dns.go, trimUDPResponse; HAProxy #1160 shows
    the effect on a pool). The marks of such an answer are TTL 0, unless `service_ttl` is set, and Consul's domain. With
    either mark the records are queried again over TCP, and then over TCP first while the mark stays, so that pools do
    not flap. The same applies to answers that do not fit into a datagram. Without TCP the answer over UDP counts,
    with a note.
    """

    def __init__(self, label: str, name: dns.name.Name) -> None:
        """Prepare; no query is sent yet.

        :param label: the name of the source, for errors.
        :param name: owner of the records.
        """
        self._label = label
        self._name = name
        self._tcp_first = False
        self._pause = _WITHOUT_TCP[0]
        self._without_tcp_until = 0.0
        self._last_over_tcp: float | None = None

    async def find(self, lookup: Lookup) -> tuple[Found, str | None]:
        """Return the records, and a note if they may be incomplete.

        :raises SourceError: if the query failed, or even the answer over TCP may be trimmed: it exceeds a DNS message.
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
            return (
                found,
                "the answer may be incomplete: Consul truncates answers over UDP, and its TCP does not respond",
            )
        if found.size > _TCP_TRIMMED_FROM:
            await self._compare(lookup, found)
        return found, None

    async def why_empty(self, lookup: Lookup) -> str:
        """Return why there is no server, if the records name none; raises SourceError if a query failed."""
        found = [await lookup.find(candidate.name, SRV) for candidate in lookup.candidates(self._name)]
        if any(one.records for one in found):
            return "its SRV records name no server: the target is '.'"
        if all(one.response.rcode() == NXDOMAIN for one in found):
            return "the name does not exist (NXDOMAIN); is it right, and complete?"
        return "the name exists, but has no SRV record"

    async def _over_tcp(self, lookup: Lookup) -> Found | None:
        """Query over TCP, unless that failed recently; return None if it fails.

        :raises SourceError: if it fails although it worked recently.
        """
        clock = asyncio.get_running_loop().time
        if clock() < self._without_tcp_until:
            return None
        try:
            found = await lookup.find(self._name, SRV, tcp=True)
        except SourceError as error:
            if self._last_over_tcp is not None and clock() < self._last_over_tcp + _TRUSTED:
                raise SourceError(f"{error}; TCP is used because answers over UDP may be truncated") from None
            _log.debug("TCP failed; UDP answers are used", source=self._label, seconds=self._pause, error=str(error))
            self._without_tcp_until = clock() + self._pause
            self._pause = min(2 * self._pause, _WITHOUT_TCP[1])
            return None
        self._pause, self._last_over_tcp = _WITHOUT_TCP[0], clock()
        return found

    async def _compare(self, lookup: Lookup, srv: Found) -> None:
        """Make sure that an answer which fills a message is complete.

        Most servers fill it with addresses, which they may leave out (RFC 2181 section 9). Consul leaves out another
        random part of the records each time, with TTL 0 by default.

        :raises SourceError: if the answer has TTL 0, or differs from the answer to a second query.
        """
        _log.debug("answer is at the limit of DNS; querying again to compare", source=self._label, size=srv.size)
        again = await lookup.find(self._name, SRV, tcp=True)
        if srv.records is None or srv.records.ttl == 0 or again.records != srv.records:
            raise SourceError(
                f"{self._label}: an answer of {srv.size} bytes is at the limit of DNS and may lack servers; "
                "if the server is Consul, use --consul; otherwise set a TTL above 0, or split the service"
            )


def _may_be_trimmed(srv: Found) -> bool:
    """Return whether Consul may have trimmed an answer, by its marks."""
    if srv.records is None:
        return False
    return srv.records.ttl == 0 or _CONSUL in [label.lower() for label in srv.name.labels[-2:-1]]
