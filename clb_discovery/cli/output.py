"""Standard output whose reader may go away."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
