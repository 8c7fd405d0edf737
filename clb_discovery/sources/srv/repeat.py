"""A question asked again: one datagram each way, as long as the answer is the same."""

from __future__ import annotations

from clb_discovery.sources.srv.nameservers import DatagramNameserver
from clb_discovery.sources.srv.outline import Outline


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

    async def ask(self, server: DatagramNameserver) -> int | None:
        """Ask one server; `is_promising` tells afterwards whether it said the same.

        :return: the seconds that the answer holds, if it is the same, else None.
        """
        self.is_promising = False
        if self._last is None:
            return None
        try:
            wire = await server.exchange(self._last.question)
            ttl = self._last.holds(wire) if wire else 0
        except (OSError, ValueError):
            return None
        self.is_promising = ttl > 0
        return ttl or None
