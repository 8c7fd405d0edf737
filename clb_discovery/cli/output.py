"""Standard streams: a command does its work, and returns its exit code, whether or not anything reads them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def open_closed_streams() -> None:
    """Open /dev/null as each standard stream that is closed.

    Otherwise the next map or socket would get its descriptor, and with it whatever a library or child process writes.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - it has no name
    os.close(descriptor)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - until the end


def discard_output() -> None:
    """Discard buffered output, and all that follows."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def need_not_be_read() -> Iterator[None]:
    """Discard the output that the block writes if its reader has gone, so that the command goes on to its exit code.

    Commands that print until they are interrupted do without: they end together with their reader.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
