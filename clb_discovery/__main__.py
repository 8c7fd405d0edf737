"""`python -m clb_discovery`, the same as the `clb-discovery` command."""

from __future__ import annotations

import sys

from clb_discovery.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
