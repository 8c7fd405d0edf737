"""The parser of the command line for shtab, which needs to know how values are completed."""

from __future__ import annotations

import argparse
from typing import Any, Final

import shtab

from clb_discovery.cli.command_parser import CommandParser
from clb_discovery.cli.parser import PROGRAM
from clb_discovery.cli.parser import make_parser as make_cli_parser
from clb_discovery.model.servers import Algorithm

_PATHS: Final = {"FILE": shtab.FILE, "PATH": shtab.FILE, "DIR": shtab.DIRECTORY}
"""The kind of path that a value is, by its metavar."""
_CHOICES: Final = {"--algorithm": [str(algorithm) for algorithm in Algorithm]}
"""The choices of options that parse them themselves."""
_WORDS: Final = {"--instance": "instances", "--service": "services"}
"""The words that `complete` prints for options. A service of the kernel's may also be one to follow."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser with completions, and with the options of `run` for a command line without a command."""
    parser = make_cli_parser()
    for command in parser.commands.values():
        for action in _actions(command):
            _complete(action)
            if action.dest == "topic":
                action.choices = [*parser.commands, "values"]
    for action in _actions(parser.commands["run"]):
        if "--help" not in action.option_strings:
            parser._add_action(action)  # noqa: SLF001 - argparse's `parents` would need the options twice
    return parser


def _words(kind: str) -> dict[str, Any]:
    """Return a completion by the words of `complete`, which zsh asks for only when it needs them."""
    command = f"{PROGRAM} complete {kind}"
    found: dict[str, Any] = shtab.cmd(command)
    zsh = f"_clb_discovery_{kind}"
    return {**found, "zsh": zsh, "preamble": {**found["preamble"], "zsh": f"{zsh}() {{ compadd -- $({command}) }}"}}


def _complete(action: argparse.Action) -> None:
    option = action.option_strings[-1] if action.option_strings else ""
    found = _words(_WORDS[option]) if option in _WORDS else _PATHS.get(str(action.metavar))
    action.choices = _CHOICES.get(option, action.choices)
    if found is not None:
        setattr(action, "complete", found)  # noqa: B010 - shtab's, unknown to argparse


def _actions(parser: CommandParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001 - argparse has no other way to list them
