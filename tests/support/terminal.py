"""A real terminal (pty(7)) for a program, with a size set by the test, and the program's output."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from tests.support.pace import patient

_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
INTERRUPT: Final = b"\x03"
"""Sent by Ctrl-C."""


class Terminal:
    """A program on a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], own: int, side: int, before: object) -> None:
        self.process = process
        self._own = own
        self._side = side  # stays open, so that output and settings can be read after the program's end
        self._before = before
        self.sent = ""

    def read_until(self, pattern: str) -> None:
        """Read until the output matches the pattern without control sequences."""
        deadline = time.monotonic() + patient(30)
        while not re.search(pattern, self.text()):
            assert time.monotonic() < deadline, f"waited in vain for {pattern!r} in {self.sent!r}"
            self._read(0.1)

    def text(self) -> str:
        """Return the output without control sequences."""
        return self.without_control(self.sent)

    @staticmethod
    def without_control(sent: str) -> str:
        """Return a part of the output without control sequences."""
        return _CONTROL.sub("", sent)

    def type(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self._own, keys)

    def end(self) -> int:
        """Wait for the end, read the remaining output, and return the exit code."""
        deadline = time.monotonic() + patient(30)
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    @property
    def is_as_before(self) -> bool:
        """Whether the terminal's settings are those of the moment before the start of the program."""
        return termios.tcgetattr(self._side) == self._before

    def _read(self, timeout: float) -> bool:
        if not select.select([self._own], [], [], timeout)[0]:
            return False
        self.sent += os.read(self._own, 65536).decode()
        return True


@contextmanager
def on_terminal(
    command: Sequence[str], env: Mapping[str, str], columns: int = 120, lines: int = 40
) -> Iterator[Terminal]:
    """Run a program on a terminal, as the leader of its session, while the block runs."""
    own, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    before = termios.tcgetattr(side)
    # setsid(1) makes this the controlling terminal, so that Ctrl-C reaches the program.
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=side, stdout=side, stderr=side, env={**os.environ, **env}
    )
    try:
        yield Terminal(process, own, side, before)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(own)
        os.close(side)
