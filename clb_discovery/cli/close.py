"""`close`: close sockets on behalf of an unprivileged sidecar."""

from __future__ import annotations

import argparse
import sys

from clb_discovery.datapath import closer, seccomp


def main(_: argparse.Namespace) -> int:
    """Answer the request on standard input."""
    seccomp.confine()
    return closer.serve(sys.stdin.buffer, sys.stdout.buffer)
