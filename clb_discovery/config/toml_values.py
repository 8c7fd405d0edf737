"""Read the values of a configuration file: one text, several texts, or a number.

Every error names the key, the value and how to fix it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeVar

from clb_discovery.text import did_you_mean, nearest

_LONGEST_SHOWN: Final = 200
_LARGEST: Final = 1 << 64
"""Far above every valid number. Python refuses to print numbers of thousands of digits."""

_Parsed = TypeVar("_Parsed")


def text(key: str, value: object) -> str:
    """Return a string, or a number as an operator would type it; raises ValueError for anything else."""
    if isinstance(value, list):
        raise ValueError(f"{key} = {shown(value)}: needs one value, not an array")  # noqa: TRY004 - as all
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key} = {shown(value)}: is neither text nor a number; write it in quotes")  # noqa: TRY004
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"{key} = {shown(value)}: is too large")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{key} = {shown(value)}: contains a NUL character; remove it")
    return str(value)


def texts(key: str, value: object) -> list[str]:
    """Return the texts of an array, or a single text as the only one; raises as `text`."""
    return [text(key, item) for item in value] if isinstance(value, list) else [text(key, value)]


def pairs(key: str, table: Mapping[str, object]) -> list[str]:
    """Return the keys and values of a table as `KEY=VALUE`; raises as `text`."""
    return [f"{name}={text(f'{key}, {shown(name)}', value)}" for name, value in table.items()]


def boolean(key: str, value: object) -> bool:
    """Return true or false; raises ValueError for anything else."""
    if not isinstance(value, bool):
        raise ValueError(f"{key} = {shown(value)}: is neither true nor false")  # noqa: TRY004 - as all
    return value


def number(table: Mapping[str, object], key: str, default: int, most: int) -> int:
    """Return an integer of a table, from 0 to `most`; raises ValueError for anything else."""
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{key} = {shown(value)}: is not a number from 0 to {most}")
    return value


def parsed(key: str, parse: Callable[[str], _Parsed], value: object) -> _Parsed:
    """Return the result of a parser for one text; raises as `text` and the parser do, with the key in front."""
    found = text(key, value)
    try:
        return parse(found)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def refuse_unknown(keys: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError for an unknown key, naming the nearest known one."""
    for key in keys:
        if key not in known:
            hint = did_you_mean(key, known, f"use {', '.join(known)}")
            raise ValueError(f"unknown key {shown(key)}{hint}")


def refuse_unknown_tables(document: Mapping[str, object], keys: Collection[str], known: str) -> None:
    """Raise ValueError for a table, or an array of tables, whose name is no key; `known` is the name for services."""
    for name, value in document.items():
        if name not in keys and any(isinstance(one, dict) for one in (value if isinstance(value, list) else [value])):
            hint = f"did you mean [[{known}]]?" if nearest(name, [known]) else f"services are [[{known}]] tables"
            raise ValueError(f"unknown table {shown(name)}; {hint}")


def shown(value: object) -> str:
    """Return a value as messages show it: on one line, and shortened."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        return f"{value:#x}"[:_LONGEST_SHOWN]
    try:
        found = repr(value)
    except ValueError:  # a number of thousands of digits inside
        found = f"{type(value).__name__} with a very large number"
    return found if len(found) <= _LONGEST_SHOWN else f"{found[:_LONGEST_SHOWN]}…"
