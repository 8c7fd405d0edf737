"""One response with SRV records, and the addresses in its additional section. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import dns.name
from dns.rdataclass import IN
from dns.rdatatype import AAAA, A

from clb_discovery.sources.dns.answer import AddressSet, SrvSet
from clb_discovery.sources.dns.lookup import Found, to_text
from clb_discovery.sources.dns.target_cache import Question


@dataclass(frozen=True, slots=True)
class Reading:
    """One response with SRV records, and the addresses in its additional section."""

    srv: SrvSet
    """Its TTL is the smallest in the whole response."""
    given: Mapping[Question, AddressSet]
    """Addresses from the additional section; they are valid as long as the records."""
    apart: tuple[Question, ...]
    """The remaining addresses, which are queried."""
    read: float
    """When the response arrived, in seconds of the loop's clock."""
    note: str | None
    """Why the records may be incomplete, if so."""


def additional_addresses(srv: Found, wanted: frozenset[Question], asked: float) -> dict[Question, AddressSet]:
    """Return the additional addresses for these questions, of names that the answering zone is responsible for."""
    bailiwick = _bailiwick(srv.name)
    if bailiwick is None:
        return {}
    return {
        question: AddressSet(tuple(record.address for record in rrset), rrset.ttl, asked)
        for rrset in srv.response.additional
        if (rrset.rdclass, rrset.rdtype) in ((IN, A), (IN, AAAA))
        and (question := Question(to_text(rrset.name), rrset.rdtype)) in wanted
        and rrset.name.is_subdomain(bailiwick)
    }


def _bailiwick(owner: dns.name.Name) -> dns.name.Name | None:
    """Return the domain whose addresses an answer for this owner may contain; None if that is the root.

    The answering zone is not trusted for other domains (RFC 2181 section 5.4.1), so their addresses are queried.
    """
    labels = list(owner.labels)
    while labels[0].startswith(b"_"):
        labels.pop(0)
    return dns.name.Name(labels) if len(labels) > 1 else None
