"""`help`: the help of the program, of a command, or of the values that options take."""

from __future__ import annotations

import argparse

from clb_discovery.cli.parser import make_parser, make_values


def main(typed: argparse.Namespace) -> int:
    """Print it; raises UsageError for an unknown topic."""
    parser = make_parser()
    topics = {"": parser, "values": make_values(), **parser.commands}
    if typed.topic not in topics:
        raise parser.unknown_command(typed.topic)
    topics[typed.topic].print_help()
    return 0
