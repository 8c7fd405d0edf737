"""A request to close sockets, and its answer: the size is bounded before reading, and malformed ones are errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.datapath import close_request
from clb_discovery.datapath.close_request import HEAD, LONGEST_ANSWER, MOST_MEMBERS, Closed
from clb_discovery.layout import elements
from clb_discovery.model.servers import Protocol
from tests.support.strategies import REAL_SERVER, VIP

MEMBERS = st.lists(
    st.builds(lambda vip, server: elements.pack_member(elements.pack_vip(vip), server), VIP, REAL_SERVER)
)
PROTOCOLS = st.sets(st.sampled_from(Protocol), min_size=1)


def split(request: bytes) -> tuple[bytes, bytes]:
    """Return a request in two parts, as it is read: its header and the rest."""
    return request[: HEAD.size], request[HEAD.size :]


@given(MEMBERS, PROTOCOLS)
def test_what_is_asked_is_read(members: list[bytes], protocols: set[Protocol]) -> None:
    """Every member, each protocol and the instance arrive; without members there is no request."""
    requests = [
        close_request.parse_request(*split(one)) for one in close_request.requests("shop@1", members, protocols)
    ]
    assert [member for one in requests for member in one.members] == members
    assert all((one.instance, set(one.protocols)) == ("shop@1", protocols) for one in requests)


def test_many_members_are_several_requests() -> None:
    """Each request has at most the limit of members."""
    member = bytes(16) + b"\0\1\6\0" + bytes(20)
    requests = close_request.requests("default", [member] * (2 * MOST_MEMBERS + 1), [Protocol.TCP])
    assert [len(close_request.parse_request(*split(one)).members) for one in requests] == [
        MOST_MEMBERS,
        MOST_MEMBERS,
        1,
    ]
    assert max(map(len, requests)) < 400_000


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "format is unknown"),
        (b'{"instance": "default", "members": []}', "format is unknown"),
        (b"[" * 2_000_000, "format is unknown"),
        (HEAD.pack(b"CLBC", 2, 1, 0, 0), "version is 2 instead of 1"),
        (HEAD.pack(b"CLBC", 1, 1, 0, MOST_MEMBERS + 1), f"more than {MOST_MEMBERS}"),
        (HEAD.pack(b"CLBC", 1, 1, 0, 0xFFFFFFFF), f"more than {MOST_MEMBERS}"),
    ],
)
def test_head_that_is_none(head: bytes, reason: str) -> None:
    """The header of another version, or of a request that is too long, is an error before the rest is read."""
    with pytest.raises(ValueError, match=reason):
        close_request.length_behind(head)


@pytest.mark.parametrize(
    ("bits", "rest", "reason"),
    [
        (0, bytes(40), "protocol is missing"),
        (4, bytes(40), "missing or unknown"),
        (1, bytes(39), "truncated"),
        (1, bytes(41), "truncated"),
        (1, bytes(40), "Protocol"),
    ],
)
def test_rest_that_is_none(bits: int, rest: bytes, reason: str) -> None:
    """Unknown protocols, invalid members, and too few or too many bytes are errors."""
    with pytest.raises(ValueError, match=reason):
        close_request.parse_request(HEAD.pack(b"CLBC", 1, bits, 0, 1), rest)


@given(
    st.integers(0, 1 << 31),
    st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=40), max_size=9),
    st.integers(0, 1 << 22),
)
def test_what_is_answered_is_read(count: int, failures: list[str], hidden: int) -> None:
    """The numbers arrive, and a line for each failure, without control characters."""
    read = close_request.parse_answer(close_request.answer(Closed(count, tuple(failures), hidden)))
    assert (read.count, read.hidden, len(read.failures)) == (count, hidden, len(failures))
    assert all(failure.isprintable() for failure in read.failures)


def test_answer_is_short() -> None:
    """An answer with many failures still fits the limit."""
    assert len(close_request.answer(Closed(1, ("\x1b" * 10_000,) * 10_000, 1))) < LONGEST_ANSWER
    assert len(close_request.refusal("x" * 100_000)) < LONGEST_ANSWER


@pytest.mark.parametrize(
    "said", [b"", b"\xff", b"closed x y\n", b"closed 1\n", b'{"count": 1}', b"closed -1 0\n", b"\n"]
)
def test_answer_that_is_none_is_a_failure(said: bytes) -> None:
    """A malformed answer counts as nothing closed, and the reason names what to check."""
    read = close_request.parse_answer(said)
    assert (read.count, len(read.failures)) == (0, 1)
    assert "another version" in read.failures[0]


def test_refusal_is_a_failure() -> None:
    """The sidecar reports the reason that the service returns."""
    assert close_request.parse_answer(close_request.refusal("it is of version 2")) == Closed(
        0, ("it is of version 2",), 0
    )
