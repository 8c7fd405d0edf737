"""The real sidecar, which leaves services without any answer less time before it takes over from another layout.

Usage: hasty_sidecar.py SECONDS ARGUMENT...
"""

from __future__ import annotations

import sys

from clb_discovery.cli import main
from clb_discovery.sidecar import readiness

if __name__ == "__main__":
    readiness.ALL_WITHIN = float(sys.argv[1])  # type: ignore[misc]  # a test would take more than a minute
    sys.exit(main.main(sys.argv[2:]))
