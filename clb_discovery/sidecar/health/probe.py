"""A probe: a TCP connect to a real server, of which the application there learns nothing."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Final

from clb_discovery.checks.connect import endpoint, hide
from clb_discovery.model.address import Address

LIMIT: Final = 0.6
"""Seconds after which silence is an answer.

The programs suspect a server for a second. On a busy host the sidecar hears of it, and its verdict is written, some
tenths of a second later; a verdict that comes after the suspicion has no effect.
"""
SECOND_TRY: Final = 0.25
"""Seconds until a second SYN, from another port, in case that the network has lost the first one."""

_FROM_THERE: Final = frozenset(
    {
        errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH,
        errno.EHOSTDOWN, errno.ENONET, errno.ENOPROTOOPT, errno.EPROTO, errno.EOPNOTSUPP,
    }
)  # fmt: skip
"""Errors of a connect that is under way, which are answers of the server or of the network (RST and ICMP)."""


class Result(StrEnum):
    """What a probe has found out."""

    UP = "up"
    DOWN = "down"
    LOCAL = "local"
    """Nothing: it failed on this host, such as for lack of a route, of a descriptor or of the permission."""


async def probe(address: Address, port: int, *, twice: bool = True) -> Result:
    """Connect; the first answer decides.

    :param twice: try again if there is no answer soon.
    """
    answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    family, target = endpoint(address, port)
    with _trying(family, target, answer):
        await asyncio.wait([answer], timeout=SECOND_TRY if twice else LIMIT)
        if answer.done() or not twice:
            return answer.result() if answer.done() else Result.DOWN
        with _trying(family, target, answer):
            await asyncio.wait([answer], timeout=LIMIT - SECOND_TRY)
    return answer.result() if answer.done() else Result.DOWN


@contextmanager
def _trying(family: socket.AddressFamily, target: tuple[str, int], answer: asyncio.Future[Result]) -> Iterator[None]:
    """Connect while the block runs; the connection ends as soon as its result is known."""
    loop = asyncio.get_running_loop()
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        _answer(answer, Result.LOCAL)
        yield
        return

    def ready() -> None:  # at once, because the handshake is delayed for a fifth of a second at most
        loop.remove_writer(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        result = _late(error, sock)
        sock.close()
        _answer(answer, result)

    try:
        error = _begin(sock, target)
        if error == errno.EINPROGRESS:
            loop.add_writer(sock, ready)
        else:
            _answer(answer, _early(error))
        yield
    finally:
        if sock.fileno() >= 0:
            loop.remove_writer(sock)
            sock.close()


def _begin(sock: socket.socket, target: tuple[str, int]) -> int:
    try:
        hide(sock)
        return sock.connect_ex(target)
    except OSError as error:
        return error.errno or errno.EIO


def _early(error: int) -> Result:
    """Return the result of a connect that ended in the call itself; only an RST can have been on the way."""
    if error == errno.ECONNREFUSED:
        return Result.DOWN
    return Result.LOCAL if error else Result.UP


def _late(error: int, sock: socket.socket) -> Result:
    if error:
        return Result.DOWN if error in _FROM_THERE else Result.LOCAL
    # Where nothing listens on a port of this host, a socket can get this port and connect to itself.
    with suppress(OSError):  # it was reset meanwhile
        return Result.DOWN if sock.getsockname() == sock.getpeername() else Result.UP
    return Result.UP


def _answer(answer: asyncio.Future[Result], result: Result) -> None:
    if not answer.done():
        answer.set_result(result)
