"""Run `clb-discovery` as an ordinary user. Modules are loaded first, because maybe only root can read the checkout.

Usage: as_nobody.py [ARGUMENT...]
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Final

import dns.asyncbackend
import dns.rdtypes

import clb_discovery
from clb_discovery.cli.main import main

NOBODY: Final = 65534

if __name__ == "__main__":
    for package in (clb_discovery, dns.rdtypes):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    dns.asyncbackend.get_backend("asyncio")  # loads a module
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    sys.exit(main())
