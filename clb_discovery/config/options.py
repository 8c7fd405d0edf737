"""The options of a command: what is typed, and behind it what the configuration file says."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from clb_discovery.config.file import Config, Entry, decode
from clb_discovery.errors import UsageError
from clb_discovery.text import without_passwords

_NOT_IN_A_FILE: Final = frozenset({"command", "config", "once", "service"})
"""What `run` has that is no option, or that no file says; services are tables."""


def read_options(make_parser: Callable[[], argparse.ArgumentParser], arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line, and the configuration file that it names.

    :param arguments: with the command in front.
    :returns: the options, with the `entries` of the file, and `reread`, which reads everything again.
    :raises UsageError: naming the option, or the file and what is wrong in it.
    """
    parser = make_parser()
    options = _parse(parser, arguments)
    entries: Sequence[Entry] = ()
    if getattr(options, "config", None):
        config = _read_config(parser, options.config)
        entries = [replace(entry, place=f"{options.config}: {entry.place}") for entry in config.entries]
        behind = [argument for name, argument in config.arguments if _counts(name, options)]
        options = parser.parse_args([arguments[0], *behind, *arguments[1:]])
    options.entries = entries
    options.reread = partial(read_options, make_parser, arguments)
    return options


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Read what was typed.

    :raises UsageError: which names options that nobody knows, and not their values, since these may be secrets.
    """
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        names = [word.partition("=")[0] for word in unknown if word.startswith("-")] or unknown[:1]
        token = "; --consul-token-file FILE reads a token" if any("token" in name for name in names) else ""
        raise UsageError(f"unrecognized arguments: {' '.join(names)}{token}; see {parser.prog} --help")
    return options


def file_options(parser: argparse.ArgumentParser) -> dict[str, bool]:
    """Return the options that may stand in a file, by their names, and whether each is repeatable."""
    known = vars(parser.parse_args(["run"]))
    names = {name.replace("_", "-"): isinstance(value, list) for name, value in known.items()}
    return {name: many for name, many in names.items() if name not in _NOT_IN_A_FILE}


def _read_config(parser: argparse.ArgumentParser, path: Path) -> Config:
    """Read a file, and make sure that `run` takes each of its options, whichever command it is for."""
    try:
        config = decode(path.read_bytes(), file_options(parser))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; --config takes a TOML file") from None
    except ValueError as error:
        raise UsageError(without_passwords(f"{path}: {error}")) from None  # which status and the log repeat
    for _, argument in config.arguments:
        try:
            parser.parse_args(["run", argument])
        except UsageError as error:
            raise UsageError(without_passwords(f"{path}: {error}")) from None
    for name in config.off:
        try:
            parser.parse_args(["run", f"--{name}"])
        except UsageError:
            raise UsageError(f"{path}: {name} = false: takes a value; leave it out for its default") from None
    return config


def _counts(name: str, typed: argparse.Namespace) -> bool:
    """Tell whether an option of the file counts for this command.

    What is typed comes last and wins by that; but what can be repeated would add up, so it shuts out the file's.
    """
    attribute = name.replace("-", "_")
    return hasattr(typed, attribute) and not (isinstance(found := getattr(typed, attribute), list) and found)
