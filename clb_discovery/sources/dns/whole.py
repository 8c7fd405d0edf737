"""Read all records of a name, also from a server that truncates its answers without a mark."""

from __future__ import annotations

import asyncio
from typing import Final

import dns.name
import structlog
from dns.rcode import NXDOMAIN
from dns.rdatatype import RdataType

from clb_discovery.sources.dns.exchange import EDNS_PAYLOAD
from clb_discovery.sources.dns.lookup import Found, Lookup, LookupFailedError
from clb_discovery.sources.dns.memory import WITHOUT_TCP

_CONSUL: Final = b"consul"
"""Consul's default for `domain`."""
_TCP_TRIMMED_FROM: Final = 64_000
"""Bytes. Over TCP Consul trims to 65,523; the last record that fits, with its addresses, may end this far below it."""
_TRUSTED: Final = 600.0
"""Seconds after an answer over TCP during which a failure of TCP is an error: UDP may return fewer records."""
_OTHER_SERVER: Final = "only another DNS server responds over TCP, and it lacks records; allow TCP to the first one"

_log = structlog.stdlib.get_logger()


class Whole:
    """Queries the records of one name and type, over TCP if UDP may have truncated them.

    Consul trims an answer over UDP to the buffer size, keeps a random subset, and sets TC only with
    `dns_config.enable_truncate`, which is off by default (Consul's agent/dns.go, trimUDPResponse; HAProxy #1160 shows
    the effect on a pool). The marks of such an answer are TTL 0, unless `service_ttl` is set, and Consul's domain. With
    either mark the records are queried again over TCP, and then over TCP first while the mark stays and the same server
    answers, so that pools do not flap. The same applies to answers that do not fit into a datagram. Without TCP the
    answer over UDP counts, with a note. So it does if TCP reaches only another server, which knows fewer records: UDP
    had an answer already.
    """

    def __init__(self, name: dns.name.Name, rdtype: RdataType) -> None:
        """Take the owner of the records and their type; no query is sent yet."""
        self._name = name
        self._rdtype = rdtype
        self._tcp_first = False
        self._server = ""  # that answered last
        self._pause = WITHOUT_TCP[0]
        self._without_tcp_until = 0.0
        self._last_over_tcp: float | None = None

    async def find(self, lookup: Lookup) -> tuple[Found, str | None]:
        """Return the records, and a note if they may be incomplete.

        :raises LookupFailedError: if the query failed, or even the answer over TCP may be trimmed: it exceeds a DNS
            message.
        """
        whole = await self._over_tcp(lookup) if self._tcp_first else None
        if whole is not None and str(whole.server) == self._server:
            found = whole
        else:
            if whole is not None:
                lookup.start_over()  # an earlier server may still respond over UDP
            found = await lookup.find(self._name, self._rdtype)
            if _may_be_trimmed(found) and not found.over_tcp and found.size <= EDNS_PAYLOAD:
                _log.debug("UDP answer may be cut short without a mark; querying over TCP", source=lookup.label)
                found = await self._over_tcp(lookup, found) or found
        self._server = str(found.server)
        suspect = _may_be_trimmed(found)
        self._tcp_first = found.over_tcp and (suspect or found.size > EDNS_PAYLOAD)
        if suspect and not found.over_tcp:
            return (
                found,
                "the answer may be incomplete: Consul truncates answers over UDP, and its TCP does not respond",
            )
        if found.size > _TCP_TRIMMED_FROM:
            await self._compare(lookup, found)
        return found, None

    async def why_absent(self, lookup: Lookup) -> str | None:
        """Return why there are no records, or None if there are some; raises SourceError if a query failed."""
        found = [await lookup.find(candidate.name, self._rdtype) for candidate in lookup.candidates(self._name)]
        if any(one.records for one in found):
            return None
        if all(one.response.rcode() == NXDOMAIN for one in found):
            return "the name does not exist (NXDOMAIN); is it right, and complete?"
        return f"the name exists, but has no {self._rdtype.name} record"

    async def _over_tcp(self, lookup: Lookup, over_udp: Found | None = None) -> Found | None:
        """Query over TCP, unless that failed recently; return None if it fails.

        :param over_udp: an answer that may be a part of the one over TCP.
        :raises LookupFailedError: if it fails although it worked recently.
        """
        clock = asyncio.get_running_loop().time
        if clock() < self._without_tcp_until:
            return None
        try:
            found = await lookup.find(self._name, self._rdtype, tcp=True)
            if over_udp is not None:
                _check(lookup, found, over_udp)
        except LookupFailedError as error:
            if self._last_over_tcp is not None and clock() < self._last_over_tcp + _TRUSTED:
                raise error.explained("TCP is used because answers over UDP may be truncated") from None
            _log.debug("TCP failed; UDP answers are used", source=lookup.label, seconds=self._pause, error=str(error))
            self._without_tcp_until = clock() + self._pause
            self._pause = min(2 * self._pause, WITHOUT_TCP[1])
            return None
        self._pause, self._last_over_tcp = WITHOUT_TCP[0], clock()
        return found

    async def _compare(self, lookup: Lookup, found: Found) -> None:
        """Make sure that an answer which fills a message is complete.

        Most servers fill it with addresses, which they may leave out (RFC 2181 section 9). Consul leaves out another
        random part of the records each time, with TTL 0 by default.

        :raises LookupFailedError: if the answer has TTL 0, or differs from the answer to a second query.
        """
        _log.debug("answer is at the limit of DNS; querying again to compare", source=lookup.label, size=found.size)
        again = await lookup.find(self._name, self._rdtype, tcp=True)
        if found.records is None or found.records.ttl == 0 or again.records != found.records:
            raise LookupFailedError(
                lookup.label,
                f"an answer of {found.size} bytes is at the limit of DNS and may lack servers; "
                "if the server is Consul, use --consul; otherwise set a TTL above 0, or split the service",
            )


def _check(lookup: Lookup, found: Found, part: Found) -> None:
    """Raise LookupFailedError if an answer lacks records of another one, and comes from another server."""
    if found.server is not part.server and not set(part.records or ()) <= set(found.records or ()):
        raise LookupFailedError(lookup.label, _OTHER_SERVER)


def _may_be_trimmed(found: Found) -> bool:
    """Return whether Consul may have trimmed an answer, by its marks."""
    if found.records is None:
        return False
    return found.records.ttl == 0 or _CONSUL in [label.lower() for label in found.name.labels[-2:-1]]
