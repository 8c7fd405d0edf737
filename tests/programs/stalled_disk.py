"""The real sidecar, on a disk that stalls while a file exists.

Usage: stalled_disk.py FILE COMMAND... The command is that of a sidecar.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from clb_discovery.cli import main

if __name__ == "__main__":
    fsync, stalled = os.fsync, Path(sys.argv[1])

    def slow(descriptor: int) -> None:
        """Sync, once the disk responds."""
        while stalled.exists():
            time.sleep(0.01)
        fsync(descriptor)

    os.fsync = slow  # type: ignore[assignment]
    sys.exit(main.main(sys.argv[sys.argv.index("clb_discovery") + 1 :]))
