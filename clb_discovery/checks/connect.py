"""Connects to real servers: whose fault a failed one is, and how the application behind them does not notice one.

A connect that fails in the call itself was not sent: this host has no route, no permission, no descriptor or no port
for it. What comes later is an answer, if it is a reset, silence, or an ICMP message. The kernel keeps ICMP messages in
the error queue of the socket (IP_RECVERR in ip(7)), with the host that has sent them. Those of this host come from its
own rules, such as REJECT of iptables, with one exception: if a neighbour does not answer ARP or neighbour discovery,
the kernel sends itself that the host is unreachable, and then it is not this host that is at fault.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from clb_discovery.model.address import Address, format_address, is_ipv4

_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close(2) resets the connection
_ANSWERS: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT})
"""Errors of a connect that is under way without an ICMP message: a reset, or silence."""
_FROM_HERE: Final = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC, errno.ECONNABORTED})
"""Errors of an established connection, or of waiting for one, that come from this host: epoll_ctl(2) returns ENOSPC if
the user waits for too many files, and a connection has the last one if another program here has closed it."""

_RECVERR: Final = {  # of linux/in.h and linux/in6.h
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}
_REPORT: Final = struct.Struct("=IBBBxII")  # struct sock_extended_err of linux/errqueue.h
_SENDER: Final = {  # where struct sockaddr_in and sockaddr_in6, which follow, have the address
    socket.AF_INET: slice(_REPORT.size + 4, _REPORT.size + 8),
    socket.AF_INET6: slice(_REPORT.size + 8, _REPORT.size + 24),
}
_HOST_UNREACHABLE: Final = {socket.AF_INET: (3, 1), socket.AF_INET6: (1, 3)}  # type and code (RFC 792, RFC 4443)
_UNCONNECTED: Final = frozenset({2, 7})  # TCP_SYN_SENT and TCP_CLOSE; struct tcp_info begins with the state
_ROOM: Final = 512  # bytes for a report and its sender


class OwnFaultError(OSError):
    """A failure of this host, and not of the server or the network."""


def endpoint(address: Address, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the family and the address of a real server as sockets take them."""
    return socket.AF_INET if is_ipv4(address) else socket.AF_INET6, (format_address(address), port)


def open_socket(family: socket.AddressFamily) -> socket.socket:
    """Return a TCP socket that never blocks.

    :raises OwnFaultError: if there is none.
    """
    try:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise _own_fault(error.errno or errno.EIO) from error


async def connect(sock: socket.socket, name: tuple[str, int]) -> None:
    """Connect a socket of `open_socket`. The caller limits the time.

    :raises OwnFaultError: if this host could not send it.
    :raises OSError: if the server refuses it, or the network reports that it cannot be reached.
    """
    level, option = _RECVERR[sock.family]
    try:
        sock.setsockopt(level, option, 1)
        error = sock.connect_ex(name)
    except OSError as failure:
        raise _own_fault(failure.errno or errno.EIO) from failure
    if error not in (0, errno.EINPROGRESS):
        raise _own_fault(error)
    await _writable(sock)
    is_connected = _is_connected(sock)  # first: a connect that ends meanwhile has an error
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error or not is_connected:
        raise _failure(error, sock)
    if _is_to_itself(sock):
        raise _error(errno.ECONNREFUSED)
    sock.setsockopt(level, option, 0)  # else an ICMP message ends an established connection


async def tcp_connect(address: Address, port: int) -> None:
    """Connect and reset, which is SYN, SYN-ACK and RST on the wire: the application of the server learns nothing of it.

    The kernel delays the ACK, so that the reset of close(2) comes first (TCP_QUICKACK in tcp(7)). HAProxy's checks do
    the same.

    :raises OSError: as `connect`.
    """
    family, name = endpoint(address, port)
    with open_socket(family) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        except OSError as error:
            raise _own_fault(error.errno or errno.EIO) from error
        await connect(sock, name)


def is_own_fault(error: OSError) -> bool:
    """Tell whether this host is at fault if `connect`, or an established connection, fails with this error."""
    return isinstance(error, OwnFaultError) or not error.errno or error.errno in _FROM_HERE


async def _writable(sock: socket.socket) -> None:
    """Wait until the result of a connect is there."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock)


def _is_connected(sock: socket.socket) -> bool:
    """Tell whether a connect has succeeded: its socket counts as writable in any case.

    The kernel puts an ICMP message into the error queue, which wakes us, before it notes the error and ends the connect
    (tcp_v4_err). If a system call has the socket at that moment, it does not end the connect at all.
    """
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in _UNCONNECTED


def _is_to_itself(sock: socket.socket) -> bool:
    """Tell whether a socket got the port to which it connects, and so met itself, because nothing listens there."""
    with suppress(OSError):  # it was reset meanwhile
        return bool(sock.getsockname() == sock.getpeername())
    return False


def _failure(error: int, sock: socket.socket) -> OSError:
    """Return the exception for a connect that failed after it was sent; error is 0 if only the error queue has it."""
    reports = list(_reports(sock))
    error = error or next((reported for reported, _ in reports), errno.EIO)
    if any(not is_own for _, is_own in reports) or (error in _ANSWERS and not reports):
        return _error(error)
    return _own_fault(error)


def _reports(sock: socket.socket) -> Iterator[tuple[int, bool]]:
    """Yield the error of each ICMP message in the error queue of a socket, and whether this host is at fault."""
    here = socket.inet_pton(sock.family, sock.getsockname()[0])
    with suppress(OSError):  # the queue is empty
        while True:
            _, found, _, _ = sock.recvmsg(0, _ROOM, socket.MSG_ERRQUEUE)
            for level, kind, data in found:
                if (level, kind) == _RECVERR[sock.family]:
                    error, _, type_, code, _, _ = _REPORT.unpack_from(data)
                    sender = data[_SENDER[sock.family]]
                    yield error, sender == here and (type_, code) != _HOST_UNREACHABLE[sock.family]


def _own_fault(error: int) -> OwnFaultError:
    return OwnFaultError(error, os.strerror(error))


def _error(error: int) -> OSError:
    return OSError(error, os.strerror(error))
