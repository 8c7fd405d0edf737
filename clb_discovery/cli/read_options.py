"""From a parsed command line to `Options`, by way of the configuration file that it names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clb_discovery.cli.parser import make_parser
from clb_discovery.config.file import decode
from clb_discovery.config.options import Options, make_options
from clb_discovery.config.values import Entry
from clb_discovery.errors import UsageError
from clb_discovery.text import without_passwords


def read_options(typed: argparse.Namespace, environment: Mapping[str, str]) -> Options:
    """Return the options of a command and of its file, if any; raises UsageError that names the file and the error."""
    if "config" not in typed:
        return make_options(vars(typed), {}, (), environment)
    given, entries = _read_file(typed.config)
    return make_options(vars(typed), given, entries, environment)


def _read_file(path: Path) -> tuple[Mapping[str, Any], list[Entry]]:
    """Return the options in a file, checked as those of `run`, by the names of their fields, and its services."""
    try:
        config = decode(path.read_bytes())
        given = make_parser().parse_args(["run", *config.arguments])
    except OSError as error:
        fix = "--config takes a TOML file"
        if isinstance(error, PermissionError):
            fix = "the user who runs this, in its units clb-discovery, must be able to read it"
        raise UsageError(f"cannot read {path}: {error.strerror}; {fix}") from None
    except (ValueError, UsageError) as error:
        raise UsageError(without_passwords(f"{path}: {error}")) from None  # status and the log repeat it
    return vars(given), [replace(entry, place=f"{path}: {entry.place}") for entry in config.entries]
