#!/usr/bin/env python3
"""Print the manual page: contrib/man/clb-discovery.1.in with the texts of the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from clb_discovery import __version__
from clb_discovery.cli.help_texts import EXAMPLES, EXIT_CODES, VALUES
from clb_discovery.cli.parser import make_parser
from clb_discovery.config.options import OPTIONS

FOLDER: Final = Path(__file__).parents[1] / "contrib" / "man"
WIDTH: Final = 72  # of a line that is not wrapped


def manual() -> str:
    """Return the page in the language of man(7). It has each option once."""
    commands = make_parser().commands
    parts = {
        "VERSION": _escaped(__version__),
        "COMMANDS": _items((_bold(name), command.description or "") for name, command in commands.items()),
        "OPTIONS": "\n".join((*_options_of_run(commands["run"]), *_other_options(commands))),
        "VALUES": _items((_italic(name), text) for name, text in VALUES.items()),
        "CONFIG": _escaped((FOLDER / "example.toml").read_text().rstrip()),
        "EXAMPLES": "\n".join(_examples()),
        "EXIT_CODES": _items((_bold(str(code)), text) for code, text in EXIT_CODES.items()),
    }
    page = (FOLDER / "clb-discovery.1.in").read_text()
    return re.sub(r"@([A-Z_]+)@", lambda found: parts[found[1]], page)


def _options_of_run(run: argparse.ArgumentParser) -> Iterator[str]:
    for group in run._action_groups:  # noqa: SLF001 - argparse has no other way to list them
        actions = group._group_actions  # noqa: SLF001 - as above
        if actions:
            yield f".SS {group.title}\n{_escaped(group.description or '')}".rstrip()
            yield _items((_tag(action), _help(action)) for action in actions)


def _other_options(commands: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    """Yield the options that `run` does not have, each with the commands that have it."""
    users: dict[str, list[str]] = {}
    actions: dict[str, argparse.Action] = {}
    for name, command in commands.items():
        for action in command._actions:  # noqa: SLF001 - as above
            option = action.option_strings[-1] if action.option_strings else ""
            if option and option.removeprefix("--") not in {*OPTIONS, "help"}:
                users.setdefault(option, []).append(name)
                actions.setdefault(option, action)
    yield ".SS other commands"
    yield _items((_tag(action), f"{', '.join(users[name])}: {_help(action)}") for name, action in actions.items())


def _examples() -> Iterator[str]:
    """Yield the examples of the program, and one of each command on which to look further."""
    for comment, line in (*EXAMPLES[""], *(EXAMPLES[command][0] for command in ("load", "plan", "check", "trace"))):
        both = f"{line}  # {comment}"
        yield _escaped(both if len(both) <= WIDTH else f"# {comment}\n{line}")


def _items(items: Iterable[tuple[str, str]]) -> str:
    """Return paragraphs that begin with a tag."""
    return "\n".join(f".HP 4\n{tag} \\ {_escaped(text)}" for tag, text in items)


def _tag(action: argparse.Action) -> str:
    """Return the names of an option, and its value."""
    value = "|".join(action.choices) if action.choices and not action.metavar else str(action.metavar or "")
    value = f"[{value}]" if action.nargs == "?" else value
    return f"{', '.join(map(_bold, action.option_strings))} {_italic(value)}".removesuffix(f" {_italic('')}")


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")


def _bold(text: str) -> str:
    return rf"\fB{_escaped(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{_escaped(text)}\fR"


def _escaped(text: str) -> str:
    r"""Return text that means itself in roff: without `\`, hyphens, and dots and quotes at the beginning of a line."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga").replace("'", r"\(aq")
    return re.sub(r"^(?=\.)", r"\\&", text, flags=re.MULTILINE)


if __name__ == "__main__":
    print(manual(), end="")
