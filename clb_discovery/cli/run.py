"""`run`: follow discovery in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
from contextlib import suppress

from clb_discovery import log
from clb_discovery.cli.read_options import read_options
from clb_discovery.config.settings import read_settings
from clb_discovery.datapath import seccomp
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.sidecar.daemon import Daemon


def main(typed: argparse.Namespace) -> int:
    """Run the sidecar until it is stopped."""
    environment = dict(os.environ)  # a copy: the Consul client takes its variables out for moments
    options = read_options(typed, environment)
    log.configure(options.log_format, options.log_level)
    _raise_file_limit()
    settings = read_settings(options)
    if options.loader is Loader.NONE:
        seccomp.confine()
    asyncio.run(Daemon(settings, lambda: read_settings(read_options(typed, environment))).run())
    return 0


def _raise_file_limit() -> None:
    """Allow as many descriptors as the host does; only users of select(2), which we are not, need fewer than 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # it stays what it was
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
