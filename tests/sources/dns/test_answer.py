"""The pure part of the SRV source: from records and addresses to the answer and the time of the next query."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.errors import SourceError
from clb_discovery.model.address import format_address, is_ipv4, parse_address
from clb_discovery.model.servers import MAX_POOL, RealServer
from clb_discovery.sources.dns.answer import (
    JITTER,
    MAX_RECORDS,
    AddressSet,
    SrvRecord,
    SrvSet,
    Unavailable,
    build_answer,
    is_good,
    lasts,
    next_round,
    pause,
    targets,
)

OWNER = "_redis._tcp.example."
U16 = st.integers(0, 65535)
TTL = st.integers(0, 2**31 - 1)
NAMES = st.sampled_from(["a.example.", "b.example.", "c.other.", "."])
RECORDS = st.lists(st.builds(SrvRecord, U16, U16, st.integers(1, 65535), NAMES), max_size=12)
V4 = st.lists(st.ip_addresses(v=4).map(str), max_size=4)
V6 = st.lists(st.ip_addresses(v=6).map(str).filter(lambda text: not text.startswith("::ffff:")), max_size=4)
CLOCK = st.floats(0, 1e6)
BOUNDS = st.tuples(st.floats(0.1, 60), st.floats(1, 10)).map(lambda drawn: (drawn[0], drawn[0] * drawn[1]))
CHANCE = st.floats(0, 1, exclude_max=True)
SETS = st.tuples(
    st.builds(AddressSet, V4.map(tuple), TTL, CLOCK), st.builds(AddressSet, V6.map(tuple), TTL, CLOCK)
).map(list)
ADDRESSES = st.fixed_dictionaries({"a.example.": SETS, "b.example.": SETS, "c.other.": SETS})


def srv(*records: SrvRecord, ttl: int = 30) -> SrvSet:
    """Build the set of one owner."""
    return SrvSet(OWNER, records, ttl, asked=0.0)


def addresses(*literals: str, ttl: int = 30) -> list[AddressSet]:
    """Build one set of addresses."""
    return [AddressSet(literals, ttl, asked=0.0)]


@given(RECORDS, ADDRESSES)
def test_each_record_meets_each_address(records: list[SrvRecord], found: dict[str, list[AddressSet]]) -> None:
    """An answer has each record with each distinct address of its target, in both families, and nothing else."""
    servers = build_answer(srv(*records), found).servers

    assert list(servers) == sorted(
        RealServer(record.priority, address, record.port, record.weight)
        for record in records
        if record.target != "."
        for address in {parse_address(text) for one in found[record.target] for text in one.addresses}
    )


@given(RECORDS, ADDRESSES, st.randoms(use_true_random=False))
def test_order_does_not_matter(records: list[SrvRecord], found: dict[str, list[AddressSet]], random: Random) -> None:
    """A server that rotates its records gives equal answers."""
    rotated = list(records)
    random.shuffle(rotated)

    assert build_answer(srv(*rotated), found) == build_answer(srv(*records), found)


def test_families_and_fields_are_carried() -> None:
    """Priority, weight (including 0) and port of a record apply to every address of its target."""
    found = {"a.example.": addresses("10.0.0.7", "fd00::7")}

    servers = build_answer(srv(SrvRecord(7, 0, 31001, "a.example.")), found).servers

    assert [(server.priority, server.weight, server.port) for server in servers] == [(7, 0, 31001)] * 2
    assert {format_address(server.address) for server in servers} == {"10.0.0.7", "fd00::7"}
    assert [is_ipv4(server.address) for server in servers].count(True) == 1


def test_dot_target_is_none() -> None:
    """The target "." needs no address, whatever its port, and gives no server (RFC 2782)."""
    only = srv(SrvRecord(0, 0, 0, "."))

    assert targets(only) == ()
    assert build_answer(only, {}).servers == ()


def test_targets_are_named_once() -> None:
    """A target of several records is looked up once."""
    several = srv(*(SrvRecord(0, 0, port, "a.example.") for port in range(1, 9)), SrvRecord(0, 0, 1, "b.example."))

    assert targets(several) == ("a.example.", "b.example.")


def test_port_zero_names_the_record() -> None:
    """A record with port 0 is left out and reported as in the zone, and its target is not queried."""
    records = srv(SrvRecord(0, 0, 1, "b.example."), SrvRecord(10, 5, 0, "a.example."))

    assert targets(records) == ("b.example.",)
    (left_out,) = build_answer(records, {"b.example.": addresses("10.0.0.1")}).left_out
    assert "'10 5 0 a.example.'" in left_out.value


@given(RECORDS, ADDRESSES, st.sets(st.tuples(st.sampled_from(["a.example.", "b.example.", "c.other."]), st.booleans())))
def test_what_cannot_be_had_costs_nobody_else(
    records: list[SrvRecord], found: dict[str, list[AddressSet]], failing: set[tuple[str, bool]]
) -> None:
    """Failed sets are `unread`, one for each of their records, and all others are as without them."""
    sets = {
        name: [
            Unavailable("SERVFAIL", 5, 0.0, is_ipv4=is_ipv4) if (name, is_ipv4) in failing else one
            for is_ipv4, one in zip((True, False), pair, strict=True)
        ]
        for name, pair in found.items()
    }
    left = {name: [one for one in pair if isinstance(one, AddressSet)] for name, pair in sets.items()}
    needed = {(one.target, one.port, one.priority, one.weight) for one in records if one.target != "."}
    unread = {(*one, is_ipv4) for one in needed for name, is_ipv4 in failing if name == one[0]}
    expected = build_answer(srv(*records), left)
    if unread and not expected.servers:
        with pytest.raises(SourceError, match="SERVFAIL"):
            build_answer(srv(*records), sets)
        return

    answer = build_answer(srv(*records), sets)

    assert answer.servers == expected.servers
    assert {(one.identity, one.port, one.priority, one.weight, one.is_ipv4) for one in answer.unread} == unread
    assert answer.identities == {
        (server.address, server.port): min(
            one.target
            for one in records
            if one.port == server.port
            and one.target != "."
            and format_address(server.address)
            in {text for each in left[one.target] for text in map(normal, each.addresses)}
        )
        for server in answer.servers
    }


def normal(text: str) -> str:
    """Return the form of addresses in these tests."""
    return format_address(parse_address(text))


@pytest.mark.parametrize("literal", ["10.0.0", "", "host", "fe80::1%eth0"])
def test_bad_address_fails(literal: str) -> None:
    """An answer whose only address is invalid fails, and the error names the target."""
    with pytest.raises(SourceError, match=r"a\.example\."):
        build_answer(srv(SrvRecord(0, 0, 1, "a.example.")), {"a.example.": addresses(literal)})


def test_mapped_aaaa_fails() -> None:
    """An IPv4-mapped AAAA record alone fails the answer: it would add an IPv6 answer to the IPv4 pool."""
    with pytest.raises(SourceError, match=r"::ffff:10\.0\.0\.1"):
        build_answer(srv(SrvRecord(0, 0, 1, "a.example.")), {"a.example.": addresses("::ffff:10.0.0.1")})


def test_too_many_records_fail() -> None:
    """More records than a pool can have are rejected before any look-up."""
    with pytest.raises(SourceError, match="65537"):
        targets(srv(*[SrvRecord(0, 0, 1, "a.example.")] * (MAX_RECORDS + 1)))


def test_too_many_servers_fail() -> None:
    """Records times addresses are counted before they are built, so that a small message cannot fill the memory."""
    records = [SrvRecord(0, 0, port, "a.example.") for port in range(1, 1 + 60_000)]
    literals = [f"10.0.{i // 256}.{i % 256}" for i in range(4_000)]

    with pytest.raises(SourceError, match=rf"more than {MAX_POOL}"):
        build_answer(srv(*records), {"a.example.": addresses(*literals)})


@given(SETS, BOUNDS, CHANCE)
def test_part_lasts_within_its_bounds(parts: list[AddressSet], bounds: tuple[float, float], chance: float) -> None:
    """A part is valid for its TTL or up to a tenth less, within the bounds; in its last tenth it is not used again."""
    least, most = bounds
    for part in parts:
        end = lasts(part, bounds, chance)
        early = part.asked + min(part.ttl, most) * (1 - JITTER)

        assert part.asked + least <= end <= part.asked + most
        assert early <= end <= part.asked + max(part.ttl, least)
        assert is_good(part, bounds, part.asked)
        assert not is_good(part, bounds, end)


@given(RECORDS, ADDRESSES, TTL, BOUNDS, CHANCE)
def test_next_round_is_when_the_first_part_ends(
    records: list[SrvRecord],
    found: dict[str, list[AddressSet]],
    ttl: int,
    bounds: tuple[float, float],
    chance: float,
) -> None:
    """No part of an answer is used after its time, and the next round does not start before a part may be queried."""
    of_records = srv(*records, ttl=ttl)

    parts: list[SrvSet | AddressSet] = [of_records, *(part for parts in found.values() for part in parts)]

    due = next_round(parts, bounds, chance)

    assert all(due <= lasts(part, bounds, 0.0) for part in parts)
    assert any(due >= lasts(part, bounds, 1.0) for part in parts)


def test_names_are_asked_for_at_the_same_times() -> None:
    """Answers with the same TTL from different times are queried again at a few times, all within the jitter."""
    clock = [1000 + number / 100 for number in range(3000)]

    due = [
        next_round([SrvSet(OWNER, (), 30, asked)], (1.0, 60.0), chance=number % 10 / 10)
        for number, asked in enumerate(clock)
    ]

    assert len(set(due)) <= 17
    assert all(asked + 27 <= at <= asked + 30 for asked, at in zip(clock, due, strict=True))


def test_many_questions_stretch_the_pause() -> None:
    """With TTL 0 an answer that takes 1,200 queries is queried every 6 s, not every second; the maximum holds."""
    assert pause(1200, (1.0, 60.0)) == 6.0
    assert pause(41, (1.0, 60.0)) == 1.0
    assert pause(1_000_000, (1.0, 60.0)) == 60.0
