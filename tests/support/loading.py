"""The loader that tests load the data plane with: the default, or what `pytest --loader` says."""

from __future__ import annotations

import os
from typing import Final

from clb_discovery.datapath.loading.loader import Loader

LOADER_VARIABLE: Final = "CLB_TEST_LOADER"
"""Carries the option of pytest to here; also to programs of tests that run as processes of their own."""


def loader_of_tests() -> Loader:
    """Return the loader."""
    return Loader(os.environ.get(LOADER_VARIABLE, Loader.AUTO))


def loading() -> tuple[str, str]:
    """Return the options of a command line that loads."""
    return ("--loader", str(loader_of_tests()))
