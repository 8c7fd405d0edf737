"""Directories of tests that other users have to reach."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def directory_for_all() -> Iterator[Path]:
    """Make a directory of root that other users can enter and read, while the block runs.

    Those of pytest are private, and each start of another pytest makes them private again.
    """
    with tempfile.TemporaryDirectory(prefix="clb-test-") as made:
        path = Path(made)
        path.chmod(0o755)
        yield path
