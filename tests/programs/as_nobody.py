"""Run `clb-discovery` as an ordinary user. Modules are loaded first, because maybe only root can read the checkout.

Usage: as_nobody.py [ARGUMENT...]
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Final

import clb_discovery
from clb_discovery.cli.main import main

NOBODY: Final = 65534

if __name__ == "__main__":
    for module in pkgutil.walk_packages(clb_discovery.__path__, "clb_discovery."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    sys.exit(main())
