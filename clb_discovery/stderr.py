"""Lines on standard error: their levels, forms and priorities.

Apart from `log`, because structlog loads asyncio, which is half of the time that a command without a log takes.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import time
import traceback
from contextlib import suppress
from typing import Final, TextIO

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("auto", "console", "json")

PATIENCE: Final = 0.25
"""Seconds to wait for a reader that does not read."""
_SHARE: Final = 0.05  # the part of the time in which a log may wait for its reader

_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)


def priority(level: str) -> str:
    """Return the prefix of a line of this level: `<3>` in the journal, else nothing.

    With it, as sd-daemon(3) describes, `journalctl --priority` works.
    """
    # Compared, because a child whose stderr is redirected inherits the variable (systemd.exec(5)).
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except OSError:
        return ""
    in_journal = os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
    return f"<{_PRIORITIES[level]}>" if in_journal else ""


def described(error: BaseException) -> str:
    """Return an unexpected error and its place in the code, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{error!r}{where}"


def internal_error(error: BaseException) -> str:
    """Return the reason to report for a bug, in one line."""
    return f"internal error: {described(error)}; please report it"


def is_ready(file: TextIO | int, seconds: float) -> bool:
    """Tell whether up to PIPE_BUF bytes can be written without waiting, at the latest after some seconds."""
    poll = select.poll()
    try:
        poll.register(file, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))
    except OSError:  # it has no descriptor, or poll(2) is not allowed: a word too few would be worse
        return True


def say(line: str) -> None:
    """Write a line, unless it cannot be written: a command goes on, and its exit code stays what it is."""
    with suppress(OSError):
        if is_ready(sys.stderr, PATIENCE):
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - for people, and commands have no log


class Lines:
    """Lines to a reader that may be slow, stuck or gone. If it does not read, it gets a moment, and then they are lost.

    A write to a stuck reader would stop the whole program. It can be journald, the log driver of a container, or a
    terminal after Ctrl-S. The moment is for a burst of lines, and is a small part of the time, however slow the reader
    is.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to the file of a stream, or to the stream if it has none."""
        self._stream: TextIO | None = stream
        self._is_torn = False  # whether the last line ends in its middle
        self._patience, self._at = PATIENCE, time.monotonic()
        try:
            descriptor = stream.fileno()
        except OSError:
            return
        self._stream = None
        kind = os.fstat(descriptor).st_mode
        self._encoding = stream.encoding
        self._most = None if stat.S_ISREG(kind) else select.PIPE_BUF  # the most that never waits
        opens_again = stat.S_ISFIFO(kind) or os.isatty(descriptor)
        self._descriptor = _not_blocking(descriptor) if opens_again else descriptor

    def write(self, text: str) -> bool:
        """Write whole lines, or as much as is possible; return whether they are complete."""
        if self._stream:
            self._stream.write(text)
            return True
        whole = ("\n" * self._is_torn + text).encode(self._encoding, "backslashreplace")
        left = whole
        try:
            while left and self._is_ready():
                left = left[os.write(self._descriptor, left[: self._most]) :]
        except OSError:  # its disk is full, its reader has gone, or another process was faster
            pass
        if len(left) < len(whole):
            self._is_torn = bool(left)
        return not left

    def _is_ready(self) -> bool:
        now = time.monotonic()
        patience = min(PATIENCE, self._patience + _SHARE * (now - self._at))
        ready = is_ready(self._descriptor, patience)
        self._at = time.monotonic()
        self._patience = max(0.0, patience - (self._at - now))
        return ready


def _not_blocking(descriptor: int) -> int:
    """Open a pipe or a terminal a second time without blocking: one that is ready may still have too little room.

    O_NONBLOCK of the given descriptor would be that of all other processes that have this file open.
    """
    try:
        own = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{descriptor}", own)
    except OSError:  # it belongs to another user
        return descriptor
