"""Netlink messages byte by byte, the filter by a model of the kernel's interpreter, and which sockets are due."""

from __future__ import annotations

import errno
import struct
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clb_discovery.datapath.sockets import sock_diag
from clb_discovery.datapath.sockets.sock_diag import Family, FoundSocket, Part, Peer, State
from clb_discovery.layout import elements, structs
from clb_discovery.model.address import MAPPED_PREFIX, is_ipv4, parse_address
from clb_discovery.model.servers import Protocol, RealServer, Vip
from tests.support.strategies import ADDRESS, PORT

VIP: Final = Vip(parse_address("10.64.0.1"), 6379, Protocol.TCP)
SERVER: Final = RealServer(0, parse_address("10.0.0.7"), 31001, 1)
MEMBER: Final = elements.pack_member(elements.pack_vip(VIP), SERVER)
RECORD: Final = structs.STORED.struct.pack(
    5 << 1, structs.SOCKET.struct.pack(1, MEMBER, 3, 2, bytes(2), 0, 1, *[0] * 7)
)
IDENTITY: Final = bytes.fromhex(
    "c350 7919"  # ports 50000 and 31001
    "0a000001 00000000 00000000 00000000"
    "0a000007 00000000 00000000 00000000"
    "00000000"
    "0102030405060708"  # cookie
)
MAPPED_IDENTITY: Final = bytes.fromhex(
    "c350 791900000000 00000000 0000ffff 0a00000100000000 00000000 0000ffff 0a000007000000000102030405060708"
)
FOUND: Final = FoundSocket(Family.IPV4, Protocol.TCP, State.ESTABLISHED, 77, IDENTITY, MEMBER)
PEERS: Final = st.builds(
    Peer, ADDRESS | st.sampled_from([parse_address("10.0.0.7"), parse_address("fd00::7")]), PORT | st.just(80)
)


def host32(number: int) -> bytes:
    """Return 32 bits in the byte order of the host."""
    return struct.pack("=I", number)


def host16(*numbers: int) -> bytes:
    """Return 16 bits each in the byte order of the host."""
    return struct.pack(f"={len(numbers)}H", *numbers)


def attribute(kind: int, payload: bytes) -> bytes:
    """Return a netlink attribute, padded to 4 bytes."""
    return host16(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def message(kind: int, flags: int, payload: bytes) -> bytes:
    """Return a netlink message."""
    return host32(16 + len(payload)) + host16(kind, flags) + host32(1) + host32(0) + payload


def socket_message(found: FoundSocket, *, record: bytes | None = RECORD, flags: int = 2, more: bytes = b"") -> bytes:
    """Return the kernel's message about a socket, with more attributes around the record."""
    attributes = attribute(8, b"\0") + attribute(15, bytes(4)) + more
    if record is not None:
        value = attribute(2, host32(5)) + attribute(1, b"") + attribute(3, record)
        attributes += attribute(0x8000 | 20, attribute(0x8000 | 1, value))
    head = bytes([found.family, found.state, 0, 0]) + found.identity + bytes(16) + host32(found.inode)
    return message(20, flags, head + attributes + attribute(22, bytes(3)))


def accepts(code: bytes, family: Family, peer: Peer) -> bool:
    """Tell whether a filter accepts a socket, in the way of inet_diag_bc_run in the kernel."""
    address = peer.address[12:] if family is Family.IPV4 else peer.address
    position, left = 0, len(code)
    while left > 0:
        operation, yes, no = struct.unpack_from("=BBH", code, position)
        holds = False
        if operation == 8:
            wanted, prefix, port = struct.unpack_from("=BBxxi", code, position + 4)
            pattern = code[position + 12 : position + 12 + prefix // 8]
            same = address if wanted == family else address[12:] if peer.address.startswith(MAPPED_PREFIX) else b""
            holds = port == peer.port and pattern == same and (wanted, family) != (Family.IPV6, Family.IPV4)
        else:
            assert operation == 1, "a jump is the only other instruction"
        step = yes if holds else no
        position += step
        left -= step
    return left == 0


def filter_of(request: bytes) -> bytes:
    """Return the filter in a request."""
    attributes = request[16 + 56 :]
    while attributes:
        size, kind = struct.unpack_from("=HH", attributes)
        if kind == 1:
            return attributes[4:size]
        attributes = attributes[(size + 3) & ~3 :]
    return b""


def test_a_question_for_one_ipv4_peer_is_these_bytes() -> None:
    """A dump has the states, the descriptor of the map with our records, and the peer."""
    request = sock_diag.dump_request(Family.IPV4, Protocol.TCP, {Peer(SERVER.address, SERVER.port)}, 9)
    assert request == (
        host32(104) + host16(20, 0x301) + host32(1) + host32(0)
        + bytes([2, 6, 0, 0]) + host32(0b1_0011_0110) + bytes(48)
        + host16(12, 0x8002) + host16(8, 1) + host32(9)
        + host16(20, 1) + bytes([8, 16]) + host16(20) + bytes([2, 32, 0, 0]) + host32(31001) + bytes([10, 0, 0, 7])
    )  # fmt: skip


def test_a_question_for_udp_asks_for_connected_sockets() -> None:
    """A connected UDP socket has the state ESTABLISHED; unconnected ones are not requested."""
    request = sock_diag.dump_request(Family.IPV6, Protocol.UDP, {Peer(SERVER.address, SERVER.port)}, 9)
    assert request[16:24] == bytes([10, 17, 0, 0]) + host32(0b10)


def test_an_order_to_close_repeats_the_identity_with_its_cookie() -> None:
    """The identity of the socket is sent back to the kernel byte by byte."""
    assert sock_diag.destroy_request(FOUND) == (
        host32(72) + host16(21, 0x5) + host32(1) + host32(0) + bytes([2, 6, 0, 0]) + host32(0b10) + IDENTITY
    )


@given(st.sets(PEERS, min_size=1, max_size=12), PEERS, st.sampled_from(Family))
def test_the_filter_accepts_exactly_the_peers(peers: set[Peer], other: Peer, family: Family) -> None:
    """A socket is accepted if and only if its peer is requested, also in mapped form."""
    code = filter_of(sock_diag.dump_request(family, Protocol.TCP, peers, 9))
    for peer in {*peers, other}:
        if family is Family.IPV6 or is_ipv4(peer.address):
            assert accepts(code, family, peer) == (peer in peers)


def test_many_peers_are_asked_for_without_a_filter() -> None:
    """Above the limit, the kernel returns every connected socket, because a filter costs time for each peer."""
    peers = [Peer(SERVER.address, port) for port in range(1, sock_diag.MAX_FILTERED + 2)]
    assert filter_of(sock_diag.dump_request(Family.IPV4, Protocol.TCP, peers, 9)) == b""
    code = filter_of(sock_diag.dump_request(Family.IPV4, Protocol.TCP, peers[:-1], 9))
    assert all(accepts(code, Family.IPV4, peer) for peer in peers[:-1])
    assert not accepts(code, Family.IPV4, peers[-1])


def test_sockets_are_read_with_their_records() -> None:
    """One datagram has several sockets: with a record, without one, and with a longer record than ours."""
    without, more = FOUND._replace(member=None), FOUND._replace(inode=0)
    data = socket_message(FOUND) + socket_message(without, record=None) + socket_message(more, record=RECORD + b"more")
    assert sock_diag.parse(data, Protocol.TCP) == Part([FOUND, without, more], None, interrupted=False)


@pytest.mark.parametrize("record", [b"", MEMBER, RECORD[:-1]])
def test_a_value_too_small_for_a_record_is_nobody_s(record: bytes) -> None:
    """The value of another storage map makes no socket due."""
    (found,) = sock_diag.parse(socket_message(FOUND, record=record), Protocol.TCP).sockets
    assert not sock_diag.is_due(found, {MEMBER})


def test_storage_of_others_is_no_record() -> None:
    """An answer with an empty list of storages has no record."""
    data = socket_message(FOUND, record=None, more=attribute(0x8000 | 20, b""))
    assert sock_diag.parse(data, Protocol.TCP).sockets == [FOUND._replace(member=None)]


@pytest.mark.parametrize(("kind", "payload"), [(3, bytes(4)), (2, bytes(20))])
def test_an_answer_ends_well(kind: int, payload: bytes) -> None:
    """The end of a dump and an acknowledgement are errno 0, and later messages are not read."""
    data = socket_message(FOUND) + message(kind, 2, payload) + b"behind"
    assert sock_diag.parse(data, Protocol.TCP) == Part([FOUND], 0, interrupted=False)


@pytest.mark.parametrize("kind", [2, 3])
def test_an_answer_ends_with_an_error(kind: int) -> None:
    """A refusal and an aborted dump have the errno."""
    data = message(kind, 0, struct.pack("=i", -errno.EPERM) + bytes(16))
    assert sock_diag.parse(data, Protocol.UDP) == Part([], errno.EPERM, interrupted=False)


def test_a_doubtful_dump_is_noticed_on_any_message() -> None:
    """The kernel can mark any message, not only the last."""
    data = socket_message(FOUND, flags=0x12) + socket_message(FOUND)
    assert sock_diag.parse(data, Protocol.TCP).interrupted


def test_a_message_that_means_nothing_here_is_passed_over() -> None:
    """Messages of other types, such as NLMSG_NOOP, are skipped."""
    assert sock_diag.parse(message(1, 0, b"") + socket_message(FOUND), Protocol.TCP).sockets == [FOUND]


@given(st.integers(1, len(socket_message(FOUND)) - 1))
def test_an_answer_that_is_cut_off_is_an_error(size: int) -> None:
    """A truncated socket is an error."""
    with pytest.raises(ValueError, match="netlink"):
        sock_diag.parse(socket_message(FOUND)[:size], Protocol.TCP)


@given(
    st.binary(max_size=200)
    | st.binary(max_size=150).map(lambda junk: message(20, 2, junk))
    | st.binary(max_size=80).map(lambda junk: socket_message(FOUND, record=None, more=junk))
)
@example(message(20, 2, bytes(72) + host16(3, 20)))
@example(message(3, 0, b""))
def test_junk_is_an_error_or_an_answer(junk: bytes) -> None:
    """Parsing arbitrary bytes ends, and raises nothing but ValueError."""
    try:
        part = sock_diag.parse(junk, Protocol.TCP)
    except ValueError:
        return
    assert all(len(found.identity) == 48 for found in part.sockets)


@pytest.mark.parametrize(("family", "identity"), [(Family.IPV4, IDENTITY), (Family.IPV6, MAPPED_IDENTITY)])
def test_the_peer_of_either_family_is_an_address_in_one_form(family: Family, identity: bytes) -> None:
    """IPv4 is mapped, for IPv4 and for dual-stack sockets."""
    found = FOUND._replace(family=family, identity=identity)
    assert found.peer == Peer(SERVER.address, SERVER.port)
    assert sock_diag.is_due(found, {MEMBER})


@pytest.mark.parametrize("state", State)
def test_a_socket_that_its_application_holds_is_due_in_every_state(state: State) -> None:
    """Also a half-closed socket, because the application may still wait for the answer."""
    assert sock_diag.is_due(FOUND._replace(state=state), {MEMBER})


@pytest.mark.parametrize("state", [State.FIN_WAIT1, State.FIN_WAIT2])
def test_what_the_application_has_closed_is_left_alone(state: State) -> None:
    """The kernel still delivers data that was sent before the close."""
    assert not sock_diag.is_due(FOUND._replace(state=state, inode=0), {MEMBER})


OTHER_VIP: Final = elements.pack_member(elements.pack_vip(VIP._replace(port=6380)), SERVER)
UDP_VIP: Final = elements.pack_member(elements.pack_vip(VIP._replace(protocol=Protocol.UDP)), SERVER)
OTHER_PORT: Final = elements.pack_member(elements.pack_vip(VIP), SERVER._replace(port=31002))
OTHER_ADDRESS: Final = elements.pack_member(elements.pack_vip(VIP), SERVER._replace(address=parse_address("10.0.0.8")))
REFUSAL: Final = elements.refusal(elements.pack_vip(VIP))


@pytest.mark.parametrize("member", [None, b"", MEMBER[:39], bytes(40), OTHER_VIP, OTHER_PORT, OTHER_ADDRESS])
def test_without_the_record_of_a_removed_server_nothing_is_due(member: bytes | None) -> None:
    """A socket that is connected directly, or through another virtual server, keeps its connection."""
    assert not sock_diag.is_due(FOUND._replace(member=member), {MEMBER})


@pytest.mark.parametrize("member", [OTHER_PORT, OTHER_ADDRESS, UDP_VIP, REFUSAL])
def test_with_another_real_peer_or_protocol_nothing_is_due(member: bytes) -> None:
    """A record that the socket itself contradicts is stale."""
    assert not sock_diag.is_due(FOUND._replace(member=member), {member})


def test_peers_are_those_of_the_protocol() -> None:
    """The refusal of an empty pool has no peer."""
    members = [MEMBER, OTHER_VIP, OTHER_ADDRESS, UDP_VIP, REFUSAL]
    assert sock_diag.peers_of(members, Protocol.TCP) == {
        Peer(SERVER.address, SERVER.port),
        Peer(parse_address("10.0.0.8"), SERVER.port),
    }
    assert sock_diag.peers_of(members, Protocol.UDP) == {Peer(SERVER.address, SERVER.port)}
