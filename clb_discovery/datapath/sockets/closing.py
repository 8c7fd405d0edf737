"""Closing sockets that are connected to a removed real server, in every network namespace, by sock_diag(7).

The application learns at once. A read, also one that waits, fails with ECONNABORTED; a write on TCP likewise, and the
peer gets a reset; a write on UDP fails with EDESTADDRREQ, since the socket is disconnected, and works again after its
next connect. An MPTCP connection loses its subflow, which its application learns after net.mptcp.close_timeout.

What may be closed is decided by `sock_diag.is_due`, from our own record of the socket and its real peer. The
order to close names the socket by both ends and its cookie, so that one that was reconnected or recycled meanwhile is
never met.

What reading records takes is in `records`; closing takes CAP_NET_ADMIN, reaching into other network namespaces what
`namespaces` says, and all of it a kernel with CONFIG_INET_DIAG_DESTROY.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from clb_discovery.datapath.sockets import sock_diag
from clb_discovery.datapath.sockets.namespaces import Namespaces, inside
from clb_discovery.datapath.sockets.records import NOT_ALLOWED, Placed, RecordMaps, StoredRecords, placed_records
from clb_discovery.datapath.sockets.sock_diag import Family, FoundSocket, Peer
from clb_discovery.errors import HostError
from clb_discovery.model.address import is_ipv4
from clb_discovery.model.servers import Protocol

_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_BUFFER: Final = 1 << 16
"""Bytes of a read; the kernel fills at most 32 KiB."""
_PASSES: Final = 64
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})
_NONE: Final[Mapping[Protocol, Path]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Destroyed:
    """What closing brought."""

    count: int
    failures: frozenset[str]
    """Why sockets may be left, for people, each reason once."""
    hidden: int
    """Processes whose network namespace we may not see; without CAP_SYS_PTRACE that can be most of them."""


class Diag:
    """Lists and closes the sockets of one network namespace."""

    def __init__(self, namespace: int) -> None:
        """Open netlink sockets there: dumps are read from one while the other closes what they show.

        :param namespace: descriptor of the namespace; it may be closed afterwards.
        :raises OSError: if we may not enter it.
        """
        kind = (socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._dumps, self._orders = inside(namespace, lambda: [socket.socket(*kind) for _ in range(2)])
        for sock in (self._dumps, self._orders):
            sock.connect((0, 0))  # to the kernel, and no process may send to it

    def close(self) -> None:
        """Close the netlink sockets."""
        self._dumps.close()
        self._orders.close()

    def find(self, protocol: Protocol, peers: Collection[Peer], storage_map: int | None) -> Iterator[FoundSocket]:
        """Yield the sockets that are connected to one of the peers, of both families, and perhaps others.

        Read it to its end, or close this. What comes or goes meanwhile can be missed, and make another be missed or
        shown twice.

        :param storage_map: descriptor of the SK_STORAGE map with our records, or None to go without.
        :raises HostError: if the kernel cannot list them, or we may not see the records.
        """
        for family in Family:
            reachable = [peer for peer in peers if family is Family.IPV6 or is_ipv4(peer.address)]
            if reachable:
                yield from self._dump(family, protocol, reachable, storage_map)

    def destroy(self, found: FoundSocket) -> bool:
        """Close a socket.

        :returns: whether it was there; one that is gone, or is connected elsewhere, is left alone.
        :raises HostError: if the kernel cannot close sockets, or we may not.
        :raises OSError: if it refuses to close this one.
        """
        self._orders.send(sock_diag.destroy_request(found))
        error = sock_diag.parse(self._orders.recv(_BUFFER), Protocol(found.protocol)).error
        if error == errno.EOPNOTSUPP:
            raise HostError(
                f"this kernel ({os.uname().release}) cannot close sockets of others; it needs CONFIG_INET_DIAG_DESTROY"
            )
        if error == errno.EPERM:
            raise HostError("not allowed to close sockets of others; run as root, or with CAP_NET_ADMIN")
        if error and error not in _GONE:
            raise OSError(error, os.strerror(error))
        return error == 0

    def _dump(
        self, family: Family, protocol: Protocol, peers: Collection[Peer], storage_map: int | None
    ) -> Iterator[FoundSocket]:
        request = sock_diag.dump_request(family, protocol, peers, storage_map)
        for _ in range(_PASSES):
            self._dumps.send(request)
            part, interrupted = None, False
            while part is None or part.error is None:
                part = sock_diag.parse(self._dumps.recv(_BUFFER), protocol)
                interrupted |= part.interrupted
                yield from part.sockets
            if part.error:
                raise _cannot_list(protocol, part.error)
            if not interrupted:
                return


def close_sockets(
    members: Collection[bytes],
    maps: RecordMaps,
    *,
    protocols: Collection[Protocol],
    pinned: Mapping[Protocol, Path] = _NONE,
) -> Destroyed:
    """Close every socket that is connected to a removed real server, in every network namespace.

    Nothing is raised: what cannot be closed does not keep the rest open, and is told. New connects must not lead to the
    removed servers any more.

    :param members: packed `struct clb_member` of each removed real server.
    :param protocols: those whose sockets are to be closed.
    :param pinned: iterators over the records that are with sockets, for who may not make one.
    """
    removed = frozenset(members)
    try:
        placed = placed_records(maps)
    except HostError as error:
        return Destroyed(0, frozenset({str(error)}), 0)
    failures: set[str] = set()
    count = 0
    namespaces = Namespaces()
    with ExitStack() as stack:
        searches = []
        for protocol in sorted(protocols):
            searches += _search(protocol, removed, placed, failures, (maps.stored, pinned, stack))
        try:
            for inode, namespace in namespaces if searches else ():
                for search in searches.copy():
                    try:
                        count += _close(namespace, search, failures)
                    except HostError as error:  # it would be the same in the next namespace
                        failures.add(str(error))
                        searches.remove(search)
                    except OSError as error:
                        failures.add(f"network namespace {inode}: {error.strerror}")
        except OSError as error:  # not even a descriptor to look for namespaces
            failures.add(f"cannot look for network namespaces: {error.strerror}")
    return Destroyed(count, frozenset(failures), namespaces.hidden)


class _Search(NamedTuple):
    """What to close of one protocol."""

    protocol: Protocol
    peers: Collection[Peer]
    removed: frozenset[bytes]
    stored: int | None
    """Descriptor of the map of records that are with sockets, where the dump has to show them."""
    members: Mapping[int, bytes]
    """Where our records say that sockets were sent, by cookie; of other TCP sockets the dump says it."""
    records: StoredRecords | None
    """Those that are with sockets, where the dump does not show them."""

    def read(self, namespace: int, failures: set[str]) -> _Search:
        """Return the same with what is with the sockets of a namespace, and add why that cannot be read.

        What a place says of a socket counts: with the socket there may still be a record from before it got the place.
        """
        if self.records is None:
            return self
        try:
            found = inside(namespace, self.records.read)
        except HostError as error:
            failures.add(_left(self.protocol, error))
            return self
        due = {cookie: member for cookie, member in found.items() if member in self.removed}
        return self._replace(members={**due, **self.members})

    @property
    def is_vain(self) -> bool:
        """Whether nothing can be found."""
        return self.stored is None and self.removed.isdisjoint(self.members.values())

    def finds(self, found: FoundSocket) -> bool:
        """Tell whether a socket is to be closed."""
        member = self.members.get(found.cookie, found.member)
        return sock_diag.is_due(found._replace(member=member), self.removed)


def _search(
    protocol: Protocol,
    removed: frozenset[bytes],
    placed: Placed,
    failures: set[str],
    stored: tuple[int, Mapping[Protocol, Path], ExitStack],
) -> list[_Search]:
    """Return what there is to look for, if anything, and add why some of it cannot be found.

    :param stored: the map with records that are with sockets, pinned iterators over it, and who closes what reads them.
    """
    map_, pinned, stack = stored
    peers = sock_diag.peers_of(removed, protocol)
    if not peers:
        return []
    is_shown = protocol is Protocol.TCP and protocol not in pinned  # by the dump
    records = None
    if placed.crowded and not is_shown:
        try:
            records = stack.enter_context(closing(StoredRecords(map_, protocol, pinned.get(protocol))))
        except HostError as error:
            failures.add(_left(protocol, error))
    search = _Search(protocol, peers, removed, map_ if is_shown else None, placed.members, records)
    return [] if records is None and search.is_vain else [search]


def _left(protocol: Protocol, error: HostError) -> str:
    return f"some {protocol.name} sockets may be left: {error}"


def _close(namespace: int, search: _Search, failures: set[str]) -> int:
    """Close what is due in one namespace; return how many, and add why others could not be.

    :raises HostError: if the kernel or our privileges do not allow it in any namespace.
    :raises OSError: if we may not enter this one.
    """
    search = search.read(namespace, failures)
    if search.is_vain:
        return 0
    with closing(Diag(namespace)) as diag:
        return _close_all(diag, search, failures)


def _close_all(diag: Diag, search: _Search, failures: set[str]) -> int:
    """Close what is due; return how many, and add why others could not be.

    A dump keeps its place by counting, so closing while it is read makes it skip some, and of several UDP sockets with
    the same two ends (SO_REUSEPORT) the kernel finds one at a time. So it is repeated until there is nothing to close.
    """
    count = 0
    for _ in range(_PASSES):
        closed = 0
        for found in diag.find(search.protocol, search.peers, search.stored):
            if search.finds(found):
                try:
                    closed += diag.destroy(found)
                except OSError as error:
                    failures.add(f"cannot close a {search.protocol.name} socket: {error.strerror}")
        count += closed
        if not closed:
            return count
    failures.add(f"{search.protocol.name} sockets keep connecting to what was removed")
    return count


def _cannot_list(protocol: Protocol, error: int) -> HostError:
    if error == errno.ENOENT:
        return HostError(
            f"this kernel ({os.uname().release}) cannot list {protocol.name} sockets; it needs "
            f"CONFIG_INET_{protocol.name}_DIAG, as a module {protocol.name.lower()}_diag on most distributions"
        )
    if error == errno.EPERM:
        return HostError(NOT_ALLOWED)
    return HostError(f"the kernel refuses to list {protocol.name} sockets: {os.strerror(error)}")
