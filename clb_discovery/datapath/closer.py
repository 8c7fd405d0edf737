"""Ask a privileged service to close sockets of removed real servers on behalf of an unprivileged sidecar.

Closing sockets of other processes requires CAP_NET_ADMIN, which also allows changing routes, addresses and firewalls:
too much for a process that talks to the network. So the systemd units have a separate service for it, started for each
request (`Accept=yes`). It closes sockets only by the rule of `sockets.closing`: the record and the peer must agree. It
does not trust the request: members that are in a pool now are refused. The format is in `close_request`.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Collection
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Final

from clb_discovery.datapath import close_request as wire
from clb_discovery.datapath.close_request import Closed, Request
from clb_discovery.datapath.maps import Maps
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets.closing import Destroyed, close_sockets
from clb_discovery.errors import ClbError, UsageError
from clb_discovery.model.servers import Protocol

SOCKET: Final = Path("/run/clb-discovery-close.sock")
"""The socket of the service; the group of the sidecar can connect to it."""
_PATIENCE: Final = 60.0
"""Seconds to wait for an answer."""
_REQUEST_WITHIN: Final = 10.0
"""Seconds within which a whole request must arrive."""
_DISCARD_WITHIN: Final = 1.0
_BUFFER: Final = 1 << 16
_MOST_DISCARDED: Final = 1 << 20


async def ask(instance: str, members: Collection[bytes], protocols: Collection[Protocol]) -> Destroyed:
    """Request the closing of sockets, and wait for it; as `close_sockets`, this raises nothing.

    The service compares the members with the pools of that moment.

    :param members: packed `struct clb_member` of each removed real server.
    """
    count, failures, hidden = 0, set[str](), 0
    for request in wire.requests(instance, members, protocols):
        try:
            closed = wire.parse_answer(await _answer_to(request))
        except OSError as error:  # TimeoutError is one
            closed = Closed(0, (error.strerror or str(error) or type(error).__name__,), 0)
        count += closed.count
        failures.update(closed.failures)
        hidden = max(hidden, closed.hidden)
    said = (f"{SOCKET}: {failure}; see: systemctl status 'clb-discovery-close*'" for failure in failures)
    return Destroyed(count, frozenset(said), hidden)


async def _answer_to(request: bytes) -> bytes:
    said = b""
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_unix_connection(SOCKET)
        with closing(writer):
            writer.write(request)
            writer.write_eof()
            while len(said) < wire.LONGEST_ANSWER and (part := await reader.read(_BUFFER)):
                said += part
    return said


def serve(question: IO[bytes], answer: IO[bytes]) -> int:
    """Answer one request.

    :param question: the stream of the request, from its beginning.
    :returns: the exit code.
    :raises UsageError: if the request is malformed, after an answer with the reason.
    :raises HostError: if the maps are missing, after an answer with the reason.
    """
    try:
        said = wire.answer(_carried_out(_read(question.fileno())))
    except ClbError as error:
        _say(answer, wire.refusal(str(error)))
        _discard(question.fileno())
        raise
    _say(answer, said)
    return 0


def _carried_out(request: Request) -> Closed:
    with Maps(Pins(request.instance), handed_over=True) as maps:
        published = maps.published(request.members)
        members = set(request.members) - published
        closed = close_sockets(members, maps.records(), protocols=request.protocols, pinned=maps.record_iterators())
    failures = sorted(closed.failures)
    if published:
        failures.append(f"{len(published)} of {len(request.members)} real servers are in a pool, and were left alone")
    return Closed(closed.count, tuple(failures), closed.hidden)


def _read(question: int) -> Request:
    until = time.monotonic() + _REQUEST_WITHIN
    try:
        head = _received(question, wire.HEAD.size, until)
        return wire.parse_request(head, _received(question, wire.length_behind(head), until))
    except ValueError as error:
        raise UsageError(
            f"malformed close request: {error}; the sidecar of this version sends it to {SOCKET}"
        ) from None


def _received(fd: int, size: int, until: float) -> bytes:
    """Read this many bytes, or fewer if the stream ends.

    :param until: the deadline, on the monotonic clock.
    :raises ValueError: if it passes before.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    received = b""
    while len(received) < size:
        if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
            raise ValueError(f"it did not arrive within {_REQUEST_WITHIN:.0f} s")
        part = os.read(fd, min(size - len(received), _BUFFER))
        if not part:
            break
        received += part
    return received


def _discard(fd: int) -> None:
    """Read and discard the rest of the request: if it stays unread, the kernel discards our answer (unix(7))."""
    with suppress(ValueError):
        until = time.monotonic() + _DISCARD_WITHIN
        for _ in range(_MOST_DISCARDED // _BUFFER):
            if not _received(fd, _BUFFER, until):
                return


def _say(answer: IO[bytes], said: bytes) -> None:
    answer.write(said)
    answer.flush()
