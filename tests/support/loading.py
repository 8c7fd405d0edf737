"""The loader of the data plane in tests: the default, or the value of `pytest --loader`."""

from __future__ import annotations

import os
from typing import Final

from clb_discovery.datapath.loading.loader import Loader

LOADER_VARIABLE: Final = "CLB_TEST_LOADER"
"""Passes the option of pytest to this module, and to programs of tests that run as processes."""


def loader_of_tests() -> Loader:
    """Return the loader."""
    return Loader(os.environ.get(LOADER_VARIABLE, Loader.AUTO))


def loading() -> tuple[str, str]:
    """Return the options for the command line."""
    return ("--loader", str(loader_of_tests()))
