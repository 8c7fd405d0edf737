"""A question asked again: one datagram each way, as long as the answer is the same."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final

import dns.inet
from dns.nameserver import Do53Nameserver

from clb_discovery.sources.srv.nameservers import EDNS_PAYLOAD
from clb_discovery.sources.srv.outline import Outline, outline, query

_TIMEOUT: Final = 1.0
"""Seconds."""


class Repeat:
    """What one answer said, for who may ask the same again and again.

    Asking again is no way to learn anything but that all is as it was. Whatever else there is, a server that does not
    answer included, is found out by asking in full.
    """

    def __init__(self, last: Outline | None, before: Repeat | None = None) -> None:
        """Take an answer to a question that was asked in full.

        :param last: None where asking by one datagram does not get all of it.
        :param before: of the answer before it. Where asking again was in vain this is not tried until two answers in
            full are the same: a server that gives a random part of its records would be asked twice each time.
        """
        self._last = last
        may_be_same = before is None or before.is_promising or before.said == self.said
        self.is_promising: bool = last is not None and last.ttl > 0 and may_be_same

    @property
    def said(self) -> bytes | None:
        """What the answer said, if asking again gets all of it."""
        return self._last.said if self._last else None

    async def ask(self, server: Do53Nameserver) -> int | None:
        """Ask one server; `is_promising` tells afterwards whether it said the same.

        :return: the seconds that the answer holds, if it is the same, else None.
        """
        self.is_promising = False
        if self._last is None:
            return None
        try:
            async with asyncio.timeout(_TIMEOUT):
                found = await _exchange(self._last.question, server)
        except (OSError, ValueError):  # TimeoutError is an OSError
            return None
        if found.truncated or not found.ttl or found.said != self._last.said:
            return None
        self.is_promising = True
        return found.ttl


async def _exchange(question: bytes, server: Do53Nameserver) -> Outline:
    """Send a question, and return what comes back for it.

    Id and port are other ones each time, and what does not fit them is ignored (RFC 5452 section 9.1).

    :raises OSError: if it cannot be sent, or the server's host refuses it.
    :raises ValueError: if the answer is malformed.
    """
    loop = asyncio.get_running_loop()
    family = dns.inet.af_for_address(server.address)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        asking.connect(dns.inet.low_level_address_tuple((server.address, server.port), family))
        number = os.urandom(2)
        asking.send(query(question, int.from_bytes(number), EDNS_PAYLOAD))
        try:
            while True:
                wire = await loop.sock_recv(asking, EDNS_PAYLOAD)
                if wire.startswith(number):
                    found = outline(wire)
                    if found.question == question:
                        return found
        except asyncio.CancelledError:  # which sock_recv takes note of later, when the number may be another socket's
            loop.remove_reader(asking.fileno())
            raise
