"""A log that has a few lines of each event in a burst, and then the number of the others.

When Consul is down, thousands of sources fail within seconds. If each had a line, the journal would drop others.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

MOST: Final = 32
"""Lines of one event in a burst."""
BURST: Final = 10.0
"""Seconds of a burst."""

_log = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Burst:
    until: float = 0.0
    lines: int = 0


class BurstLog:
    """Logs events, but not too many of each at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # returns seconds, and does not go backwards
        self._bursts: defaultdict[str, _Burst] = defaultdict(_Burst)

    def info(self, event: str, **fields: object) -> None:
        """Log an event at this level."""
        self._write(_log.info, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log an event at this level."""
        self._write(_log.warning, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Log an event at this level."""
        self._write(_log.error, event, fields)

    def flush(self) -> None:
        """Log how many lines the bursts that are over have lacked; for the main loop."""
        now = self._clock()
        for event, burst in self._bursts.items():
            if now >= burst.until:
                self._end(event, burst)

    def _write(self, log: Callable[..., None], event: str, fields: dict[str, object]) -> None:
        now, burst = self._clock(), self._bursts[event]
        if now >= burst.until:
            self._end(event, burst)
            burst.until = now + BURST
        burst.lines += 1
        if burst.lines <= MOST:
            log(event, **fields)

    def _end(self, event: str, burst: _Burst) -> None:
        more, burst.lines = burst.lines - MOST, 0
        if more > 0:
            _log.warning("more lines left out", of=event, count=more)
