"""Keys of a terminal, one by one."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from clb_discovery.terminal import view

_KEY: Final = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)
"""A sequence, of a terminal in either mode of its cursor keys, or one character."""
_CURSOR: Final = {"A": view.UP, "B": view.DOWN, "H": view.HOME, "F": view.END}
"""By the last letter of the sequence, which comes after `ESC [` or, in the other mode, `ESC O`."""
_NAMES: Final = {
    "\x1b": view.ESCAPE,
    "\r": view.ENTER,
    "\n": view.ENTER,
    "\x7f": view.BACKSPACE,
    "\b": view.BACKSPACE,
    "\x1b[5~": view.PAGE_UP,
    "\x1b[6~": view.PAGE_DOWN,
    "\x1b[1~": view.HOME,
    "\x1b[4~": view.END,
    **{f"\x1b{mode}{letter}": name for mode in "[O" for letter, name in _CURSOR.items()},
}


class Keyboard:
    """The keys of standard input, or none."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @property
    def exists(self) -> bool:
        """Return whether there are keys to read."""
        return self._descriptor is not None

    def read(self, timeout: float) -> list[str]:
        """Wait for keys for so many seconds, and return their names; characters are their own."""
        if self._descriptor is None:
            time.sleep(timeout)
            return []
        if not select.select([self._descriptor], [], [], timeout)[0]:
            return []
        read = os.read(self._descriptor, 4096)
        if not read:  # the terminal is gone
            self._descriptor = None
        return keys(read.decode(errors="ignore"))


def keys(text: str) -> list[str]:
    """Return the names of the keys that a terminal has sent; unknown sequences are kept, and mean nothing."""
    return [_NAMES.get(found, found) for found in _KEY.findall(text)]


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Read keys without waiting for Enter while the block runs. Ctrl-C and its like stay what they are."""
    try:
        descriptor = sys.stdin.fileno()
        in_front = os.tcgetpgrp(descriptor) == os.getpgrp()
        before = termios.tcgetattr(descriptor)
    except (AttributeError, ValueError, OSError, termios.error):  # closed, or no terminal
        in_front = False
    if not in_front:
        yield Keyboard(None)
        return
    tty.setcbreak(descriptor, termios.TCSANOW)
    try:
        yield Keyboard(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
