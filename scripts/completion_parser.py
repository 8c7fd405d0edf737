"""The parser of the command line for shtab, which needs to know which values are paths."""

from __future__ import annotations

import argparse
from typing import Final

import shtab

from clb_discovery.cli.parser import make_parser as make_cli_parser

_PATHS: Final = {"FILE": shtab.FILE, "PATH": shtab.FILE, "DIR": shtab.DIRECTORY}
"""The kind of path that a value is, by its metavar."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser with paths marked, and with the options of `run` for a command line without a command."""
    parser = make_cli_parser()
    (commands,) = (action for action in _actions(parser) if isinstance(action.choices, dict))
    assert isinstance(commands.choices, dict)  # noqa: S101 - for mypy
    for command in commands.choices.values():
        for action in _actions(command):
            if action.metavar in _PATHS:
                setattr(action, "complete", _PATHS[str(action.metavar)])  # noqa: B010 - shtab's, unknown to argparse
    for action in _actions(commands.choices["run"]):
        if "--help" not in action.option_strings:
            parser._add_action(action)  # noqa: SLF001 - argparse's `parents` would need the options twice
    return parser


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001 - argparse has no other way to list them
