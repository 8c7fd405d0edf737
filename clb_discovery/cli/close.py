"""`close`: close sockets on behalf of an unprivileged sidecar."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from typing import Final

from clb_discovery.datapath import closer, seccomp
from clb_discovery.errors import UsageError

_BY_HAND: Final = (
    "close is not for the command line: its unit clb-discovery-close.socket starts it for each request of an "
    f"unprivileged sidecar at {closer.SOCKET}, to close sockets of removed servers; start the unit: "
    "systemctl start clb-discovery-close.socket"
)


def main(_: argparse.Namespace) -> int:
    """Answer the request on standard input; raises UsageError if that is no socket."""
    if sys.stdin is None or not stat.S_ISSOCK(os.fstat(sys.stdin.fileno()).st_mode):
        raise UsageError(_BY_HAND)
    seccomp.confine()
    return closer.serve(sys.stdin.buffer, sys.stdout.buffer)
