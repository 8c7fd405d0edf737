"""Find and close sockets by netlink: pack requests, parse answers, and decide which sockets are closed.

The messages are those of sock_diag(7); structures and numbers are from linux/netlink.h, linux/sock_diag.h and
linux/inet_diag.h. Numbers are in the byte order of the host; addresses and ports in the identity of a socket are in
network byte order. The identity, `struct inet_diag_sockid`, stays packed, because it is sent back to the kernel.

A dump can include the record in the storage of a TCP socket (SK_STORAGE, Linux 5.7), so that the socket, its real peer
and our record are read at the same time. For UDP the kernel does not include it (inet_sk_diag_fill). A record that is
in a place is in no dump.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from clb_discovery.layout import elements, structs
from clb_discovery.model.address import MAPPED_PREFIX, Address, is_ipv4
from clb_discovery.model.servers import Protocol

MAX_FILTERED: Final = 256
"""Most peers in the filter of a dump; with more peers, the dump returns every connected socket."""


class Family(IntEnum):
    """Address family of a socket, by its number on Linux."""

    IPV4 = 2
    IPV6 = 10


class State(IntEnum):
    """State of a TCP socket that can still serve its application (include/net/tcp_states.h).

    CLOSING, LAST_ACK and TIME_WAIT are not among them: both directions have ended there. A connected UDP socket is
    ESTABLISHED.
    """

    ESTABLISHED = 1
    SYN_SENT = 2
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    CLOSE_WAIT = 8


STATES: Final = {Protocol.TCP: frozenset(State), Protocol.UDP: frozenset({State.ESTABLISHED})}


class Peer(NamedTuple):
    """The other end of a socket."""

    address: Address
    port: int


class FoundSocket(NamedTuple):
    """A socket in a dump."""

    family: int
    protocol: int
    state: int
    inode: int
    """Inode number of the descriptor of the application; 0 after the application has closed it."""
    identity: bytes
    """`struct inet_diag_sockid`: both ends, and the cookie, which is unique until the next boot."""
    member: bytes | None
    """The packed `struct clb_member` in our record of the socket, or None without a record.

    In a dump, it is from the record in socket storage.
    """

    @property
    def peer(self) -> Peer:
        """The other end; IPv4 in mapped form, whatever the family of the socket."""
        _, port, _, address, _, _, _ = _IDENTITY.unpack(self.identity)
        if self.family == Family.IPV4:
            address = MAPPED_PREFIX + address[:4]
        return Peer(Address(address), int.from_bytes(port, "big"))

    @property
    def cookie(self) -> int:
        """The cookie, which identifies the socket until the next boot."""
        *_, low, high = _IDENTITY.unpack(self.identity)
        return int(high << 32 | low)


class Part(NamedTuple):
    """The result of one read."""

    sockets: list[FoundSocket]
    error: int | None
    """None if more will follow. Else the answer has ended with this errno, or with 0 for success."""
    interrupted: bool
    """The tables of the kernel changed meanwhile, so that this dump may be inconsistent (NLM_F_DUMP_INTR)."""


_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST: Final = struct.Struct("=BBBxI48s")  # inet_diag_req_v2: family, protocol, extensions, states, identity
_MESSAGE: Final = struct.Struct("=BBxx48s16xI")  # inet_diag_msg: family, state, identity, inode
_IDENTITY: Final = struct.Struct("=2s2s16s16sIII")  # inet_diag_sockid: ports, addresses (ours first), device, cookie
_ATTRIBUTE: Final = struct.Struct("=HH")  # nlattr: length, type
_ERROR: Final = struct.Struct("=i")  # first of nlmsgerr, and all of the payload of NLMSG_DONE
_CONDITION: Final = struct.Struct(
    "=BBHBBxxi"
)  # inet_diag_bc_op: code, yes, no; inet_diag_hostcond: family, prefix, port
_JUMP: Final = struct.Struct("=BBH")  # inet_diag_bc_op

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
_NLA_F_NESTED, _NLA_TYPE_MASK = 0x8000, 0x3FFF
_REQ_BYTECODE, _REQ_SK_BPF_STORAGES = 1, 2  # INET_DIAG_REQ_*
_REQ_MAP_FD: Final = 1  # SK_DIAG_BPF_STORAGE_REQ_MAP_FD
_PATH_TO_VALUE: Final = (20, 1, 3)  # INET_DIAG_SK_BPF_STORAGES, SK_DIAG_BPF_STORAGE, SK_DIAG_BPF_STORAGE_MAP_VALUE
_BC_JMP, _BC_D_COND = 1, 8  # INET_DIAG_BC_*
_OWNER_AT, _OWNER_SIZE = structs.STORED.offsets()["socket"]
_MEMBER_AT: Final = structs.STORED.offsets()["record"][0] + structs.SOCKET.offsets()["member"][0]


def is_due(found: FoundSocket, members: Collection[bytes]) -> bool:
    """Tell whether a socket has to be closed, because both our record and its real peer show a removed server.

    A record alone can be stale, and a peer alone can belong to a connection that is not ours (cilium #42649, #48564).
    A socket that the application has closed is left to the kernel, which still delivers the data sent before.

    :param members: packed `struct clb_member` of each removed real server.
    """
    if found.member is None or found.member not in members:
        return False
    vip, address, port = elements.unpack_member(found.member)
    is_closed = found.inode == 0 and found.state in {State.FIN_WAIT1, State.FIN_WAIT2}
    return (
        port != 0
        and found.peer == Peer(address, port)
        and found.protocol == elements.unpack_vip(vip).protocol
        and not is_closed
    )


def peers_of(members: Iterable[bytes], protocol: Protocol) -> frozenset[Peer]:
    """Return the peers of sockets that are connected to these packed members."""
    parts = map(elements.unpack_member, members)
    return frozenset(
        Peer(address, port) for vip, address, port in parts if port and elements.unpack_vip(vip).protocol == protocol
    )


def dump_request(family: Family, protocol: Protocol, peers: Collection[Peer], storage_map: int | None) -> bytes:
    """Return the request for all sockets in `STATES` that are connected to a peer, with their records.

    The answer may contain sockets of other peers.

    :param peers: not empty.
    :param storage_map: descriptor of the SK_STORAGE map in the requesting process; None for no records.
    """
    states = sum(1 << state for state in STATES[protocol])
    request = _REQUEST.pack(family, protocol, 0, states, bytes(_IDENTITY.size))
    wanted = b""
    if storage_map is not None:
        map_ = _attribute(_REQ_MAP_FD, struct.pack("=I", storage_map))
        wanted += _attribute(_NLA_F_NESTED | _REQ_SK_BPF_STORAGES, map_)
    if len(peers) <= MAX_FILTERED:
        wanted += _attribute(_REQ_BYTECODE, _any_of(peers))
    return _message(_SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, request + wanted)


def destroy_request(found: FoundSocket) -> bytes:
    """Return the request to close exactly this socket; a later one with the same ends has another cookie."""
    request = _REQUEST.pack(found.family, found.protocol, 0, 1 << found.state, found.identity)
    return _message(_SOCK_DESTROY, _NLM_F_ACK, request)


def parse(data: bytes, protocol: Protocol) -> Part:
    """Parse the messages of one datagram from the kernel.

    :param protocol: the protocol of the request; the answer does not repeat it.
    :raises ValueError: if the datagram is cut off or malformed.
    """
    sockets: list[FoundSocket] = []
    interrupted = False
    for kind, flags, start, end in _messages(data):
        interrupted |= bool(flags & _NLM_F_DUMP_INTR)
        if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
            return Part(sockets, _errno(data, start, end), interrupted)
        if kind == _SOCK_DIAG_BY_FAMILY:
            sockets.append(_socket(data, start, end, protocol))
    return Part(sockets, None, interrupted)


def _message(kind: int, flags: int, payload: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(payload), kind, _NLM_F_REQUEST | flags, 1, 0) + payload


def _attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _any_of(peers: Collection[Peer]) -> bytes:
    """Return the filter that accepts a socket connected to any of the peers.

    Each instruction has two jump distances in bytes: if its condition holds, and if not. A jump exactly to the end
    accepts the socket; four bytes past the end rejects it. A condition on an IPv4 address also matches its
    mapped form on an IPv6 socket.
    """
    code = b""
    for peer in sorted(peers, reverse=True):
        address = peer.address[12:] if is_ipv4(peer.address) else peer.address
        family = Family.IPV4 if is_ipv4(peer.address) else Family.IPV6
        size = _CONDITION.size + len(address)
        accept = _JUMP.pack(_BC_JMP, _JUMP.size, _JUMP.size + len(code)) if code else b""
        condition = _CONDITION.pack(_BC_D_COND, size, size + _JUMP.size, family, 8 * len(address), peer.port)
        code = condition + address + accept + code
    return code


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield type, flags, and start and end of the payload of each message."""
    start = 0
    while start < len(data):
        if len(data) - start < _HEADER.size:
            raise ValueError("a netlink header is cut off")
        length, kind, flags, _, _ = _HEADER.unpack_from(data, start)
        if not _HEADER.size <= length <= len(data) - start:
            raise ValueError(f"a netlink message of {length} in {len(data) - start} bytes")
        yield kind, flags, start + _HEADER.size, start + length
        start += _aligned(length)


def _errno(data: bytes, start: int, end: int) -> int:
    if end - start < _ERROR.size:
        raise ValueError("a netlink error is cut off")
    (error,) = _ERROR.unpack_from(data, start)
    return -int(error)


def _socket(data: bytes, start: int, end: int, protocol: Protocol) -> FoundSocket:
    if end - start < _MESSAGE.size:
        raise ValueError("a socket in a netlink answer is cut off")
    family, state, identity, inode = _MESSAGE.unpack_from(data, start)
    return FoundSocket(family, protocol, state, inode, identity, _member(data, start + _MESSAGE.size, end))


def _member(data: bytes, start: int, end: int) -> bytes | None:
    """Return the member in the value of the requested map; None if the record was released."""
    for kind in _PATH_TO_VALUE:
        place = _find_attribute(data, start, end, kind)
        if place is None:
            return None
        start, end = place
    record = data[start:end]
    is_owned = len(record) >= structs.STORED.size and any(record[_OWNER_AT : _OWNER_AT + _OWNER_SIZE])
    return record[_MEMBER_AT : _MEMBER_AT + structs.MEMBER.size] if is_owned else None


def _find_attribute(data: bytes, start: int, end: int, wanted: int) -> tuple[int, int] | None:
    """Return start and end of the payload of the first attribute of a kind."""
    while start < end:
        if end - start < _ATTRIBUTE.size:
            raise ValueError("a netlink attribute is cut off")
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if not _ATTRIBUTE.size <= length <= end - start:
            raise ValueError(f"a netlink attribute of {length} in {end - start} bytes")
        if kind & _NLA_TYPE_MASK == wanted:
            return start + _ATTRIBUTE.size, start + length
        start += _aligned(length)
    return None


def _aligned(length: int) -> int:
    return (length + 3) & ~3
