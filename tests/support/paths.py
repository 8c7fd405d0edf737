"""Directories of tests that other users have to reach."""

from __future__ import annotations

import tempfile
from pathlib import Path


def let_others_in(directory: Path) -> None:
    """Let other users walk to a directory below that of temporary files, and read it; pytest makes them private."""
    temporary = Path(tempfile.gettempdir())
    for path in (directory, *directory.parents):
        if path != temporary and path.is_relative_to(temporary):
            path.chmod(0o755)
