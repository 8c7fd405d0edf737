"""What is read of an answer without building a message, beside what dnspython reads of the same bytes."""

from __future__ import annotations

from contextlib import suppress

import dns.message
import dns.rdata
import dns.rrset
import pytest
from dns.rdatatype import RdataType
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.sources.srv.outline import outline, query

NAMES = st.sampled_from(["a.example.", "B.Example.", "_web._tcp.example.", "c.other.", "."])
DATA = st.one_of(
    st.tuples(st.just("SRV"), st.tuples(*[st.integers(0, 65535)] * 3, NAMES)),
    st.tuples(st.just("CNAME"), st.tuples(NAMES)),
    st.tuples(st.just("A"), st.tuples(st.ip_addresses(v=4))),
    st.tuples(st.just("AAAA"), st.tuples(st.ip_addresses(v=6))),
    st.tuples(st.just("TXT"), st.tuples(st.sampled_from(["one", "two"]))),
    st.tuples(st.just("NS"), st.tuples(NAMES)),
    st.tuples(st.just("SOA"), st.tuples(NAMES, NAMES, *[st.integers(0, 2**31 - 1)] * 5)),
)
TTL = st.integers(0, 2**31 - 1)
Record = tuple[str, tuple[str, tuple[object, ...]]]
RECORDS: st.SearchStrategy[list[Record]] = st.lists(st.tuples(NAMES, DATA), max_size=8, unique_by=repr)
SECTIONS = st.tuples(RECORDS, RECORDS, RECORDS)


def message(sections: tuple[list[Record], ...], ttls: list[int], *, rcode: int = 0) -> bytes:
    """Return the wire of an answer; its records, in this order, have these TTLs in turn."""
    response = dns.message.make_response(dns.message.make_query("_web._tcp.example.", "SRV", use_edns=0))
    response.set_rcode(dns.rcode.Rcode(rcode))
    count = 0
    for section, records in zip((response.answer, response.authority, response.additional), sections, strict=True):
        for owner, (kind, data) in records:
            text = " ".join(map(str, data))
            section.append(dns.rrset.from_text(owner, ttls[count % len(ttls)], "IN", kind, text))
            count += 1
    return response.to_wire(max_size=65535)


@given(SECTIONS, st.lists(TTL, min_size=1, max_size=5), st.lists(TTL, min_size=1, max_size=5), st.randoms())
def test_order_and_ttls_make_no_difference(
    sections: tuple[list[Record], ...], before: list[int], after: list[int], rng: object
) -> None:
    """A server that rotates records, or counts their TTLs down, says the same, which holds by the new TTLs."""
    assert hasattr(rng, "shuffle")
    shuffled = tuple(list(records) for records in sections)
    for records in shuffled:
        rng.shuffle(records)

    one, later = outline(message(sections, before)), message(shuffled, after)
    other = outline(later)

    assert (one.question, one.said) == (other.question, other.said)
    assert one.holds(later) == other.ttl
    assert other.holds(later) == other.ttl


@given(SECTIONS, SECTIONS)
def test_other_records_are_another_answer(one: tuple[list[Record], ...], other: tuple[list[Record], ...]) -> None:
    """Two answers say the same where dnspython reads the same records in them, whatever stands in NS and SOA."""

    def read(wire: bytes) -> set[str]:
        response = dns.message.from_wire(wire)
        return {
            f"{rrset.name} {rrset.rdtype} {record if rrset.rdtype != RdataType.SOA else ''}".lower()
            for section in (response.answer, response.authority, response.additional)
            for rrset in section
            if rrset.rdtype != RdataType.NS
            for record in rrset
        }

    first, second = message(one, [60]), message(other, [60])
    same = read(first) == read(second)

    assert (outline(first).said == outline(second).said) == same
    assert outline(first).holds(second) == (outline(second).ttl if same else 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"\x04_web", b"\x04_gen"), (b"\x00\x21\x00\x01", b"\x00\x01\x00\x01"), (b"\x85", b"\x87"), (b"\x85", b"\x05")],
    ids=["name", "type", "truncated", "query"],
)
def test_answer_to_something_else_does_not_hold(old: bytes, new: bytes) -> None:
    """Neither another question's answer, nor one without all records, nor what is none is taken for the same."""
    wire = message(([("a.example.", ("A", ("10.0.0.1",)))], [], []), [60])
    wire = bytes(2) + b"\x85" + wire[3:]

    assert outline(wire).holds(wire) == 60
    assert outline(wire).holds(wire.replace(old, new, 1)) == 0


@given(SECTIONS, st.lists(TTL, min_size=1, max_size=5))
def test_smallest_ttl_counts(sections: tuple[list[Record], ...], ttls: list[int]) -> None:
    """It is that of the records, and of a SOA record its minimum too."""
    wire = message(sections, ttls)
    response = dns.message.from_wire(wire, one_rr_per_rrset=True)
    rrsets = [rrset for section in (response.answer, response.authority, response.additional) for rrset in section]
    expected = [rrset.ttl for rrset in rrsets if rrset.rdtype != RdataType.NS]
    expected += [rrset[0].minimum for rrset in rrsets if rrset.rdtype == RdataType.SOA]

    assert outline(wire).ttl == min(expected, default=0)


def test_response_code_counts() -> None:
    """That a name does not exist, or that the server could not say, is not the same as no records."""
    said = {outline(message(([], [], []), [60], rcode=rcode)).said for rcode in (0, 2, 3, 16)}
    assert len(said) == 4


def test_ttl_out_of_range_is_none() -> None:
    """A TTL with its highest bit set is 0 (RFC 2181 section 8)."""
    wire = message(([("a.example.", ("A", ("10.0.0.1",)))], [], []), [0x7EADBEEF])
    assert outline(wire.replace(b"\x7e\xad\xbe\xef", b"\xfe\xad\xbe\xef")).ttl == 0


@given(NAMES, st.integers(0, 65535))
def test_question_is_the_one_that_was_asked(name: str, number: int) -> None:
    """A query from the question of an answer asks what dnspython asked, by EDNS."""
    asked = dns.message.make_query(name, "SRV", use_edns=0, payload=1232)
    question = outline(asked.to_wire()).question

    again = dns.message.from_wire(query(question, number, 1232))

    assert (again.question, again.flags, again.edns, again.payload, again.id) == (
        asked.question,
        asked.flags,
        0,
        1232,
        number,
    )


@given(st.binary(max_size=200) | SECTIONS.map(lambda sections: message(sections, [60])[:-1]))
def test_malformed_message_is_refused(wire: bytes) -> None:
    """What is cut off, or nonsense, is a ValueError or an answer, and nothing else."""
    with suppress(ValueError):
        assert outline(wire).ttl >= 0


@pytest.mark.parametrize("name", [b"\xc0\x0c", b"\x01a\xc0\x0c", b"\xc0\xff", b"\x3f"])
def test_name_without_end_is_refused(name: bytes) -> None:
    """Pointers in a circle, or to nowhere, are malformed."""
    with pytest.raises(ValueError, match=r"end|cut off"):
        outline(bytes(4) + b"\0\1" + bytes(6) + name + bytes(4))
