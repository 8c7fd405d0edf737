"""Notice that a file has changed, without reading it."""

from __future__ import annotations

from pathlib import Path

FileState = tuple[int, ...]
"""Two different values mean that the file has changed, or was replaced."""


def file_state(path: Path) -> FileState:
    """Return the current state of a file; symbolic links are followed.

    Its owner and its mode are part of it: a file may become readable only after it was written.

    :raises OSError: if the file does not exist, or may not be examined.
    """
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
