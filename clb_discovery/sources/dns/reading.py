"""One response with SRV records, and the addresses that came along with it. No I/O."""

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
    """One response with SRV records, and the addresses that came along."""

    srv: SrvSet
    """Its TTL is the smallest of all that came in the answer."""
    given: Mapping[Question, AddressSet]
    """Addresses that came along in the additional section; they hold as long as the records."""
    apart: tuple[Question, ...]
    """The remaining addresses, which are asked for."""
    read: float
    """When the response was there, in seconds of the loop's clock."""
    note: str | None
    """Why it may be incomplete."""


def given_along(srv: Found, wanted: frozenset[Question], asked: float) -> dict[Question, AddressSet]:
    """Return the addresses that came along for these questions, of names that the answering zone may speak for."""
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
    """Return the domain whose addresses an answer for this owner may carry along; None where that is the root.

    Addresses of other domains are not the answering zone's to give (RFC 2181 section 5.4.1), so they are asked for.
    """
    labels = list(owner.labels)
    while labels[0].startswith(b"_"):
        labels.pop(0)
    return dns.name.Name(labels) if len(labels) > 1 else None
