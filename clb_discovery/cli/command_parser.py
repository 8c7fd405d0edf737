"""An argument parser with errors of one line that suggest what was meant, and help in the width of the terminal."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from clb_discovery.errors import UsageError
from clb_discovery.text import did_you_mean


class CommandParser(argparse.ArgumentParser):
    """The parser of the program, or of one of its commands."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - those of argparse
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **settings})
        self.commands: dict[str, CommandParser] = {}
        """The commands that its help lists, by name."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of the end of the process."""
        raise UsageError(self._with_help(message))

    def _print_message(self, message: str, file: TextIO | None = None) -> None:  # type: ignore[override]
        """Print help or version; raises OSError if that fails, which argparse of newer Pythons ignores."""
        print(message, end="", file=file or sys.stderr, flush=True)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]  # noqa: ANN401 - as argparse
        """Parse the arguments; raises UsageError that names unknown options without their values, possibly secrets."""
        typed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            names = [word.partition("=")[0] for word in unknown if word.startswith("-")] or unknown[:1]
            hint = did_you_mean(names[0], self._option_string_actions)
            if any("token" in name for name in names):
                hint = "; --consul-token-file FILE reads a token"
            self.error(f"unrecognized arguments: {' '.join(names)}{hint}")
        return typed, unknown

    def unknown_command(self, name: str) -> UsageError:
        """Return the error for a name that is no command; it suggests the nearest ones, else lists all."""
        hint = did_you_mean(name, self.commands, f"commands are {', '.join(self.commands)}")
        return UsageError(self._with_help(f"unknown command {name!r}{hint}"))

    def _with_help(self, message: str) -> str:
        return f"{message}{' See' if message.endswith('?') else '; see'} {self.prog} --help"

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401 - as argparse
        """Check a value that has choices; raises as `unknown_command`, which leaves out hidden commands."""
        if self.commands and action.choices is not None and value not in action.choices:
            raise self.unknown_command(value)
        super()._check_value(action, value)


class _Formatter(argparse.HelpFormatter):
    """Wraps each paragraph of a description; lines that begin with spaces, such as commands, stay as they are."""

    def add_argument(self, action: argparse.Action) -> None:
        """Leave room for the names of commands, too, which argparse indents after it has measured them."""
        super().add_argument(action)
        if action.nargs == argparse.PARSER:
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            textwrap.indent(paragraph, indent)
            if "\n " in paragraph
            else textwrap.fill(paragraph, width, initial_indent=indent, subsequent_indent=indent)
            for paragraph in text.split("\n\n")
        )
