"""Questions that go to one DNS server at the same moment, one datagram each, from one socket."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final

import dns.inet

from clb_discovery.sources.srv.outline import query

EDNS_PAYLOAD: Final = 1232
"""Bytes of UDP answer we take: one packet on every IPv6 path, so that nothing hangs on fragments (flag day 2020)."""

_TIMEOUT: Final = 1.0
"""Seconds."""
_MOST: Final = 64
"""Questions of one socket, so that all answers fit into its buffer."""


class Burst:
    """The questions that are asked while the event loop goes round once.

    With a socket of its own, each question would cost more for that than for all else. Ids are random, and so is the
    port, as that of a new socket (RFC 5452 section 9); both are gone when the last answer is there.
    """

    def __init__(self, address: str, port: int) -> None:
        """Be open for questions.

        :param address: IPv4 or IPv6 literal of the server.
        :raises OSError: if there is no way there.
        """
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[bytes | None]] = {}
        family = dns.inet.af_for_address(address)
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(dns.inet.low_level_address_tuple((address, port), family))
        except OSError:
            self._socket.close()
            raise
        self.is_open = True
        """Whether it takes more questions."""
        self._loop.add_reader(self._socket, self._receive)
        self._loop.call_soon(self._seal)
        self._timer = self._loop.call_later(_TIMEOUT, self._give_up)

    async def ask(self, question: bytes) -> bytes | None:
        """Send a question; for who finds the burst open.

        :param question: of an `Outline`.
        :return: the first datagram of the server that has its id, whatever else it says; None if none came in time, or
            the server's host refuses datagrams.
        :raises OSError: if it cannot be sent.
        """
        number = int.from_bytes(os.urandom(2))
        while number in self._waiting:
            number = int.from_bytes(os.urandom(2))
        answer: asyncio.Future[bytes | None] = self._loop.create_future()
        self._waiting[number] = answer
        if len(self._waiting) >= _MOST:
            self.is_open = False
        try:
            self._socket.send(query(question, number, EDNS_PAYLOAD))
            return await answer
        finally:
            self._waiting.pop(number, None)
            self._end_if_over()

    def _receive(self) -> None:
        while self._waiting:
            try:
                wire = self._socket.recv(EDNS_PAYLOAD)
            except BlockingIOError:
                return
            except OSError:
                self._give_up()
                return
            answer = self._waiting.pop(int.from_bytes(wire[:2]), None)
            if answer and not answer.done():
                answer.set_result(wire)
        self._end_if_over()

    def _give_up(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None)
        self._waiting.clear()
        self._seal()

    def _seal(self) -> None:
        self.is_open = False
        self._end_if_over()

    def _end_if_over(self) -> None:
        if not self.is_open and not self._waiting and self._socket.fileno() >= 0:
            self._timer.cancel()
            self._loop.remove_reader(self._socket)
            self._socket.close()
