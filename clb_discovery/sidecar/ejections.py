"""Ejections of real servers and their returns, for the log.

The programs eject servers without the sidecar, and their ring buffer is for `trace` alone. So the sidecar looks: one
system call reads the counters of all servers, and two fields of each are compared, without decoding any. If they are
as before, nothing else happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

import structlog

from clb_discovery.documents.causes import cause_of
from clb_discovery.layout import elements, structs
from clb_discovery.layout.elements import Server
from clb_discovery.layout.installed import Installed, Published
from clb_discovery.model.address import format_endpoint
from clb_discovery.model.servers import Vip

LEAST_PAUSE: Final = 1.0
"""Least seconds between two looks; the main loop comes by every two seconds, or sooner."""
_SELDOM: Final = 200  # the next look comes after this many times the duration of the last one, if that is longer
_MOST: Final = 32  # lines of one look

_SIZE: Final = structs.SERVER.size
_UNTIL: Final = structs.SERVER.offsets()["ejected_until"][0] // 8  # its place among the 64-bit words of a server
_TIMES: Final = structs.SERVER.offsets()["times_ejected"][0] // 2  # its place among the 16-bit words

_WORDS: Final = {"silent": "unanswered", "timed-out": "timed out"}
"""Causes that read better in other words."""

_log = structlog.stdlib.get_logger()


class _Found(NamedTuple):
    """A real server with a field that has changed."""

    vip: Vip
    published: Published
    member: bytes
    server: Server
    times_before: int

    @property
    def service(self) -> str | None:
        """The name of its service."""
        return self.published.label.service if self.published.label else None

    @property
    def name(self) -> str:
        """Its address and port."""
        _, address, port = elements.unpack_member(self.member)
        return format_endpoint(address, port)


class Ejections:
    """Remembers which real servers are ejected."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock  # returns nanoseconds of CLOCK_MONOTONIC, which the programs use
        self._installed: Installed | None = None
        self._ejects = False  # whether any virtual server of it ejects
        self._until = memoryview(b"").cast("Q")  # `ejected_until` of all servers, by index
        self._times = memoryview(b"").cast("H")  # `times_ejected` likewise
        self._out: dict[bytes, int | None] = {}  # packed members that are out, and since when; None: not known
        self._looked: int | None = None
        self._next_look = 0.0

    def is_due(self, installed: Installed) -> bool:
        """Tell whether to look now. There is no need while no virtual server ejects."""
        if installed is not self._installed:
            self._installed = installed
            self._ejects = any(one.health and one.health.eject_after for one in installed.virtual.values())
        return (self._ejects or bool(self._out)) and time.monotonic() >= self._next_look

    def look(self, installed: Installed, read: Callable[[int], bytes]) -> None:
        """Log the servers that were ejected or returned since the previous look; those ejected at the first look, too.

        :param read: returns the elements of the first indexes of `clb_servers`, not decoded.
        """
        began, now = time.monotonic(), self._clock()
        raw = read(installed.top)
        until, times = memoryview(raw).cast("Q")[_UNTIL :: _SIZE // 8], memoryview(raw).cast("H")[_TIMES :: _SIZE // 2]
        if until != self._until or times != self._times:
            lines = [line for found in self._changed(installed, raw, until, times) for line in self._lines(found, now)]
            for line in lines[:_MOST]:
                line()
            if len(lines) > _MOST:
                _log.warning("more servers ejected or returned", count=len(lines) - _MOST)
            self._until, self._times = until, times
            self._out = {member: since for member, since in self._out.items() if _is_in_pool(member, installed)}
        self._looked = now
        self._next_look = began + max(LEAST_PAUSE, _SELDOM * (time.monotonic() - began))

    def _changed(
        self, installed: Installed, raw: bytes, until: memoryview[int], times: memoryview[int]
    ) -> Iterator[_Found]:
        known = len(self._until)
        changed = {
            index: self._times[index] if index < known else 0
            for index in range(len(until))
            if index >= known or until[index] != self._until[index] or times[index] != self._times[index]
        }
        for vip, published in installed.virtual.items():
            for member, index in published.servers.items():
                if index in changed:
                    server = elements.unpack_server(raw[index * _SIZE : (index + 1) * _SIZE])
                    yield _Found(vip, published, member, server, changed[index])

    def _lines(self, found: _Found, now: int) -> Iterator[Callable[[], None]]:
        """Yield a function for each line about a server, which logs it."""
        member, server, vip = found.member, found.server, str(found.vip)
        is_out, was_out = bool(server.ejected_until), member in self._out
        missed = self._looked is not None and server.times_ejected > found.times_before and not is_out
        if not was_out and (is_out or missed):
            self._out[member] = self._since(server)
            yield partial(
                _log.warning,
                "server ejected",
                service=found.service,
                vip=vip,
                server=found.name,
                cause=self._cause(server),
                probe_in=_seconds(server.ejected_until - now) if is_out else None,
                ejections=server.times_ejected,
            )
        if not is_out and member in self._out:
            since, back = self._out.pop(member), server.changed_at or now
            out_for = None if since is None else _seconds(back - since)
            yield partial(
                _log.info, "server returned", service=found.service, vip=vip, server=found.name, out_for=out_for
            )

    def _cause(self, server: Server) -> str:
        """Return what the kernel knows of the cause: a server that has returned has no failures in a row."""
        cause = f"{server.in_row} failed connects in a row" if server.in_row else "failed connects"
        last = cause_of(server.cause)
        if last:
            cause += f", the last one {_WORDS.get(last, last)}"
        return cause if self._looked is not None else f"{cause}, before this sidecar started"

    def _since(self, server: Server) -> int | None:
        """Return when a server was ejected, which is after the previous look; None if there was none."""
        if self._looked is None or not server.ejected_until:
            return self._looked
        return max(self._looked, server.changed_at)


def _is_in_pool(member: bytes, installed: Installed) -> bool:
    published = installed.virtual.get(elements.unpack_vip(elements.unpack_member(member)[0]))
    return published is not None and member in published.servers


def _seconds(nanoseconds: int) -> float:
    return round(max(nanoseconds, 0) / 1e9, 1)
