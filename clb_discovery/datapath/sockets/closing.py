"""Close sockets that are connected to a removed real server, in every network namespace, by sock_diag(7).

The application notices at once. A read, also a blocked one, fails with ECONNABORTED, and so does a write on TCP, whose
peer gets a reset. A write on UDP fails with EDESTADDRREQ, because the socket is disconnected; it works again after the
next connect. An MPTCP connection loses its subflow; its application notices after net.mptcp.close_timeout.

`sock_diag.is_due` decides which sockets are closed, from our record of the socket and its real peer. The request to
close identifies the socket by both ends and its cookie, so that a socket that was reconnected or recycled meanwhile is
never closed.

Closing requires CAP_NET_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY. `records` and `namespaces` describe what
reading records and entering other network namespaces require.
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
"""Size of a read in bytes; the kernel fills at most 32 KiB."""
_PASSES: Final = 64
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})
_NONE: Final[Mapping[Protocol, Path]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Destroyed:
    """The result of closing."""

    count: int
    failures: frozenset[str]
    """Reasons why some sockets may still be open, each once."""
    hidden: int
    """Number of processes whose network namespace we cannot read; without CAP_SYS_PTRACE that can be most of them."""


class Diag:
    """Lists and closes the sockets of one network namespace."""

    def __init__(self, namespace: int) -> None:
        """Open two netlink sockets in the namespace: one reads dumps while the other closes sockets.

        :param namespace: descriptor of the namespace; it may be closed afterwards.
        :raises OSError: if we are not allowed to enter it.
        """
        kind = (socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._dumps, self._orders = inside(namespace, lambda: [socket.socket(*kind) for _ in range(2)])
        for sock in (self._dumps, self._orders):
            sock.connect((0, 0))  # connected to the kernel, so that no process can send to it

    def close(self) -> None:
        """Close the netlink sockets."""
        self._dumps.close()
        self._orders.close()

    def find(self, protocol: Protocol, peers: Collection[Peer], storage_map: int | None) -> Iterator[FoundSocket]:
        """Yield the sockets of both families that are connected to one of the peers, and possibly others.

        Read it to its end, or close this object. Sockets that are opened or closed meanwhile can be missed, and can
        cause others to be missed or to be yielded twice.

        :param storage_map: descriptor of the SK_STORAGE map with our records, or None for sockets without records.
        :raises HostError: if the kernel cannot list them, or we are not allowed to read the records.
        """
        for family in Family:
            reachable = [peer for peer in peers if family is Family.IPV6 or is_ipv4(peer.address)]
            if reachable:
                yield from self._dump(family, protocol, reachable, storage_map)

    def destroy(self, found: FoundSocket) -> bool:
        """Close a socket.

        :returns: whether it was found; one that is gone or connected elsewhere is left alone.
        :raises HostError: if the kernel cannot close sockets, or we are not allowed to.
        :raises OSError: if the kernel refuses to close this one.
        """
        self._orders.send(sock_diag.destroy_request(found))
        error = sock_diag.parse(self._orders.recv(_BUFFER), Protocol(found.protocol)).error
        if error == errno.EOPNOTSUPP:
            raise HostError(
                f"this kernel ({os.uname().release}) cannot close sockets of other processes; it needs "
                "CONFIG_INET_DIAG_DESTROY"
            )
        if error == errno.EPERM:
            raise HostError("not allowed to close sockets of other processes; run as root, or with CAP_NET_ADMIN")
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

    Nothing is raised: a socket that cannot be closed does not stop the others, and is reported. New connects must not
    reach the removed servers any more.

    :param members: packed `struct clb_member` of each removed real server.
    :param protocols: the protocols whose sockets are closed.
    :param pinned: iterators over records in socket storage, for a process without the privilege to create one.
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
                    except HostError as error:  # every other namespace would fail in the same way
                        failures.add(str(error))
                        searches.remove(search)
                    except OSError as error:
                        failures.add(f"network namespace {inode}: {error.strerror}")
        except OSError as error:  # no descriptor left to look for namespaces
            failures.add(f"cannot look for network namespaces: {error.strerror}")
    return Destroyed(count, frozenset(failures), namespaces.hidden)


class _Search(NamedTuple):
    """The sockets to close of one protocol."""

    protocol: Protocol
    peers: Collection[Peer]
    removed: frozenset[bytes]
    stored: int | None
    """Descriptor of the map with socket storage, if the dump has to return the records."""
    members: Mapping[int, bytes]
    """The packed member of each socket with a record, by cookie; the dump returns those of other TCP sockets."""
    records: StoredRecords | None
    """The reader of records in socket storage, if the dump does not return them."""

    def read(self, namespace: int, failures: set[str]) -> _Search:
        """Return this search with the records in socket storage of a namespace added; add failures to the set.

        A record in a place takes precedence: the socket storage may have an older record of the same socket.
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
        """Whether there is nothing to find."""
        return self.stored is None and self.removed.isdisjoint(self.members.values())

    def finds(self, found: FoundSocket) -> bool:
        """Tell whether a socket has to be closed."""
        member = self.members.get(found.cookie, found.member)
        return sock_diag.is_due(found._replace(member=member), self.removed)


def _search(
    protocol: Protocol,
    removed: frozenset[bytes],
    placed: Placed,
    failures: set[str],
    stored: tuple[int, Mapping[Protocol, Path], ExitStack],
) -> list[_Search]:
    """Return the search for one protocol, or nothing if there is nothing to find; add failures to the set.

    :param stored: the map with socket storage, pinned iterators over it, and the stack that closes their reader.
    """
    map_, pinned, stack = stored
    peers = sock_diag.peers_of(removed, protocol)
    if not peers:
        return []
    is_shown = protocol is Protocol.TCP and protocol not in pinned  # the dump returns them
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
    """Close the due sockets of one namespace; return their number, and add failures to the set.

    :raises HostError: if the kernel or our privileges do not allow it in any namespace.
    :raises OSError: if we are not allowed to enter this one.
    """
    search = search.read(namespace, failures)
    if search.is_vain:
        return 0
    with closing(Diag(namespace)) as diag:
        return _close_all(diag, search, failures)


def _close_all(diag: Diag, search: _Search, failures: set[str]) -> int:
    """Close the due sockets; return their number, and add failures to the set.

    A dump keeps its position by counting, so it skips sockets if some are closed meanwhile. Of several UDP sockets with
    the same two ends (SO_REUSEPORT), the kernel finds one at a time. So the dump is repeated until nothing is due.
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
    failures.add(f"{search.protocol.name} sockets keep connecting to removed servers")
    return count


def _cannot_list(protocol: Protocol, error: int) -> HostError:
    if error == errno.ENOENT:
        return HostError(
            f"this kernel ({os.uname().release}) cannot list {protocol.name} sockets; it needs "
            f"CONFIG_INET_{protocol.name}_DIAG, as a module {protocol.name.lower()}_diag on most distributions"
        )
    if error == errno.EPERM:
        return HostError(NOT_ALLOWED)
    return HostError(f"the kernel does not list {protocol.name} sockets: {os.strerror(error)}")
