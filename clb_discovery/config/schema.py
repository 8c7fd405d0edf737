"""The definition of an option: one for the command line, its help and the configuration file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Final, TypeVar

_KEY: Final = "option"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Option:
    """The values that an option takes, and its help."""

    group: Group
    help: str
    metavar: str | None = None
    """What `--help` shows for the value; None for `choices`, and for a switch."""
    parse: Callable[[str], object] = str
    """Reads one value; raises ValueError."""
    choices: tuple[str, ...] = ()
    repeatable: bool = False
    bare: str | None = None
    """The value of the option if it stands alone; None if it needs a value."""
    in_file: bool = True
    """Whether a configuration file may set it."""

    is_table: bool = False
    """Whether a configuration file may have a table: each of its keys and values is one value, `KEY=VALUE`."""
    is_boolean: bool = False
    """Whether its value is true or false, which a configuration file writes without quotes."""

    @property
    def is_switch(self) -> bool:
        """Return whether it never takes a value."""
        return self.metavar is None and not self.choices


@dataclass(frozen=True, slots=True)
class Group:
    """Options under one heading of `--help`. Each method returns a field of a dataclass that defines one option."""

    title: str = ""
    """Options without a title stand under the first heading."""
    description: str | None = None

    def value(  # noqa: PLR0913 - one for each part of a definition
        self,
        default: _T,
        metavar: str,
        parse: Callable[[str], _T],
        text: str,
        *,
        bare: str | None = None,
        in_file: bool = True,
    ) -> _T:
        """Define an option that takes one value; the parser of the value raises ValueError."""
        option = Option(self, text, metavar, parse, bare=bare, in_file=in_file)
        return field(default=default, metadata={_KEY: option})

    def repeatable(  # noqa: PLR0913 - as above
        self,
        metavar: str,
        parse: Callable[[str], _T],
        text: str,
        *,
        default: tuple[_T, ...] = (),
        in_file: bool = True,
        is_table: bool = False,
    ) -> tuple[_T, ...]:
        """Define an option that takes one value each time it is given."""
        option = Option(self, text, metavar, parse, repeatable=True, in_file=in_file, is_table=is_table)
        return field(default=default, metadata={_KEY: option})

    def choice(self, default: _T, choices: tuple[str, ...], text: str) -> _T:
        """Define an option that takes one of these values."""
        return field(default=default, metadata={_KEY: Option(self, text, choices=choices)})

    def boolean(self, text: str, *, default: bool) -> bool:
        """Define an option that takes true or false."""
        option = Option(self, text, "true|false", parse_boolean, is_boolean=True)
        return field(default=default, metadata={_KEY: option})

    def switch(self, text: str, *, in_file: bool = True) -> bool:
        """Define an option without a value."""
        return field(default=False, metadata={_KEY: Option(self, text, in_file=in_file)})


def parse_boolean(text: str) -> bool:
    """Read `true` or `false`; raises ValueError for anything else."""
    if text not in {"true", "false"}:
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def definitions(options: type) -> dict[str, Option]:
    """Return the options that the fields of a dataclass define, by the names that operators type: `eject-after`."""
    defined = ((field.name, field.metadata.get(_KEY)) for field in fields(options))
    return {name.replace("_", "-"): option for name, option in defined if option is not None}
